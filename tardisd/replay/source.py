"""From storage to prepared blocks: read, merge, hash, encode ahead; paces nothing.

Reading and preparing run in worker threads, two blocks ahead of the session, so that the session's
own task only slices and hands out. Memory is one stored batch per series and a few blocks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
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
from tardisd.replay.merge import Mark, Merger, Track, Window
from tardisd.wire.encode import Encoder

READ_AHEAD_BLOCKS = 2


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
    limiter: trio.CapacityLimiter

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
        seq, digest = 1, new_digest()
        async with send, AsyncExitStack() as stack:
            channels = {
                track.series: await stack.enter_async_context(
                    self.storage.read(track.series, self.span)
                )
                for track in merger.tracks
            }
            while not merger.done:
                for track in merger.hungry():
                    batch = await self._next_batch(channels[track.series])
                    if batch is None:
                        track.finish()
                    else:
                        merger.feed(track, batch)
                window = await self._in_thread(merger.window)
                for item in window:
                    if isinstance(item, Mark):
                        await send.send(item)
                        seq += 1
                        continue
                    block = await self._in_thread(self._prepare, window, item, seq, digest)
                    seq += len(block)
                    await send.send(block)

    async def _next_batch(self, channel: trio.MemoryReceiveChannel[Batch]) -> Batch | None:
        """Return the next rows inside the session's span, or None after the last."""
        async for batch in channel:
            rows = batch.within(self.span)
            if len(rows):
                return rows
        return None

    async def _in_thread(self, call: Callable[..., Any], *args: object) -> Any:
        return await trio.to_thread.run_sync(call, *args, limiter=self.limiter)

    def _prepare(
        self, window: Window, rows: tuple[int, int], first_seq: int, digest: blake2b
    ) -> Prepared:
        piece = window.piece(*rows)
        block = Prepared(
            self.session_id,
            self.epoch,
            piece.kinds,
            piece.runs,
            piece.release,
            self.encoders,
            first_seq,
            digest.copy(),
        )
        digest.update(block.records().bytes())
        for form in self.demand():
            block.encode(form)
        return block


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
