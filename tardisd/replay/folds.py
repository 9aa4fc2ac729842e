"""Quarter-hours of trades, folded when a session first had to read them, kept for the next jump.

Long candles made of trades would else have a seek read a month of them, each time. Knows nothing of
candles that form, or of gaps; what is kept is a cache: all of it can be read again. Some storages
fold trades as they store them; then those are not read at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import trio

from tardisd.market.columns import Batch
from tardisd.market.quarters import in_quarters, joined, quarters_of
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.plugins.storage import Quarters, Storage

# A job in a thread costs as much as folding so many hundred rows.
_GROUP_ROWS = 65536


class Folds:
    """What has been folded so far, by storage and source; it begins anew where the data changed."""

    def __init__(self, most: int = 280_000) -> None:
        """Keep at most so many quarter-hours (two years of four sources: some 25 megabytes)."""
        self._most = most
        self._kept = WeakKeyDictionary[Storage[Any], dict[Series, _Kept]]()

    async def rows(
        self,
        storage: Storage[Any],
        source: Series,
        span: Span,
        limiter: trio.CapacityLimiter,
    ) -> Batch:
        """Return the trades of whole quarter-hours as candles of such; reads what is not kept."""
        version = await storage.version(source)
        kinds = self._kept.setdefault(storage, {})
        kept = kinds.pop(source, None)
        if kept is None or kept.version != version:
            kept = _Kept(source, version)
        kinds[source] = kept  # the last one is the one used last
        for part in kept.known.gaps(span):
            kept.take(await storage.quarters(source, part))
        for part in kept.known.gaps(span):
            await kept.read(storage, part, limiter)
        self._forget(kept)
        return kept.rows.within(span)

    def _forget(self, last: _Kept) -> None:
        """Let go of what is too much, what was used last at last."""
        size = sum(len(kept.rows) for kinds in self._kept.values() for kept in kinds.values())
        for kinds in list(self._kept.values()):
            for source, kept in list(kinds.items()):
                if size > self._most and kept is not last:
                    size -= len(kinds.pop(source).rows)


class _Kept:
    """What is known of one source: which time, and one row for each quarter-hour with trades."""

    def __init__(self, source: Series, version: int) -> None:
        self.version = version
        self.known = Coverage()
        self._source = source
        self.rows = Batch.empty(quarters_of(source))

    def take(self, quarters: Quarters) -> None:
        """Keep what the storage has folded by itself."""
        for part in quarters.known:
            self._add(part, quarters.rows.within(part))

    async def read(self, storage: Storage[Any], span: Span, limiter: trio.CapacityLimiter) -> None:
        """Read and fold a span. Whole quarter-hours stay known when it is cancelled amid that."""
        last = self.rows[:0]
        send, receive = trio.open_memory_channel[list[Batch]](0)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._gather, storage, span, send)
                async for group in receive:
                    found = await trio.to_thread.run_sync(
                        self._folded, last, group, limiter=limiter
                    )
                    last = found[-1:]
                    upto = int(last.ts_event[0])
                    self._add(Span(span.start, upto), found)
                    span = Span(upto, span.end)
        except BaseExceptionGroup as errors:
            if len(errors.exceptions) == 1:  # what the storage says, as it says it
                raise errors.exceptions[0] from None
            raise
        self._add(span, last)

    async def _gather(
        self, storage: Storage[Any], span: Span, send: trio.MemorySendChannel[list[Batch]]
    ) -> None:
        """Read on while what was read before is folded."""
        group, rows = list[Batch](), 0
        async with send, storage.read(self._source, span) as batches:
            async for batch in batches:
                group.append(batch)
                rows += len(batch)
                if rows >= _GROUP_ROWS:
                    await send.send(group)
                    group, rows = [], 0
            if rows:
                await send.send(group)

    def _folded(self, last: Batch, group: Sequence[Batch]) -> Batch:
        """Return one row for each quarter-hour; `last` is what there was of the first one."""
        return joined([last, *map(in_quarters, group)])

    def _add(self, span: Span, rows: Batch) -> None:
        """Keep the rows of a span, but for what somebody else has added meanwhile."""
        for part in self.known.gaps(span):
            new, at = rows.within(part), int(np.searchsorted(self.rows.ts_event, part.start))
            self.rows = Batch.concat([self.rows[:at], new, self.rows[at:]])
            self.known = self.known.union(part)
