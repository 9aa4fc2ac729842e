"""What the daemon itself remembers across restarts: sessions, backfill jobs, bans; no market data.

One small SQLite file in the data folder, made with sqlite-utils. Losing it loses no data.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import sqlite_utils

from tardisd.errors import StorageError, StorageNewer


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session that has been: its request and its end. Times are wall clock, ns.

    `place` is where a durable session is, which goes on after a restart.
    """

    session_id: str
    request: dict[str, Any]
    created_at: int
    status: str
    ended_at: int | None = None
    end: dict[str, Any] | None = None
    place: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A backfill job: what `tardisd.backfill` needs to show it, and to go on with it."""

    job_id: int
    rule: str | None
    ended: bool
    details: dict[str, Any]


def _make_sessions(database: sqlite_utils.Database) -> None:
    columns = {
        "session_id": str,
        "request": str,
        "created_at": int,
        "status": str,
        "ended_at": int,
        "end": str,
    }
    # The first version did not yet make its tables and its number in one step.
    database.table("sessions").create(columns, pk="session_id", if_not_exists=True)


def _make_jobs(database: sqlite_utils.Database) -> None:
    jobs = {"job_id": int, "rule": str, "ended": int, "details": str}
    database.table("jobs").create(jobs, pk="job_id", not_null={"ended", "details"})
    bans = {"venue": str, "until": int, "reason": str}
    database.table("bans").create(bans, pk="venue", not_null={"until", "reason"})


def _make_shares(database: sqlite_utils.Database) -> None:
    shares = {"venue": str, "limit_name": str, "weight": int, "until": int}
    database.table("shares").create(shares, not_null={"venue", "limit_name", "weight"})


def _add_places(database: sqlite_utils.Database) -> None:
    database.table("sessions").add_column("place", str)


MIGRATIONS: tuple[Callable[[sqlite_utils.Database], None], ...] = (
    _make_sessions,
    _make_jobs,
    _make_shares,
    _add_places,
)
VERSION = len(MIGRATIONS)


def _decoded(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


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
            if version < VERSION:
                self._migrate(version)

    def _migrate(self, version: int) -> None:
        """Bring the tables to `VERSION`, all steps in one transaction."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for step in MIGRATIONS[version:]:
                step(sqlite_utils.Database(self._connection))
            self._connection.execute(f"PRAGMA user_version = {VERSION}")
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

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
            None if record.place is None else msgspec.json.encode(record.place).decode(),
        )
        with self._named_errors():
            self._connection.execute("INSERT OR REPLACE INTO sessions VALUES (?,?,?,?,?,?,?)", row)

    def forget(self, session_id: str) -> None:
        """Forget a session."""
        with self._named_errors():
            self._connection.execute("DELETE FROM sessions WHERE session_id = ?", (session_id,))

    def sessions(self) -> list[SessionRecord]:
        """Return all sessions remembered, oldest first; what is damaged of them is empty."""
        with self._named_errors():
            rows = self._connection.execute(
                "SELECT session_id, request, created_at, status, ended_at, end, place FROM sessions"
                " ORDER BY created_at"
            ).fetchall()
        return [
            SessionRecord(
                session_id,
                _decoded(request),
                created_at,
                status,
                ended_at,
                None if end is None else _decoded(end) or None,
                None if place is None else _decoded(place),
            )
            for session_id, request, created_at, status, ended_at, end, place in rows
        ]

    def put_job(self, record: JobRecord) -> None:
        """Remember a backfill job, replacing what is known of the same id."""
        details = msgspec.json.encode(record.details).decode()
        row = (record.job_id, record.rule, int(record.ended), details)
        with self._named_errors():
            self._connection.execute("INSERT OR REPLACE INTO jobs VALUES (?,?,?,?)", row)

    def forget_job(self, job_id: int) -> None:
        """Forget a backfill job."""
        with self._named_errors():
            self._connection.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))

    def jobs(self) -> list[JobRecord]:
        """Return all backfill jobs remembered, oldest first."""
        with self._named_errors():
            rows = self._connection.execute(
                "SELECT job_id, rule, ended, details FROM jobs ORDER BY job_id"
            ).fetchall()
        return [
            JobRecord(job_id, rule, bool(ended), msgspec.json.decode(details))
            for job_id, rule, ended, details in rows
        ]

    def banned_until(self, venue: str) -> int | None:
        """Return the wall time (ns) until which a venue has banned this address, if it has."""
        with self._named_errors():
            row = self._connection.execute(
                "SELECT until FROM bans WHERE venue = ?", (venue,)
            ).fetchone()
        return None if row is None else int(row[0])

    def remember(self, venue: str, until: int, reason: str) -> None:
        """Remember a venue's ban until a wall time (ns); one per venue is kept."""
        row = (venue, until, reason)
        with self._named_errors():
            self._connection.execute("INSERT OR REPLACE INTO bans VALUES (?,?,?)", row)

    def spent(self, venue: str, limit: str) -> list[tuple[int | None, int]]:
        """Return the shares of a limit that were noted: until when they were spent, and weights."""
        with self._named_errors():
            return self._connection.execute(
                "SELECT until, weight FROM shares WHERE venue = ? AND limit_name = ?",
                (venue, limit),
            ).fetchall()

    def note_share(self, venue: str, limit: str, weight: int, now: int, since: int) -> None:
        """Note a share that is going to be spent; the one before it was spent by `now` (ns)."""
        which = (venue, limit)
        with self._named_errors(), self._connection:
            self._connection.execute("BEGIN")
            self._connection.execute(
                "UPDATE shares SET until = ? WHERE venue = ? AND limit_name = ? AND until IS NULL",
                (now, *which),
            )
            self._connection.execute(
                "DELETE FROM shares WHERE venue = ? AND limit_name = ? AND until < ?",
                (*which, since),
            )
            self._connection.execute("INSERT INTO shares VALUES (?,?,?,NULL)", (*which, weight))

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"the daemon's own state {self._path}: {error}; check the disk, or move the file"
                " away to start without it (it holds no market data)"
            ) from None
