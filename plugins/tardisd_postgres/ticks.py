"""Statements on the tick tables: rows in and out by COPY, removed, looked for; decides nothing.

Rows of a series that a change replaces or removes may still be wanted by reads that began before.
They move to a table beside (`<kind>_replaced`), with the version in which they died, while anybody
in any daemon reads the series; else they are gone at once. `series.purged` is the last version in
which rows went for good: a read of an older state cannot go on, and finds that out by looking.
"""

from __future__ import annotations

import select
from collections.abc import Sequence

import psycopg
from psycopg import errors, pq

from tardisd.market.columns import Batch
from tardisd.market.decimals import Ints
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd_postgres.binary import encode
from tardisd_postgres.rows import Rows, Table
from tardisd_postgres.schema import Connection

_LOOKED_UP = 2000


def copy_in(
    connection: Connection, table: Table, series_id: int, born: int, batch: Batch, seq: Ints | None
) -> None:
    """Write rows that are not there."""
    if not len(batch):
        return
    columns = table.encoded(series_id, born, batch, seq)
    statement = f"COPY {table.name} ({table.written_names}) FROM STDIN (FORMAT binary)"
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        for piece in encode(columns, len(batch)):
            copy.write(piece)


def copy_out(connection: Connection, query: str) -> list[bytes]:
    """Return what COPY sends for a query: one message a row.

    The driver's own loop costs several microseconds a row, which is more than the server takes. Its
    blocking call would hold the interpreter's lock while it waits.
    """
    link = connection.pgconn
    result = link.exec_(f"COPY ({query}) TO STDOUT (FORMAT binary)".encode())
    if result.status != pq.ExecStatus.COPY_OUT:
        raise errors.error_from_result(result, "utf-8")
    messages: list[bytes] = []
    take, keep = link.get_copy_data, messages.append
    waiting = select.poll()
    waiting.register(link.socket, select.POLLIN)
    while True:
        size, data = take(1)
        if size > 0:
            keep(bytes(data))
        elif size == 0:
            waiting.poll()
            link.consume_input()
        else:
            break
    while (end := link.get_result()) is not None:
        if end.status == pq.ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(end, "utf-8")
    if link.status == pq.ConnStatus.BAD:
        raise psycopg.OperationalError("the connection was lost amid rows")
    return messages


def has_rows(connection: Connection, table: Table, series_id: int, span: Span) -> bool:
    """Tell whether any row of the series lies in the span."""
    row = connection.execute(
        f"SELECT 1 FROM {table.name} WHERE series_id = %s AND ts >= %s AND ts < %s LIMIT 1",
        (series_id, span.start, span.end),
    ).fetchone()
    return row is not None


def at_times(
    connection: Connection, table: Table, series: Series, series_id: int, times: Ints
) -> Rows:
    """Return the rows of the series whose time is one of these (sorted, each once)."""
    named = ",".join(map(str, times.tolist()))
    # Few times are looked up in the index one by one; for many, the stretch between the first and
    # the last is read in one go and compared with a hash of them, which an expression makes it do.
    column = "ts" if len(times) <= _LOOKED_UP else "ts + 0"
    where = (
        f"series_id = {series_id} AND ts >= {times[0]} AND ts <= {times[-1]}"
        f" AND {column} = ANY('{{{named}}}'::bigint[])"
    )
    query = f"SELECT {table.read_names} FROM {table.name} WHERE {where} ORDER BY {table.key}"
    return table.decoded(series, copy_out(connection, query))


def after(
    connection: Connection, table: Table, series_id: int,
    position: tuple[int, int], end: int, version: int, limit: int, *, replaced: bool,
) -> list[bytes]:  # fmt: skip
    """Return what COPY sends of the rows behind a position and before `end`, as of `version`.

    With `replaced`, those that later versions have replaced are looked for too.
    """
    ts, seq = position
    key = f"(ts, seq) > ({ts}, {seq})"
    behind = key if table.has_seq else f"ts > {ts}"
    where = (
        f"series_id = {series_id} AND {behind} AND ts >= {ts} AND ts < {end} AND born <= {version}"
    )
    query = f"SELECT {table.read_names} FROM {table.name} WHERE {where}"
    if replaced:
        query += (
            f" UNION ALL SELECT {table.read_names} FROM {table.dead}"
            f" WHERE {where} AND died > {version}"
        )
    query += f" ORDER BY {table.key} LIMIT {limit}"
    return copy_out(connection, query)


def last_before(
    connection: Connection, table: Table, series: Series, series_id: int, first: int, ts: int
) -> Rows:
    """Return the last row from `first` on and before `ts`, if there is one."""
    order = ", ".join(f"{name} DESC" for name in table.key.split(", "))
    query = (
        f"SELECT {table.read_names} FROM {table.name} WHERE series_id = {series_id}"
        f" AND ts >= {first} AND ts < {ts} ORDER BY {order} LIMIT 1"
    )
    return table.decoded(series, copy_out(connection, query))


def extent(connection: Connection, table: Table, series_id: int) -> tuple[int | None, int | None]:
    """Return the times of the first and last row of the series."""
    found = []
    for order in ("ASC", "DESC"):
        row = connection.execute(
            f"SELECT ts FROM {table.name} WHERE series_id = %s ORDER BY ts {order} LIMIT 1",
            (series_id,),
        ).fetchone()
        found.append(None if row is None else int(row[0]))
    return found[0], found[1]


def remove_span(
    connection: Connection, table: Table, series_id: int, span: Span, died: int, *, keep: bool
) -> int:
    """Remove the rows in the span, kept aside with `keep`; return how many."""
    where = "series_id = %s AND ts >= %s AND ts < %s"
    return _remove(connection, table, where, (series_id, span.start, span.end), died, keep=keep)


def remove_keys(
    connection: Connection, table: Table, series_id: int, times: Ints, seq: Ints | None,
    died: int, *, keep: bool,
) -> None:  # fmt: skip
    """Remove the rows of these keys, kept aside with `keep`."""
    if not len(times):
        return
    keys: list[object] = [times.tolist()]
    where = f"series_id = %s AND ts BETWEEN {times.min()} AND {times.max()}"
    if seq is None:
        where += " AND ts = ANY(%s::bigint[])"
    else:
        where += " AND (ts, seq) IN (SELECT * FROM unnest(%s::bigint[], %s::bigint[]))"
        keys.append(seq.tolist())
    _remove(connection, table, where, (series_id, *keys), died, keep=keep)


def _remove(
    connection: Connection, table: Table, where: str, values: Sequence[object], died: int,
    *, keep: bool,
) -> int:  # fmt: skip
    delete = f"DELETE FROM {table.name} WHERE {where}"
    if keep:
        names = table.written_names
        delete = (
            f"WITH gone AS ({delete} RETURNING {names})"
            f" INSERT INTO {table.dead} ({names}, died) SELECT {names}, {died} FROM gone"
        )
    return connection.execute(delete.encode(), values).rowcount


def purge(connection: Connection, table: Table, series_id: int) -> None:
    """Remove what was kept aside of the series."""
    connection.execute(f"DELETE FROM {table.dead} WHERE series_id = %s", (series_id,))
