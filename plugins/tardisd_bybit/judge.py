"""What Bybit's answers mean: limits, bans, blocks and mistakes; asks nothing.

An answer of HTTP 200 is an error when its `retCode` is not 0. Status 403 has two meanings: "access
too frequent" passes after ten minutes, a page of the network in front means that this place is not
served at all.
"""

from __future__ import annotations

import httpx
import msgspec

from tardisd.errors import RequestError
from tardisd.venue.client import FINE, Verdict, final, retry_after, usual_verdict

# Bybit asks for ten minutes without a request, and the last one may have been a second ago.
BAN_SECS = 605.0
_WINDOW_SECS = 5.0
_LONGEST_RESET_SECS = 60.0
_IP_LIMIT_SECS = 60.0

_OK = b'{"retCode":0,'
_TOO_MANY = 10006
_TOO_MANY_FROM_HERE = 10018
_BUSY = {10429}
_PASSING = {10000, 10016, 10019}
_REGION = {10009, 10024}
_BAD_PARAMS = 10001


class _Error(msgspec.Struct, rename={"code": "retCode", "text": "retMsg"}):
    code: int = 0
    text: str = ""
    time: int = 0


def judge_rest(answer: httpx.Response, body: bytes) -> Verdict:
    """Return what an answer of the REST host means."""
    if answer.status_code == httpx.codes.OK:
        return FINE if body.startswith(_OK) else _of_code(answer, _error(body))
    if answer.status_code == httpx.codes.FORBIDDEN:
        if b"too frequent" in body.lower():
            text = "Bybit banned this address for asking too much (403, access too frequent)"
            wait = retry_after(answer.headers) or 0.0
            return Verdict(retry=text, cool_down_secs=max(wait, BAN_SECS), ban=True)
        return Verdict(fatal=_blocked(answer, "HTTP 403"))
    if answer.status_code == httpx.codes.UNAVAILABLE_FOR_LEGAL_REASONS:
        return Verdict(fatal=_blocked(answer, "HTTP 451"))
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        told = f"HTTP 429, {_error(body).text}".rstrip(", ")
        told_secs = retry_after(answer.headers)
        secs = _WINDOW_SECS if told_secs is None else told_secs
        return Verdict(retry=told, cool_down_secs=secs)
    return usual_verdict(answer)


def judge_archive(answer: httpx.Response, body: bytes) -> Verdict:
    """Return what an answer of the archive host means."""
    if answer.status_code == httpx.codes.FORBIDDEN:
        if b"too frequent" in body.lower():
            return Verdict(retry="asked to slow down (403)", cool_down_secs=BAN_SECS)
        return Verdict(fatal=_blocked(answer, "HTTP 403"))
    return usual_verdict(answer)


def _error(body: bytes) -> _Error:
    try:
        return msgspec.json.decode(body, type=_Error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Error()


def _of_code(answer: httpx.Response, error: _Error) -> Verdict:
    told = f"{error.code}: {error.text}"
    if error.code == 0:  # or no JSON at all, which its reader will tell
        return FINE
    if error.code == _TOO_MANY:
        return Verdict(retry=f"too many requests ({told})", cool_down_secs=_reset(answer, error))
    if error.code == _TOO_MANY_FROM_HERE:
        return Verdict(retry=f"too many requests ({told})", cool_down_secs=_IP_LIMIT_SECS)
    if error.code in _BUSY:
        return Verdict(retry=told, cool_down_secs=_WINDOW_SECS)
    if error.code in _PASSING:
        return Verdict(retry=told)
    if error.code in _REGION:
        return Verdict(fatal=_blocked(answer, told))
    return Verdict(fatal=_mistake(answer, error, told))


def _reset(answer: httpx.Response, error: _Error) -> float:
    """Return the seconds until the limit is reset, by the venue's own clock."""
    text = answer.headers.get("x-bapi-limit-reset-timestamp", "")
    if not text.isdecimal() or not error.time:
        return _WINDOW_SECS
    return min(max((int(text) - error.time) / 1000, 0.1), _LONGEST_RESET_SECS)


def _blocked(answer: httpx.Response, told: str) -> RequestError:
    host = answer.request.url.host
    return final(
        f"{host} refuses to serve this place ({told}); Bybit does not serve the US and mainland"
        " China: set rest_url to the host of your region (such as https://api.bybit.eu), or proxy"
    )


def _mistake(answer: httpx.Response, error: _Error, told: str) -> RequestError:
    params = answer.request.url.params
    text = error.text.lower()
    if error.code == _BAD_PARAMS and "symbol" in text:
        return RequestError(
            "bad_request",
            f"bybit has no {params.get('category', '')} symbol {params.get('symbol', '')} ({told});"
            " is it spelt as the venue does, is it spot (BTC/USDT) or swap (BTC/USDT:USDT), and is"
            " it still listed? Trades of delisted ones are in the archives",
        )
    if error.code == _BAD_PARAMS and ("period" in text or "interval" in text):
        told = f"bybit has no candles of interval {params.get('interval', '')} ({told})"
        return RequestError("bad_request", told)
    url = answer.request.url.copy_with(query=None)
    return RequestError("bad_request", f"{url}: refused ({told})")
