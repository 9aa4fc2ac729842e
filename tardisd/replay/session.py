"""One replay: its state, its verbs and the loop that releases ticks as its clock reaches them.

The clock never passes a tick that has not been handed out, so a slow machine or a blocking follower
slows market time down for everyone, and nothing is dropped or reordered. A slice of ticks is handed
to all followers in one step, after every blocking one has room: a verb can come before or after a
slice, never in the middle of handing it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import trio

from tardisd.errors import RequestError, TardisError
from tardisd.log import Log
from tardisd.market.span import Span
from tardisd.market.time import MILLISECOND, format_time
from tardisd.plugins.sessions import Notice, SessionRequest, Speed, Subscription, WhenFull
from tardisd.plugins.storage import Storage
from tardisd.replay.block import Prepared, make_encoders
from tardisd.replay.digest import new_digest
from tardisd.replay.fanout import Follower
from tardisd.replay.merge import Mark
from tardisd.replay.source import Material, Source, Workers
from tardisd.replay.timeline import Timeline, Tuning
from tardisd.supervise import attempt, describe
from tardisd.wall import wall_ms
from tardisd.wire.encode import Frame

log = Log("tardisd.sessions")

ENDED = frozenset({"finished", "stopped", "failed"})


class SinkFacts(Protocol):
    """What a session tells of the sinks it is delivered to."""

    def facts(self) -> dict[str, Any]:
        """Return name, state and last error."""


class ReplaySession:
    """A session as `tardisd.plugins.sessions.Session` describes it."""

    def __init__(
        self,
        session_id: str,
        request: SessionRequest,
        materials: Sequence[Material],
        storage: Storage[Any],
        workers: Workers,
        tuning: Tuning,
    ) -> None:
        self.session_id = session_id
        self.request = request
        self.epoch = 1
        self.status_name = "paused" if request.start_paused else "active"
        self.ended = trio.Event()
        self.end_notice: Notice | None = None
        self.sinks: Sequence[SinkFacts] = ()
        self._materials = materials
        self._storage = storage
        self._tuning = tuning
        self._time = Timeline(request.start, request.speed, tuning)
        self._followers: list[Follower] = []
        self._draining: list[Follower] = []
        self._demand: frozenset[str] = frozenset()
        self._scope = trio.CancelScope()
        self._verbs = 0
        self._begun = trio.Event()
        self._seq = 0
        self._ticks = 0
        self._at: tuple[Prepared, int] | None = None
        self._gap_until = {material.series: request.start for material in materials}
        frame = Frame("tick", session_id, self.epoch, request.release == "open-lookahead")
        self._source = Source(
            session_id,
            self.epoch,
            Span(request.start, request.end),
            materials,
            storage,
            make_encoders(frame),
            lambda: self._demand,
            request.publish_delay,
            frame.lookahead,
            workers,
            lambda: self._time.unpaced,
        )

    def restore(self, status: str, end: dict[str, Any]) -> None:
        """Become a session that ended before the daemon was started."""
        self.status_name = status
        self.end_notice = Notice("end", end)
        self._ticks = int(end.get("ticks", 0))
        self._begun.set()
        self.ended.set()

    # ---- what it is

    @property
    def ticks(self) -> int:
        """How many ticks were released in this epoch."""
        return self._ticks

    @property
    def has_ended(self) -> bool:
        """Whether the session is finished, stopped or failed."""
        return self.status_name in ENDED

    def market(self) -> int:
        """Return the session's market time (ns): never beyond a tick not yet handed out."""
        return self._time.market()

    def status(self) -> dict[str, Any]:
        """Return the fields of protocol §1 `status`."""
        request = self.request
        return {
            "session_id": self.session_id,
            "status": self.status_name,
            "series": [series.text for series in request.series],
            "start_time": request.start // MILLISECOND,
            "end_time": request.end // MILLISECOND,
            "clock": self.market() // MILLISECOND,
            "speed": self._time.speed,
            "achieved_speed": self._time.achieved_speed,
            "seq": self._seq,
            "epoch": self.epoch,
            "ticks": self._ticks,
            "subscribers": len(self._followers),
            "lag_ms": self._time.lag_ms(),
            "waiting_for": [f.name for f in self._followers if not f.has_room],
            "sinks": [sink.facts() for sink in self.sinks],
            "origin": request.origin,
        }

    def created(self) -> Notice:
        """Return the `session_created` notice."""
        request = self.request
        fields = {
            "status": self.status_name,
            "series": [series.text for series in request.series],
            "start_time": request.start // MILLISECOND,
            "end_time": request.end // MILLISECOND,
            "speed": self._time.speed,
            "epoch": self.epoch,
        }
        return Notice("session_created", fields)

    # ---- verbs

    def begin(self) -> None:
        """Start the clock, once its creator has been answered; idempotent."""
        if self._begun.is_set():
            return
        if self.status_name == "active":
            self._time.run()
        self._begun.set()

    def pause(self, by: Subscription | None = None, request_id: Any = None) -> Notice:
        """Stop the clock; a paused session stays as it is."""
        self._refuse_if_ended("pause")
        if self.status_name == "active":
            self._time.halt()
            self.status_name = "paused"
        return self._tell("paused", by, request_id)

    def resume(self, by: Subscription | None = None, request_id: Any = None) -> Notice:
        """Let the clock run on; a running session stays as it is."""
        self._refuse_if_ended("resume")
        if self.status_name == "paused":
            self.status_name = "active"
            if self._begun.is_set():
                self._time.run()
        return self._tell("resumed", by, request_id)

    def change_speed(
        self, speed: Speed, by: Subscription | None = None, request_id: Any = None
    ) -> Notice:
        """Set market seconds per wall second from now on."""
        self._refuse_if_ended("change the speed of")
        check_speed(speed)
        self._time.change_speed(speed)
        return self._tell("speed_changed", by, request_id, speed=speed)

    def stop(self, by: Subscription | None = None, request_id: Any = None) -> Notice:
        """End the session; every follower gets `end` with reason `stopped`."""
        self._refuse_if_ended("stop")
        reply = Notice("stopped")
        if isinstance(by, Follower):
            by.notify(reply.answering(request_id))
        self.finish("stopped")
        return reply

    def subscribe(self, when_full: WhenFull, forms: Sequence[str] = (), name: str = "") -> Follower:
        """Follow from the next tick on; `forms` are the encodings that will be asked for."""
        follower = Follower(
            when_full, forms, self._tuning.limits, self._time.poke, self._leave, name
        )
        follower.last_seq = self._seq
        if self.end_notice is not None:
            follower.notify(self.end_notice, last=True)
        else:
            self._followers.append(follower)
            self._count_forms()
        return follower

    def _leave(self, follower: Follower) -> None:
        if follower in self._followers:
            self._followers.remove(follower)
            self._count_forms()
        elif follower in self._draining:
            self._draining.remove(follower)
        self._time.poke()

    def _count_forms(self) -> None:
        self._demand = frozenset(form for f in self._followers for form in f.forms)

    def _tell(
        self, name: str, by: Subscription | None, request_id: Any, **fields: object
    ) -> Notice:
        """Tell every follower of a verb; the asker's copy carries its request id."""
        notice = Notice(name, {**fields, "clock": self.market() // MILLISECOND})
        for follower in self._followers:
            asked = isinstance(by, Follower) and follower is by
            follower.notify(notice.answering(request_id) if asked else notice)
        self._verbs += 1
        self._time.poke()
        return notice.answering(request_id)

    def _refuse_if_ended(self, verb: str) -> None:
        if self.has_ended:
            raise RequestError(
                "wrong_state",
                f"cannot {verb} session {self.session_id!r}: it has {_ENDINGS[self.status_name]}",
            )

    # ---- the loop

    async def run(self) -> None:
        """Replay from start to end; returns when the session has ended, however it did."""
        error = await attempt(self._replay)
        if isinstance(error, TardisError):
            self.finish("failed", error.message)
        elif error is not None:  # most likely the storage plugin's, and no other session's trouble
            log.error("session broke", session=self.session_id, error=describe(error))
            self.finish("failed", "internal error; the log of the daemon says more")

    async def _replay(self) -> None:
        with self._scope:
            await self._begun.wait()
            if self.has_ended:  # it never ran: there is nothing to open
                return
            async with self._source.open() as items:
                await self._release_all(items)
            await self._until(self.request.end)
            self._time.reached(self.request.end)
            await self._finish_checked()

    async def _release_all(self, items: trio.MemoryReceiveChannel[Prepared | Mark]) -> None:
        async for item in items:
            if isinstance(item, Mark):
                await self._until(item.ts_release)
                while not await self._make_room():
                    await self._until(item.ts_release)
                self._mark(item)
            else:
                await self._release(item)

    async def _release(self, block: Prepared) -> None:
        """Hand out a block, slice by slice, as its ticks come due."""
        release, row = block.release, 0
        while row < len(block):
            await self._until(int(release[row]))
            if self._time.unpaced:
                upto = len(block)
            else:
                upto = max(row + 1, int(release.searchsorted(self._time.due(), "right")))
            upto = min(upto, row + self._tuning.slice_ticks)
            if not await self._make_room():
                continue  # paused or otherwise changed while waiting: look again
            slice_ = block[row:upto]
            slice_.sent_ms = wall_ms()
            self._seq += len(slice_)
            self._ticks += len(slice_)
            self._at = (block, upto)
            row = upto
            self._time.reached(slice_.last_release)
            for follower in list(self._followers):
                follower.push(slice_)
            if self._time.unpaced:
                await trio.lowlevel.checkpoint()

    async def _until(self, due: int) -> None:
        skipping = self.request.on_gap == "skip"
        await self._time.until(due, self._gap_until.values() if skipping else None)

    async def _make_room(self) -> bool:
        """Wait until every blocking follower has room; False when a verb came meanwhile."""
        verbs = self._verbs
        while full := [follower for follower in self._followers if not follower.has_room]:
            now = trio.current_time()
            for follower in full:
                if follower.full_since is None:
                    follower.full_since = now
                elif now - follower.full_since >= self._tuning.limits.max_block_secs:
                    follower.evict(f"read nothing for {self._tuning.limits.max_block_secs:g} s")
            since = [
                f.full_since for f in full if f in self._followers and f.full_since is not None
            ]
            if not since:
                continue
            await self._time.changed(min(since) + self._tuning.limits.max_block_secs)
            if self._verbs != verbs:
                return False
        return True

    def _mark(self, mark: Mark) -> None:
        """Tell followers of a gap; it takes a sequence number of its own."""
        self._seq += 1
        span = mark.gap.span
        self._gap_until[mark.series] = max(self._gap_until[mark.series], span.end)
        self._time.reached(mark.ts_release)
        fields = {
            "epoch": self.epoch,
            "seq": self._seq,
            "series": mark.series.text,
            "from": span.start // MILLISECOND,
            "to": span.end // MILLISECOND,
            "cause": mark.gap.cause,
        }
        for follower in list(self._followers):
            follower.notify(Notice("gap", fields))
        if self.request.on_gap == "fail":
            raise TardisError(
                f"{mark.series} has no data from {format_time(span.start)} to"
                f" {format_time(span.end)} ({mark.gap.cause}), and on_gap is 'fail'"
            )

    # ---- the end

    async def drained(self) -> None:
        """Return when every follower of an ended session has received all, `end` included."""
        while self._draining:
            await self._time.changed()

    async def _finish_checked(self) -> None:
        """Finish, and say so when the stored series changed while the session ran."""
        changed = False
        for material in self._materials:
            changed |= await self._storage.version(material.series) != material.version
        await self._until(self.request.end)  # it may have been paused meanwhile
        self.finish("finished", data_changed=changed)

    def finish(self, reason: str, message: str | None = None, data_changed: bool = False) -> None:
        """End the session for good; followers get `end` after what is queued. Idempotent."""
        if self.has_ended:
            return
        self._time.halt()
        self.status_name = reason
        digest = new_digest() if self._at is None else self._at[0].hash_upto(self._at[1])
        fields: dict[str, Any] = {
            "epoch": self.epoch,
            "reason": reason,
            "ticks": self._ticks,
            "hash": digest.hexdigest(),
        }
        if data_changed:
            fields["data_changed"] = True
        if message is not None:
            fields["message"] = message
        self.end_notice = Notice("end", fields)
        for follower in self._followers:
            follower.notify(self.end_notice, last=True)
        self._draining, self._followers = self._followers, []
        self._at = None
        self._begun.set()
        self.ended.set()
        self._scope.cancel()


_ENDINGS = {"finished": "finished", "stopped": "been stopped", "failed": "failed"}


def check_speed(speed: Speed) -> None:
    """Raise RequestError unless the speed is a finite number > 0 or `max`."""
    if speed != "max" and not (math.isfinite(speed) and speed > 0):
        raise RequestError("bad_request", f"speed: expected a number > 0 or 'max', found {speed}")


__all__ = ["ENDED", "ReplaySession", "check_speed"]
