"""Rows of the small tables: series, coverage, gaps, provenance, instruments; knows no chunks."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tardisd.market.series import Instrument, Series, Symbol
from tardisd.market.span import COVERED_CAUSES, UNCOVERED_CAUSES, Coverage, Gap, Span
from tardisd.plugins.storage import Appended, Provenance, SeriesInfo
from tardisd_sqlite.schema import ALIVE

# Causes that can only be said of time that is not covered.
_ENDED_BY_COVERAGE = frozenset(UNCOVERED_CAUSES) - frozenset(COVERED_CAUSES)


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept of a series: its number in the tables, and its counters."""

    id: int
    version: int
    rows: int
    bytes: int


def find(connection: sqlite3.Connection, series: Series) -> Entry | None:
    """Return the entry of the series, or None when it is unknown."""
    row = connection.execute(
        "SELECT id, version, rows, bytes FROM series"
        " WHERE exchange = ? AND kind = ? AND venue_id = ? AND data_type = ?",
        series.key,
    ).fetchone()
    return None if row is None else Entry(*row)


def find_or_add(connection: sqlite3.Connection, series: Series) -> Entry:
    """Return the entry of the series; a new one has version 0."""
    entry = find(connection, series)
    if entry is None:
        cursor = connection.execute(
            "INSERT INTO series (exchange, kind, venue_id, data_type, symbol, version, rows, bytes)"
            " VALUES (?, ?, ?, ?, ?, 0, 0, 0)",
            (*series.key, str(series.symbol)),
        )
        assert cursor.lastrowid is not None
        entry = Entry(cursor.lastrowid, 0, 0, 0)
    return entry


def update(connection: sqlite3.Connection, entry: Entry) -> None:
    """Store the counters."""
    connection.execute(
        "UPDATE series SET version = ?, rows = ?, bytes = ? WHERE id = ?",
        (entry.version, entry.rows, entry.bytes, entry.id),
    )


def listing(connection: sqlite3.Connection) -> list[SeriesInfo]:
    """Return the series of which rows, coverage or gaps are kept, sorted by text."""
    rows = connection.execute(
        f"""
        SELECT exchange, symbol, data_type, rows,
            (SELECT first_ts FROM chunk WHERE series_id = s.id AND died = {ALIVE}
                ORDER BY first_ts, part LIMIT 1),
            (SELECT last_ts FROM chunk WHERE series_id = s.id AND died = {ALIVE}
                ORDER BY first_ts DESC, part DESC LIMIT 1),
            bytes, version
        FROM series s WHERE rows > 0
            OR EXISTS (SELECT 1 FROM coverage WHERE series_id = s.id)
            OR EXISTS (SELECT 1 FROM gap WHERE series_id = s.id)
        """
    )
    infos = [SeriesInfo(Series.of(*row[:3]), *row[3:]) for row in rows]
    return sorted(infos, key=lambda info: info.series.text)


def coverage(connection: sqlite3.Connection, series_id: int) -> Coverage:
    """Return the spans known to be complete."""
    rows = connection.execute(
        "SELECT start_ts, end_ts FROM coverage WHERE series_id = ?", (series_id,)
    )
    return Coverage(Span(*row) for row in rows)


def cover(connection: sqlite3.Connection, series_id: int, more: Coverage) -> bool:
    """Add to the coverage; tell whether that changed it."""
    if (hull := more.hull) is None:
        return False
    near = _touching(connection, series_id, hull)
    return _replace(connection, series_id, near, near.union(more))


def uncover(connection: sqlite3.Connection, series_id: int, span: Span) -> bool:
    """Take the span out of the coverage; tell whether that changed it."""
    near = _touching(connection, series_id, span)
    return _replace(connection, series_id, near, near.subtract(span))


def _touching(connection: sqlite3.Connection, series_id: int, span: Span) -> Coverage:
    # Spans are disjoint, so of those that begin before this one only the last can reach it.
    rows = connection.execute(
        "SELECT start_ts, end_ts FROM coverage WHERE series_id = ?1 AND start_ts <= ?3"
        " AND start_ts >= coalesce((SELECT max(start_ts) FROM coverage"
        " WHERE series_id = ?1 AND start_ts <= ?2), ?2)",
        (series_id, span.start, span.end),
    )
    spans = (Span(*row) for row in rows)
    return Coverage(near for near in spans if near.end >= span.start)


def _replace(connection: sqlite3.Connection, series_id: int, old: Coverage, new: Coverage) -> bool:
    before, after = set(old), set(new)
    connection.executemany(
        "DELETE FROM coverage WHERE series_id = ? AND start_ts = ?",
        [(series_id, span.start) for span in before - after],
    )
    connection.executemany(
        "INSERT INTO coverage (series_id, start_ts, end_ts) VALUES (?, ?, ?)",
        [(series_id, span.start, span.end) for span in after - before],
    )
    return before != after


def gaps(connection: sqlite3.Connection, series_id: int) -> list[Gap]:
    """Return the recorded gaps in order."""
    rows = connection.execute(
        "SELECT start_ts, end_ts, cause FROM gap WHERE series_id = ? ORDER BY start_ts",
        (series_id,),
    )
    return [Gap(Span(start, end), cause) for start, end, cause in rows]


