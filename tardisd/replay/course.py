"""One epoch as it passes: releases items as the clock reaches them; reads none, decides no verb.

The clock never passes a tick that has not been handed out, so a slow machine or a blocking follower
slows market time down for everyone, and nothing is dropped or reordered. A slice of ticks is handed
to all followers in one step, after every blocking one has room: a verb can come before or after a
slice, never in the middle of handing it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from tardisd.errors import TardisError
from tardisd.market.series import Series
from tardisd.market.time import MILLISECOND, format_time
from tardisd.plugins.sessions import Notice, SessionRequest, Subscription
from tardisd.replay.analyses import Reports
from tardisd.replay.audience import Audience
from tardisd.replay.block import Prepared
from tardisd.replay.merge import Mark
from tardisd.replay.position import Position, Progress
from tardisd.replay.prelude import Snapshot, gap_fields
from tardisd.replay.prepare import Opening
from tardisd.replay.source import Items
from tardisd.replay.timeline import Timeline, Tuning
from tardisd.wall import wall_ms


class Steps:
    """A step under way: so many ticks are let through while time stands."""

    def __init__(self, count: int, by: Subscription | None, request_id: Any) -> None:
        self.left = count
        self.by = by
        self.request_id = request_id
        self.taken = 0
        self.told = False
        self._done = trio.Event()
        self._notice = Notice("stepped")
        self._error: TardisError | None = None

    async def wait(self) -> Notice:
        """Return `stepped` when it is done, or was ended early by another verb."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._notice

    def end(self, notice: Notice, told: bool) -> None:
        """Let whoever waits go on; `told` says whether the asker has heard it as a follower."""
        self._notice, self.told = notice, told
        self._done.set()

    def fail(self, error: TardisError) -> None:
        """Let whoever waits know why there was no step."""
        self._error = error
        self._done.set()


@dataclass(frozen=True, slots=True)
class Stage:
    """What all courses of a session share. `verbs` counts what was asked of the session so far."""

    request: SessionRequest
    time: Timeline
    audience: Audience
    tuning: Tuning
    verbs: Callable[[], int]
    #: Called when time has come to the request's `until`.
    pause_by_itself: Callable[[], None]
    #: Has the session written down, if it is durable.
    note: Callable[[], None]
    #: Called when what was released before a restart is not what is stored now.
    begin_anew: Callable[[], None]


# A storage that gives nothing for so long is told of as what a session waits for.
STARVED_SECS = 1.0


