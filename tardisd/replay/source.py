"""From storage to prepared blocks: read, merge, hash, encode ahead; paces nothing.

Reading and preparing run in worker threads, two blocks ahead of the session, so that the session's
own task only slices and hands out. Memory is one stored batch per series and a few blocks. A source
can be opened at any position of the session, and as often as there are readers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import trio

from tardisd.market.columns import Batch
from tardisd.market.decimals import Ints
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.plugins.analyzer import Analyzer
from tardisd.plugins.sessions import SessionRequest
from tardisd.plugins.storage import Storage
from tardisd.replay.analyses import Analyses, Reports
from tardisd.replay.block import Prepared, make_encoders
from tardisd.replay.derivation import Derivation, foldable, resume_at
from tardisd.replay.folds import Folds
from tardisd.replay.merge import BLOCK_TICKS, Mark, Merger, Track, Window
from tardisd.replay.position import Position
from tardisd.replay.prelude import Snapshot, last_released
from tardisd.replay.prepare import Opening, Preparer, Stamp
from tardisd.replay.stored import Material
from tardisd.replay.workshop import SilentTrack, Workshop
from tardisd.wire.encode import Frame

READ_AHEAD_BLOCKS = 2
# A session alone is best served by larger blocks and windows: there are fewer calls, and it has the
# memory.
TICKS_ALONE = 2 * BLOCK_TICKS
WINDOW_ALONE = 4 * TICKS_ALONE
# Each session holds some ten blocks at once, which adds up when there are very many.
CROWD = 32

Item = Snapshot | Prepared | Mark | Reports
Items = trio.MemoryReceiveChannel[Item]
_Batches = trio.MemoryReceiveChannel[Batch]


@dataclass(frozen=True, slots=True)
class Workers:
    """The threads that all sessions share, and what they have folded of their sources.

    `limiter` is for merging and encoding. Hashing has one of its own: it is a few long calls that
    do without the interpreter, so it runs beside everything else. `sessions` tells how many there
    are that have not ended. A single one's blocks are no trouble to others when they are prepared
    in the event loop, a few milliseconds each, and that is cheaper by a quarter, because threads
    that make many short calls spend their time passing the interpreter's lock.
    """

    limiter: trio.CapacityLimiter
    hasher: Executor
    sessions: Callable[[], int] = lambda: 2
    folds: Folds = field(default_factory=Folds)
    #: How many sessions at once hash behind their backs what was released before a restart.
    trails: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(2))

    @property
    def alone(self) -> bool:
        """Whether there is just one session."""
        return self.sessions() < 2

    def block_ticks(self, unpaced: bool) -> int:
        """Return how many ticks a block has that is not made in the event loop."""
        if self.sessions() <= CROWD:
            return BLOCK_TICKS
        return BLOCK_TICKS // 2 if unpaced else BLOCK_TICKS // 4


@dataclass(frozen=True, slots=True)
class Source:
    """Where a session's ticks come from and how they are prepared.

    `demand` returns the forms that followers will ask for; others are encoded when asked for.
    """

    session_id: str
    span: Span
    materials: Sequence[Material]
    storage: Storage[Any]
    publish_delay: int
    lookahead: bool
    workers: Workers
    demand: Callable[[], frozenset[str]]
    unpaced: Callable[[], bool] = lambda: False
    derivations: Sequence[Derivation] = ()
    analyzers: Mapping[str, Analyzer[Any]] = field(default_factory=dict)
    request: SessionRequest | None = None

    @property
    def series(self) -> tuple[Series, ...]:
        """What is delivered and may have gaps, in order."""
        stored = [one.series for one in self.materials]
        derived = [one.series for one in self.derivations]
        return tuple(sorted([*stored, *derived], key=lambda series: series.order))

    def _read(self) -> dict[Series, Material]:
        """Return what is read: delivered, or only to build candles of it."""
        found = {one.series: one for one in self.materials}
        return found | {one.source.series: one.source for one in self.derivations}

    def aside(self, demand: Iterable[str] = ()) -> Source:
        """Return the same source for a reader of its own, which never holds up the event loop."""
        forms = frozenset(demand)
        return replace(self, demand=lambda: forms, unpaced=lambda: False)

    def versions(self) -> dict[str, int]:
        """Return the versions that the stored series had when the session was created."""
        return {one.series.text: one.version for one in self._read().values()}

    async def has_changed(self) -> bool:
        """Tell whether the stored series changed since the session was created."""
        return await self.versions_now() != self.versions()

    async def versions_now(self) -> dict[str, int]:
        """Return the versions that the stored series have now."""
        found = self._read().values()
        return {one.series.text: await self.storage.version(one.series) for one in found}

    @asynccontextmanager
    async def open(self, epoch: int, opening: Opening) -> AsyncIterator[Items]:
        """Open the stream of blocks and marks in total order; sequence numbers are set."""
        send, receive = trio.open_memory_channel[Item](READ_AHEAD_BLOCKS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, epoch, opening, send)
            yield receive
            nursery.cancel_scope.cancel()

    async def _pump(
        self,
        epoch: int,
        opening: Opening,
        send: trio.MemorySendChannel[Item],
    ) -> None:
        encoders = make_encoders(Frame("tick", self.session_id, epoch, self.lookahead))
        stamp = Stamp(self.session_id, epoch, encoders)
        # The channel is closed without a pause: else the reader would see the end, take it for that
        # of the data, and finish before the error that closed it is known.
        with send:
            async with self._merging(opening.begin if opening.middle else None) as feeds:
                preparer = Preparer(stamp, opening, feeds, self.workers.hasher, self.demand)
                while not feeds.done or preparer.busy:
                    inline = self.unpaced() and self.workers.alone
                    ticks = self.workers.block_ticks(self.unpaced())
                    if not preparer.busy:
                        self._shape(feeds.merger, inline, ticks)
                        await feeds.fill()
                    if inline:
                        items = preparer.work(TICKS_ALONE)
                    else:
                        items = await trio.to_thread.run_sync(
                            preparer.work, 2 * ticks, limiter=self.workers.limiter
                        )
                    for item in items:
                        await send.send(item)
                if (reports := feeds.analyses.finish()) is not None:
                    await send.send(reports)

    def _shape(self, merger: Merger, inline: bool, ticks: int) -> None:
        """Say how large the next window and its blocks are to be: small ones come soon."""
        if inline:
            merger.window_ticks = WINDOW_ALONE if merger.window_ticks else TICKS_ALONE
            merger.block_ticks = TICKS_ALONE
        else:
            merger.window_ticks = 2 * ticks if self.unpaced() else 0
            merger.block_ticks = ticks

    @asynccontextmanager
    async def _merging(self, begin: Position | None) -> AsyncIterator[_Feeds]:
        """Open all series: from the session's start, or from the last row before a position.

        Analyses need to have seen what lies before it; then they are opened so much earlier.
        """
        at, analyses = begin, Analyses(self.session_id)
        if self.analyzers and self.request is not None:
            analyses = Analyses.started(self.session_id, self.analyzers, self.request)
        if begin is not None and analyses.warmup:
            begin = Position(max(self.span.start, begin.release - analyses.warmup))
        async with AsyncExitStack() as stack:
            tracks: list[Track] = []
            channels: dict[Series, _Batches] = {}
            for material in self._read().values():
                before = more = None
                span = self.span
                if begin is not None and begin.release > span.start:
                    before = await last_released(
                        self.storage,
                        material.series,
                        span,
                        begin.release,
                        self.publish_delay,
                        self.lookahead,
                    )
                    span = Span(self._read_from(material.series, before, begin), span.end)
                track = self._track(material, before)
                channel = await stack.enter_async_context(self.storage.read(track.series, span))
                if before is not None:
                    more = await _next_batch(channel, self.span)
                    track.feed(before if more is None else Batch.concat([before, more]),
                               self.lookahead)  # fmt: skip
                tracks.append(track)
                channels[track.series] = channel
                for derivation in self.derivations:
                    if derivation.source.series == track.series:
                        workshop = await self._workshop(derivation, at, begin, span.start)
                        if more is not None:
                            workshop.take_in(more)
                        track.takers.append(workshop)
                        tracks += workshop.tracks
            yield _Feeds(Merger(tracks, self.lookahead), channels, self.span, analyses)

    def _track(self, material: Material, before: Batch | None) -> Track:
        if all(material.series != one.series for one in self.materials):
            return SilentTrack(material.series, self.publish_delay)
        return Track(
            material.series,
            self.span,
            material.coverage,
            material.causes,
            self.publish_delay,
            None if before is None else int(before.ts_event[0]),
        )

    async def _workshop(
        self, derivation: Derivation, at: Position | None, begin: Position | None, upto: int
    ) -> Workshop:
        """Return what builds a series; it has seen what it needs of its source before `upto`.

        Candles that were still forming are told of from `at` on, finished ones from `begin` on.
        """
        span, delay = self.span, self.publish_delay
        shown = span.start if at is None else derivation.first_after(at.release, delay)
        if begin is None or begin.release <= span.start:
            return Workshop(derivation, span, delay, shown)
        resumption = await resume_at(self.storage, derivation, span, begin.release, delay)
        workshop = Workshop(derivation, span, delay, shown, resumption)
        if resumption.start < upto:
            missed = Span(resumption.start, upto)
            folded = await foldable(self.storage, derivation, missed, begin.release, delay)
            await self._catch_up(workshop, derivation.source.series, folded, missed)
        return workshop

    async def _catch_up(
        self, workshop: Workshop, source: Series, folded: Span, missed: Span
    ) -> None:
        """Have a workshop see what it missed of its source; the first of it may be `folded`."""
        limiter = self.workers.limiter
        if folded:
            workshop.take_in(await self.workers.folds.rows(self.storage, source, folded, limiter))
        async with self.storage.read(source, Span(folded.end, missed.end)) as batches:
            async for batch in batches:
                workshop.take_in(batch.within(self.span))
                await trio.to_thread.run_sync(workshop.absorb, limiter=limiter)

    def _read_from(self, series: Series, before: Batch | None, begin: Position) -> int:
        """Return the event time (ns) of the first row that was not released before a position."""
        if before is not None and series.data_type.interval is not None:
            return int(before.ts_event[0]) + 1
        if series.data_type.interval is None or self.lookahead:
            return min(begin.release, self.span.end)
        return self.span.start

    async def releases(self, since: int, until: Position, count: int) -> Ints:
        """Return the release times of the last `count` ticks before a position.

        They are ascending. Ticks released before `since` (ns) are not looked at.
        """
        kept: Ints = np.empty(0, np.int64)
        position = Position(max(since, self.span.start))
        async with self._merging(position) as feeds:
            while not feeds.done:
                await feeds.fill()
                window = await trio.to_thread.run_sync(feeds.window, limiter=self.workers.limiter)
                release = window.release
                low = int(release.searchsorted(position.release, "left"))
                kept = np.concatenate([kept, release[low:]])
                over = int(kept.searchsorted(until.release, "left"))
                if over < len(kept):
                    kept = kept[: over + until.ticks]
                    break
                kept = kept[-count - until.ticks :]
        return kept[-count:]


@dataclass(frozen=True, slots=True)
class _Feeds:
    """A merger, and where the rows of its tracks come from."""

    merger: Merger
    channels: dict[Series, _Batches]
    span: Span
    analyses: Analyses

    @property
    def done(self) -> bool:
        """Whether everything has been given out."""
        return self.merger.done

    def window(self) -> Window:
        """Return the next window, with what analyses derive from it."""
        window = self.merger.window()
        return self.analyses.extend(window) if self.analyses.running else window

    async def fill(self) -> None:
        """Give hungry tracks their next batches, or tell them that nothing more comes."""
        while hungry := self.merger.hungry():
            for track in hungry:
                batch = await _next_batch(self.channels[track.series], self.span)
                if batch is None:
                    track.finish()
                else:
                    self.merger.feed(track, batch)


async def _next_batch(channel: _Batches, span: Span) -> Batch | None:
    """Return the next rows inside the session's span, or None after the last."""
    async for batch in channel:
        rows = batch.within(span)
        if len(rows):
            return rows
    return None
