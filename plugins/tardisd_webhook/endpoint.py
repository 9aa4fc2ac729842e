"""One address: requests one after another, judged, tried again in order, or laid aside for good.

A single task serves all sessions in turn, so there is never more than one request in flight, and
within a session none overtakes another. Each is tried until it has a verdict: delivered (2xx),
refused (a status that no repetition mends), or given up after `max_attempts`; the latter two go to
the dead-letter file. So every tick that was taken is acknowledged by the receiver or is in there.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx
import msgspec
import trio

from tardisd import __version__
from tardisd.errors import PluginError
from tardisd.log import Log
from tardisd.market.time import SECOND, format_time
from tardisd.venue.client import retry_after
from tardisd.wall import wall_ns

from .breaker import Breaker
from .letters import DeadLetters
from .options import WebhookOptions
from .outbox import Outbox, Parcel

log = Log("tardisd.webhook")

ANSWER_BYTES = 4096  # of an answer are kept; a fine one is read so far, to keep the connection
ANSWER_SECS = 1.0  # for its body, when its status is known
LONGEST_WAIT_SECS = 3600.0
LETTER_RETRY_SECS = 5.0


class _Body(httpx.AsyncByteStream):
    """A body in one piece; httpx's own is a generator, left behind when sending fails."""

    def __init__(self, body: bytes) -> None:
        self._rest = [body]

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        if not self._rest:
            raise StopAsyncIteration
        return self._rest.pop()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an attempt: delivered, to be tried again, or refused for good."""

    kind: str
    reason: str = ""
    status: int | None = None
    answer: str | None = None
    wait_secs: float | None = None


class Endpoint:
    """Sends the parcels of all outboxes to the address. Use inside `opened`."""

    def __init__(self, name: str, options: WebhookOptions, letters: DeadLetters) -> None:
        self.boxes: list[Outbox] = []
        self._name = name
        self._options = options
        self._letters = letters
        self._url = httpx.URL(options.url.reveal())
        self.shown = str(self._url.copy_with(username=None, password=None, query=None))
        self._breaker = Breaker(options.breaker_failures, options.breaker_secs)
        self._closed_until = 0.0
        self._changed = trio.Event()
        self._threads = trio.CapacityLimiter(1)
        self._laying = trio.Lock()
        self._http: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Hold the connection open, and serve."""
        options = self._options
        try:
            verify = (
                True
                if options.tls_ca is None
                else ssl.create_default_context(cafile=options.tls_ca)
            )
        except (OSError, ssl.SSLError) as error:
            raise PluginError(f"`tls_ca` {options.tls_ca} cannot be used: {error}") from None
        http = httpx.AsyncClient(
            headers={"User-Agent": f"tardisd/{__version__}"},
            timeout=httpx.Timeout(options.timeout_secs, connect=min(10.0, options.timeout_secs)),
            follow_redirects=False,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
            verify=verify,
            trust_env=not _is_loopback(self._url.host),  # its proxy is not meant for this machine
        )
        async with http, trio.open_nursery() as nursery:
            self._http = http
            nursery.start_soon(self._serve)
            yield
            nursery.cancel_scope.cancel()

    def wake(self) -> None:
        """Have a look at the outboxes again: something was added."""
        self._changed.set()

    async def _serve(self) -> None:
        while True:
            self._changed = trio.Event()
            found, until = self._next()
            if found is None:
                with trio.move_on_at(until):
                    await self._changed.wait()
                continue
            box, parcel = found
            self.boxes.remove(box)  # whoever was served goes to the end of the line
            self.boxes.append(box)
            if parcel.verdict is None:
                await self._attempt(box, parcel)
            if parcel.verdict is not None:
                await self._lay_aside(box, parcel)

    def _next(self) -> tuple[tuple[Outbox, Parcel] | None, float]:
        now = trio.current_time()
        closed_until = max(self._closed_until, self._breaker.wait_until())
        soonest = float("inf")
        for box in self.boxes:
            parcel, again = box.due(now)
            if parcel is not None and (parcel.verdict is not None or now >= closed_until):
                return (box, parcel), now
            soonest = min(soonest, closed_until if parcel is not None else max(again, now))
        return None, soonest

    async def _attempt(self, box: Outbox, parcel: Parcel) -> None:
        parcel.attempts += 1
        outcome = await self._post(parcel)
        now = trio.current_time()
        if outcome.kind == "failed":
            self._hold_back(box, parcel, outcome, now)
            return
        if self._breaker.worked():
            log.info("webhook answers again", instance=self._name)
        box.failing_since = None
        if outcome.kind == "delivered":
            box.settled(parcel)
        else:
            parcel.verdict = self._verdict(parcel, outcome)

    def _hold_back(self, box: Outbox, parcel: Parcel, outcome: Outcome, now: float) -> None:
        options = self._options
        if self._breaker.failed(now):
            log.warning("webhook fails, so requests pause", instance=self._name,
                        reason=outcome.reason, secs=options.breaker_secs)  # fmt: skip
        limit = min(
            options.backoff_secs * 2.0 ** min(parcel.attempts - 1, 60), options.backoff_max_secs
        )
        parcel.not_before = now + random.uniform(0.0, limit)
        if outcome.wait_secs is not None:  # the address itself said so, to everybody
            self._closed_until = now + min(outcome.wait_secs, LONGEST_WAIT_SECS)
        if parcel.attempts >= options.max_attempts:
            parcel.verdict = self._verdict(parcel, outcome)
        box.reason = f"{self.shown}: {outcome.reason}"
        if box.failing_since is None:
            box.failing_since = now
        box.move()

    async def _post(self, parcel: Parcel) -> Outcome:
        """Make one request and judge the answer; its status counts, however the body ends."""
        assert self._http is not None
        options = self._options
        request = self._http.build_request(
            "POST", self._url, content=parcel.body, headers=self._headers(parcel)
        )
        request.stream = _Body(parcel.body)
        judged: Outcome | None = None
        with trio.move_on_after(options.timeout_secs):
            try:
                async with aclosing(await self._http.send(request, stream=True)) as answer:
                    judged = _judged(answer, None)
                    judged = _judged(answer, await _beginning(answer))
            except httpx.RequestError as error:
                if judged is None:
                    words = str(error) or type(error).__name__
                    judged = Outcome("failed", f"no answer: {words.lower()}")
        if judged is None:
            judged = Outcome("failed", f"no answer within {options.timeout_secs:g} s")
        return judged

    def _headers(self, parcel: Parcel) -> dict[str, str]:
        headers = {name: value.reveal() for name, value in self._options.headers.items()}
        headers |= {"Content-Type": "application/json", "Idempotency-Key": parcel.key}
        if self._options.secret is not None:
            now = str(wall_ns() // SECOND)
            signed = hmac.new(self._options.secret.reveal().encode(), digestmod=hashlib.sha256)
            signed.update(f"{now}.".encode())
            signed.update(parcel.body)
            headers["X-Tardisd-Signature"] = f"t={now},v1={signed.hexdigest()}"
        return headers

    def _verdict(self, parcel: Parcel, outcome: Outcome) -> dict[str, object]:
        return {
            "key": parcel.key,
            "attempts": parcel.attempts,
            "reason": outcome.reason,
            "status": outcome.status,
            "answer": outcome.answer,
        }

    async def give_up(self, box: Outbox, reason: str) -> None:
        """Lay aside everything that is still in the box."""
        box.seal()
        while box.ready:
            parcel = box.ready[0]
            if parcel.verdict is None:
                parcel.verdict = self._verdict(parcel, Outcome("failed", reason))
            if not await self._lay_aside(box, parcel):
                box.settled(parcel)
                log.error("batch lost", instance=self._name, key=parcel.key, ticks=parcel.ticks)

    async def _lay_aside(self, box: Outbox, parcel: Parcel) -> bool:
        """Write a parcel with its verdict into the dead-letter file, once; tell whether it is."""
        async with self._laying:
            if not box.has(parcel) or parcel.verdict is None:
                return True
            if await self.report(parcel.verdict | {"request": msgspec.Raw(parcel.body)}):
                log.warning("batch not delivered", instance=self._name, key=parcel.key,
                            ticks=parcel.ticks, reason=parcel.verdict["reason"],
                            file=str(self._letters.path))  # fmt: skip
                box.settled(parcel)
                return True
        now = trio.current_time()
        parcel.not_before = now + LETTER_RETRY_SECS
        box.reason = f"the dead-letter file {self._letters.path} cannot be written; see the log"
        box.failing_since = now if box.failing_since is None else box.failing_since
        box.move()
        return False

    async def report_lost(self, box: Outbox, epoch: int, first: int, last: int, why: str) -> None:
        """Tell in the dead-letter file which ticks will never be sent."""
        facts = {"session_id": box.session_id, "epoch": epoch, "from_seq": first, "to_seq": last}
        log.warning("ticks lost", instance=self._name, **facts, reason=why)
        await self.report({"reason": f"dropped: {why}", **facts})

    async def report(self, facts: dict[str, Any]) -> bool:
        """Write a line into the dead-letter file; tell whether that worked."""
        head = {"time": format_time(wall_ns()), "instance": self._name, "url": self.shown}
        line = msgspec.json.encode(head | facts)
        try:
            await trio.to_thread.run_sync(self._letters.append, line, limiter=self._threads)
        except OSError as error:
            log.error("dead letter not written", path=str(self._letters.path),
                      reason=error.strerror or str(error))  # fmt: skip
            return False
        return True


def _judged(answer: httpx.Response, text: str | None) -> Outcome:
    status = answer.status_code
    told = f"HTTP {status} {answer.reason_phrase}".rstrip()
    if 200 <= status < 300:
        return Outcome("delivered", told, status)
    if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or status >= 500:
        return Outcome("failed", told, status, text, retry_after(answer.headers))
    if 300 <= status < 400:
        where = answer.headers.get("location", "nowhere")
        told = f"{told}: it leads to {where}, but redirects are not followed; see to url"
    return Outcome("refused", told, status, text)


async def _beginning(answer: httpx.Response) -> str:
    """Return the beginning of the body; reading all of a short one keeps the connection.

    The rest is cancelled, not left: httpx's generators want to be ended within their own task.
    """
    body = b""
    with trio.move_on_after(ANSWER_SECS) as scope:
        async for part in answer.aiter_raw():
            body += part[: ANSWER_BYTES - len(body)]
            if len(body) == ANSWER_BYTES:
                scope.cancel()
    return body.decode(errors="replace")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
