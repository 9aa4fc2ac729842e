"""What Binance's answers mean: limits, bans, blocks and mistakes; asks nothing."""

from __future__ import annotations

import re

import httpx
import msgspec

from tardisd.errors import RequestError
from tardisd.market.time import MILLISECOND, SECOND
from tardisd.venue.budget import Budget
from tardisd.venue.client import (
    COOL_DOWN_SECS,
    FINE,
    Verdict,
    final,
    retry_after,
    usual_verdict,
)
from tardisd.wall import wall_ns

_USED_WEIGHT = "x-mbx-used-weight-1m"
_BANNED_UNTIL = re.compile(r"banned until (\d{13})")
_BAN_SECS = 120.0  # the shortest; for when neither header nor text says how long
_WAF_SECS = 60.0

TOO_MANY = -1003
_PASSING = {-1000, -1001, -1006, -1007, -1008, -1015, -1016, -1034}
_UNKNOWN_SYMBOL, _NO_INTERVAL, _TOO_OLD = -1121, -1120, -4166
_KEY_NEEDED = {-1002, -2014, -2015}

ARCHIVE_HINT = 'older ones are in the archives (data.binance.vision): set archives = "prefer"'


class _Error(msgspec.Struct):
    code: int = 0
    msg: str = ""


class RestJudge:
    """Judges the answers of one REST address, and feeds its budget from their headers."""

    def __init__(self, budget: Budget, limit: str) -> None:
        self._budget = budget
        self._limit = limit

    def __call__(self, answer: httpx.Response, body: bytes) -> Verdict:
        """Return what the answer means."""
        used = answer.headers.get(_USED_WEIGHT, "")
        if used.isdecimal():
            self._budget.observe(self._limit, int(used))
        if answer.status_code == httpx.codes.OK:
            return FINE
        error = _error(body)
        told = f"HTTP {answer.status_code}"
        if error.code or error.msg:
            told += f", {error.code}: {error.msg}"
        if answer.status_code == httpx.codes.UNAVAILABLE_FOR_LEGAL_REASONS or (
            b"restricted location" in body
        ):
            return Verdict(fatal=_blocked(answer))
        if answer.status_code in (418, 429) or error.code == TOO_MANY:
            return _too_many(answer, error, told)
        if answer.status_code == httpx.codes.FORBIDDEN:
            # The firewall in front: its limits are not told, and pass.
            wait = retry_after(answer.headers)
            secs = _WAF_SECS if wait is None else wait
            return Verdict(
                retry=f"{told}: Binance's firewall refuses requests from here", cool_down_secs=secs
            )
        if error.code in _PASSING:
            return Verdict(retry=told, cool_down_secs=retry_after(answer.headers))
        if 400 <= answer.status_code < 500 and error.code:
            return Verdict(fatal=_mistake(answer, error, told))
        return usual_verdict(answer)


def judge_archive(answer: httpx.Response, body: bytes) -> Verdict:
    """Return what an answer of the archive host means."""
    if answer.status_code == httpx.codes.UNAVAILABLE_FOR_LEGAL_REASONS:
        return Verdict(fatal=_blocked(answer))
    if b"SlowDown" in body:
        wait = retry_after(answer.headers)
        return Verdict(retry="asked to slow down", cool_down_secs=5.0 if wait is None else wait)
    return usual_verdict(answer)


def _error(body: bytes) -> _Error:
    try:
        return msgspec.json.decode(body, type=_Error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Error()


def _too_many(answer: httpx.Response, error: _Error, told: str) -> Verdict:
    until = _BANNED_UNTIL.search(error.msg)
    ban = answer.status_code == 418 or until is not None
    wait = retry_after(answer.headers)
    if until is not None:
        left = (int(until[1]) * MILLISECOND - wall_ns()) / SECOND
        # By a wrong clock of ours the time may seem past; the header knows no clock.
        wait = max(wait or 0.0, left, 1.0)
    if wait is None:
        wait = _BAN_SECS if ban else COOL_DOWN_SECS
    what = "Binance banned this address" if ban else "too many requests"
    return Verdict(retry=f"{what} ({told})", cool_down_secs=wait, ban=ban)


def _blocked(answer: httpx.Response) -> RequestError:
    host = answer.request.url.host
    return final(
        f"{host} refuses to serve this place (HTTP {answer.status_code}, restricted location);"
        ' for spot use rest_url = "https://data-api.binance.vision", for archived data'
        ' archives = "only", or set proxy'
    )


def _mistake(answer: httpx.Response, error: _Error, told: str) -> RequestError:
    params = answer.request.url.params
    if error.code == _UNKNOWN_SYMBOL:
        return RequestError(
            "bad_request",
            f"binance has no symbol {params.get('symbol', '')} ({told}); is it spelt as the venue"
            " does, and is it spot (BTC/USDT) or swap (BTC/USDT:USDT)?",
        )
    if error.code == _NO_INTERVAL:
        text = f"binance has no candles of {params.get('interval', '')} here ({told})"
        return RequestError("bad_request", text)
    if error.code == _TOO_OLD:
        text = f"USD-M trades reach back 48 hours over REST ({told}); {ARCHIVE_HINT}"
        return RequestError("bad_request", text)
    url = answer.request.url.copy_with(query=None)
    if error.code in _KEY_NEEDED or answer.status_code == httpx.codes.UNAUTHORIZED:
        return final(f"{url}: wants an API key ({told}), which tardisd has none of")
    return RequestError("bad_request", f"{url}: refused ({told})")
