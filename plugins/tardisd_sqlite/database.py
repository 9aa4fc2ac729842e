"""The SQLite file: opening, locking, transactions, and errors in words; knows no ticks."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tardisd.errors import StorageCorrupt, StorageError, StorageLocked
from tardisd_sqlite import schema

T = TypeVar("T")
_MAGIC = b"SQLite format 3\0"
_BUSY_SECS = 10.0
# The write-ahead log stays this small because no read keeps a transaction open (see `chunks`).
_CHECKPOINT_PAGES = 512
_LOG_BYTES = 4 * 1024 * 1024


@contextmanager
def failures(path: Path) -> Iterator[None]:
    """Raise what SQLite and the system complain of as StorageError, saying what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise _told(path, error) from error
    except OSError as error:
        raise StorageError(
            f"cannot use {path}: {error.strerror or error}; check the path and its permissions"
        ) from error


def _told(path: Path, error: sqlite3.Error) -> StorageError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageError(
            f"no room left for {path} ({error}); free some disk space, nothing was half stored"
        )
    if code == sqlite3.SQLITE_NOTADB:
        return StorageCorrupt(
            f"{path} is not a tardisd storage ({error}); move it away or set another path"
        )
    if code == sqlite3.SQLITE_CORRUPT:
        return StorageCorrupt(
            f"{path} is damaged ({error}); restore it from a backup, or move it away and"
            " backfill again"
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageError(f"{path} is busy: another program writes to it; end that program")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StorageError(f"cannot open {path} ({error}); check the path and its permissions")
    if code == sqlite3.SQLITE_IOERR:
        return StorageError(
            f"reading or writing {path} failed ({error}); check the disk and its free space"
        )
    return StorageError(f"{path}: {error}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Own the storage at `path` through `<path>.lock`; StorageLocked when another process does."""
    lock = path.with_name(path.name + ".lock")
    with failures(lock):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with failures(lock):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                raise StorageLocked(
                    f"{path} is in use by process {owner or 'unknown'};"
                    " stop that daemon or set another path"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def check_place(path: Path) -> None:
    """Raise StorageError unless a storage may live at `path`; StorageCorrupt for other files."""
    with failures(path):
        if not path.parent.is_dir():
            raise StorageError(
                f"folder {path.parent} does not exist; create it or set another path"
            )
        if path.is_dir():
            raise StorageError(f"{path} is a folder; set the path of a file")
        if not path.exists():
            if not os.access(path.parent, os.W_OK | os.X_OK):
                raise StorageError(
                    f"folder {path.parent} cannot be written to; check its permissions"
                )
            return
        if not os.access(path, os.R_OK | os.W_OK):
            raise StorageError(f"{path} cannot be read and written; check its permissions")
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    if start not in (b"", _MAGIC):
        raise StorageCorrupt(
            f"{path} is not a tardisd storage (it is no SQLite file);"
            " move it away or set another path"
        )


def open_writer(path: Path, durability: str) -> sqlite3.Connection:
    """Return the one connection that writes, its schema made or migrated.

    Raises StorageNewer, StorageCorrupt or StorageError.
    """
    with failures(path):
        connection = _connect(path)
        try:
            schema.refuse_foreign(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {durability.upper()}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
            schema.migrate(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def close_writer(path: Path, connection: sqlite3.Connection) -> None:
    """Bring the write-ahead log home and close."""
    with failures(path):
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()


def open_reader(path: Path) -> sqlite3.Connection:
    """Return a connection that cannot write."""
    with failures(path):
        connection = _connect(path)
        connection.execute("PRAGMA query_only = ON")
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    # Worker threads take turns on a connection; the plugin sees to it that no two use one at once.
    connection = sqlite3.connect(
        path, timeout=_BUSY_SECS, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def run(path: Path, connection: sqlite3.Connection, change: Callable[[], tuple[T, bool]]) -> T:
    """Run `change` in a transaction and return its result; it tells too whether to commit."""
    with failures(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            result, changed = change()
            connection.execute("COMMIT" if changed else "ROLLBACK")
        except BaseException:
            if connection.in_transaction:  # SQLite may have rolled back by itself
                connection.execute("ROLLBACK")
            raise
    return result
