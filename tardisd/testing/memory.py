"""A storage that keeps everything in memory: the contract at its plainest, for tests of plugins.

It favours being easy to follow over speed, and keeps nothing once it is gone.
"""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import trio

from tardisd.market.check import check_batch, same_rows
from tardisd.market.columns import Batch
from tardisd.market.series import Instrument, Series
from tardisd.market.span import COVERED_CAUSES, Coverage, Gap, Span
from tardisd.plugins.base import Context, Options
from tardisd.plugins.exchange import Page
from tardisd.plugins.sessions import Sessions
from tardisd.plugins.storage import Appended, SeriesInfo, Storage

READ_ROWS = 8192


@dataclass(slots=True)
class _Kept:
    batch: Batch
    coverage: Coverage = field(default_factory=Coverage)
    gaps: list[Gap] = field(default_factory=list)
    version: int = 0

    def change(self, batch: Batch, coverage: Coverage, gaps: list[Gap], *, changed: bool) -> None:
        """Replace all; the version grows when the rows `changed`, or anything else does."""
        changed |= coverage != self.coverage or gaps != self.gaps
        self.batch, self.coverage, self.gaps = batch, coverage, gaps
        self.version += changed


class MemoryStorage(Storage[Any]):
    """Keeps ticks in memory. A storage that begins with it may keep what is `saved` elsewhere."""

    name = "memory"

    def __init__(self, options: Options | None = None, context: Context | None = None) -> None:
        super().__init__(
            options or Options(), context or Context("memory", Path(), cast(Sessions, None))
        )
        self._kept: dict[tuple[str, str, str, str], _Kept] = {}
        self._instruments: dict[tuple[str, str, str], Instrument] = {}

    def saved(self) -> bytes:
        """Return everything that is kept, for `restore`."""
        return pickle.dumps((self._kept, self._instruments))

    def restore(self, data: bytes) -> None:
        """Keep what `saved` returned, which must come from a trusted place, and nothing else."""
        self._kept, self._instruments = pickle.loads(data)

    async def append(self, series: Series, page: Page) -> Appended:
        """Keep the page's rows and coverage; DataError when its rows are bad."""
        await trio.lowlevel.checkpoint()
        check_batch(page.batch, page.span)
        kept = self._kept.setdefault(series.key, _Kept(Batch.empty(series)))
        batch, appended = _merge(kept.batch, page.batch)
        coverage = kept.coverage.union(page.covered)
        gaps = [gap for gap in kept.gaps if gap.cause in COVERED_CAUSES]
        for gap in kept.gaps:
            if gap.cause not in COVERED_CAUSES:
                gaps += _pieces([gap], page.covered)
        gaps = _with(sorted(gaps, key=lambda gap: gap.span), page.gaps)
        changed = bool(appended.added or appended.revised)
        kept.change(batch, coverage, gaps, changed=changed)
        return appended

    def read(
        self, series: Series, span: Span
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Batch]]:
        """Open a stream of the rows in `span`."""
        return self._read(series, span)

    @asynccontextmanager
    async def _read(
        self, series: Series, span: Span
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Batch]]:
        batch = self._find(series).batch
        first, last = np.searchsorted(batch.ts_event, [span.start, span.end]).tolist()
        pieces = [
            batch[at : min(at + READ_ROWS, last)]
            for at in range(first, max(first, last), READ_ROWS)
        ]
        send, receive = trio.open_memory_channel[Batch](len(pieces))
        with send:
            for piece in pieces:
                send.send_nowait(piece)
        with receive:
            yield receive

    async def coverage(self, series: Series) -> Coverage:
        """Return the spans known to be complete."""
        await trio.lowlevel.checkpoint()
        return self._find(series).coverage

    async def gaps(self, series: Series) -> Sequence[Gap]:
        """Return the recorded gaps."""
        await trio.lowlevel.checkpoint()
        return tuple(self._find(series).gaps)

    async def record_gaps(self, series: Series, gaps: Sequence[Gap]) -> None:
        """Keep why spans have no data."""
        await trio.lowlevel.checkpoint()
        kept = self._kept.setdefault(series.key, _Kept(Batch.empty(series)))
        kept.change(kept.batch, kept.coverage, _with(kept.gaps, gaps), changed=False)

    async def list_series(self) -> Sequence[SeriesInfo]:
        """Return what is kept."""
        await trio.lowlevel.checkpoint()
        infos = []
        for kept in self._kept.values():
            batch = kept.batch
            if not (len(batch) or kept.coverage or kept.gaps):
                continue
            first = int(batch.ts_event[0]) if len(batch) else None
            last = int(batch.ts_event[-1]) if len(batch) else None
            size = 8 * len(batch) * (1 + len(batch.fields))
            infos.append(SeriesInfo(batch.series, len(batch), first, last, size, kept.version))
        return sorted(infos, key=lambda info: info.series.text)

    async def last_before(self, series: Series, ts: int) -> Batch | None:
        """Return the last row before `ts`."""
        await trio.lowlevel.checkpoint()
        batch = self._find(series).batch
        at = int(np.searchsorted(batch.ts_event, ts))
        return batch[at - 1 : at] if at else None

    async def version(self, series: Series) -> int:
        """Return the series' version."""
        await trio.lowlevel.checkpoint()
        return self._find(series).version

    async def instrument(self, series: Series) -> Instrument | None:
        """Return the instrument of the series' exchange and symbol."""
        await trio.lowlevel.checkpoint()
        return self._instruments.get(series.key[:3])

    async def put_instrument(self, instrument: Instrument) -> None:
        """Keep the instrument."""
        await trio.lowlevel.checkpoint()
        symbol = instrument.symbol
        venue_id = symbol.venue_id(instrument.exchange)
        self._instruments[instrument.exchange, symbol.kind, venue_id] = instrument

    async def delete(self, series: Series, span: Span) -> int:
        """Remove rows, coverage and gaps of the span."""
        await trio.lowlevel.checkpoint()
        kept = self._find(series)
        times = kept.batch.ts_event
        gone = (times >= span.start) & (times < span.end)
        coverage = kept.coverage.subtract(span)
        gaps = _pieces(kept.gaps, Coverage([span]))
        kept.change(kept.batch[~gone], coverage, gaps, changed=bool(gone.any()))
        return int(gone.sum())

    def _find(self, series: Series) -> _Kept:
        return self._kept.get(series.key) or _Kept(Batch.empty(series))


