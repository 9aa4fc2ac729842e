"""The tables, made and migrated with sqlite-utils one version at a time; reads no ticks.

`user_version` holds the version of the tables. Each function below brings a database from one
version to the next; a new file goes through all of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from sqlite_utils import Database

from tardisd.errors import StorageError, StorageNewer

APPLICATION_ID = 0x74617264  # "tard"
# `died` of a chunk that is still part of its series.
ALIVE = 2**62


def _make_ticks(database: Database) -> None:
    database.table("series").create(
        {
            "id": int,
            "exchange": str,
            "kind": str,
            "venue_id": str,
            "data_type": str,
            "symbol": str,
            "version": int,
            "rows": int,
            "bytes": int,
        },
        pk="id",
        not_null={"exchange", "kind", "venue_id", "data_type", "symbol", "version"},
    ).create_index(["exchange", "kind", "venue_id", "data_type"], unique=True)
    # Chunk rows are kept apart from their bytes, so that walking them touches few pages.
    chunk = database.table("chunk").create(
        {
            "id": int,
            "series_id": int,
            "first_ts": int,
            "part": int,
            "born": int,
            "died": int,
            "last_ts": int,
            "rows": int,
            "bytes": int,
            "codec": int,
            "checksum": int,
        },
        pk="id",
        not_null={"series_id", "first_ts", "part", "born", "died", "last_ts", "rows"},
        foreign_keys=[("series_id", "series", "id")],
    )
    chunk.create_index(["series_id", "first_ts", "part", "born"], unique=True)
    database.execute(f"CREATE INDEX chunk_dead ON chunk (died) WHERE died < {ALIVE}")
    database.table("chunk_data").create({"id": int, "data": bytes}, pk="id", not_null={"data"})
    database.table("coverage").create(
        {"series_id": int, "start_ts": int, "end_ts": int},
        pk=("series_id", "start_ts"),
        not_null={"end_ts"},
        foreign_keys=[("series_id", "series", "id")],
    )


def _make_catalogue(database: Database) -> None:
    database.table("gap").create(
        {"series_id": int, "start_ts": int, "end_ts": int, "cause": str},
        pk=("series_id", "start_ts"),
        not_null={"end_ts", "cause"},
        foreign_keys=[("series_id", "series", "id")],
    )
    database.table("provenance").create(
        {
            "id": int,
            "series_id": int,
            "version": int,
            "source": str,
            "start_ts": int,
            "end_ts": int,
            "stored_at": int,
            "added": int,
            "unchanged": int,
            "revised": int,
        },
        pk="id",
        not_null={"series_id", "version", "start_ts", "end_ts", "stored_at"},
        foreign_keys=[("series_id", "series", "id")],
    )
    database.table("instrument").create(
        {
            "exchange": str,
            "kind": str,
            "venue_id": str,
            "symbol": str,
            "tick_size": str,
            "lot_size": str,
            "listed_at": int,
            "delisted_at": int,
            "extra": str,
        },
        pk=("exchange", "kind", "venue_id"),
        not_null={"symbol", "extra"},
    )


def _make_quarters(database: Database) -> None:
    database.table("quarters").create(
        {
            "series_id": int,
            "day_ts": int,
            "last_ts": int,
            "last_id": int,
            "rows": int,
            "data": bytes,
            "checksum": int,
        },
        pk=("series_id", "day_ts"),
        not_null={"last_ts", "rows", "data", "checksum"},
        foreign_keys=[("series_id", "series", "id")],
    )


MIGRATIONS: tuple[Callable[[Database], None], ...] = (_make_ticks, _make_catalogue, _make_quarters)
VERSION = len(MIGRATIONS)


def refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    """Raise StorageNewer for a later version's file, StorageError for another program's."""
    found = _pragma(connection, "user_version")
    ours = _pragma(connection, "application_id") == APPLICATION_ID
    if not ours and connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        raise StorageError(
            f"{path} is another program's SQLite database; move it away or set another path"
        )
    if ours and found > VERSION:
        raise StorageNewer(
            f"{path} has storage version {found}, this tardisd knows up to {VERSION};"
            " upgrade tardisd or set another path"
        )


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to `VERSION`, all steps in one transaction."""
    found = _pragma(connection, "user_version")
    if found == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        database = Database(connection)
        for step in MIGRATIONS[found:]:
            step(database)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
