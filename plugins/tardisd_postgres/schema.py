"""The tables, made and migrated one version at a time, and their partitions; reads no ticks.

`tardisd_version` holds the version of the tables. Each function below brings a schema from one
version to the next; a new one goes through all of them, in one transaction. Names are found through
the connection's search path, so no statement names the schema.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import psycopg

from tardisd.errors import StorageError, StorageNewer
from tardisd.market.decimals import Ints
from tardisd_postgres.rows import TABLES, Table

Connection = psycopg.Connection[tuple[Any, ...]]

# Advisory locks of whole databases: this one is held while tables or partitions are made.
_MAKING = 0x74617264
_OLDEST = 13  # the first to tell by its number what became of a transaction
_NANOSECOND = np.timedelta64(1, "ns")

_CATALOGUE = """
CREATE TABLE series (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    exchange text NOT NULL, kind text NOT NULL, venue_id text NOT NULL, data_type text NOT NULL,
    symbol text NOT NULL,
    version integer NOT NULL DEFAULT 0,
    rows bigint NOT NULL DEFAULT 0,
    first_ts bigint, last_ts bigint,
    has_replaced boolean NOT NULL DEFAULT false,
    purged integer NOT NULL DEFAULT 0,
    UNIQUE (exchange, kind, venue_id, data_type)
);
COMMENT ON COLUMN series.version IS 'grows with every change of the series';
COMMENT ON COLUMN series.purged IS 'the last version whose replaced rows are gone for good';
CREATE TABLE coverage (
    series_id integer NOT NULL REFERENCES series, start_ts bigint NOT NULL, end_ts bigint NOT NULL,
    PRIMARY KEY (series_id, start_ts)
);
"""

_KNOWLEDGE = """
CREATE TABLE gap (
    series_id integer NOT NULL REFERENCES series, start_ts bigint NOT NULL, end_ts bigint NOT NULL,
    cause text NOT NULL,
    PRIMARY KEY (series_id, start_ts)
);
CREATE TABLE provenance (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    series_id integer NOT NULL REFERENCES series, version integer NOT NULL,
    source text NOT NULL, start_ts bigint NOT NULL, end_ts bigint NOT NULL,
    stored_at bigint NOT NULL,
    added bigint NOT NULL, unchanged bigint NOT NULL, revised bigint NOT NULL
);
CREATE INDEX ON provenance (series_id, id);
CREATE TABLE instrument (
    exchange text NOT NULL, kind text NOT NULL, venue_id text NOT NULL, symbol text NOT NULL,
    tick_size text, lot_size text, listed_at bigint, delisted_at bigint,
    extra jsonb NOT NULL,
    PRIMARY KEY (exchange, kind, venue_id)
);
"""

_SHARING = """
CREATE TABLE lease (
    exchange text NOT NULL, kind text NOT NULL, venue_id text NOT NULL, data_type text NOT NULL,
    owner text, expires_at timestamptz,
    PRIMARY KEY (exchange, kind, venue_id, data_type)
);
CREATE VIEW market_ohlcv AS
SELECT ts / 1000000 AS "timestamp",
    timestamptz 'epoch' + (ts / 1000) * interval '1 microsecond' AS datetime,
    symbol, exchange, substr(data_type, 8) AS "interval",
    open, high, low, close, volume, quote_volume, trades
FROM candle JOIN series ON series.id = series_id;
CREATE VIEW market_trades AS
SELECT ts / 1000000 AS "timestamp",
    timestamptz 'epoch' + (ts / 1000) * interval '1 microsecond' AS datetime,
    symbol, exchange, data_type,
    CASE WHEN seq >= 0 THEN seq::text ELSE text_id END AS id,
    price, amount, CASE side WHEN 'b' THEN 'buy' WHEN 's' THEN 'sell' END AS side
FROM (SELECT * FROM trade UNION ALL SELECT * FROM agg_trade) t JOIN series ON series.id = series_id;
"""


def _make_ticks(connection: Connection) -> None:
    connection.execute(_CATALOGUE)
    hypertables = _timescale(connection)
    for table in TABLES.values():
        columns = ", ".join(f'"{name}" {form}' for name, form in table.columns)
        # Integers first: what follows them needs no padding.
        head = "series_id integer NOT NULL, born integer NOT NULL"
        key = f"PRIMARY KEY (series_id, {table.key})"
        parted = "" if hypertables else "PARTITION BY RANGE (ts)"
        connection.execute(f"CREATE TABLE {table.name} ({head}, {columns}, {key}) {parted}")
        connection.execute(
            f"CREATE TABLE {table.dead} ({head}, {columns}, died integer NOT NULL,"
            f" PRIMARY KEY (series_id, {table.key}, born))"
        )
        if hypertables:
            interval = int(np.timedelta64(366 if table.unit == "Y" else 31, "D") / _NANOSECOND)
            connection.execute(
                f"SELECT {hypertables}.create_hypertable(%s::regclass, 'ts',"
                " chunk_time_interval => %s::bigint, create_default_indexes => false)",
                (table.name, interval),
            )


def _timescale(connection: Connection) -> str | None:
    """Return the schema of TimescaleDB's functions, or None where it is not installed."""
    row = connection.execute(
        "SELECT quote_ident(n.nspname) FROM pg_extension e"
        " JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'timescaledb'"
    ).fetchone()
    return None if row is None else str(row[0])


