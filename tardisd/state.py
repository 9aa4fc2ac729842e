"""What the daemon itself remembers across restarts: sessions that have been; no market data.

One small SQLite file in the data folder, made with sqlite-utils. Losing it loses no data.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import sqlite_utils

from tardisd.errors import StorageError, StorageNewer

VERSION = 1


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session that has been: its request and its end. Times are wall clock, ns."""

    session_id: str
    request: dict[str, Any]
    created_at: int
    status: str
    ended_at: int | None = None
    end: dict[str, Any] | None = None


class State:
    """The daemon's own records. Calls are short and synchronous."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._named_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise StorageNewer(
                    f"{path} was written by a newer tardisd (version {version}, this one knows"
                    f" {VERSION}); upgrade tardisd, or move the file away to start without it"
                )
            sqlite_utils.Database(self._connection).create_table(
                "sessions",
                {
                    "session_id": str,
                    "request": str,
                    "created_at": int,
                    "status": str,
                    "ended_at": int,
                    "end": str,
                },
                pk="session_id",
                if_not_exists=True,
            )
            self._connection.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def put(self, record: SessionRecord) -> None:
        """Remember a session, replacing what is known of the same id."""
        row = (
            record.session_id,
            msgspec.json.encode(record.request).decode(),
            record.created_at,
            record.status,
            record.ended_at,
            None if record.end is None else msgspec.json.encode(record.end).decode(),
        )
        with self._named_errors():
            self._connection.execute("INSERT OR REPLACE INTO sessions VALUES (?,?,?,?,?,?)", row)

    def forget(self, session_id: str) -> None:
        """Forget a session."""
        with self._named_errors():
            self._connection.execute("DELETE FROM sessions WHERE session_id = ?", (session_id,))

    def sessions(self) -> list[SessionRecord]:
        """Return all sessions remembered, oldest first."""
        with self._named_errors():
            rows = self._connection.execute(
                "SELECT session_id, request, created_at, status, ended_at, end FROM sessions"
                " ORDER BY created_at"
            ).fetchall()
        return [
            SessionRecord(
                session_id,
                msgspec.json.decode(request),
                created_at,
                status,
                ended_at,
                None if end is None else msgspec.json.decode(end),
            )
            for session_id, request, created_at, status, ended_at, end in rows
        ]

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"the daemon's own state {self._path}: {error}; check the disk, or move the file"
                " away to start without it (it holds no market data)"
            ) from None
