"""From storage to prepared blocks: read, merge, hash, encode ahead; paces nothing.

Reading and preparing run in worker threads, two blocks ahead of the session, so that the session's
own task only slices and hands out. Memory is one stored batch per series and a few blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import trio

from tardisd.errors import StorageError
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.plugins.storage import Storage
from tardisd.replay.block import Prepared
from tardisd.replay.digest import new_digest
from tardisd.replay.merge import BLOCK_TICKS, Mark, Merger, Track, Window
from tardisd.wire.encode import Encoder

READ_AHEAD_BLOCKS = 2
# A job in a worker thread costs as much as encoding several hundred ticks.
TICKS_A_JOB = 2 * BLOCK_TICKS
HASH_AHEAD_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Workers:
    """The threads that all sessions share.

    `limiter` is for merging and encoding. Hashing has one of its own: it is a few long calls that
    do without the interpreter, so it runs beside everything else. `alone` tells whether just one
    session is running: it is then no trouble to others to prepare its blocks in the event loop, a
    few milliseconds each, and cheaper by a quarter, because threads that make many short calls
    spend their time passing the interpreter's lock.
    """

    limiter: trio.CapacityLimiter
    hasher: Executor
    alone: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class Material:
    """What is stored for one series of a session."""

    series: Series
    coverage: Coverage
    causes: Sequence[Gap]
    version: int


@dataclass(frozen=True, slots=True)
class Source:
    """Where a session's ticks come from and how they are prepared.

    `demand` returns the forms that followers will ask for; others are encoded when asked for.
    """

    session_id: str
    epoch: int
    span: Span
    materials: Sequence[Material]
    storage: Storage[Any]
    encoders: Mapping[str, Encoder]
    demand: Callable[[], frozenset[str]]
    publish_delay: int
    lookahead: bool
    workers: Workers
    unpaced: Callable[[], bool] = lambda: False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[trio.MemoryReceiveChannel[Prepared | Mark]]:
        """Open the stream of blocks and marks in total order; sequence numbers are set."""
        send, receive = trio.open_memory_channel[Prepared | Mark](READ_AHEAD_BLOCKS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, send)
            yield receive
            nursery.cancel_scope.cancel()

    async def _pump(self, send: trio.MemorySendChannel[Prepared | Mark]) -> None:
        merger = Merger(
            [
                Track(m.series, self.span, m.coverage, m.causes, self.publish_delay)
                for m in self.materials
            ],
            self.lookahead,
        )
        preparer = _Preparer(self, merger)
        # The channel is closed without a pause: else the reader would see the end, take it for that
        # of the data, and finish before the error that closed it is known.
        with send:
            async with AsyncExitStack() as stack:
                channels = {
                    track.series: await stack.enter_async_context(
                        self.storage.read(track.series, self.span)
                    )
                    for track in merger.tracks
                }
                while not merger.done or preparer.busy:
                    if not preparer.busy:
                        for track in merger.hungry():
                            batch = await self._next_batch(channels[track.series])
                            if batch is None:
                                track.finish()
                            else:
                                merger.feed(track, batch)
                    if self.unpaced() and self.workers.alone():
                        items = preparer.work(BLOCK_TICKS)
                    else:
                        items = await trio.to_thread.run_sync(
                            preparer.work, TICKS_A_JOB, limiter=self.workers.limiter
                        )
                    for item in items:
                        await send.send(item)

    async def _next_batch(self, channel: trio.MemoryReceiveChannel[Batch]) -> Batch | None:
        """Return the next rows inside the session's span, or None after the last."""
        async for batch in channel:
            rows = batch.within(self.span)
            if len(rows):
                return rows
        return None


class _Preparer:
    """Turns windows into blocks, a few at a time, in a worker thread; one call at a time."""

    def __init__(self, source: Source, merger: Merger) -> None:
        self._source = source
        self._merger = merger
        self._window: Window | None = None
        self._items: Iterator[Mark | tuple[int, int]] = iter(())
        self._seq = 1
        self._hashes: deque[Future[blake2b]] = deque([source.workers.hasher.submit(new_digest)])

    @property
    def busy(self) -> bool:
        """Whether the last window is not wholly prepared."""
        return self._window is not None

    def work(self, ticks: int) -> list[Prepared | Mark]:
        """Return the next blocks and marks: few at first, for the sake of the first tick."""
        found: list[Prepared | Mark] = []
        most = self._seq + (1 if self._seq == 1 else ticks)
        if self._window is None:
            self._window = self._merger.window()
            self._items = iter(self._window)
        while self._seq < most:
            item = next(self._items, None)
            if item is None:
                self._window = None
                break
            if isinstance(item, Mark):
                found.append(item)
                self._seq += 1
            else:
                block = self._prepare(self._window, *item)
                found.append(block)
                self._seq += len(block)
        return found

    def _prepare(self, window: Window, first: int, last: int) -> Prepared:
        source, piece = self._source, window.piece(first, last)
        block = Prepared(
            source.session_id,
            source.epoch,
            piece.kinds,
            piece.runs,
            piece.release,
            source.encoders,
            self._seq,
            self._hashes[-1].result,
        )
        self._hash(block)
        for form in source.demand():
            block.encode(form)
        return block

    def _hash(self, block: Prepared) -> None:
        """Have the block hashed by the next thread; at most a few blocks wait for it."""
        before = self._hashes[-1]
        records = block.records().bytes()

        def after() -> blake2b:
            digest = before.result().copy()
            digest.update(records)
            return digest

        self._hashes.append(self._source.workers.hasher.submit(after))
        if len(self._hashes) > HASH_AHEAD_BLOCKS:
            self._hashes.popleft().result()


async def has_rows(storage: Storage[Any], series: Series, span: Span) -> bool:
    """Tell whether any tick of the series lies wholly in `span`."""
    async with storage.read(series, span) as batches:
        async for batch in batches:
            if len(batch.within(span)):
                return True
    return False


async def material(storage: Storage[Any], series: Series) -> Material:
    """Return what is stored for a series. Raises StorageError."""
    try:
        return Material(
            series,
            await storage.coverage(series),
            await storage.gaps(series),
            await storage.version(series),
        )
    except StorageError as error:
        raise type(error)(f"{series}: {error.message}") from None
