"""Rows of the small tables: series, coverage, gaps, provenance, instruments; knows no ticks.

Whoever writes has locked the series' row before (`lock`), so that several daemons take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psycopg.types.json import Jsonb

from tardisd.market.columns import SCHEMAS
from tardisd.market.series import Instrument, Series, Symbol
from tardisd.market.span import COVERED_CAUSES, UNCOVERED_CAUSES, Coverage, Gap, Span
from tardisd.plugins.storage import Appended, Provenance, SeriesInfo
from tardisd_postgres.rows import TABLES
from tardisd_postgres.schema import Connection

# Causes that can only be said of time that is not covered.
_ENDED_BY_COVERAGE = frozenset(UNCOVERED_CAUSES) - frozenset(COVERED_CAUSES)
_ENTRY = "id, version, rows, first_ts, last_ts, has_replaced, purged"
_THIS = "exchange = %s AND kind = %s AND venue_id = %s AND data_type = %s"


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept of a series: its number in the tables, and its counters."""

    id: int
    version: int
    rows: int
    first_ts: int | None
    last_ts: int | None
    has_replaced: bool
    purged: int


def find(connection: Connection, series: Series) -> Entry | None:
    """Return the entry of the series, or None when it is unknown."""
    row = connection.execute(f"SELECT {_ENTRY} FROM series WHERE {_THIS}", series.key).fetchone()
    return None if row is None else Entry(*row)


def lock(connection: Connection, series: Series) -> Entry:
    """Return the entry of the series, locked until the transaction ends; a new one has version 0.

    Waits for whoever else changes the series.
    """
    query = f"SELECT {_ENTRY} FROM series WHERE {_THIS} FOR UPDATE"
    if (row := connection.execute(query, series.key).fetchone()) is None:
        connection.execute(
            "INSERT INTO series (exchange, kind, venue_id, data_type, symbol)"
            " VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            (*series.key, str(series.symbol)),
        )
        row = connection.execute(query, series.key).fetchone()
        assert row is not None
    return Entry(*row)


def update(connection: Connection, entry: Entry) -> None:
    """Store the counters."""
    connection.execute(
        "UPDATE series SET version = %s, rows = %s, first_ts = %s, last_ts = %s,"
        " has_replaced = %s, purged = %s WHERE id = %s",
        (
            entry.version, entry.rows, entry.first_ts, entry.last_ts,
            entry.has_replaced, entry.purged, entry.id,
        ),
    )  # fmt: skip


def listing(connection: Connection) -> list[SeriesInfo]:
    """Return the series of which rows, coverage or gaps are kept, sorted by text.

    Their sizes are shares of the tables' sizes, by rows.
    """
    rows = connection.execute(
        """
        SELECT exchange, symbol, data_type, rows, first_ts, last_ts, version
        FROM series s WHERE rows > 0
            OR EXISTS (SELECT 1 FROM coverage WHERE series_id = s.id)
            OR EXISTS (SELECT 1 FROM gap WHERE series_id = s.id)
        """
    ).fetchall()
    found = [(Series.of(*row[:3]), *row[3:]) for row in rows]
    totals = dict.fromkeys(SCHEMAS, 0)
    for series, count, *_ in found:
        totals[series.data_type.kind] += count
    sizes = {kind: _size(connection, kind) for kind, total in totals.items() if total}
    infos = []
    for series, count, first, last, version in found:
        kind = series.data_type.kind
        size = sizes[kind] * count // totals[kind] if count else 0
        infos.append(SeriesInfo(series, count, first, last, size, version))
    return sorted(infos, key=lambda info: info.series.text)


def _size(connection: Connection, kind: str) -> int:
    # Partitions inherit, and so do TimescaleDB's chunks.
    row = connection.execute(
        "WITH RECURSIVE part AS (SELECT %s::regclass::oid AS oid"
        " UNION ALL SELECT inhrelid FROM pg_inherits JOIN part ON inhparent = part.oid)"
        " SELECT sum(pg_total_relation_size(oid))::bigint FROM part",
        (TABLES[kind].name,),
    ).fetchone()
    return int(row[0]) if row else 0


def coverage(connection: Connection, series_id: int) -> Coverage:
    """Return the spans known to be complete."""
    rows = connection.execute(
        "SELECT start_ts, end_ts FROM coverage WHERE series_id = %s", (series_id,)
    )
    return Coverage(Span(*row) for row in rows)


def cover(connection: Connection, series_id: int, more: Coverage) -> bool:
    """Add to the coverage; tell whether that changed it."""
    if (hull := more.hull) is None:
        return False
    near = _touching(connection, series_id, hull)
    return _replace(connection, series_id, near, near.union(more))


def uncover(connection: Connection, series_id: int, span: Span) -> bool:
    """Take the span out of the coverage; tell whether that changed it."""
    near = _touching(connection, series_id, span)
    return _replace(connection, series_id, near, near.subtract(span))


def _near(connection: Connection, table: str, series_id: int, span: Span) -> list[tuple[int, ...]]:
    # Spans are disjoint, so of those that begin before this one only the last can reach it.
    columns = "start_ts, end_ts" + (", cause" if table == "gap" else "")
    rows = connection.execute(
        f"SELECT {columns} FROM {table} WHERE series_id = %(id)s AND start_ts <= %(end)s"
        f" AND start_ts >= coalesce((SELECT max(start_ts) FROM {table}"
        " WHERE series_id = %(id)s AND start_ts < %(start)s), %(start)s) ORDER BY start_ts",
        {"id": series_id, "start": span.start, "end": span.end},
    )
    return [row for row in rows if row[1] >= span.start]