def _gaps_near(connection: sqlite3.Connection, series_id: int, span: Span) -> list[Gap]:
    """Return the gaps that overlap or touch the span."""
    rows = connection.execute(
        "SELECT start_ts, end_ts, cause FROM gap WHERE series_id = ?1 AND start_ts <= ?3"
        " AND start_ts >= coalesce((SELECT max(start_ts) FROM gap"
        " WHERE series_id = ?1 AND start_ts < ?2), ?2) ORDER BY start_ts",
        (series_id, span.start, span.end),
    )
    near = (Gap(Span(start, end), cause) for start, end, cause in rows)
    return [gap for gap in near if gap.span.end >= span.start]


def record_gaps(connection: sqlite3.Connection, series_id: int, new: Iterable[Gap]) -> bool:
    """Keep the gaps, each replacing what it overlaps; tell whether that changed anything."""
    fresh = [gap for gap in new if gap.span]
    if any(left.span.end > right.span.start for left, right in pairwise(fresh)):
        # One by one, so that a later one replaces what it overlaps.
        changes = [record_gaps(connection, series_id, [gap]) for gap in fresh]
        return any(changes)
    if not fresh:
        return False
    taken = Coverage(gap.span for gap in fresh)
    old = _gaps_near(connection, series_id, Span(fresh[0].span.start, fresh[-1].span.end))
    kept = [Gap(rest, gap.cause) for gap in old for rest in taken.gaps(gap.span)]
    return _rewrite(connection, series_id, old, [*kept, *fresh])


def forget_gaps(
    connection: sqlite3.Connection, series_id: int, taken: Coverage, *, covered: bool
) -> bool:
    """Drop what is recorded of the spans; tell whether that changed anything.

    With `covered`, only the causes that time without coverage alone can have.
    """
    if (hull := taken.hull) is None:
        return False
    kept = []
    old = _gaps_near(connection, series_id, hull)
    for gap in old:
        if covered and gap.cause not in _ENDED_BY_COVERAGE:
            kept.append(gap)
        else:
            kept += [Gap(rest, gap.cause) for rest in taken.gaps(gap.span)]
    return _rewrite(connection, series_id, old, kept)


def _rewrite(
    connection: sqlite3.Connection, series_id: int, old: Sequence[Gap], new: Sequence[Gap]
) -> bool:
    joined: list[Gap] = []
    for gap in sorted(new, key=lambda gap: gap.span):
        last = joined[-1] if joined else None
        if last and last.cause == gap.cause and last.span.end == gap.span.start:
            joined[-1] = Gap(Span(last.span.start, gap.span.end), gap.cause)
        else:
            joined.append(gap)
    if joined == list(old):
        return False
    connection.executemany(
        "DELETE FROM gap WHERE series_id = ? AND start_ts = ?",
        [(series_id, gap.span.start) for gap in old],
    )
    connection.executemany(
        "INSERT INTO gap (series_id, start_ts, end_ts, cause) VALUES (?, ?, ?, ?)",
        [(series_id, gap.span.start, gap.span.end, gap.cause) for gap in joined],
    )
    return True


def note(
    connection: sqlite3.Connection,
    entry: Entry,
    source: str,
    span: Span,
    stored_at: int,
    appended: Appended,
) -> None:
    """Keep where rows came from, and when (ns) they were stored."""
    connection.execute(
        "INSERT INTO provenance (series_id, version, source, start_ts, end_ts, stored_at,"
        " added, unchanged, revised) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            entry.id, entry.version, source, span.start, span.end, stored_at,
            appended.added, appended.unchanged, appended.revised,
        ),
    )  # fmt: skip


def notes(connection: sqlite3.Connection, series_id: int, limit: int) -> list[Provenance]:
    """Return where the pages stored last came from, newest first."""
    rows = connection.execute(
        "SELECT start_ts, end_ts, source, stored_at, added, unchanged, revised FROM provenance"
        " WHERE series_id = ? ORDER BY id DESC LIMIT ?",
        (series_id, limit),
    )
    return [
        Provenance(Span(start, end), source or "", stored_at, Appended(*counts))
        for start, end, source, stored_at, *counts in rows
    ]


def instrument(connection: sqlite3.Connection, series: Series) -> Instrument | None:
    """Return the instrument of the series' exchange and symbol."""
    row = connection.execute(
        "SELECT exchange, symbol, tick_size, lot_size, listed_at, delisted_at, extra"
        " FROM instrument WHERE exchange = ? AND kind = ? AND venue_id = ?",
        series.key[:3],
    ).fetchone()
    if row is None:
        return None
    exchange, symbol, tick_size, lot_size, listed_at, delisted_at, extra = row
    return Instrument(
        exchange,
        Symbol.parse(symbol, exchange),
        tick_size,
        lot_size,
        listed_at,
        delisted_at,
        json.loads(extra),
    )


def put_instrument(connection: sqlite3.Connection, instrument: Instrument) -> None:
    """Keep the instrument, replacing what is known of it."""
    symbol = instrument.symbol
    connection.execute(
        "INSERT OR REPLACE INTO instrument (exchange, kind, venue_id, symbol, tick_size, lot_size,"
        " listed_at, delisted_at, extra) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            instrument.exchange, symbol.kind, symbol.venue_id(instrument.exchange), str(symbol),
            instrument.tick_size, instrument.lot_size, instrument.listed_at,
            instrument.delisted_at, json.dumps(instrument.extra, sort_keys=True),
        ),
    )  # fmt: skip
