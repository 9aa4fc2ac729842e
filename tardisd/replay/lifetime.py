"""A session from its beginning to its end: the loop, what is left of it in between, and its end.

A session is a row of courses, one per epoch. A verb that moves it in time replaces the course that
is on; its loop then goes on with the new one. The verbs themselves are elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import trio

from tardisd.errors import TardisError
from tardisd.log import Log
from tardisd.market.time import MILLISECOND
from tardisd.plugins.sessions import Notice, SessionRequest, Subscription
from tardisd.replay.audience import Audience
from tardisd.replay.course import Course, Stage, Steps
from tardisd.replay.joining import Door, Spawn
from tardisd.replay.position import Position
from tardisd.replay.records import Place
from tardisd.replay.report import SinkFacts
from tardisd.replay.source import Source
from tardisd.replay.timeline import Timeline, Tuning
from tardisd.replay.trail import Trail
from tardisd.replay.trailing import trail_behind
from tardisd.supervise import attempt, describe, result_of

log = Log("tardisd.sessions")

ENDED = frozenset({"finished", "stopped", "failed"})
_EMPTY_LOOP_SECS = 0.1
# How long the end waits for what analyzers have to say of the last ticks; a model may take minutes.
_LAST_WORDS_SECS = 180.0


class Lifetime:
    """What a session is made of, and how it passes. `run` returns when it has ended."""

    def __init__(
        self,
        session_id: str,
        request: SessionRequest,
        source: Callable[[Audience, Timeline], Source],
        tuning: Tuning,
        spawn: Spawn,
        created_at: int,
    ) -> None:
        self.session_id = session_id
        self.created_at = created_at
        self.request = request
        self.status_name = "paused" if request.start_paused else "active"
        self.ended = trio.Event()
        #: What `end` says or will say, and `end` itself once it is told.
        self.end_fields: dict[str, Any] | None = None
        self.end_notice: Notice | None = None
        self.sinks: Sequence[SinkFacts] = ()
        self.suspended = False
        self._spawn = spawn
        self._time = Timeline(request.start, request.speed, tuning)
        self._audience = Audience(tuning.limits, self._time.poke, lambda: self._time.speed)
        self._source = source(self._audience, self._time)
        self._stage = Stage(
            request, self._time, self._audience, tuning, lambda: self._verbs, self._pause_itself,
            lambda: self.note(),  # noqa: PLW0108 - which is set later
            self._begin_anew,
        )  # fmt: skip
        #: Has a durable session written down before anybody hears of what a verb did to it.
        self.note: Callable[[], None] = lambda: None
        self._verbs = 0
        #: The step back whose position is looked for.
        self._going_back: Steps | None = None
        self._scope = trio.CancelScope()
        self._begun = trio.Event()
        self._door = Door(self._source, spawn, lambda: self.end_notice)
        self._course = self._make_course(1, Position(request.start), None)
        #: Where the daemon before this one has left it.
        self._place: Place | None = None
        #: Of a course, the last content hash that was taken, and of how many ticks it is.
        self._hashed: tuple[Course, str | None, int | None] = (self._course, None, None)

    def _make_course(self, number: int, begin: Position, cause: str | None) -> Course:
        until = self.request.until
        return Course(
            number,
            begin,
            cause,
            self._stage,
            until if until is not None and begin.release < until else None,
            self._source.series,
            awaiting_snapshot=cause is not None,
        )

    def restore_ended(self, status: str, end: dict[str, Any], place: Place | None = None) -> None:
        """Become a session that ended before the daemon was started.

        Where that was is not known of one that was cut off by a kill, and not durable.
        """
        self.status_name = status
        self.end_fields, self.end_notice = end, Notice("end", end)
        ticks, digest = int(end.get("ticks", 0)), str(end.get("hash", ""))
        if place is None:
            self._door.ahead = True
            self._course.progress.restore(0, ticks, self._course.begin, digest)
        else:
            self._course = self._make_course(place.epoch, place.begin, place.cause)
            self._course.awaiting_snapshot = False
            self._course.progress.restore(place.seq, ticks, place.at or place.begin, digest)
            self._time.change_speed(place.speed)
            self._time.jump(place.clock)
        self._begun.set()
        self.ended.set()

    def restore(self, place: Place, same_data: bool) -> None:
        """Become a session that was cut off, paused where it was.

        If nothing has changed of the `same_data` it is there at once, and its content hash is found
        while it goes on. Else all that it had released is gone through first, to see if it is still
        what is stored. So it is with analyzers: what they report is of the whole.
        """
        self.status_name = "paused"
        self._door.ahead = True
        self._place = place
        course = self._make_course(place.epoch, place.begin, place.cause)
        at = place.checkpoint
        if at is not None and same_data and not self.request.analyzers:
            trail = Trail(at.ticks)
            course.progress.take_up(at, place.milestones, trail)
            found = (course, trail, place.proof, lambda: self._disproved(course))
            self._spawn(trail_behind, self._source, *found)
        elif place.seq:
            course.silent_seq = place.seq
            if place.hash_ticks != 0:
                course.silent_hash, course.silent_ticks = place.hash, place.hash_ticks
        course.awaiting_snapshot = False
        if course.pause_at is not None and place.clock >= course.pause_at:
            course.pause_at = None  # it has paused there already
        self._course = course
        if place.hash_ticks is not None:
            self._hashed = (course, place.hash, place.hash_ticks)
        self._time.change_speed(place.speed)
        self._time.jump(place.clock)
        self._begun.set()

    def place(self) -> Place:
        """Return where the session is, for a daemon after this one; hashes nothing."""
        course, time, progress = self._course, self._time, self._course.progress
        if course.is_silent and self._place is not None:  # it is not there yet
            return replace(self._place, clock=time.market(), speed=time.speed)
        hashed = self._hashed if self._hashed[0] is course else (course, None, None)
        return Place(
            course.number,
            course.cause,
            course.begin,
            progress.seq,
            time.market(),
            time.speed,
            self._source.versions(),
            progress.position,
            *hashed[1:],
            progress.ticks,
            tuple(progress.milestones()),
        )

    async def take_hash(self) -> None:
        """Have the content hash of what is out by now in later places; takes it in a thread."""
        course, progress = self._course, self._course.progress
        if course.is_silent or self.has_ended or not progress.hash_is_known:
            return
        ticks, digest = progress.ticks, progress.digest()

        async def take() -> None:
            found = await trio.to_thread.run_sync(
                digest, limiter=self._source.workers.limiter, abandon_on_cancel=True
            )
            self._hashed = (course, found.hexdigest(), ticks)

        if ticks and (self._hashed[0] is not course or self._hashed[2] != ticks):
            await attempt(take)  # a block that cannot be hashed is told of at the end

    def suspend(self) -> None:
        """Leave followers to come back to the daemon after this one; tells no end."""
        self._halt()
        self._leave_trail()
        self._audience.dismiss("the daemon shuts down; the session goes on after its restart")
        self.suspended = True
        self._scope.cancel()
        self.ended.set()

    @property
    def epoch(self) -> int:
        """The epoch that is on."""
        return self._course.number

    @property
    def has_ended(self) -> bool:
        """Whether the session is finished, stopped or failed."""
        return self.status_name in ENDED

    def market(self) -> int:
        """Return the session's market time (ns): never beyond a tick not yet handed out."""
        return self._time.market()

    # ---- what moves it

    def _replace(self, begin: Position, cause: str) -> None:
        """Begin a new epoch at a position; the loop goes on with it."""
        self._course.end_all_steps()
        self._leave_trail()
        self._going_back = None
        self._course = self._make_course(self.epoch + 1, begin, cause)
        self._time.jump(begin.release)
        self.note()
        self._verbs += 1
        self._scope.cancel()

    def _begin_anew(self) -> None:
        """Begin a new epoch where time stands: the stored data of the one before are not the same.

        Whatever followers have had of it has numbers that mean nothing any more.
        """
        log.warning("stored data changed while away", session=self.session_id, epoch=self.epoch)
        self._replace(Position(self.market()), "seek")
        self._tell_reset()

    def _disproved(self, course: Course) -> None:
        """Begin a new epoch, unless it has begun, because what one was taken up for is not so."""
        if course is self._course and not self.has_ended and not self.suspended:
            self._begin_anew()

    def _leave_trail(self) -> None:
        """Have nobody look for a content hash that nobody will be told."""
        if self._course.progress.trail is not None:
            self._course.progress.trail.scope.cancel()

    def _tell_reset(self) -> None:
        self._audience.reset(self._course.reset_notice())

    def _halt(self) -> None:
        if self.status_name == "active":
            self._time.halt()
            self.status_name = "paused"

    def _pause_itself(self) -> None:
        """Pause where the request says so."""
        self._halt()
        self._tell("paused", None, None, cause="until")

    def _tell(
        self, name: str, by: Subscription | None, request_id: Any, **fields: object
    ) -> Notice:
        self.note()
        notice = Notice(name, {**fields, "clock": self.market() // MILLISECOND})
        self._audience.tell(notice, by, request_id)
        self._verbs += 1
        self._time.poke()
        return notice.answering(request_id)

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
        async with self._source.open(course.number, course.opening()) as items:
            await course.play(items)
        with trio.move_on_after(_LAST_WORDS_SECS):
            while self._audience.unheard():
                await self._time.changed()
        changed = await self._source.has_changed()
        if self.request.loop:
            await course.progress.hash_known()
        if self.request.loop and not course.progress.seq:
            with trio.move_on_after(_EMPTY_LOOP_SECS):
                while course.steps is None:  # it finds nothing, and shall not wait to be told so
                    await self._time.changed()
        await course.until_end()  # it may have been paused meanwhile
        while self.request.loop and self._audience.owed():  # who blocks gets the round whole
            await self._time.changed()
            await course.until_end()
        await trio.lowlevel.checkpoint_if_cancelled()  # a verb may have come just now: no end then
        if not self.request.loop:
            self.finish("finished", data_changed=changed)
            return
        done = {"ticks": course.progress.ticks, "hash": course.progress.hexdigest()}
        last_seq = course.progress.seq
        self._replace(Position(self.request.start), "loop")
        self._audience.go_round(self._course.reset_notice(**done), last_seq)

    # ---- the end

    async def drained(self) -> None:
        """Return when every follower of an ended session has received all, `end` included."""
        await self.ended.wait()
        while not self._audience.drained:
            await self._time.changed()

    def finish(self, reason: str, message: str | None = None, data_changed: bool = False) -> None:
        """End the session for good; followers get `end` after what is queued. Idempotent.

        Nothing more is released, and no verb is taken; but `end` tells the content hash, so it
        waits for that after a restart.
        """
        if self.has_ended:
            return
        progress = self._course.progress
        self._course.end_all_steps()
        self._time.halt()
        self.status_name = reason
        fields: dict[str, Any] = {
            "epoch": self.epoch,
            "reason": reason,
            "ticks": progress.ticks,
            "hash": "",
        }
        if data_changed:
            fields["data_changed"] = True
        if self._course.reports:
            fields["reports"] = dict(self._course.reports)
        if message is not None:
            fields["message"] = message
        self.end_fields = fields
        self._begun.set()
        self._scope.cancel()
        if progress.hash_is_known:
            self.tell_end()
        else:
            self.note()
            self._spawn(self._end_with_hash)

    async def _end_with_hash(self) -> None:
        try:
            await self._course.progress.hash_known()
        finally:
            self.tell_end()

    def tell_end(self) -> None:
        """Tell the end of a session that has ended, with its hash if that is known. Idempotent."""
        fields, progress = self.end_fields, self._course.progress
        if fields is None or self.end_notice is not None:
            return
        if progress.hash_is_known:
            digest, error = result_of(progress.hexdigest)
            if error is not None:  # the hash of the last block was not to be had
                log.error("session not hashed", session=self.session_id, error=describe(error))
                fields["reason"] = self.status_name = "failed"
                fields["message"] = "internal error; the log of the daemon says more"
            fields["hash"] = digest or ""
        else:
            self._leave_trail()
            why = None if progress.trail is None else progress.trail.error
            text = f"there is no content hash: {why or 'it was not found in time'}"
            fields["message"] = "; ".join(filter(None, [fields.get("message"), text]))
            if why is not None and fields["reason"] == "finished":
                fields["reason"] = self.status_name = "failed"
        self.end_notice = Notice("end", fields)
        self._audience.end(self.end_notice)
        self._course.end_silence()
        progress.forget(fields["hash"])
        self.ended.set()
