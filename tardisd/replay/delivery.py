"""One session into one sink: write, retry, reopen; a sink that fails is no other sink's trouble."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import trio

from tardisd.errors import PluginError, Rejected, Retry
from tardisd.log import Log
from tardisd.plugins.analyzer import Analyzer
from tardisd.plugins.sessions import Evicted, Notice
from tardisd.plugins.sink import Sink, Writer
from tardisd.replay.block import SessionBlock
from tardisd.replay.fanout import Follower
from tardisd.replay.session import ReplaySession
from tardisd.supervise import Backoff, attempt, describe

log = Log("tardisd.delivery")

# A sink that fails holds the session up for so long; then its backlog drops, and says so.
PATIENCE_SECS = 5.0
# A sink that still fails when the session has ended is given up after so long.
LAST_CHANCE_SECS = 10.0
# After the end of the session one write may take so long; before, the queue's limit counts.
STALL_SECS = 60.0
# The same complaint is logged again after so long.
REPEAT_SECS = 60.0
_SHORTEST_WAIT, _LONGEST_WAIT = 0.01, 300.0

DeliveryState = Literal["open", "failing", "done", "cut_off"]


@dataclass
class Delivery:
    """The stream of a session into a sink instance; `facts` is shown in listings.

    States: `open` while all is well, `failing` after an error until a write succeeds, `done` when
    the sink has everything or follows by itself, `cut_off` when it was given up.
    """

    session: ReplaySession
    sink_name: str
    sink: Sink[Any] | Analyzer[Any]
    state: DeliveryState = "open"
    error: str | None = None
    _follower: Follower = field(init=False)
    _pending: SessionBlock | Notice | None = field(init=False, default=None)
    _failing_since: float | None = field(init=False, default=None)
    _give_up_at: float | None = field(init=False, default=None)
    _logged: tuple[str, float] | None = field(init=False, default=None)
    _backoff: Backoff = field(init=False, default_factory=Backoff)
    _calls: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        speaks = isinstance(self.sink, Analyzer)
        name = f"{'analyzer' if speaks else 'sink'} {self.sink_name}"
        self._follower = self.session.subscribe("block", self.sink.forms, name)
        self._follower.awaited = speaks

    def facts(self) -> dict[str, Any]:
        """Return name, state and last error, as `status` of a session shows them."""
        return {"name": self.sink_name, "state": self.state, "error": self.error}

    async def run(self) -> None:
        """Deliver until the session has ended and everything is written, or the sink is cut off."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_eviction, nursery.cancel_scope)
                nursery.start_soon(self._watch_stall, nursery.cancel_scope)
                await self._deliver()
                nursery.cancel_scope.cancel()
        finally:
            self._cut_off("the daemon shuts down")  # unless all is done
            self._follower.close()

    async def _watch_eviction(self, scope: trio.CancelScope) -> None:
        """Give the sink up when it reads nothing for too long, even in the middle of a write."""
        await self._follower.wait_evicted()
        self._cut_off("it took nothing for too long")
        scope.cancel()

    async def _watch_stall(self, scope: trio.CancelScope) -> None:
        """Give the sink up when one of its calls hangs after the end of the session."""
        await self.session.ended.wait()
        calls = -1
        while calls != self._calls:
            calls = self._calls
            await trio.sleep(STALL_SECS)
        self._cut_off(f"it hung for {STALL_SECS:g} s after the end of the session")
        scope.cancel()

    async def _deliver(self) -> None:
        while not self._over:
            error = await attempt(self._open_and_write)
            if isinstance(error, Evicted):
                self._cut_off(str(error))
            elif error is not None and self._over:
                self._log(error, 0.0, reopening=False)
            elif error is not None:
                await self._failed(error, reopening=True)

    @property
    def _over(self) -> bool:
        return self.state in {"done", "cut_off"}

    async def _open_and_write(self) -> None:
        """Write until the end of the session. What `open` or `write` raises comes out of here."""
        async with self.sink.open(self.session) as writer:
            while writer is not None and not self._over:
                if self._pending is None:
                    try:
                        self._pending = await self._follower.receive()
                    except trio.EndOfChannel:
                        break
                error = await attempt(self._write, writer, self._pending)
                if isinstance(error, Retry):
                    await self._failed(error)
                    continue
                if isinstance(error, Rejected):
                    log.warning("block rejected", **self._names(), error=describe(error))
                elif error is not None:
                    raise error
                else:
                    self._recovered()
                self._pending = None
        if not self._over:  # only now is it complete: leaving a sink may fail, too
            self.state, self.error = "done", None

    async def _write(self, writer: Writer, item: SessionBlock | Notice) -> None:
        self._calls += 1
        if isinstance(item, Notice):
            await writer.notice(item)
        else:
            await writer.write(item)

    async def _failed(self, error: Exception, *, reopening: bool = False) -> None:
        """Wait before the next attempt; give the sink up when the session is over for long."""
        wait = error.after if isinstance(error, Retry) else self._backoff.next()
        wait = min(max(wait, _SHORTEST_WAIT), _LONGEST_WAIT)
        self.state, self.error = "failing", describe(error)
        self._log(error, wait, reopening)
        now = trio.current_time()
        if self._failing_since is None:
            self._failing_since = now
        patient_until = self._failing_since + PATIENCE_SECS
        if self._follower.policy == "block" and now + wait >= patient_until:
            await self._rest(patient_until)
            self._follower.be("drop_oldest")
        await self._rest(now + wait)

    async def _rest(self, until: float) -> None:
        """Sleep until then, at most; after the end of the session only as long as is left."""
        with trio.move_on_at(until) as scope:
            await self.session.ended.wait()
        if scope.cancelled_caught or self._over:
            return
        if self._give_up_at is None:
            self._give_up_at = trio.current_time() + LAST_CHANCE_SECS
        if trio.current_time() >= self._give_up_at:  # the last attempt was just made
            self._cut_off("still failing after the end of the session")
        else:
            await trio.sleep_until(min(until, self._give_up_at))

    def _recovered(self) -> None:
        if self._failing_since is None:
            return
        log.info("sink recovered", **self._names())
        self.state, self.error = "open", None
        self._failing_since = self._give_up_at = self._logged = None
        self._follower.be("block")
        self._backoff.reset()

    def _cut_off(self, reason: str) -> None:
        if self._over:
            return
        log.error("sink cut off", **self._names(), reason=reason, error=self.error)
        self.state, self.error = "cut_off", self.error or reason
        self._follower.close()

    def _log(self, error: Exception, wait: float, reopening: bool) -> None:
        """Log a failure, but not at every attempt while it stays the same."""
        text, now = describe(error), trio.current_time()
        if self._logged and self._logged[0] == text and now < self._logged[1] + REPEAT_SECS:
            return
        self._logged = (text, now)
        facts = self._names() | {"error": text, "wait_secs": round(wait, 2), "reopening": reopening}
        if isinstance(error, PluginError):
            log.warning("sink failed", **facts)
        else:
            log.error("sink failed", **facts)

    def _names(self) -> dict[str, object]:
        return {"sink": self.sink_name, "session": self.session.session_id}
