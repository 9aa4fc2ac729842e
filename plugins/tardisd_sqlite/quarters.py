"""Trades of each day folded into quarter-hours, kept beside the chunks; a cache, and always true.

Long candles that a session builds of trades would else have a seek read a month of them. A day has
a record only while it is the fold of all the day's rows: rows that come behind those it knows are
folded into it, any other change drops it, and what has none is read row by row.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tardisd.errors import DataError
from tardisd.market.columns import Batch
from tardisd.market.quarters import in_quarters, joined, quarters_of
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import DAY
from tardisd.plugins.storage import Appended, Quarters
from tardisd_sqlite.codec import Codec
from tardisd_sqlite.schema import ALIVE

_KINDS = ("trade", "agg_trade")


@dataclass(frozen=True, slots=True)
class Day:
    """A day that a page has rows of, as it was before the page.

    `behind` are the rows of the page that lie behind all that the record knows, `known` how many
    the others are. When it is `lost`, nothing can be said of its rows.
    """

    start: int
    behind: Batch
    known: int = 0
    record: Batch | None = None
    lost: bool = False


class DayRecords:
    """The records of one series within a transaction."""

    def __init__(
        self, connection: sqlite3.Connection, codec: Codec, series: Series, series_id: int
    ) -> None:
        self._connection = connection
        self._codec = codec
        self._series = series
        self._id = series_id
        self._folds = series.data_type.kind in _KINDS

    def before(self, batch: Batch) -> Sequence[Day]:
        """Return the days of a page that is about to be stored."""
        return [self._day(rows) for rows in _by_day(batch)] if self._folds else ()

    def grow(self, days: Sequence[Day], appended: Appended) -> None:
        """Fold what was stored of the page into the records; drop those that it made untrue."""
        if not appended.added and not appended.revised:
            return
        known = sum(day.known for day in days)
        in_order = not appended.revised and appended.unchanged == known
        if known and any(day.lost for day in days):  # whose rows are the unchanged ones?
            in_order = False
        for day in days:
            if day.lost or not in_order:
                self.drop(Span(day.start, day.start + DAY))
            elif len(day.behind):
                self._write(day)

    def drop(self, span: Span) -> None:
        """Drop the records of all days that the span touches."""
        self._connection.execute(
            "DELETE FROM quarters WHERE series_id = ? AND day_ts > ? AND day_ts < ?",
            (self._id, span.start - DAY, span.end),
        )

    def read(self, span: Span) -> Quarters:
        """Return what the records know of a span; a damaged one knows nothing."""
        parts, known = [Batch.empty(quarters_of(self._series))], list[Span]()
        rows = self._connection.execute(
            "SELECT day_ts, last_ts, last_id, rows, data, checksum FROM quarters"
            " WHERE series_id = ? AND day_ts > ? AND day_ts < ? ORDER BY day_ts",
            (self._id, span.start - DAY, span.end),
        )
        for day_ts, *record in rows:
            if (batch := self._decoded(day_ts, *record)) is not None:
                parts.append(batch)
                known.append(Span(max(day_ts, span.start), min(day_ts + DAY, span.end)))
        return Quarters(Batch.concat(parts).within(span), Coverage(known))

    def _day(self, rows: Batch) -> Day:
        """Return a day, from the page's rows of it."""
        start = int(rows.ts_event[0]) // DAY * DAY
        found = self._connection.execute(
            "SELECT last_ts, last_id, rows, data, checksum FROM quarters"
            " WHERE series_id = ? AND day_ts = ?",
            (self._id, start),
        ).fetchone()
        if found is None:
            return Day(start, rows, lost=self._has_rows(start))
        record = self._decoded(start, *found)
        if record is None or (known := _known(rows, found[0], found[1])) is None:
            return Day(start, rows, lost=True)
        return Day(start, rows[known:], known, record)

    def _has_rows(self, day_ts: int) -> bool:
        """Tell whether rows of the day may be stored."""
        row = self._connection.execute(
            "SELECT last_ts FROM chunk WHERE series_id = ? AND first_ts < ?"
            f" AND died = {ALIVE} ORDER BY first_ts DESC LIMIT 1",
            (self._id, day_ts + DAY),
        ).fetchone()
        return row is not None and row[0] >= day_ts

    def _write(self, day: Day) -> None:
        try:
            rows = in_quarters(day.behind)
            if day.record is not None:
                rows = joined([day.record, rows])
        except DataError:  # more than a candle can hold: who asks for it shall be told so
            self.drop(Span(day.start, day.start + DAY))
            return
        last_ts, ids = int(day.behind.ts_event[-1]), day.behind.ids
        last_id = None if ids is None or ids.dtype.kind != "i" else int(ids[-1])
        data = self._codec.encode(rows)
        record = (last_ts, last_id, len(rows), data, self._checksum(day.start, last_ts, data))
        self._connection.execute(
            "INSERT OR REPLACE INTO quarters"
            " (series_id, day_ts, last_ts, last_id, rows, data, checksum)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self._id, day.start, *record),
        )

    def _decoded(
        self, day_ts: int, last_ts: int, last_id: int | None, rows: int, data: bytes, checksum: int
    ) -> Batch | None:
        if self._checksum(day_ts, last_ts, data) != checksum:
            return None
        return self._codec.decode(quarters_of(self._series), rows, data)

    def _checksum(self, day_ts: int, last_ts: int, data: bytes) -> int:
        return zlib.crc32(data, zlib.crc32(struct.pack("<3q", self._id, day_ts, last_ts)))


def _by_day(batch: Batch) -> Iterator[Batch]:
    days = batch.ts_event // DAY
    starts = [0, *(np.flatnonzero(days[1:] != days[:-1]) + 1).tolist()]
    for first, end in zip(starts, [*starts[1:], len(batch)], strict=True):
        yield batch[first:end]


def _known(rows: Batch, last_ts: int, last_id: int | None) -> int | None:
    """Return how many of a day's rows do not lie behind the last known one; None: cannot tell.

    Rows of one instant are kept by ascending id where ids are numbers, else as they came.
    """
    times = rows.ts_event
    before, upto = times.searchsorted(last_ts), times.searchsorted(last_ts, "right")
    if before == upto:
        return int(before)
    numbers = rows.ids is not None and rows.ids.dtype.kind == "i"
    if numbers != (last_id is not None):
        return None
    if rows.ids is None or last_id is None:
        return int(before)
    return int(before + rows.ids[before:upto].searchsorted(last_id, "right"))