def _touching(connection: Connection, series_id: int, span: Span) -> Coverage:
    return Coverage(Span(*row) for row in _near(connection, "coverage", series_id, span))


def _replace(connection: Connection, series_id: int, old: Coverage, new: Coverage) -> bool:
    before, after = set(old), set(new)
    _forget(connection, "coverage", series_id, before - after)
    if fresh := after - before:
        connection.execute(
            "INSERT INTO coverage (series_id, start_ts, end_ts)"
            " SELECT %s, * FROM unnest(%s::bigint[], %s::bigint[])",
            (series_id, [span.start for span in fresh], [span.end for span in fresh]),
        )
    return before != after


def _forget(connection: Connection, table: str, series_id: int, spans: Iterable[Span]) -> None:
    if starts := [span.start for span in spans]:
        connection.execute(
            f"DELETE FROM {table} WHERE series_id = %s AND start_ts = ANY(%s)", (series_id, starts)
        )


def gaps(connection: Connection, series_id: int) -> list[Gap]:
    """Return the recorded gaps in order."""
    rows = connection.execute(
        "SELECT start_ts, end_ts, cause FROM gap WHERE series_id = %s ORDER BY start_ts",
        (series_id,),
    )
    return [Gap(Span(start, end), cause) for start, end, cause in rows]


def _gaps_near(connection: Connection, series_id: int, span: Span) -> list[Gap]:
    near = _near(connection, "gap", series_id, span)
    return [Gap(Span(start, end), str(cause)) for start, end, cause in near]


def record_gaps(connection: Connection, series_id: int, new: Sequence[Gap]) -> bool:
    """Keep the gaps, each replacing what it overlaps; tell whether that changed anything."""
    fresh = [gap for gap in new if gap.span]
    if not fresh:
        return False
    hull = Span(min(gap.span.start for gap in fresh), max(gap.span.end for gap in fresh))
    old = _gaps_near(connection, series_id, hull)
    # The last one wins: from the last on, each takes what those after it have left.
    taken, kept = Coverage(), []
    for gap in reversed(fresh):
        kept += [Gap(rest, gap.cause) for rest in taken.gaps(gap.span)]
        taken = taken.union(gap.span)
    kept += [Gap(rest, gap.cause) for gap in old for rest in taken.gaps(gap.span)]
    return _rewrite(connection, series_id, old, kept)


def forget_gaps(connection: Connection, series_id: int, taken: Coverage, *, covered: bool) -> bool:
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
    connection: Connection, series_id: int, old: Sequence[Gap], new: Sequence[Gap]
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
    _forget(connection, "gap", series_id, (gap.span for gap in old))
    if joined:
        connection.execute(
            "INSERT INTO gap (series_id, start_ts, end_ts, cause)"
            " SELECT %s, * FROM unnest(%s::bigint[], %s::bigint[], %s::text[])",
            (
                series_id,
                [gap.span.start for gap in joined],
                [gap.span.end for gap in joined],
                [gap.cause for gap in joined],
            ),
        )
    return True


def note(
    connection: Connection,
    entry: Entry,
    source: str,
    span: Span,
    stored_at: int,
    appended: Appended,
) -> None:
    """Keep where rows came from, and when (ns) they were stored."""
    connection.execute(
        "INSERT INTO provenance (series_id, version, source, start_ts, end_ts, stored_at,"
        " added, unchanged, revised) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            entry.id, entry.version, source, span.start, span.end, stored_at,
            appended.added, appended.unchanged, appended.revised,
        ),
    )  # fmt: skip


def notes(connection: Connection, series_id: int, limit: int) -> list[Provenance]:
    """Return where the pages stored last came from, newest first."""
    rows = connection.execute(
        "SELECT start_ts, end_ts, source, stored_at, added, unchanged, revised FROM provenance"
        " WHERE series_id = %s ORDER BY id DESC LIMIT %s",
        (series_id, limit),
    )
    return [
        Provenance(Span(start, end), source, stored_at, Appended(*counts))
        for start, end, source, stored_at, *counts in rows
    ]


def instrument(connection: Connection, series: Series) -> Instrument | None:
    """Return the instrument of the series' exchange and symbol."""
    row = connection.execute(
        "SELECT exchange, symbol, tick_size, lot_size, listed_at, delisted_at, extra"
        " FROM instrument WHERE exchange = %s AND kind = %s AND venue_id = %s",
        series.key[:3],
    ).fetchone()
    if row is None:
        return None
    exchange, symbol, *rest = row
    return Instrument(exchange, Symbol.parse(symbol, exchange), *rest)


def put_instrument(connection: Connection, instrument: Instrument) -> None:
    """Keep the instrument, replacing what is known of it."""
    symbol = instrument.symbol
    key = "exchange, kind, venue_id"
    columns = "symbol, tick_size, lot_size, listed_at, delisted_at, extra"
    connection.execute(
        f"INSERT INTO instrument ({key}, {columns}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
        f" ON CONFLICT ({key}) DO UPDATE SET ({columns}) = ROW (excluded.symbol,"
        " excluded.tick_size, excluded.lot_size, excluded.listed_at, excluded.delisted_at,"
        " excluded.extra)",
        (
            instrument.exchange, symbol.kind, symbol.venue_id(instrument.exchange), str(symbol),
            instrument.tick_size, instrument.lot_size, instrument.listed_at,
            instrument.delisted_at, Jsonb(instrument.extra),
        ),
    )  # fmt: skip
