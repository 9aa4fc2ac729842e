"""What a write transaction does to a series: append a page, delete a span; opens no connection.

A page whose stretch of time is empty so far, which nearly all are, goes in by one COPY. Else the
stored rows of its instants are read, and told apart from the new ones by the rules that all
storages share; only rows that differ are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.decimals import Ints
from tardisd.market.match import Order, pairs
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.plugins.exchange import Page
from tardisd.plugins.storage import Appended
from tardisd_postgres import catalogue, pins, ticks
from tardisd_postgres.rows import first_seq, has_numbers, mixed_sides, places, table_of
from tardisd_postgres.schema import Connection


class Change:
    """One series within a write transaction; `entry` carries the counters as they will be."""

    def __init__(self, connection: Connection, lock_class: int, series: Series) -> None:
        self._connection = connection
        self._lock_class = lock_class
        self._series = series
        self._table = table_of(series)
        before = catalogue.lock(connection, series)
        self.entry = replace(before, version=before.version + 1)

    def append(self, page: Page, batch: Batch, stored_at: int) -> tuple[Appended, bool]:
        """Store the page, whose checked rows are `batch`; tell too whether anything changed.

        `stored_at` is the wall clock in ns. Raises DataError, StorageCorrupt.
        """
        connection, series_id = self._connection, self.entry.id
        appended = self._insert(batch) if len(batch) else Appended()
        changed = bool(appended.added or appended.revised)
        covered = page.covered
        changed |= catalogue.cover(connection, series_id, covered)
        changed |= catalogue.forget_gaps(connection, series_id, covered, covered=True)
        changed |= catalogue.record_gaps(connection, series_id, page.gaps)
        if changed:
            catalogue.update(connection, self.entry)
            catalogue.note(connection, self.entry, page.source, page.span, stored_at, appended)
        return appended, changed

    def record_gaps(self, gaps: Sequence[Gap]) -> bool:
        """Keep why spans have no data; tell whether that changed anything."""
        changed = catalogue.record_gaps(self._connection, self.entry.id, gaps)
        if changed:
            catalogue.update(self._connection, self.entry)
        return changed

    def delete(self, span: Span) -> tuple[int, bool]:
        """Remove the span; return how many rows went, and whether anything changed."""
        connection, table, series_id = self._connection, self._table, self.entry.id
        gone = 0
        if ticks.has_rows(connection, table, series_id, span):
            keep = self._begin_removal()
            version = self.entry.version
            gone = ticks.remove_span(connection, table, series_id, span, version, keep=keep)
            first, last = ticks.extent(connection, table, series_id)
            rows = self.entry.rows - gone
            self.entry = replace(self.entry, rows=rows, first_ts=first, last_ts=last)
        changed = bool(gone)
        changed |= catalogue.uncover(connection, series_id, span)
        taken = Coverage([span])
        changed |= catalogue.forget_gaps(connection, series_id, taken, covered=False)
        if changed:
            catalogue.update(connection, self.entry)
        return gone, changed

    def _insert(self, batch: Batch) -> Appended:
        entry, first, last = self.entry, int(batch.ts_event[0]), int(batch.ts_event[-1])
        if self._is_free(first, last):
            self._write(batch, first_seq(self._table, batch))
            appended = Appended(added=len(batch))
        else:
            appended = self._merge(batch)
        if appended.added:
            first = first if entry.first_ts is None else min(first, entry.first_ts)
            last = last if entry.last_ts is None else max(last, entry.last_ts)
            rows = self.entry.rows + appended.added
            self.entry = replace(self.entry, rows=rows, first_ts=first, last_ts=last)
        return appended

    def _is_free(self, first: int, last: int) -> bool:
        """Tell whether the series has no row between two times, both included."""
        known_first, known_last = self.entry.first_ts, self.entry.last_ts
        if known_first is None or known_last is None or first > known_last or last < known_first:
            return True
        span = Span(first, last + 1)
        return not ticks.has_rows(self._connection, self._table, self.entry.id, span)

    def _merge(self, batch: Batch) -> Appended:
        """Store rows at instants of which some may be stored already."""
        table, series_id = self._table, self.entry.id
        times = np.unique(batch.ts_event)
        found = ticks.at_times(self._connection, table, self._series, series_id, times)
        old, old_seq = found.whole(), found.seq
        if not len(old):
            self._write(batch, first_seq(table, batch))
            return Appended(added=len(batch))
        if (old.sides is None) != (batch.sides is None):
            raise mixed_sides()
        split = len(old)
        both = Batch.concat([old, batch])
        earlier, later = pairs(both, split)
        same = same_rows(both[earlier], both[later])
        fresh = np.ones(len(batch), np.bool_)
        fresh[later - split] = False
        revised, replaced = later[~same] - split, earlier[~same]
        unchanged = int(same.sum())
        if len(revised):
            keep = self._begin_removal()
            gone = None if old_seq is None else old_seq[replaced]
            ticks.remove_keys(
                self._connection, table, series_id, old.ts_event[replaced], gone,
                self.entry.version, keep=keep,
            )  # fmt: skip
        if len(revised) or fresh.any():
            fresh[revised] = True
            seq = None
            if old_seq is not None:
                seq = self._seq(batch, old.ts_event, old_seq, revised, replaced)[fresh]
            self._write(batch[fresh], seq)
        return Appended(len(batch) - len(later), unchanged, len(revised))

    def _seq(
        self, batch: Batch, old_times: Ints, old_seq: Ints, revised: Order, replaced: Order
    ) -> Ints:
        """Return `seq` for the new rows: where what they replace was, else behind what is there."""
        if has_numbers(batch):
            assert batch.ids is not None
            return batch.ids
        first_place = self._table.first_place
        instants = np.unique(batch.ts_event)
        behind = np.full(len(instants), first_place, np.int64)
        placed = old_seq < 0 if first_place < 0 else np.ones(len(old_seq), np.bool_)
        at = np.searchsorted(instants, old_times[placed])
        np.maximum.at(behind, at, old_seq[placed] + 1)
        # Rows that replace others leave holes here, which harm nobody.
        seq = behind[np.searchsorted(instants, batch.ts_event)] + places(batch.ts_event)
        takes_over = placed[replaced]
        seq[revised[takes_over]] = old_seq[replaced[takes_over]]
        return seq

    def _write(self, batch: Batch, seq: Ints | None) -> None:
        entry = self.entry
        ticks.copy_in(self._connection, self._table, entry.id, entry.version, batch, seq)

    def _begin_removal(self) -> bool:
        """Tell whether rows that are removed must be kept aside for somebody who reads."""
        entry = self.entry
        if pins.are_held(self._connection, self._lock_class, entry.id):
            self.entry = replace(entry, has_replaced=True)
            return True
        if entry.has_replaced:
            ticks.purge(self._connection, self._table, entry.id)
        self.entry = replace(entry, has_replaced=False, purged=entry.version)
        return False
