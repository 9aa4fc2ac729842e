"""Ask a venue over HTTP: paid from its budget, retried with jitter, judged by its own rules.

It knows no endpoint. A venue's plugin says how to read an answer (`Judge`): fine, to be tried
again, a cool-down for everybody, or final; and how to parse it (`read`).
"""

from __future__ import annotations

import email.utils
import ipaddress
import math
import random
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

import httpx
import trio

from tardisd import __version__
from tardisd.errors import PluginError, RequestError, Retry
from tardisd.log import Log
from tardisd.market.time import SECOND
from tardisd.venue.budget import LONGEST_BAN_SECS, Budget
from tardisd.wall import wall_ns

log = Log("tardisd.venue")

T = TypeVar("T")
Params = Mapping[str, str | int]

USER_AGENT = f"tardisd/{__version__}"
MAX_BODY_BYTES = 64 * 1024 * 1024
# When a venue says "too many requests" but not for how long: its window is rarely longer.
COOL_DOWN_SECS = 60.0
# A pool looks at each of its connections, for each of them, when a request begins or ends: several
# small pools take a third of the time of a large one.
_POOL_CONNECTIONS = 4
_READERS = 1


class Unreadable(Exception):
    """Raised by `read` for an answer that is cut off or is not what was asked for; retried."""


class Missing(RequestError):
    """Raised when the address exists at the venue but what was asked for is not there (404)."""

    def __init__(self, message: str) -> None:
        super().__init__("fetch_failed", message)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means.

    `fatal` ends the request: for good when it is a RequestError (see `final`), while after a
    PluginError a backfill makes it again. Otherwise `retry` asks for another attempt, and
    `cool_down_secs` holds all requests to the venue back; `ban` remembers that across restarts.
    """

    retry: str | None = None
    fatal: RequestError | PluginError | None = None
    cool_down_secs: float | None = None
    ban: bool = False


FINE = Verdict()
Judge = Callable[[httpx.Response, bytes], Verdict]


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long a request is tried.

    Whoever would have to wait longer than `most_closed_secs` for a cool-down gets `Retry` instead.
    """

    attempts: int = 8
    first_wait_secs: float = 0.5
    most_wait_secs: float = 60.0
    request_secs: float = 30.0
    most_closed_secs: float = 90.0


def retry_after(headers: Mapping[str, str], now: int | None = None) -> float | None:
    """Return the seconds of a `Retry-After` header (seconds or HTTP date), clamped, or None."""
    text = headers.get("retry-after", "").strip()
    try:
        secs = float(text)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
        secs = moment.timestamp() - (wall_ns() if now is None else now) / SECOND
    return min(max(secs, 0.0), LONGEST_BAN_SECS) if math.isfinite(secs) else None


def usual_verdict(answer: httpx.Response) -> Verdict:
    """Return what HTTP itself says of an answer; a venue's judge knows more of its own words."""
    status, wait = answer.status_code, retry_after(answer.headers)
    told = f"HTTP {status} {answer.reason_phrase}".rstrip()
    if 200 <= status < 300:
        return FINE
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.IM_A_TEAPOT):
        return Verdict(retry=told, cool_down_secs=COOL_DOWN_SECS if wait is None else wait)
    if status >= 500 or status == HTTPStatus.REQUEST_TIMEOUT:
        return Verdict(retry=told, cool_down_secs=wait)
    url = answer.request.url.copy_with(query=None)
    if status == HTTPStatus.NOT_FOUND:
        return Verdict(fatal=Missing(f"{url}: not there ({told})"))
    if 300 <= status < 400:
        where = answer.headers.get("location", "nowhere")
        text = f"{url}: leads to {where} ({told}); is this the right address in the config?"
        return Verdict(fatal=final(text))
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return Verdict(fatal=final(f"{url}: the proxy wants a login; put it into `proxy`"))
    return Verdict(fatal=final(f"{url}: refused with {told}"))


def final(message: str) -> RequestError:
    """Return the error of what no repetition mends."""
    return RequestError("fetch_failed", message)


