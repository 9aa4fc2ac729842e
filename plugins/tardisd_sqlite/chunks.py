"""Rows of the chunk tables: find, load, write, retire, remove; decides nothing about their content.

A chunk is never changed. Rewriting one gives the old one a `died` version and writes others that
are `born` with it, so a read that began at version V goes on to see exactly the chunks with
`born <= V < died`, without holding a transaction open (which would keep the write-ahead log from
starting over). Dead chunks that no read can see are removed by the next write.

All rows of one instant lie in chunks of one `first_ts` (more than one only for more than
`CHUNK_ROWS` rows at one instant, numbered by `part`): chunks of one `first_ts` form a cell.
"""

from __future__ import annotations

import sqlite3
import struct
import threading
import zlib
from dataclasses import dataclass
from itertools import groupby

from tardisd.errors import StorageCorrupt
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import format_time
from tardisd_sqlite.codec import CODEC, Codec
from tardisd_sqlite.merge import pieces
from tardisd_sqlite.schema import ALIVE

_COLUMNS = "c.id, c.first_ts, c.part, c.last_ts, c.rows, c.bytes, c.codec, c.checksum"
_NEIGHBOURS = 8


@dataclass(frozen=True, slots=True)
class Chunk:
    """A row of the chunk table."""

    id: int
    first_ts: int
    part: int
    last_ts: int
    rows: int
    bytes: int
    codec: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Cell:
    """The chunks of one first time: one, save for an instant of very many rows."""

    chunks: tuple[Chunk, ...]

    @property
    def first_ts(self) -> int:
        """Time of the first row (ns)."""
        return self.chunks[0].first_ts

    @property
    def last_ts(self) -> int:
        """Time of the last row (ns)."""
        return self.chunks[-1].last_ts

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(chunk.rows for chunk in self.chunks)


class Pins:
    """Which versions running reads see. A read pins everything before it looks, then its version.

    That order matters: a writer that finds no pin may remove a chunk only because the version in
    which the chunk died was committed before, so that a later read cannot want it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pins: dict[object, tuple[int, int] | None] = {}

    def hold(self) -> object:
        """Return a pin on everything."""
        pin = object()
        with self._lock:
            self._pins[pin] = None
        return pin

    def settle(self, pin: object, series_id: int, version: int) -> None:
        """Narrow the pin to one version of one series."""
        with self._lock:
            self._pins[pin] = (series_id, version)

    def release(self, pin: object) -> None:
        """Let go."""
        with self._lock:
            del self._pins[pin]

    def current(self) -> list[tuple[int, int] | None]:
        """Return all pins; None stands for everything."""
        with self._lock:
            return list(self._pins.values())


def _checksum(series_id: int, first: int, last: int, rows: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(struct.pack("<4q", series_id, first, last, rows)))


def decode(codec: Codec, series: Series, series_id: int, chunk: Chunk, data: bytes | None) -> Batch:
    """Return the chunk's rows; StorageCorrupt names series and span when they are damaged."""
    found = None
    if data is not None:
        found = _checksum(series_id, chunk.first_ts, chunk.last_ts, chunk.rows, data)
    if data is None or chunk.codec != CODEC or found != chunk.checksum:
        raise _damage(series, chunk, data)
    return codec.decode(series, chunk.rows, data)


def _damage(series: Series, chunk: Chunk, data: bytes | None) -> StorageCorrupt:
    """Return what to tell of a chunk that cannot be decoded."""
    span = Span(chunk.first_ts, chunk.last_ts + 1)
    where = f"{series} in {span}"
    ends = f"--from {format_time(span.start)} --to {format_time(span.end)}"
    remedy = f"`tardisctl series delete {series} {ends}`, then import or backfill that again"
    if data is None:
        return StorageCorrupt(f"the rows of {where} are missing; {remedy}")
    if chunk.codec != CODEC:
        return StorageCorrupt(f"{where} is packed by codec {chunk.codec}, known is {CODEC}")
    return StorageCorrupt(f"the rows of {where} fail their checksum; {remedy}")


def _chunks(connection: sqlite3.Connection, where: str, values: tuple[int, ...]) -> list[Chunk]:
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM chunk c WHERE c.series_id = ? AND c.died = {ALIVE} AND {where}"
        " ORDER BY c.first_ts, c.part",
        values,
    )
    return [Chunk(*row) for row in rows]


def cells_around(connection: sqlite3.Connection, series_id: int, span: Span) -> list[Cell]:
    """Return the cells with rows in `span` and some before and after it, in order."""
    first, last = (
        connection.execute(
            f"SELECT {which}(first_ts) FROM (SELECT DISTINCT first_ts FROM chunk"
            f" WHERE series_id = ? AND first_ts {side} ? AND died = {ALIVE}"
            f" ORDER BY first_ts {direction} LIMIT {_NEIGHBOURS})",
            (series_id, edge),
        ).fetchone()[0]
        for which, side, edge, direction in (
            ("min", "<=", span.start, "DESC"),
            ("max", ">=", span.end, "ASC"),
        )
    )
    found = _chunks(
        connection,
        "c.first_ts BETWEEN ? AND ?",
        (
            series_id,
            span.start if first is None else first,
            span.end if last is None else last,
        ),
    )
    return [Cell(tuple(group)) for _, group in groupby(found, lambda chunk: chunk.first_ts)]


