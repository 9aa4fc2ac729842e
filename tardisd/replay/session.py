"""The verbs of a session, and what it says of itself; how it passes is elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tardisd.errors import RequestError
from tardisd.market.time import MILLISECOND, format_time
from tardisd.plugins.sessions import Notice, Resume, Speed, Subscription, WhenFull
from tardisd.replay.clock import check_speed
from tardisd.replay.course import Course, Steps
from tardisd.replay.fanout import Follower
from tardisd.replay.lifetime import Lifetime
from tardisd.replay.position import Position
from tardisd.replay.proof import prove
from tardisd.replay.report import as_objects, asked, report
from tardisd.replay.rewind import ticks_before
from tardisd.supervise import attempt, describe

MAX_STEP = 100_000
_ENDINGS = {"finished": "finished", "stopped": "been stopped", "failed": "failed"}


class ReplaySession(Lifetime):
    """A session as `tardisd.plugins.sessions.Session` describes it."""

    @property
    def ticks(self) -> int:
        """How many ticks were released in this epoch."""
        return self._course.progress.ticks

    def status(self) -> dict[str, Any]:
        """Return the fields of protocol §1 `status`."""
        sinks = [sink.facts() for sink in self.sinks]
        created_at = self.created_at // MILLISECOND
        found = report(self.session_id, created_at, self.status_name, self._course, sinks)
        if self.end_fields is not None and self.end_notice is None:
            found["waiting_for"].append("content hash")  # it has ended, but says so only with that
        return found

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

    def resume(self, by: Subscription | None = None, request_id: Any = None) -> Notice:
        """Let the clock run on; a running session stays as it is."""
        self._refuse_if_ended("resume")
        self._course.end_steps()
        self._going_back = None
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
        course = self._course
        if course.steps or course.stepped_back or self._going_back:
            raise RequestError("wrong_state", "another step is under way; wait for `stepped`")
        steps = Steps(count, by, request_id)
        if count > 0:
            self._verbs += 1
            course.begin_steps(steps)
        elif count < 0:
            self._going_back = steps
            self._spawn(self._step_back, steps, course)
        else:
            steps.end(self._tell("stepped", by, request_id, count=0), told=by is not None)
        return steps

    async def _step_back(self, steps: Steps, course: Course) -> None:
        """Find the position so many ticks ago, and begin there."""
        position = Position(0)
        while course.is_silent and course is self._course and not self.has_ended:
            await self._time.changed()  # it is not yet where it was before the restart

        async def find() -> None:
            nonlocal position
            position, steps.taken = await ticks_before(
                self._source, course.progress.position, -steps.left
            )

        error = await attempt(find)
        is_wanted = self._going_back is steps and not self.has_ended
        if is_wanted:
            self._going_back = None
        if error is not None or not is_wanted:
            text = "the session moved meanwhile" if error is None else describe(error)
            steps.fail(RequestError("wrong_state", f"cannot step back: {text}"))
            return
        self._replace(position, "step")
        self._course.stepped_back = steps
        self._tell_reset()

    def acknowledge(self, by: Subscription, epoch: int, seq: int) -> None:
        """Take note that a lockstep follower has dealt with everything up to `seq`."""
        if epoch > self.epoch:
            text = f"epoch: {epoch} has not begun; the session is in epoch {self.epoch}"
            raise RequestError("bad_request", text)
        if epoch < self.epoch or not isinstance(by, Follower):
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
        self._audience.tell(reply, by, request_id)
        self.finish("stopped")  # `end` may come later: see there
        return reply

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