@dataclass(slots=True)
class _Pool:
    """Some of the connections to an address, and how many requests are under way on them."""

    http: httpx.AsyncClient
    asking: int = 0


class VenueClient:
    """HTTP to one venue address. Use inside `opened`."""

    def __init__(
        self,
        base_url: str,
        budget: Budget,
        judge: Judge,
        *,
        user_agent: str | None = None,
        proxy: str | None = None,
        concurrency: int = 4,
        patience: Patience | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.budget = budget
        self.patience = patience or Patience()
        self._judge = judge
        self._headers = {"User-Agent": user_agent or USER_AGENT, "Accept-Encoding": "gzip"}
        self._proxy = proxy
        self._concurrency = concurrency
        self._limiter = trio.CapacityLimiter(concurrency)
        # Python reads one answer at a time; many threads would only take turns, and more memory.
        self._readers = trio.CapacityLimiter(_READERS)
        self._pools: list[_Pool] = []

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Hold the connections open. Raises PluginError for an address or proxy that is none."""
        try:
            url = httpx.URL(self.base_url)
            if url.scheme not in ("http", "https") or not url.host:
                raise httpx.InvalidURL("it must begin with http:// or https:// and name a host")
            # A proxy in the environment is not meant for what runs on this machine.
            trust_env = not _is_loopback(url.host)
            trusted = httpx.create_ssl_context(trust_env=trust_env)
            pools = [
                _Pool(
                    httpx.AsyncClient(
                        headers=self._headers,
                        proxy=self._proxy,
                        verify=trusted,
                        timeout=httpx.Timeout(
                            self.patience.request_secs,
                            connect=min(10.0, self.patience.request_secs),
                        ),
                        follow_redirects=False,
                        limits=httpx.Limits(max_connections=self._concurrency),
                        trust_env=trust_env,
                    )
                )
                for _ in range(-(-self._concurrency // _POOL_CONNECTIONS))
            ]
        except (httpx.InvalidURL, ValueError, ImportError) as error:
            shown = f"{self.base_url} or proxy {self._proxy}" if self._proxy else self.base_url
            raise PluginError(f"{shown} is no usable address: {error}") from None
        async with AsyncExitStack() as opened:
            for pool in pools:
                await opened.enter_async_context(pool.http)
            self._pools = pools
            try:
                yield
            finally:
                self._pools = []

    async def get(
        self,
        path: str,
        params: Params | None = None,
        *,
        weight: int = 1,
        limits: Sequence[str] = (),
    ) -> bytes:
        """Return the body of a fine answer.

        Raises RequestError for what is final (Missing for a 404), Retry when the venue stayed out
        of reach; the message says what was asked and what came back.
        """
        return await self.read(path, params, _as_it_is, weight=weight, limits=limits)

    async def read(
        self,
        path: str,
        params: Params | None,
        read: Callable[[bytes], T],
        *,
        weight: int = 1,
        limits: Sequence[str] = (),
    ) -> T:
        """Return what `read` makes of the body of a fine answer; `read` runs in a thread.

        It raises Unreadable to have the request made again; other errors pass. Raises as `get`.
        """

        async def once() -> tuple[httpx.Response, bytes]:
            with trio.move_on_after(self.patience.request_secs * 2) as scope:
                async with self.asking(path, params) as answer:
                    return answer, await _body(answer)
            assert scope.cancelled_caught
            raise httpx.ReadTimeout("the answer did not end in time")

        async def settle(body: bytes) -> T:
            if read is _as_it_is:
                return read(body)
            return await trio.to_thread.run_sync(read, body, limiter=self._readers)

        return await self.persist(path, once, settle, weight=weight, limits=limits)

    @asynccontextmanager
    async def asking(
        self, path: str, params: Params | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Send one request as it is, without budget, and open its answer."""
        url = f"{self.base_url}{path}"
        if not self._pools:
            raise PluginError(f"{url}: asked outside the client's lifetime")
        pool = min(self._pools, key=lambda it: it.asking)  # the first of equals: few stay in use
        pool.asking += 1
        try:
            async with pool.http.stream("GET", url, params=params, headers=headers) as answer:
                yield answer
        finally:
            pool.asking -= 1

    async def persist(
        self,
        path: str,
        once: Callable[[], Awaitable[tuple[httpx.Response, bytes]]],
        settle: Callable[[bytes], Awaitable[T]],
        *,
        weight: int,
        limits: Sequence[str],
    ) -> T:
        """Try `once` until an answer is fine and `settle` can use it, paying for every attempt."""
        url = f"{self.base_url}{path}"
        problem = "no answer"
        for attempt in range(self.patience.attempts):
            if attempt:
                await trio.sleep(self._wait_secs(attempt))
            self._refuse_while_closed(url)
            try:
                async with self._limiter, self.budget.spending(weight, limits):
                    answer, body = await once()
            except httpx.RequestError as error:
                problem = _transport_problem(url, error)
                continue
            verdict = self._judge(answer, body)
            if verdict.cool_down_secs is not None:
                reason = verdict.retry or f"HTTP {answer.status_code}"
                log.warning("venue cools down", venue=self.budget.venue, reason=reason,
                            secs=round(verdict.cool_down_secs, 1))  # fmt: skip
                self.budget.cool_down(verdict.cool_down_secs, reason, ban=verdict.ban)
            if verdict.fatal is not None:
                raise verdict.fatal
            if verdict.retry is None:
                try:
                    return await settle(body)
                except Unreadable as error:
                    problem = str(error)
            else:
                problem = verdict.retry
        tries = self.patience.attempts
        raise Retry(f"{url}: {problem}; given up after {tries} attempts", after=COOL_DOWN_SECS)

    def _refuse_while_closed(self, url: str) -> None:
        secs = self.budget.closed_secs()
        if secs > self.patience.most_closed_secs:
            raise Retry(f"{url}: not asked: {self.budget.waiting_for()}", after=secs)

    def _wait_secs(self, attempt: int) -> float:
        limit = self.patience.first_wait_secs * 2.0 ** (attempt - 1)
        return random.uniform(0.0, min(limit, self.patience.most_wait_secs))


def _as_it_is(body: bytes) -> bytes:
    return body


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _body(answer: httpx.Response) -> bytes:
    # Unpacked by httpx, a body that is cut off would pass for whole.
    parts, size = [], 0
    async for part in answer.aiter_raw():
        size += len(part)
        if size <= MAX_BODY_BYTES:
            parts.append(part)
    body = b"".join(parts)
    encoding = answer.headers.get("content-encoding", "identity")
    if size <= MAX_BODY_BYTES and encoding != "identity":
        if encoding not in ("gzip", "x-gzip"):
            raise final(f"{answer.url}: answers in encoding {encoding!r}, unasked")
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            body = unpacker.decompress(body, MAX_BODY_BYTES + 1)
        except zlib.error as error:
            raise httpx.DecodingError(f"the gzip body is damaged ({error})") from None
        size = len(body)
        if size <= MAX_BODY_BYTES and not unpacker.eof:
            raise httpx.DecodingError("the gzip body is cut off")
    if size > MAX_BODY_BYTES:
        raise final(f"{answer.url}: answers with more than {MAX_BODY_BYTES} bytes; refused")
    return body


def _transport_problem(url: str, error: httpx.RequestError) -> str:
    """Return what to say of an error that may pass; raise RequestError for one that does not."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise final(
                f"{url}: the TLS certificate is not trusted ({cause.verify_message});"
                " check the address, the system's clock, or a proxy in between"
            ) from None
        cause = cause.__cause__ or cause.__context__
    told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        raise final(f"{url}: cannot be asked for ({told})") from None
    if isinstance(error, httpx.ProxyError):
        return f"the proxy fails ({error}); check `proxy`"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return f"cannot connect ({told}); check the network, DNS, or set a proxy"
    return told