def load(
    connection: sqlite3.Connection, codec: Codec, series: Series, series_id: int, cell: Cell
) -> Batch:
    """Return the cell's rows. Raises StorageCorrupt."""
    batches = []
    for chunk in cell.chunks:
        row = connection.execute("SELECT data FROM chunk_data WHERE id = ?", (chunk.id,)).fetchone()
        data = None if row is None else row[0]
        batches.append(decode(codec, series, series_id, chunk, data))
    return Batch.concat(batches)


def write(
    connection: sqlite3.Connection, codec: Codec, series_id: int, version: int, batch: Batch
) -> int:
    """Store sorted rows as chunks born with `version`; return their size in bytes."""
    size, previous, part = 0, None, 0
    for piece in pieces(batch.ts_event):
        rows = batch[piece]
        first, last = int(rows.ts_event[0]), int(rows.ts_event[-1])
        part = part + 1 if first == previous else 0
        previous = first
        data = codec.encode(rows)
        size += len(data)
        checksum = _checksum(series_id, first, last, len(rows), data)
        cursor = connection.execute("INSERT INTO chunk_data (data) VALUES (?)", (data,))
        connection.execute(
            "INSERT INTO chunk (id, series_id, first_ts, part, born, died, last_ts, rows, bytes,"
            " codec, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                cursor.lastrowid, series_id, first, part, version, ALIVE, last, len(rows),
                len(data), CODEC, checksum,
            ),
        )  # fmt: skip
    return size


def retire(connection: sqlite3.Connection, version: int, cell: Cell) -> int:
    """Have the cell's chunks die with `version`; return their size in bytes."""
    connection.executemany(
        "UPDATE chunk SET died = ? WHERE id = ?", [(version, chunk.id) for chunk in cell.chunks]
    )
    return sum(chunk.bytes for chunk in cell.chunks)


def collect(connection: sqlite3.Connection, pins: Pins) -> None:
    """Remove the dead chunks of earlier transactions that no read can see."""
    seen = pins.current()
    if None in seen:
        return
    dead = connection.execute(
        f"SELECT id, series_id, born, died FROM chunk WHERE died < {ALIVE}"
    ).fetchall()
    gone = [
        (chunk_id,)
        for chunk_id, series_id, born, died in dead
        if not any(pin and pin[0] == series_id and born <= pin[1] < died for pin in seen)
    ]
    connection.executemany("DELETE FROM chunk_data WHERE id = ?", gone)
    connection.executemany("DELETE FROM chunk WHERE id = ?", gone)


def place_before(
    connection: sqlite3.Connection, series_id: int, version: int, ts: int
) -> tuple[int, int]:
    """Return the place (first time, part) before the first chunk with rows at or after `ts`."""
    row = connection.execute(
        "SELECT first_ts FROM chunk WHERE series_id = ? AND first_ts <= ?"
        " AND born <= ? AND died > ? ORDER BY first_ts DESC LIMIT 1",
        (series_id, ts, version, version),
    ).fetchone()
    return (ts if row is None else int(row[0])), -1


def after(
    connection: sqlite3.Connection, series_id: int, version: int, place: tuple[int, int], end: int
) -> tuple[Chunk, bytes | None] | None:
    """Return the next chunk after the place that begins before `end`, as `version` has it."""
    row = connection.execute(
        f"SELECT {_COLUMNS}, d.data FROM chunk c LEFT JOIN chunk_data d ON d.id = c.id"
        " WHERE c.series_id = ? AND (c.first_ts, c.part) > (?, ?) AND c.first_ts < ?"
        " AND c.born <= ? AND c.died > ? ORDER BY c.first_ts, c.part LIMIT 1",
        (series_id, *place, end, version, version),
    ).fetchone()
    return None if row is None else (Chunk(*row[:-1]), row[-1])


def last_before(
    connection: sqlite3.Connection, series_id: int, ts: int
) -> tuple[Chunk, bytes | None] | None:
    """Return the chunk that holds the last row before `ts`."""
    row = connection.execute(
        f"SELECT {_COLUMNS}, d.data FROM chunk c LEFT JOIN chunk_data d ON d.id = c.id"
        f" WHERE c.series_id = ? AND c.first_ts < ? AND c.died = {ALIVE}"
        " ORDER BY c.first_ts DESC, c.part DESC LIMIT 1",
        (series_id, ts),
    ).fetchone()
    return None if row is None else (Chunk(*row[:-1]), row[-1])