def _merge(old: Batch, new: Batch) -> tuple[Batch, Appended]:
    """Return both as one batch, new rows replacing old ones of their key, and what changed."""
    if not len(new):
        return old, Appended()
    if not len(old):
        return _sorted(new), Appended(added=len(new))
    places = {key: at for at, key in enumerate(_keys(old))}
    pairs = [(places[key], at) for at, key in enumerate(_keys(new)) if key in places]
    known = np.array([pair[0] for pair in pairs], np.intp)
    again = np.array([pair[1] for pair in pairs], np.intp)
    unchanged = int(same_rows(old[known], new[again]).sum()) if pairs else 0
    appended = Appended(len(new) - len(pairs), unchanged, len(pairs) - unchanged)
    fresh = np.ones(len(new), np.bool_)
    fresh[again] = False
    # A revision takes the place of the row it replaces.
    rows = np.arange(len(old))
    rows[known] = len(old) + again
    rows = np.concatenate([rows, len(old) + np.flatnonzero(fresh)])
    return _sorted(Batch.concat([old, new])[rows]), appended


def _pieces(gaps: Sequence[Gap], taken: Coverage) -> list[Gap]:
    """Return what is left of the gaps."""
    return [Gap(rest, gap.cause) for gap in gaps for rest in taken.gaps(gap.span)]


def _with(gaps: list[Gap], more: Sequence[Gap]) -> list[Gap]:
    """Return the gaps, each of `more` replacing what it overlaps; neighbours of a cause join."""
    for new in more:
        if new.span:
            gaps = [*_pieces(gaps, Coverage([new.span])), new]
    joined: list[Gap] = []
    for gap in sorted(gaps, key=lambda gap: gap.span):
        last = joined[-1] if joined else None
        if last is not None and last.cause == gap.cause and last.span.end == gap.span.start:
            joined[-1] = Gap(Span(last.span.start, gap.span.end), gap.cause)
        else:
            joined.append(gap)
    return joined


def _sorted(batch: Batch) -> Batch:
    if batch.ids is not None and batch.ids.dtype.kind == "i":
        return batch[np.lexsort((batch.ids, batch.ts_event))]
    return batch[np.argsort(batch.ts_event, kind="stable")]


def _keys(batch: Batch) -> list[Hashable]:
    """Return what each row is known by; rows without an id by content, equal ones counted."""
    times = batch.ts_event.tolist()
    if batch.series.data_type.kind == "candle":
        return list(times)
    ids = [b""] * len(batch) if batch.ids is None else batch.ids.astype(np.bytes_).tolist()
    texts = [column.texts() for column in batch.fields.values()]
    sides = [None] * len(batch) if batch.sides is None else batch.sides.tolist()
    keys: list[Hashable] = []
    seen: dict[Hashable, int] = {}
    for at, (ts, venue_id) in enumerate(zip(times, ids, strict=True)):
        if venue_id:
            keys.append((ts, venue_id))
            continue
        content = (ts, sides[at], *(column[at] for column in texts))
        seen[content] = seen.get(content, 0) + 1
        keys.append((*content, seen[content]))
    return keys