@dataclass
class Course:
    """An epoch: where it began, why, and how far it is.

    Up to `silent_seq` nothing is told: followers have had it before the daemon was restarted, if
    the first `silent_ticks` of it (None: all) still have the content hash `silent_hash`.
    """

    number: int
    begin: Position
    cause: str | None
    stage: Stage
    pause_at: int | None
    series: tuple[Series, ...]
    silent_seq: int = 0
    silent_hash: str | None = None
    silent_ticks: int | None = None
    steps: Steps | None = None
    awaiting_snapshot: bool = False
    #: Told once the snapshot is out: the step back that began this epoch.
    stepped_back: Steps | None = None
    #: What analyses have to say at the end, by analyzer.
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    progress: Progress = field(init=False)
    #: Since when (trio's clock, seconds) the next item has been waited for.
    _starving_since: float | None = field(init=False, default=None)
    _gap_until: dict[Series, int] = field(init=False)
    _barrier: int | None = field(init=False, default=None)
    _after_silence: list[Callable[[], None]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.progress = Progress(self.begin)
        self._gap_until = dict.fromkeys(self.series, self.stage.request.start)

    @property
    def has_begun(self) -> bool:
        """Whether the session has left its start: who comes now needs to know what was before."""
        start = self.stage.request.start
        return self.number > 1 or self.told_seq > 0 or self.stage.time.market() > start

    @property
    def told_seq(self) -> int:
        """The last seq that followers have had, of this daemon or of the one before."""
        return max(self.progress.seq, self.silent_seq)

    @property
    def is_silent(self) -> bool:
        """Whether what followers have had of the daemon before this one is being gone through."""
        return self.progress.seq < self.silent_seq

    def waiting_for(self) -> list[str]:
        """Return what holds the session up: followers by name, or a storage that gives nothing."""
        since = self._starving_since
        starving = since is not None and trio.current_time() - since >= STARVED_SECS
        return [*self.stage.audience.waiting_for(), *(["storage"] if starving else [])]

    def after_silence(self, action: Callable[[], None]) -> None:
        """Call `action` once nothing is gone through silently any more."""
        self._after_silence.append(action)

    def end_silence(self) -> None:
        """Let those go on who waited for it; idempotent."""
        actions, self._after_silence = self._after_silence, []
        self.stage.time.poke()
        for action in actions:
            action()

    async def _look_for_the_end_of_silence(self, nothing_more: bool = False) -> None:
        """End the silence if it is over; begin anew if it was of something else."""
        if self.is_silent and not nothing_more:
            return
        expected, self.silent_hash = self.silent_hash, None
        same = not self.is_silent and (expected is None or expected == self.progress.hexdigest())
        self.silent_seq = 0
        if not same:
            self.stage.begin_anew()
        self.end_silence()
        await trio.lowlevel.checkpoint_if_cancelled()

    def opening(self) -> Opening:
        """Return where what is to be released begins: where the epoch did, or was taken up."""
        progress = self.progress
        if progress.trail is None:
            return Opening(self.begin, middle=self.cause is not None)
        at, seq, ticks = progress.position, progress.seq, progress.ticks
        return Opening(at, seq, trail=progress.trail, ticks=ticks)

    async def play(self, items: Items) -> None:
        """Release everything, then wait for the session's end time."""
        self._starving_since = trio.current_time()
        async for item in items:
            self._starving_since = None
            await trio.lowlevel.checkpoint_if_cancelled()  # as in `Timeline.changed`
            if isinstance(item, Snapshot):
                self._tell_snapshot(item)
            elif isinstance(item, Mark):
                await self._mark(item)
            elif isinstance(item, Reports):
                self.reports = item.found
            else:
                await self._release(item)
            self._starving_since = trio.current_time()
        self._starving_since = None
        await self._look_for_the_end_of_silence(nothing_more=True)
        self.end_steps()
        await self._keep_step(None)
        await self.until_end()

    async def until_end(self) -> None:
        """Wait for the session's end time; a step finds nothing more, and does not bring it."""
        end = self.stage.request.end
        while True:
            await self.due(end, nothing_more=True)
            if self.steps is None:
                break
            self.end_steps()
        self.stage.time.reached(end)

    # ---- ticks

    async def _release(self, block: Prepared) -> None:
        """Hand out a block, slice by slice, as its ticks come due."""
        stage, progress, release = self.stage, self.progress, block.release
        row = min(len(block), max(0, self.silent_seq - progress.seq))
        if row:
            upto = 0 if self.silent_ticks is None else self.silent_ticks - progress.ticks
            if 0 < upto <= row and block.hash_upto(upto).hexdigest() == self.silent_hash:
                self.silent_hash = None  # as it was
            progress.released(block, 0, row, None)
            await self._look_for_the_end_of_silence()
        while row < len(block):
            await self.due(int(release[row]))
            upto = self._upto(block, row)
            if not await self._make_room():
                continue  # paused or otherwise changed while waiting: look again
            slice_ = block[row:upto]
            slice_.sent_ms = wall_ms()
            progress.released(block, row, upto, slice_)
            stage.time.reached(slice_.last_release, int(release[row]))
            if self.pause_at is not None and slice_.last_release >= self.pause_at:
                self.pause_at = None  # stepped over
            row = upto
            stage.audience.push(slice_)
            if self.steps is not None:
                self._count_steps(self.steps, len(slice_))
            if stage.time.unpaced:
                await trio.lowlevel.checkpoint()

    def _upto(self, block: Prepared, row: int) -> int:
        """Return the row up to which ticks go out together with this one, which is due."""
        stage, release = self.stage, block.release
        upto = min(len(block), row + stage.tuning.slice_ticks)
        if stage.request.lockstep:
            self._barrier = self._barrier_after(int(release[row]))
            upto = min(upto, int(release.searchsorted(self._barrier, "right")))
        if self.steps is not None:
            return min(upto, row + self.steps.left)
        if not stage.time.unpaced:
            upto = min(upto, max(row + 1, int(release.searchsorted(stage.time.due(), "right"))))
        if self.pause_at is not None:
            upto = min(upto, int(release.searchsorted(self.pause_at, "left")))
        return upto

    async def due(self, at: int, nothing_more: bool = False) -> None:
        """Wait until time is `at` (ns); with `nothing_more` to step to, a step leaves it alone."""
        stage = self.stage
        await self._keep_step(at)
        while self.pause_at is not None and at >= self.pause_at:
            pause_at = self.pause_at
            await self._until(pause_at)
            if nothing_more and self.steps is not None:
                return
            if self.pause_at == pause_at:
                self.pause_at = None
                stage.time.reached(pause_at)
                if not stage.time.stepping:
                    stage.pause_by_itself()
        await self._until(at)

    async def _until(self, at: int) -> None:
        request = self.stage.request
        gaps = self._gap_until.values() if request.on_gap == "skip" else None
        await self.stage.time.until(at, gaps, request.max_idle_secs)

    async def _make_room(self) -> bool:
        """Wait until every blocking follower has room; False when a verb came meanwhile."""
        stage, limits = self.stage, self.stage.tuning.limits
        verbs = stage.verbs()
        while full := stage.audience.without_room():
            now = trio.current_time()
            for follower in full:
                if follower.full_since is None:
                    follower.full_since = now
                elif now >= follower.full_since + limits.max_block_secs:  # as is waited for below
                    follower.evict(f"read nothing for {limits.max_block_secs:g} s")
            full = stage.audience.without_room()
            since = [f.full_since for f in full if f.full_since is not None]
            if since:
                await stage.time.changed(min(since) + limits.max_block_secs)
            if stage.verbs() != verbs:
                return False
        return True

    # ---- what is told besides

    async def _mark(self, mark: Mark) -> None:
        """Tell followers of a gap when it is due; it takes a sequence number of its own."""
        stage, span = self.stage, mark.gap.span
        if self.progress.seq < self.silent_seq:
            self._gap_until[mark.series] = max(self._gap_until[mark.series], span.end)
            self.progress.marked(mark.ts_release, None)
            await self._look_for_the_end_of_silence()
            return
        await self.due(mark.ts_release)
        while not await self._make_room():
            await self.due(mark.ts_release)
        self._gap_until[mark.series] = max(self._gap_until[mark.series], span.end)
        notice = self.gap_notice(mark, self.progress.seq + 1)
        self.progress.marked(mark.ts_release, notice)
        stage.time.reached(mark.ts_release)
        stage.audience.mark(notice)
        if stage.request.on_gap == "fail":
            raise TardisError(
                f"{mark.series} has no data from {format_time(span.start)} to"
                f" {format_time(span.end)} ({mark.gap.cause}), and on_gap is 'fail'"
            )

    def reset_notice(self, **fields: object) -> Notice:
        """Return the `reset` message of this epoch; what comes next follows its `seq`."""
        clock = self.stage.time.market() // MILLISECOND
        found = {"epoch": self.number, "clock": clock, "cause": self.cause, "seq": 0}
        return Notice("reset", {**found, **fields})

    def gap_notice(self, mark: Mark, seq: int) -> Notice:
        """Return the `gap` message of a mark."""
        return Notice("gap", {"epoch": self.number, "seq": seq, **gap_fields(mark)})

    def _tell_snapshot(self, snapshot: Snapshot) -> None:
        """Tell what was released before this epoch began."""
        for mark in snapshot.gaps:
            self._gap_until[mark.series] = max(self._gap_until[mark.series], mark.gap.span.end)
        if not self.awaiting_snapshot:
            return
        self.awaiting_snapshot = False
        self.stage.audience.tell(self.snapshot_notice(snapshot, self.stage.time.market()))
        if self.stepped_back is not None:
            self._tell_stepped(self.stepped_back, -self.stepped_back.taken)
            self.stepped_back = None

    def snapshot_notice(self, snapshot: Snapshot, clock: int) -> Notice:
        """Return the `snapshot` message of this epoch at a market time (ns)."""
        fields = {"epoch": self.number, "clock": clock // MILLISECOND, **snapshot.fields(clock)}
        return Notice("snapshot", fields)

    # ---- steps

    def begin_steps(self, steps: Steps) -> None:
        """Let the next ticks through, although time stands."""
        self.steps = steps
        self.stage.time.stepping = True
        self.stage.time.poke()

    def _count_steps(self, steps: Steps, ticks: int) -> None:
        steps.taken += ticks
        steps.left -= ticks
        if steps.left <= 0:
            self.end_steps()

    def end_steps(self) -> None:
        """End a step forward, done or not; idempotent."""
        steps, self.steps = self.steps, None
        self.stage.time.stepping = False
        if steps is not None:
            self._tell_stepped(steps, steps.taken)

    def end_all_steps(self) -> None:
        """End a step in either direction, because the epoch is over."""
        self.end_steps()
        if self.stepped_back is not None:  # the epoch is over before it could be told
            self._tell_stepped(self.stepped_back, -self.stepped_back.taken)
            self.stepped_back = None

    def _tell_stepped(self, steps: Steps, count: int) -> None:
        self.stage.note()
        clock = self.stage.time.market() // MILLISECOND
        notice = Notice("stepped", {"count": count, "clock": clock})
        told = self.stage.audience.tell(notice, steps.by, steps.request_id)
        steps.end(notice.answering(steps.request_id), told)

    # ---- lockstep

    def _barrier_after(self, release: int) -> int:
        """Return the market time (ns) of the barrier that ticks released then come before."""
        interval = self.stage.request.barrier
        return release if interval is None else interval.ceil(release)

    async def _keep_step(self, upcoming: int | None) -> None:
        """Hold a barrier that lies before what is upcoming (None: before the end)."""
        barrier, stage = self._barrier, self.stage
        if barrier is None or (upcoming is not None and upcoming <= barrier):
            return
        self._barrier = None
        await self._until(min(barrier, stage.request.end))
        seq = self.progress.seq
        fields = {"epoch": self.number, "seq": seq, "clock": barrier // MILLISECOND}
        stage.time.reached(barrier)
        stage.audience.bar(Notice("barrier", fields), seq)
        deadline = trio.current_time() + stage.request.ack_timeout_secs
        while silent := stage.audience.silent():
            if trio.current_time() < deadline:
                await stage.time.changed(deadline)
                continue
            for follower in silent:
                secs = stage.request.ack_timeout_secs
                follower.evict(f"did not acknowledge seq {follower.barrier_seq} within {secs:g} s")
