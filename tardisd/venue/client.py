"""Ask a venue over HTTP: paid from its budget, retried with jitter, judged by its own rules.

It knows no endpoint. A venue's plugin says how to read an answer (`Judge`): fine, to be tried
again, a cool-down for everybody, or final.
"""

from __future__ import annotations

import email.utils
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import trio

from tardisd import __version__
from tardisd.errors import PluginError, RequestError, Retry
from tardisd.log import Log
from tardisd.market.time import SECOND
from tardisd.venue.budget import Budget
from tardisd.wall import wall_ns

log = Log("tardisd.venue")

USER_AGENT = f"tardisd/{__version__}"
MAX_RETRY_AFTER_SECS = 3 * 86_400.0
MAX_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means.

    `fatal` ends the request for good. Otherwise `retry` asks for another attempt, and
    `cool_down_secs` holds all requests to the venue back; `ban` remembers that across restarts.
    """

    retry: str | None = None
    fatal: RequestError | None = None
    cool_down_secs: float | None = None
    ban: bool = False


FINE = Verdict()
Judge = Callable[[httpx.Response, bytes], Verdict]


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long a request is tried."""

    attempts: int = 8
    first_wait_secs: float = 0.5
    most_wait_secs: float = 60.0
    request_secs: float = 30.0


def retry_after(headers: Mapping[str, str], now: int | None = None) -> float | None:
    """Return the seconds of a `Retry-After` header (seconds or HTTP date), clamped, or None."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        secs = float(text)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
        secs = moment.timestamp() - (wall_ns() if now is None else now) / SECOND
    return min(max(secs, 0.0), MAX_RETRY_AFTER_SECS) if secs == secs else None  # noqa: PLR0124 - NaN


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
        self._judge = judge
        self._headers = {"User-Agent": user_agent or USER_AGENT, "Accept-Encoding": "gzip"}
        self._proxy = proxy
        self._limiter = trio.CapacityLimiter(concurrency)
        self._patience = patience or Patience()
        self._http: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Hold the connections open."""
        async with httpx.AsyncClient(
            headers=self._headers,
            proxy=self._proxy,
            timeout=httpx.Timeout(self._patience.request_secs, connect=10.0),
            follow_redirects=False,
            limits=httpx.Limits(max_connections=self._limiter.total_tokens),  # type: ignore[arg-type]
        ) as http:
            self._http = http
            try:
                yield
            finally:
                self._http = None

    async def get(
        self,
        path: str,
        params: Mapping[str, str | int] | None = None,
        *,
        weight: int = 1,
        limits: Sequence[str] = (),
    ) -> bytes:
        """Return the body of a fine answer.

        Raises RequestError for what is final, Retry when the venue stayed out of reach; the message
        says what was asked and what came back.
        """
        url = f"{self.base_url}{path}"
        problem = "no answer"
        for attempt in range(self._patience.attempts):
            if attempt:
                await trio.sleep(self._wait(attempt))
            async with self._limiter:
                await self.budget.spend(weight, limits)
                try:
                    answer, body = await self._ask(url, params)
                except httpx.TransportError as error:
                    problem = self._transport_problem(url, error)
                    continue
            verdict = self._judge(answer, body)
            if verdict.fatal is not None:
                raise verdict.fatal
            if verdict.cool_down_secs is not None:
                reason = verdict.retry or f"status {answer.status_code}"
                log.warning("venue cools down", venue=self.budget.venue, reason=reason,
                            secs=round(verdict.cool_down_secs, 1))  # fmt: skip
                self.budget.cool_down(verdict.cool_down_secs, reason, ban=verdict.ban)
            if verdict.retry is None:
                return body
            problem = verdict.retry
        tries = self._patience.attempts
        raise Retry(f"{url}: {problem}; given up after {tries} attempts", after=60.0)

    async def _ask(
        self, url: str, params: Mapping[str, str | int] | None
    ) -> tuple[httpx.Response, bytes]:
        if self._http is None:
            raise PluginError(f"{url}: asked outside the client's lifetime")
        with trio.move_on_after(self._patience.request_secs * 2) as scope:
            async with self._http.stream("GET", url, params=params) as answer:
                parts, size = [], 0
                async for part in answer.aiter_bytes():
                    size += len(part)
                    if size > MAX_BODY_BYTES:
                        raise httpx.ReadError(f"more than {MAX_BODY_BYTES} bytes")
                    parts.append(part)
                return answer, b"".join(parts)
        assert scope.cancelled_caught
        raise httpx.ReadTimeout("the answer did not end in time")

    def _wait(self, attempt: int) -> float:
        limit = self._patience.first_wait_secs * 2.0 ** (attempt - 1)
        return random.uniform(0.0, min(limit, self._patience.most_wait_secs))

    def _transport_problem(self, url: str, error: httpx.TransportError) -> str:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise RequestError(
                    "fetch_failed",
                    f"{url}: the TLS certificate is not trusted ({cause.verify_message});"
                    " check the address, the system's clock, or a proxy in between",
                ) from None
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, httpx.ConnectError):
            return f"cannot connect ({error}); check the network, DNS, or set a proxy"
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
