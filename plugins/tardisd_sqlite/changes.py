"""What a write transaction does to a series: append a page, delete a span; opens no file.

Rows that fall between stored cells become chunks of their own, together with neighbours that are
small next to them, so that many small pages end in few chunks while a row is rewritten only about
log2 times. Rows that fall among a cell's rows are merged with it, and the cell is written anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.plugins.exchange import Page
from tardisd.plugins.storage import Appended
from tardisd_sqlite import catalogue, chunks
from tardisd_sqlite.catalogue import Entry
from tardisd_sqlite.chunks import Cell
from tardisd_sqlite.codec import Codec
from tardisd_sqlite.merge import CHUNK_ROWS, alike, merge
from tardisd_sqlite.quarters import DayRecords

_SMALL_ROWS = 128


class Change:
    """One series within a write transaction; `entry` carries the counters as they will be."""

    def __init__(self, connection: sqlite3.Connection, codec: Codec, series: Series) -> None:
        self._connection = connection
        self._codec = codec
        self._series = series
        before = catalogue.find_or_add(connection, series)
        self.entry = replace(before, version=before.version + 1)
        self._days = DayRecords(connection, codec, series, before.id)

    def append(self, page: Page, batch: Batch, stored_at: int) -> tuple[Appended, bool]:
        """Store the page, whose checked rows are `batch`; tell too whether anything changed.

        `stored_at` is the wall clock in ns. Raises DataError, StorageCorrupt.
        """
        appended = Appended()
        if len(batch):
            days = self._days.before(batch)
            appended = self._insert(batch)
            self._days.grow(days, appended)
        changed = bool(appended.added or appended.revised)
        covered = page.covered
        changed |= catalogue.cover(self._connection, self.entry.id, covered)
        changed |= catalogue.forget_gaps(self._connection, self.entry.id, covered, covered=True)
        changed |= catalogue.record_gaps(self._connection, self.entry.id, page.gaps)
        if changed:
            catalogue.update(self._connection, self.entry)
            catalogue.note(
                self._connection, self.entry, page.source, page.span, stored_at, appended
            )
        return appended, changed

    def record_gaps(self, gaps: Sequence[Gap]) -> bool:
        """Keep why spans have no data; tell whether that changed anything."""
        changed = catalogue.record_gaps(self._connection, self.entry.id, gaps)
        if changed:
            catalogue.update(self._connection, self.entry)
        return changed

    def delete(self, span: Span) -> tuple[int, bool]:
        """Remove the span; return how many rows went, and whether anything changed."""
        rows = self.entry.rows
        for cell in chunks.cells_around(self._connection, self.entry.id, span):
            if cell.last_ts < span.start or cell.first_ts >= span.end:
                continue
            if cell.first_ts in span and cell.last_ts in span:  # whole: need not be readable
                self._rewrite([cell], None)
                continue
            batch = self._load(cell)
            times = batch.ts_event
            if not (keep := (times < span.start) | (times >= span.end)).all():
                self._rewrite([cell], batch[keep])
        self._days.drop(span)
        gone = rows - self.entry.rows
        changed = bool(gone)
        changed |= catalogue.uncover(self._connection, self.entry.id, span)
        taken = Coverage([span])
        changed |= catalogue.forget_gaps(self._connection, self.entry.id, taken, covered=False)
        if changed:
            catalogue.update(self._connection, self.entry)
        return gone, changed

    def _insert(self, batch: Batch) -> Appended:
        reach = Span(int(batch.ts_event[0]), int(batch.ts_event[-1]) + 1)
        cells = chunks.cells_around(self._connection, self.entry.id, reach)
        starts = np.array([cell.first_ts for cell in cells], dtype=np.int64)
        # Rows from one cell's first time to the next one's belong to that cell; -1: before all.
        bounds = np.searchsorted(batch.ts_event, starts, "left").tolist()
        bounds = [0, *bounds, len(batch)]
        appended, free_from = Appended(), 0
        for at in range(-1, len(cells)):
            rows = batch[bounds[at + 1] : bounds[at + 2]]
            if not len(rows):
                continue
            if at >= 0 and int(rows.ts_event[0]) <= cells[at].last_ts:
                appended += self._insert_among(cells[at], rows)
                free_from = at + 1
                continue
            free_to = at + 1
            while free_to < len(cells) and bounds[free_to + 1] == bounds[free_to + 2]:
                free_to += 1
            self._insert_between(cells[free_from : at + 1], cells[at + 1 : free_to], rows)
            appended += Appended(added=len(rows))
            free_from = free_to
        return appended

    def _insert_among(self, cell: Cell, rows: Batch) -> Appended:
        """Merge rows with the cell's own."""
        merged, appended = merge(self._load(cell), rows)
        if appended.added or appended.revised:
            self._rewrite([cell], merged)
        return appended

    def _insert_between(self, before: Sequence[Cell], after: Sequence[Cell], rows: Batch) -> None:
        """Store rows that lie between cells, together with those next to them that are small."""
        taken: list[Cell] = []
        for cell in reversed(before):
            if (loaded := self._to_join(cell, rows)) is None:
                break
            taken.append(cell)
            rows = Batch.concat([loaded, rows])
        for cell in after:
            if (loaded := self._to_join(cell, rows)) is None:
                break
            taken.append(cell)
            rows = Batch.concat([rows, loaded])
        self._rewrite(taken, rows)

    def _to_join(self, cell: Cell, rows: Batch) -> Batch | None:
        """Return the cell's rows when they are worth being written again with `rows`."""
        if cell.rows > 2 * max(len(rows), _SMALL_ROWS):
            return None
        if cell.rows + len(rows) > CHUNK_ROWS and cell.rows >= CHUNK_ROWS // 2:
            return None
        loaded = self._load(cell)
        return loaded if alike(loaded, rows) else None

    def _load(self, cell: Cell) -> Batch:
        return chunks.load(self._connection, self._codec, self._series, self.entry.id, cell)

    def _rewrite(self, cells: Sequence[Cell], batch: Batch | None) -> None:
        """Put `batch` in the place of the cells, and keep the counters."""
        entry = self.entry
        rows, size = entry.rows, entry.bytes
        for cell in cells:
            rows -= cell.rows
            size -= chunks.retire(self._connection, entry.version, cell)
        if batch is not None:
            rows += len(batch)
            size += chunks.write(self._connection, self._codec, entry.id, entry.version, batch)
        self.entry = Entry(entry.id, entry.version, rows, size)
