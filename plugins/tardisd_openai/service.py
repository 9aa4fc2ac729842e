"""Talks to the service: one request at a time per slot, paid for before it is sent, tried again.

It knows no questions. Redirects are not followed, so the key goes to the configured address only.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import msgspec
import trio

from tardisd import __version__
from tardisd.errors import PluginError, RequestError
from tardisd.log import Log
from tardisd.plugins.access import is_loopback
from tardisd.venue.client import retry_after

from .completion import Completion, Events, Nonsense, decoded
from .judge import (
    Again,
    Failed,
    Refused,
    Scrubber,
    Unsupported,
    judge_error,
    judge_status,
    told_by,
    wait_of,
)
from .options import OpenaiOptions
from .reading import MOST_BYTES, Body, each_part, looks_like_events, take_all, take_events

log = Log("tardisd.openai")

MOST_ERROR_BYTES = 64 * 1024
# After the last word a service may still tell what it cost; some never close.
AFTERTHOUGHT_SECS = 2.0
_FINISHED = frozenset({"stop", "length", "content_filter", "tool_calls", "function_call"})


class Payment(Protocol):
    """What a request has been granted; told at its end what it has cost."""

    async def settle(self, usage: Mapping[str, Any] | None) -> None:
        """Book what was used: None for nothing, without figures all that was granted."""


Pay = Callable[[], Awaitable[Payment]]


@dataclass
class _Answer:
    """What came of one request, as far as it was read."""

    status: int
    phrase: str
    headers: httpx.Headers
    body: bytes = b""


class Service:
    """One address with one key. Use inside `opened`."""

    def __init__(self, options: OpenaiOptions) -> None:
        self._options = options
        self._url = httpx.URL(options.base_url.rstrip("/") + "/")
        self.where = self._url.netloc.decode("ascii")
        self.scrub = Scrubber(options.api_key)
        self._slots = trio.Semaphore(options.max_concurrent)
        self._closed_until = 0.0
        self._lacks: set[str] = set() if options.stream else {"stream"}
        self._http: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Hold connections open."""
        options = self._options
        try:
            verify = (
                True
                if options.tls_ca is None
                else ssl.create_default_context(cafile=options.tls_ca)
            )
        except (OSError, ssl.SSLError) as error:
            raise PluginError(f"`tls_ca` {options.tls_ca} cannot be used: {error}") from None
        key = options.api_key
        plain = self._url.scheme == "http" and is_loopback(self._url.host)
        try:
            http = httpx.AsyncClient(
                headers={
                    "User-Agent": f"tardisd/{__version__}",
                    "Accept-Encoding": "identity",
                    **({} if key is None else {"Authorization": f"Bearer {key.reveal()}"}),
                },
                timeout=httpx.Timeout(
                    options.read_timeout_secs, connect=options.connect_timeout_secs
                ),
                follow_redirects=False,
                limits=httpx.Limits(max_connections=options.max_concurrent + 1),
                verify=False if plain else verify,
                proxy=options.proxy,
                # A proxy of the environment is not meant for this machine.
                trust_env=options.proxy is None and not is_loopback(self._url.host),
            )
        except (ValueError, ImportError, httpx.InvalidURL) as error:
            raise PluginError(f"proxy cannot be used: {self.scrub.line(str(error))}") from None
        async with http:
            self._http = http
            try:
                yield
            finally:
                self._http = None

    async def models(self) -> list[str]:
        """Return the models that the service names. Raises RequestError or Again."""
        answer = await self._exchange("GET", "models", None, None)
        self._judge(answer)
        try:
            found = decoded(answer.body)
        except Nonsense as error:
            raise Failed(f"{self.where}: /models answers with {error}", spent=False) from None
        rows = found.get("data") if isinstance(found, dict) else None
        names = [row.get("id") for row in rows or [] if isinstance(row, dict)]
        return [name for name in names if isinstance(name, str)]

    async def complete(self, fields: Mapping[str, Any], pay: Pay) -> Completion:
        """Return a complete answer. Raises RequestError, or Unsupported of the format."""
        options = self._options
        async with self._slots:
            reason = ""
            for attempt in range(options.max_attempts):
                if attempt:
                    await trio.sleep(self._wait_secs(attempt))
                await trio.sleep_until(self._closed_until)
                try:
                    return await self._attempt(fields, pay)
                except Again as error:
                    reason = str(error)
                    log.info("ai request failed", service=self.where, reason=reason,
                             attempt=attempt + 1)  # fmt: skip
                    self._obey(error)
        tries = f"{options.max_attempts} attempts" if options.max_attempts > 1 else "one attempt"
        raise RequestError("analyzer_unavailable", f"{reason}; given up after {tries}")

    def _obey(self, error: Again) -> None:
        """Leave the service alone for as long as it asks; not longer than anybody can wait."""
        if error.wait_secs is None:
            return
        if error.wait_secs > self._options.total_timeout_secs:
            raise RequestError(
                "analyzer_unavailable",
                f"{error}; it asks to wait {error.wait_secs:g} s, longer than total_timeout_secs",
            ) from None
        self._closed_until = max(self._closed_until, trio.current_time() + error.wait_secs)

    def _wait_secs(self, attempt: int) -> float:
        limit = self._options.backoff_secs * 2.0 ** min(attempt - 1, 60)
        return random.uniform(0.0, min(limit, self._options.backoff_max_secs))

    async def _attempt(self, fields: Mapping[str, Any], pay: Pay) -> Completion:
        """Send it once; and again in other words, when it is told which it does not know."""
        lacks = frozenset(self._lacks)
        body = _worded(fields, lacks)
        payment = await pay()
        found = Completion()
        try:
            answer = await self._exchange("POST", "chat/completions", body, found)
            self._judge(answer)
            self._settle(answer, found)
        except (Again, Failed) as error:
            await payment.settle(found.usage if error.spent else None)
            raise
        except RequestError:
            await payment.settle(None)
            raise
        except Unsupported as error:
            await payment.settle(None)
            if error.feature == "format":
                raise
            if error.feature in lacks:
                raise Failed(str(error)) from None
            log.info("ai service lacks a feature", service=self.where, feature=error.feature,
                     reason=str(error))  # fmt: skip
            self._lacks.add(error.feature)  # from now on
            return await self._attempt(fields, pay)
        await payment.settle(found.usage)
        return found

    def _judge(self, answer: _Answer) -> None:
        """Raise for a status that is no success."""
        if 200 <= answer.status < 300:
            return
        try:
            body = decoded(answer.body)
        except Nonsense:
            body = answer.body.decode(errors="replace")
        told = self.scrub.line(told_by(body))
        wait = wait_of(body if isinstance(body, dict) else {}, retry_after(answer.headers))
        location = self.scrub.line(answer.headers.get("location", "").partition("?")[0])
        phrase = self.scrub.line(answer.phrase)
        judge_status(answer.status, phrase, told, self.where, wait, location)

    def _settle(self, answer: _Answer, found: Completion) -> None:
        """Raise unless the answer is complete."""
        if answer.body:  # it came in one piece
            try:
                found.take(decoded(answer.body))
            except Nonsense as error:
                raise self._no_answer(answer, error) from None
            found.finish = found.finish or "stop"
        found.whole()
        found.content = self.scrub.hide(found.content)
        found.refusal = self.scrub.line(found.refusal)
        found.model = self.scrub.line(found.model)
        if found.error is not None:
            told = self.scrub.line(told_by({"error": found.error}))
            judge_error(found.error, told, self.where)
        if found.finish is None:
            raise Again(
                f"{self.where}: the answer was cut off after {len(found.content)} characters"
            )

    def _no_answer(self, answer: _Answer, error: Nonsense) -> Failed:
        text = self.scrub.hide(answer.body.decode(errors="replace"))[:2000]
        told = self.scrub.line(told_by(text))
        shown = told if told.startswith("a page of HTML") else f"{error}: {told}"
        return Failed(f"{self.where}: answers with {shown[:200]}; check base_url")

    async def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, found: Completion | None
    ) -> _Answer:
        """Make one request. A stream of events goes into `found`, anything else is returned."""
        if self._http is None:
            raise RequestError("analyzer_unavailable", f"{self.where}: the analyzer is not running")
        request = self._http.build_request(method, self._url.join(path))
        if body is not None:
            content = msgspec.json.encode(body)
            request.headers["Content-Type"] = "application/json"
            request.headers["Content-Length"] = str(len(content))
            request.headers.pop("Transfer-Encoding", None)
            request.stream = Body(content)
        answer: _Answer | None = None
        try:
            async with _closing(await self._http.send(request, stream=True)) as response:
                answer = _Answer(response.status_code, response.reason_phrase, response.headers)
                kind = response.headers.get("content-type", "")
                if found is not None and response.is_success and "event-stream" in kind:
                    await self._read_events(response, found)
                else:
                    answer.body = await self._read(response)
                    if found is not None and response.is_success and looks_like_events(answer.body):
                        take_all(answer.body, found)
                        answer.body = b""
                return answer
        except httpx.RequestError as error:
            if answer is not None and found is not None and found.finish is not None:
                return answer  # all was said before the connection broke
            raise self._transport(error) from None
        except Nonsense as error:
            raise Failed(f"{self.where}: answers with {self.scrub.line(str(error))}") from None

    async def _read_events(self, response: httpx.Response, found: Completion) -> None:
        events = Events()

        def take(part: bytes, scope: trio.CancelScope) -> None:
            take_events(events.feed(part), found)
            if found.done or found.error is not None:
                scope.cancel()
            elif found.finish in _FINISHED and scope.deadline == float("inf"):
                scope.deadline = trio.current_time() + AFTERTHOUGHT_SECS

        await each_part(response, take)
        take_events(events.end(), found)

    async def _read(self, response: httpx.Response) -> bytes:
        """Return the body; of one that tells of an error, the beginning."""
        most = MOST_BYTES if response.is_success else MOST_ERROR_BYTES
        body = bytearray()

        def take(part: bytes, scope: trio.CancelScope) -> None:
            body.extend(part)
            if len(body) > most:
                scope.cancel()

        await each_part(response, take)
        return bytes(body[:most])

    def _transport(self, error: httpx.RequestError) -> Exception:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return Refused(
                    f"{self.where}: the TLS certificate is not trusted ({cause.verify_message});"
                    " check base_url, the system's clock, or tls_ca"
                )
            cause = cause.__cause__ or cause.__context__
        told = self.scrub.line(str(error) or type(error).__name__)
        told = told[:1].lower() + told[1:]
        match error:
            case httpx.ConnectTimeout():
                told = f"no connection within {self._options.connect_timeout_secs:g} s"
            case httpx.ReadTimeout():
                told = f"silent for {self._options.read_timeout_secs:g} s"
            case httpx.ConnectError():
                told = f"cannot connect ({told})"
            case _:
                told = f"no whole answer ({told})"
        spent = not isinstance(error, httpx.ConnectTimeout | httpx.ConnectError)
        return Again(f"{self.where}: {told}", spent=spent)


def _worded(fields: Mapping[str, Any], lacks: frozenset[str]) -> dict[str, Any]:
    """Return the body of a request in words that the service knows."""
    body = dict(fields)
    if "stream" not in lacks:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if "max_tokens" in lacks:
        body["max_completion_tokens"] = body.pop("max_tokens")
    if "temperature" in lacks:
        del body["temperature"]
    return body


@asynccontextmanager
async def _closing(response: httpx.Response) -> AsyncIterator[httpx.Response]:
    try:
        yield response
    finally:
        await response.aclose()
