"""How a follower comes in late: by a snapshot of what was released, or by all it has missed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from tardisd.errors import RequestError
from tardisd.plugins.sessions import Notice, Resume
from tardisd.replay.block import Prepared
from tardisd.replay.course import Course
from tardisd.replay.fanout import Follower
from tardisd.replay.merge import Mark
from tardisd.replay.position import Position
from tardisd.replay.prelude import Snapshot
from tardisd.replay.prepare import Opening
from tardisd.replay.proof import prove
from tardisd.replay.source import Source
from tardisd.supervise import attempt
from tardisd.wall import wall_ms

#: Starts a task that outlives the call and the session's own loop: (function, its arguments).
Spawn = Callable[..., None]

_CHANGED = "the stored data have changed since; subscribe without from_seq"


class Door:
    """Lets followers into a session that may have begun, or ended."""

    def __init__(self, source: Source, spawn: Spawn, end: Callable[[], Notice | None]) -> None:
        self._source = source
        self._spawn = spawn
        self._end = end
        #: Whether followers may have had more than the session knows, which was cut off by a kill.
        self.ahead = False
        #: An epoch and versions of the stored series that are known to hold what it has released.
        self._proven: tuple[int, dict[str, int]] | None = None

    def admit(self, course: Course, follower: Follower, resume: Resume | None) -> None:
        """Have a follower hear what comes, after what it needs first. Raises RequestError."""
        if resume is not None:
            self._check(resume, course)
        if course.is_silent:
            scope = trio.CancelScope()
            course.stage.audience.lag_behind(follower, scope)
            course.after_silence(lambda: self._admit_later(course, follower, resume))
        else:
            self._admit(course, follower, resume)

    def _admit_later(self, course: Course, follower: Follower, resume: Resume | None) -> None:
        if course.stage.audience.is_behind(follower):  # else it has gone, or was told of a reset
            self._admit(course, follower, resume)

    def _admit(self, course: Course, follower: Follower, resume: Resume | None) -> None:
        progress, stage = course.progress, course.stage
        if resume is not None and resume.epoch == course.number:
            self._catch_up(course, follower, resume.from_seq)
            return
        follower.last_seq = progress.seq
        end = self._end()
        first: list[Notice] = []
        if resume is not None:  # what it had is void
            first.append(course.reset_notice(seq=progress.seq))
        elif end is not None:
            stage.audience.finish(follower, end)
            return
        if course.awaiting_snapshot:  # it comes for all
            for notice in first:
                follower.notify(notice)
        elif course.has_begun:
            follower.held = trio.CancelScope()
            where = (progress.position, stage.time.market())
            self._spawn(give_snapshot, self._source, course, *where, follower, first)
        if end is None:
            stage.audience.join(follower)
        else:
            stage.audience.finish(follower, end)

    def _check(self, resume: Resume, course: Course) -> None:
        if resume.epoch > course.number and not self.ahead:
            raise RequestError(
                "bad_request",
                f"epoch: {resume.epoch} has not begun; the session is in epoch {course.number}",
            )
        seq = course.told_seq
        if resume.epoch == course.number and resume.from_seq > seq and not self.ahead:
            raise RequestError(
                "bad_request",
                f"from_seq: {resume.from_seq} was not delivered yet; the last seq is {seq}",
            )

    def _catch_up(self, course: Course, follower: Follower, seq: int) -> None:
        """Give a follower all that came after `seq`, at once if it is at hand."""
        progress, audience = course.progress, course.stage.audience
        follower.last_seq = follower.heard_seq = seq
        if not seq and course.cause is not None and not course.awaiting_snapshot:
            # It may have been cut off between `reset` and the snapshot that belongs to it.
            follower.held = trio.CancelScope()
            where = (course.begin, course.begin.release)
            self._spawn(give_snapshot, self._source, course, *where, follower, ())
        missed = [] if seq >= progress.seq else progress.missed(seq)
        upto = seq if missed is None else progress.seq
        reader = CatchUp(self._source, course, follower, upto, self._end, self._is_same)
        audience.lag_behind(follower, reader.scope)  # whatever its policy, it gets this whole
        for item in missed or ():
            if isinstance(item, Notice):
                follower.notify(item)
            else:
                follower.push(item)
        end = self._end()
        if end is not None and missed is not None:
            audience.finish(follower, end)
        elif missed is not None and (follower.policy == "block" or follower.has_room):
            audience.join(follower)
        else:
            self._spawn(reader.run)

    async def _is_same(self, course: Course) -> bool:
        """Tell whether the storage still has what an epoch has released, whatever else changed."""
        versions = await self._source.versions_now()
        if versions == self._source.versions() or (course.number, versions) == self._proven:
            return True
        if not (await prove(self._source, course))["equal"]:
            return False
        self._proven = course.number, versions
        return True


async def take_snapshot(source: Source, course: Course, position: Position) -> Snapshot:
    """Return what had been released at a position. Raises StorageError."""
    opening = Opening(position, hashed=False)
    async with source.aside().open(course.number, opening) as items:
        async for item in items:
            if isinstance(item, Snapshot):
                return item
    raise AssertionError("a source opened in the middle begins with a snapshot")


async def give_snapshot(
    source: Source,
    course: Course,
    position: Position,
    clock: int,
    follower: Follower,
    first: Sequence[Notice],
) -> None:
    """Let a held follower go; it first receives `first`, and a snapshot of the position."""
    scope = follower.held
    if scope is None:
        return  # it has gone already
    found: list[Notice] = []

    async def take() -> None:
        found.append(course.snapshot_notice(await take_snapshot(source, course, position), clock))

    error: Exception | None = None
    with scope:  # cancelled when it goes, or the session is sought meanwhile
        error = await attempt(take)
    if follower.held is not scope:
        return
    if error is not None:
        follower.fail(error, "no snapshot could be made")
    else:
        follower.let(*first, *found)


class CatchUp:
    """Brings one follower to where its session is, reading what it has missed from the storage."""

    def __init__(
        self,
        source: Source,
        course: Course,
        follower: Follower,
        seq: int,
        end: Callable[[], Notice | None],
        is_same: Callable[[Course], Awaitable[bool]],
    ) -> None:
        self._source = source.aside(follower.forms)
        self._course = course
        self._follower = follower
        self._seq = seq
        self._end = end
        self._is_same = is_same
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        """Deliver until the follower has what the session has, and leave it among the others."""
        with self.scope:
            error = await attempt(self._deliver)
            if error is not None and self._course.stage.audience.is_behind(self._follower):
                self._follower.fail(error, "what was missed cannot be had")

    async def _deliver(self) -> None:
        course = self._course
        await self._room()
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._arrived():
            return
        place = course.progress.checkpoint(self._seq)
        begin = place.position
        middle = begin > Position(self._source.span.start)
        opening = Opening(begin, place.seq, middle=middle, hashed=False)
        if not await self._is_same(course):
            raise RequestError("wrong_state", _CHANGED)
        at = place.seq
        async with self._source.open(course.number, opening) as items:
            async for item in items:
                # The item may have been on its way when the session was sought: it is void then.
                await trio.lowlevel.checkpoint_if_cancelled()
                if isinstance(item, Prepared):
                    await self._block(item, at)
                    at += len(item)
                elif isinstance(item, Mark):
                    at += 1
                    await self._mark(item, at)
                if self._arrived():
                    return
        raise RequestError("wrong_state", _CHANGED)

    async def _block(self, block: Prepared, before: int) -> None:
        """Hand on what of the block was missed, as far as the session has released it."""
        course, most = self._course, self._course.stage.tuning.slice_ticks
        while self._seq < min(before + len(block), course.told_seq):
            await self._room()
            upto = min(before + len(block), course.told_seq, self._seq + most)
            part = block[self._seq - before : upto - before]
            part.sent_ms = wall_ms()
            self._follower.push(part)
            self._seq = upto

    async def _mark(self, mark: Mark, seq: int) -> None:
        if self._seq < seq <= self._course.told_seq:
            await self._room()
            self._follower.notify(self._course.gap_notice(mark, seq))
            self._seq = seq

    def _arrived(self) -> bool:
        """Let the follower join the others when it has all; True when it has."""
        course, audience = self._course, self._course.stage.audience
        if self._seq < course.told_seq:
            return False
        if (end := self._end()) is not None:
            audience.finish(self._follower, end)
        else:
            audience.join(self._follower)
            course.stage.time.poke()  # a new round may wait for it
        return True

    async def _room(self) -> None:
        """Wait until the follower has room; one that reads nothing for long is cut off."""
        stage, limits = self._course.stage, self._course.stage.tuning.limits
        while not self._follower.has_room:
            now = trio.current_time()
            since = self._follower.full_since = self._follower.full_since or now
            if now >= since + limits.max_block_secs:
                self._follower.evict(f"read nothing for {limits.max_block_secs:g} s")
                await trio.lowlevel.checkpoint_if_cancelled()  # as it is now: nothing may follow
            await stage.time.changed(since + limits.max_block_secs)
