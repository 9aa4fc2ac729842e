"""One replay: its state and its verbs; how ticks are released and how followers join is elsewhere.

A session is a row of courses, one per epoch. A verb that moves it in time replaces the course that
is on; its loop then goes on with the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import trio

from tardisd.errors import RequestError, TardisError
from tardisd.log import Log
from tardisd.market.time import MILLISECOND, format_time
from tardisd.plugins.sessions import Notice, Resume, SessionRequest, Speed, Subscription, WhenFull
from tardisd.replay.audience import Audience
from tardisd.replay.clock import check_speed
from tardisd.replay.course import Course, Stage, Steps
from tardisd.replay.fanout import Follower
from tardisd.replay.joining import Door, Spawn
from tardisd.replay.position import Position
from tardisd.replay.prepare import Opening
from tardisd.replay.proof import prove
from tardisd.replay.records import Place
from tardisd.replay.report import SinkFacts, as_objects, asked, report
from tardisd.replay.rewind import ticks_before
from tardisd.replay.source import Source
from tardisd.replay.timeline import Timeline, Tuning
from tardisd.supervise import attempt, describe

log = Log("tardisd.sessions")

ENDED = frozenset({"finished", "stopped", "failed"})
_ENDINGS = {"finished": "finished", "stopped": "been stopped", "failed": "failed"}
MAX_STEP = 100_000
_EMPTY_LOOP_SECS = 0.1


class ReplaySession:
    """A session as `tardisd.plugins.sessions.Session` describes it."""

    def __init__(
        self,
        session_id: str,
        request: SessionRequest,
        source: Callable[[Audience, Timeline], Source],
        tuning: Tuning,
        spawn: Spawn,
    ) -> None:
        self.session_id = session_id
        self.request = request
        self.status_name = "paused" if request.start_paused else "active"
        self.ended = trio.Event()
        self.end_notice: Notice | None = None
        self.sinks: Sequence[SinkFacts] = ()
        self.suspended = False
        self._spawn = spawn
        self._time = Timeline(request.start, request.speed, tuning)
        self._audience = Audience(tuning.limits, self._time.poke, lambda: self._time.speed)
        self._source = source(self._audience, self._time)
        self._stage = Stage(
            request, self._time, self._audience, tuning, lambda: self._verbs, self._pause_itself
        )
        self._verbs = 0
        self._scope = trio.CancelScope()
        self._begun = trio.Event()
        self._door = Door(self._source, spawn, lambda: self.end_notice)
        self._course = self._make_course(1, Position(request.start), None)

    def _make_course(self, number: int, begin: Position, cause: str | None) -> Course:
        until = self.request.until
        return Course(
            number,
            begin,
            cause,
            self._stage,
            until if until is not None and begin.release < until else None,
            tuple(one.series for one in self._source.materials),
            awaiting_snapshot=cause is not None,
        )

    def restore_ended(self, status: str, end: dict[str, Any]) -> None:
        """Become a session that ended before the daemon was started."""
        self.status_name = status
        self.end_notice = Notice("end", end)
        self._course.progress.ticks = int(end.get("ticks", 0))
        self._door.ahead = True
        self._begun.set()
        self.ended.set()

    def restore(self, place: Place) -> None:
        """Become a session that was cut off, paused where it was."""
        self.status_name = "paused"
        self._door.ahead = True
        course = self._make_course(place.epoch, place.begin, place.cause)
        course.silent_seq = place.seq
        course.awaiting_snapshot = False
        self._course = course
        self._time.change_speed(place.speed)
        self._time.jump(place.clock)
        self._begun.set()

    def place(self) -> Place:
        """Return where the session is, for a daemon after this one."""
        course, time = self._course, self._time
        return Place(
            course.number, course.cause, course.begin, course.told_seq, time.market(), time.speed
        )

    def suspend(self) -> None:
        """Leave followers to come back to the daemon after this one; tells no end."""
        self._halt()
        self._audience.dismiss("the daemon shuts down; the session goes on after its restart")
        self.suspended = True
        self._scope.cancel()
        self.ended.set()

    # ---- what it is

    @property
    def epoch(self) -> int:
        """The epoch that is on."""
        return self._course.number

    @property
    def ticks(self) -> int:
        """How many ticks were released in this epoch."""
        return self._course.progress.ticks

    @property
    def has_ended(self) -> bool:
        """Whether the session is finished, stopped or failed."""
        return self.status_name in ENDED

    def market(self) -> int:
        """Return the session's market time (ns): never beyond a tick not yet handed out."""
        return self._time.market()

    def status(self) -> dict[str, Any]:
        """Return the fields of protocol §1 `status`."""
        return report(
            self.session_id, self.status_name, self._course, [sink.facts() for sink in self.sinks]
        )

    def created(self) -> Notice:
        """Return the `session_created` notice."""
        fields = {"status": self.status_name, **asked(self.request)}
        return Notice("session_created", {**fields, "speed": self._time.speed, "epoch": self.epoch})

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
        self._course.end_steps()
        self._halt()
        return self._tell("paused", by, request_id)

    def _halt(self) -> None:
        if self.status_name == "active":
            self._time.halt()
            self.status_name = "paused"

    def _pause_itself(self) -> None:
        """Pause where the request says so."""
        self._halt()
        self._tell("paused", None, None, cause="until")

    def resume(self, by: Subscription | None = None, request_id: Any = None) -> Notice:
        """Let the clock run on; a running session stays as it is."""
        self._refuse_if_ended("resume")
        self._course.end_steps()
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

    def seek(self, to: int, by: Subscription | None = None, request_id: Any = None) -> Notice:
        """Stand before the first tick released at `to` (ns) or later, in a new epoch."""
        self._refuse_if_ended("seek in")
        start, end = self.request.start, self.request.end
        if not start <= to <= end:
            raise RequestError(
                "bad_request",
                f"to: {format_time(to)} is outside the session, which goes from"
                f" {format_time(start)} to {format_time(end)}",
            )
        self._replace(Position(to), "seek")
        told = self._tell("sought", by, request_id, epoch=self.epoch)
        self._tell_reset()
        return told

    def seek_by(self, delta: int, by: Subscription | None = None, request_id: Any = None) -> Notice:
        """Seek by `delta` ns from where the session is, not beyond its start or end."""
        to = min(max(self.market() + delta, self.request.start), self.request.end)
        return self.seek(to, by, request_id)

    def step(self, count: int, by: Subscription | None = None, request_id: Any = None) -> Steps:
        """Deliver the next `count` ticks of a paused session, or go back that many."""
        self._refuse_if_ended("step through")
        if self.status_name != "paused":
            raise RequestError(
                "wrong_state", f"session {self.session_id!r} is running; pause it to step"
            )
        if abs(count) > MAX_STEP:
            raise RequestError("too_large", f"count: {count} ticks; at most {MAX_STEP} in a step")
        if self._course.steps is not None or self._course.stepped_back is not None:
            raise RequestError("wrong_state", "another step is under way; wait for `stepped`")
        steps = Steps(count, by, request_id)
        if count > 0:
            self._verbs += 1
            self._course.begin_steps(steps)
        elif count < 0:
            self._spawn(self._step_back, steps, self._course)
        else:
            steps.end(self._tell("stepped", by, request_id, count=0))
        return steps

    async def _step_back(self, steps: Steps, course: Course) -> None:
        """Find the position so many ticks ago, and begin there."""
        position = Position(0)

        async def find() -> None:
            nonlocal position
            position, steps.taken = await ticks_before(
                self._source, course.progress.position, -steps.left
            )

        error = await attempt(find)
        if error is not None or course is not self._course or self.has_ended:
            text = "the session moved meanwhile" if error is None else describe(error)
            steps.fail(RequestError("wrong_state", f"cannot step back: {text}"))
            return
        self._replace(position, "step")
        self._course.stepped_back = steps
        self._tell_reset()

    def acknowledge(self, by: Subscription, epoch: int, seq: int) -> None:
        """Take note that a lockstep follower has dealt with everything up to `seq`."""
        if epoch != self.epoch or not isinstance(by, Follower):
            return  # of an epoch that is over: void
        if seq > self._course.progress.seq:
            raise RequestError(
                "bad_request",
                f"seq: {seq} was not sent yet; the last one is {self._course.progress.seq}",
            )
        by.acknowledged = max(by.acknowledged, seq)
        self._time.poke()

    def stop(self, by: Subscription | None = None, request_id: Any = None) -> Notice:
        """End the session; every follower gets `end` with reason `stopped`."""
        self._refuse_if_ended("stop")
        reply = Notice("stopped")
        if isinstance(by, Follower):
            by.notify(reply.answering(request_id))
        self.finish("stopped")
        return reply

    def _replace(self, begin: Position, cause: str) -> None:
        """Begin a new epoch at a position; the loop goes on with it."""
        self._course.end_steps()
        self._course = self._make_course(self.epoch + 1, begin, cause)
        self._time.jump(begin.release)
        self._verbs += 1
        self._scope.cancel()

    def _tell_reset(self, **fields: object) -> None:
        clock = self.market() // MILLISECOND
        course = self._course
        told = {"epoch": course.number, "clock": clock, "cause": course.cause, **fields}
        self._audience.reset(Notice("reset", told))

    def _tell(
        self, name: str, by: Subscription | None, request_id: Any, **fields: object
    ) -> Notice:
        notice = Notice(name, {**fields, "clock": self.market() // MILLISECOND})
        self._audience.tell(notice, by, request_id)
        self._verbs += 1
        self._time.poke()
        return notice.answering(request_id)

    def _refuse_if_ended(self, verb: str) -> None:
        if self.has_ended:
            raise RequestError(
                "wrong_state",
                f"cannot {verb} session {self.session_id!r}: it has {_ENDINGS[self.status_name]}",
            )

    # ---- followers

    def subscribe(
        self,
        when_full: WhenFull,
        forms: Sequence[str] = (),
        name: str = "",
        resume: Resume | None = None,
        lockstep: bool = False,
    ) -> Follower:
        """Follow from the next tick on, after a snapshot, or after what was missed."""
        follower = self._audience.make(when_full, forms, name, lockstep)
        self._door.admit(self._course, follower, resume)
        return follower

    def publish(self, notice: Notice) -> None:
        """Tell every follower something, in its place among the ticks that are out."""
        self._audience.tell(notice)

    def last_ticks(self, count: int) -> tuple[list[dict[str, Any]], int]:
        """Return the last released ticks that are at hand, and the market time (ns)."""
        return as_objects(self._course.progress.last_ticks(count)), self.market()

    async def verify(self) -> dict[str, Any]:
        """Replay what was released in this epoch once more, and compare the content hashes."""
        return await prove(self._source, self._course)

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
        await self._begun.wait()
        while not (self.has_ended or self.suspended):
            course = self._course
            with trio.CancelScope() as self._scope:
                await self._play(course)

    async def _play(self, course: Course) -> None:
        """Play one epoch; at its end the session ends, or begins again."""
        while not (course.has_begun or course.steps is not None or self._time.running):
            await self._time.changed()  # nothing is read for a session that may never run
        opening = Opening(course.begin, middle=course.cause is not None)
        async with self._source.open(course.number, opening) as items:
            await course.play(items)
        changed = await self._source.has_changed()
        await course.due(self.request.end)  # it may have been paused meanwhile
        if not self.request.loop:
            self.finish("finished", data_changed=changed)
            return
        if not course.progress.seq:
            await trio.sleep(_EMPTY_LOOP_SECS)
        done = {"ticks": course.progress.ticks, "hash": course.progress.hash().hexdigest()}
        self._replace(Position(self.request.start), "loop")
        self._tell_reset(**done)

    # ---- the end

    async def drained(self) -> None:
        """Return when every follower of an ended session has received all, `end` included."""
        while not self._audience.drained:
            await self._time.changed()

    def finish(self, reason: str, message: str | None = None, data_changed: bool = False) -> None:
        """End the session for good; followers get `end` after what is queued. Idempotent."""
        if self.has_ended:
            return
        self._course.end_steps()
        self._time.halt()
        self.status_name = reason
        progress = self._course.progress
        fields: dict[str, Any] = {
            "epoch": self.epoch,
            "reason": reason,
            "ticks": progress.ticks,
            "hash": progress.hash().hexdigest(),
        }
        if data_changed:
            fields["data_changed"] = True
        if message is not None:
            fields["message"] = message
        self.end_notice = Notice("end", fields)
        self._audience.end(self.end_notice)
        self._course.end_silence()
        progress.forget()
        self._begun.set()
        self.ended.set()
        self._scope.cancel()
