"""One session into one sink: write, retry, reopen; a sink that fails is no other sink's trouble."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import trio

from tardisd.errors import NotConnected, PluginError, Rejected, Retry
from tardisd.log import Log
from tardisd.plugins.sessions import Evicted, Notice
from tardisd.plugins.sink import Sink, Writer
from tardisd.replay.block import SessionBlock
from tardisd.replay.fanout import Follower
from tardisd.replay.session import ReplaySession
from tardisd.supervise import Backoff, attempt, describe

log = Log("tardisd.delivery")

# A sink that raises holds the session up for so long; then its backlog drops, and says so.
PATIENCE_SECS = 5.0


@dataclass
class Delivery:
    """The stream of a session into a sink instance; `state` is shown in listings."""

    session: ReplaySession
    sink_name: str
    sink: Sink[Any]
    state: str = "open"
    error: str | None = None
    _follower: Follower = field(init=False)
    _pending: SessionBlock | Notice | None = field(init=False, default=None)
    _failing_since: float | None = field(init=False, default=None)
    _backoff: Backoff = field(init=False, default_factory=Backoff)

    def __post_init__(self) -> None:
        self._follower = self.session.subscribe("block", self.sink.forms, f"sink {self.sink_name}")

    async def run(self) -> None:
        """Deliver until the session has ended and everything is written, or the sink is cut off."""
        while self.state != "done":
            error = await attempt(self._open_and_write)
            if error is None:
                continue
            if isinstance(error, Evicted):
                self._cut_off(str(error))
                return
            await self._failed(error, reopening=True)
        self._follower.close()

    async def _open_and_write(self) -> None:
        async with self.sink.open(self.session) as writer:
            if writer is None:
                self.state = "done"
                return
            while self.state != "done":
                if self._pending is None:
                    try:
                        self._pending = await self._follower.receive()
                    except trio.EndOfChannel:
                        break
                error = await attempt(self._write, writer, self._pending)
                if isinstance(error, Rejected):
                    log.warning("block rejected", **self._facts(error))
                elif isinstance(error, Retry):
                    await self._failed(error)
                    continue
                elif error is not None:
                    raise error
                else:
                    self._recovered()
                self._pending = None
        self.state = "done"

    @staticmethod
    async def _write(writer: Writer, item: SessionBlock | Notice) -> None:
        if isinstance(item, Notice):
            await writer.notice(item)
        else:
            await writer.write(item)

    async def _failed(self, error: Exception, *, reopening: bool = False) -> None:
        wait = error.after if isinstance(error, Retry) else self._backoff.next()
        self.state, self.error = "failing", describe(error)
        facts = self._facts(error) | {"wait_secs": round(wait, 2), "reopening": reopening}
        if isinstance(error, PluginError | NotConnected):
            log.warning("sink failed", **facts)
        else:
            log.error("sink failed", **facts)
        now = trio.current_time()
        if self._failing_since is None:
            self._failing_since = now
        patient_until = self._failing_since + PATIENCE_SECS
        if self._follower.policy == "block":
            if now + wait < patient_until:
                await trio.sleep(wait)
                return
            await trio.sleep(max(0.0, patient_until - now))
            self._follower.be("drop_oldest")
            wait = max(0.0, now + wait - trio.current_time())
        with trio.move_on_after(wait):
            await self.session.ended.wait()
            # The session is over: this sink gets one more chance, then the rest is given up.
            if self._backoff.attempts > 1 and now >= patient_until:
                self._cut_off("still failing at the end of the session")

    def _recovered(self) -> None:
        if self._failing_since is not None:
            log.info("sink recovered", **self._facts())
        self.state, self.error, self._failing_since = "open", None, None
        self._follower.be("block")
        self._backoff.reset()

    def _cut_off(self, reason: str) -> None:
        log.error("sink cut off", **self._facts(), reason=reason)
        self.state, self.error = "done", self.error or reason
        self._follower.close()

    def _facts(self, error: Exception | None = None) -> dict[str, object]:
        facts: dict[str, object] = {"sink": self.sink_name, "session": self.session.session_id}
        return facts if error is None else facts | {"error": describe(error)}