def _make_knowledge(connection: Connection) -> None:
    connection.execute(_KNOWLEDGE)


def _make_sharing(connection: Connection) -> None:
    connection.execute(_SHARING)


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    _make_ticks,
    _make_knowledge,
    _make_sharing,
)
VERSION = len(MIGRATIONS)


def prepare(connection: Connection, schema: str) -> None:
    """Make the schema and its tables, or bring them to `VERSION`.

    Raises StorageNewer for a later version's, StorageError for tables of something else.
    """
    if (found := connection.info.server_version // 10_000) < _OLDEST:
        raise StorageError(
            f"PostgreSQL {found} is too old; upgrade the server to {_OLDEST} or newer"
        )
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
        # Not IF NOT EXISTS alone: that asks for the right to create even where nothing is created.
        if not _exists(connection, "SELECT 1 FROM pg_namespace WHERE nspname = %s", schema):
            connection.execute(f"CREATE SCHEMA {schema}")
        found = _found_version(connection, schema)
        if found > VERSION:
            raise StorageNewer(
                f"schema {schema} has storage version {found}, this tardisd knows up to {VERSION};"
                " upgrade tardisd or set another schema"
            )
        if found == VERSION:
            return
        for step in MIGRATIONS[found:]:
            step(connection)
        connection.execute("UPDATE tardisd_version SET version = %s", (VERSION,))


def _found_version(connection: Connection, schema: str) -> int:
    named = "SELECT 1 FROM pg_class WHERE relnamespace = %s::regnamespace"
    if _exists(connection, f"{named} AND relname = 'tardisd_version'", schema):
        row = connection.execute("SELECT version FROM tardisd_version").fetchone()
        if row is not None:
            return int(row[0])
        raise StorageError(f"schema {schema} has an empty table tardisd_version; drop the schema")
    if _exists(connection, f"{named} AND relkind IN ('r', 'p', 'v', 'm')", schema):
        raise StorageError(
            f"schema {schema} holds tables of something else; set another schema, which is made"
        )
    connection.execute("CREATE TABLE tardisd_version AS SELECT 0 AS version")
    return 0


def _exists(connection: Connection, query: str, name: str) -> bool:
    return connection.execute(query, (name,)).fetchone() is not None


class Partitions:
    """Makes partitions before rows need them, and remembers which are there."""

    def __init__(self) -> None:
        self._known: set[tuple[str, int]] = set()
        self._by_time: bool | None = None

    def forget(self) -> None:
        """Look again: somebody may have dropped one."""
        self._known.clear()
        self._by_time = None

    def missing(self, table: Table, times: Ints) -> list[int]:
        """Return which partitions, not known to be there, rows of these sorted times (ns) need."""
        if not len(times) or self._by_time is False:
            return []
        ends = times[[0, -1]].view("datetime64[ns]").astype(f"datetime64[{table.unit}]")
        if ends[0] != ends[1]:
            ends = np.unique(times.view("datetime64[ns]").astype(f"datetime64[{table.unit}]"))
        months = set(ends.astype(np.int64).tolist())
        return sorted(month for month in months if (table.name, month) not in self._known)

    def make(self, connection: Connection, table: Table, missing: Sequence[int]) -> None:
        """Make partitions, each in a short transaction, unless somebody else has.

        That waits for no read or write of the others, nor do they wait for it.
        """
        for month in missing:
            if self._by_time is None:
                self._by_time = self._partitioned(connection, table)
            if self._by_time:
                _make_partition(connection, table, month)
            self._known.add((table.name, month))

    @staticmethod
    def _partitioned(connection: Connection, table: Table) -> bool:
        row = connection.execute(
            "SELECT relkind = 'p' FROM pg_class WHERE oid = %s::regclass", (table.name,)
        ).fetchone()
        return bool(row and row[0])


def _make_partition(connection: Connection, table: Table, month: int) -> None:
    edges = np.array([month, month + 1], np.int64).view(f"datetime64[{table.unit}]")
    name = f"{table.name}_{str(edges[0]).replace('-', '_')}"
    bounds = edges.astype("datetime64[ns]").astype(np.int64).tolist()
    if _is_there(connection, name):
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
        if _is_there(connection, name):
            return
        # To create it as a partition would wait for everybody who uses the table.
        connection.execute(f"CREATE TABLE {name} (LIKE {table.name} INCLUDING DEFAULTS)")
        connection.execute(
            f"ALTER TABLE {table.name} ATTACH PARTITION {name}"
            f" FOR VALUES FROM ({bounds[0]}) TO ({bounds[1]})"
        )


def _is_there(connection: Connection, name: str) -> bool:
    # Not by to_regclass, which may answer from a cache that has not heard of others' changes yet.
    query = "SELECT 1 FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
    return _exists(connection, f"{query} AND relname = %s", name)


def edge_after(table: Table, ts: int) -> int:
    """Return when (ns) the partition of `ts` ends."""
    month = np.datetime64(ts, "ns").astype(f"datetime64[{table.unit}]")
    return int((month + 1).astype("datetime64[ns]").astype(np.int64))
