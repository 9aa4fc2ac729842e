"""What OKX's answers mean: limits, blocks and mistakes; asks nothing.

An answer of HTTP 200 is an error when its `code` is not "0", and the same code may come under
several statuses, so the code decides. A 403 without one is from the network in front.
"""

from __future__ import annotations

import httpx
import msgspec

from tardisd.errors import RequestError
from tardisd.venue.client import FINE, Missing, Verdict, final, retry_after, usual_verdict

_OK = b'{"code":"0"'
# All limits count over two seconds, and OKX says no other time to wait.
_WINDOW_SECS = 2.0
_TOO_MANY = {"50011", "50040", "50061"}
_BUSY = {"50013"}
_PASSING = {"50001", "50004", "50005", "50026"}
_REGION = {"50051", "50121", "50122", "50123", "50125"}
_UNKNOWN_INSTRUMENT = "51001"
_BAD_PARAM = "51000"


class _Error(msgspec.Struct):
    code: str | int = "0"
    msg: str = ""


def judge_rest(answer: httpx.Response, body: bytes) -> Verdict:
    """Return what an answer of the REST host means."""
    if answer.status_code == httpx.codes.OK and body.startswith(_OK):
        return FINE
    error = _error(body)
    code = str(error.code)
    if code in ("0", str(answer.status_code)):
        return _without_code(answer)
    told = f"{code}: {error.msg}".rstrip(": ")
    if code in _TOO_MANY or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        wait = retry_after(answer.headers)
        what = "OKX is busy" if code in _BUSY else "too many requests"
        secs = _WINDOW_SECS if wait is None else wait
        return Verdict(retry=f"{what} ({told})", cool_down_secs=secs)
    if code in _BUSY | _PASSING or (answer.status_code >= 500 and code not in _REGION):
        return Verdict(retry=told, cool_down_secs=retry_after(answer.headers))
    if code in _REGION:
        return Verdict(fatal=_blocked(answer, told))
    return Verdict(fatal=_mistake(answer, code, told))


def judge_archive(answer: httpx.Response, _body: bytes) -> Verdict:
    """Return what an answer of the archive host means."""
    if answer.status_code == httpx.codes.FORBIDDEN:
        return Verdict(fatal=_refused(answer))
    return usual_verdict(answer)


def _error(body: bytes) -> _Error:
    try:
        return msgspec.json.decode(body, type=_Error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Error()


def _without_code(answer: httpx.Response) -> Verdict:
    """Return what HTTP says; what is no JSON under 200 is told by whoever reads it."""
    if answer.status_code == httpx.codes.FORBIDDEN:
        return Verdict(fatal=_refused(answer))
    if answer.status_code == httpx.codes.UNAVAILABLE_FOR_LEGAL_REASONS:
        return Verdict(fatal=_blocked(answer, "HTTP 451"))
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        wait = retry_after(answer.headers)
        return Verdict(retry="HTTP 429", cool_down_secs=_WINDOW_SECS if wait is None else wait)
    verdict = usual_verdict(answer)
    if isinstance(verdict.fatal, Missing):
        url = answer.request.url.copy_with(query=None)
        return Verdict(fatal=final(f"{url}: not there; check rest_url"))
    return verdict


def _refused(answer: httpx.Response) -> RequestError:
    host = answer.request.url.host
    agent = answer.request.headers.get("user-agent", "none")
    return final(
        f"{host} refuses to answer (HTTP 403): its firewall dislikes the user agent ({agent}) or"
        " the address; set user_agent to another name, or proxy"
    )


def _blocked(answer: httpx.Response, told: str) -> RequestError:
    return final(
        f"{answer.request.url.host} refuses to serve this place ({told}); set rest_url to the host"
        " of your region (such as https://us.okx.com or https://eea.okx.com), or proxy; archived"
        ' data of spot can be had with archives = "only"'
    )


def _mistake(answer: httpx.Response, code: str, told: str) -> RequestError:
    params = answer.request.url.params
    if code == _UNKNOWN_INSTRUMENT:
        return RequestError(
            "bad_request",
            f"okx has no instrument {params.get('instId', '')} ({told}); is it spelt as the venue"
            " does, is it spot (BTC/USDT) or swap (BTC/USDT:USDT), and is it still listed? Of spot"
            ' that is not, archives = "only" has what was published',
        )
    if code == _BAD_PARAM and " bar" in told:
        text = f"okx has no candles of {params.get('bar', '')} here ({told})"
        return RequestError("bad_request", text)
    url = answer.request.url.copy_with(query=None)
    return RequestError("bad_request", f"{url}: refused ({told})")
