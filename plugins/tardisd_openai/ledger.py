"""What was answered and what was spent, in a small SQLite file; calls block and belong in threads.

Spending is granted before a request is sent and corrected when its cost is known. Both are one
transaction, so limits hold whoever asks at the same time: other questions, the instance's new form
during a reload, a daemon after a restart. What a kill leaves uncorrected counts as spent.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tardisd.errors import PluginError, RequestError
from tardisd.market.time import DAY
from tardisd.wall import wall_ns

VERSION = 1
KEPT_DAYS = 30
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, answer BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS spent (
    scope TEXT PRIMARY KEY, requests INTEGER NOT NULL, tokens INTEGER NOT NULL,
    day INTEGER NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Limit:
    """How much may be spent within a scope; the names are those of the options."""

    scope: str
    requests: int
    tokens: int
    requests_name: str
    tokens_name: str
    words: str


@dataclass(frozen=True, slots=True)
class Grant:
    """One request and so many tokens, booked in these scopes."""

    scopes: tuple[str, ...]
    tokens: int


class Exhausted(RequestError):
    """Raised when a budget is spent; asking again helps only when there is a new one."""

    def __init__(self, message: str) -> None:
        super().__init__("analyzer_unavailable", message)


def today() -> int:
    """Return the number of the day (UTC)."""
    return wall_ns() // DAY


class Ledger:
    """The file. Not for two threads at once."""

    def __init__(self, path: Path, most_answers: int) -> None:
        self.path = path
        self._most_answers = most_answers
        self._db: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the file, or make it. Raises PluginError."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
            db = sqlite3.connect(
                self.path, timeout=10.0, isolation_level=None, check_same_thread=False
            )
            try:
                db.execute("PRAGMA journal_mode = WAL")
                [version] = db.execute("PRAGMA user_version").fetchone()
                if version > VERSION:
                    raise PluginError(
                        f"{self.path}: written by a newer tardisd (version {version});"
                        " upgrade, or move the file away"
                    )
                db.executescript(_SCHEMA)
                db.execute(f"PRAGMA user_version = {VERSION}")
            except BaseException:
                db.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise PluginError(
                f"{self.path}: cannot be used ({error}); see to its folder, or move it away"
            ) from None
        self._db = db

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def answer(self, key: bytes) -> bytes | None:
        """Return the answer that is kept, or None."""
        with self._using() as db:
            row = db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def keep(self, key: bytes, answer: bytes) -> None:
        """Keep an answer. The oldest go when there are too many."""
        with self._using() as db:
            cursor = db.execute(
                "INSERT OR REPLACE INTO answers (key, answer) VALUES (?, ?)", (key, answer)
            )
            oldest = (cursor.lastrowid or 0) - self._most_answers
            db.execute("DELETE FROM answers WHERE number <= ?", (oldest,))

    def grant(self, tokens: int, limits: Sequence[Limit]) -> Grant:
        """Book a request and its tokens everywhere, or nowhere. Raises Exhausted."""
        with self._using() as db:
            for limit in limits:
                row = db.execute(
                    "SELECT requests, tokens FROM spent WHERE scope = ?", (limit.scope,)
                ).fetchone()
                spent, used = row or (0, 0)
                if spent + 1 > limit.requests:
                    raise Exhausted(
                        f"{limit.requests_name}: {spent} of {limit.requests} requests"
                        f" {limit.words} are made; wait, or allow more"
                    )
                if used + tokens > limit.tokens:
                    raise Exhausted(
                        f"{limit.tokens_name}: {used} of {limit.tokens} tokens {limit.words} are"
                        f" spent, and this question may take {tokens}; wait, or allow more"
                    )
            scopes = tuple(limit.scope for limit in limits)
            day = today()
            for scope in scopes:
                db.execute(
                    "INSERT INTO spent VALUES (?, 1, ?, ?) ON CONFLICT (scope) DO UPDATE SET"
                    " requests = requests + 1, tokens = tokens + excluded.tokens,"
                    " day = excluded.day",
                    (scope, tokens, day),
                )
            db.execute("DELETE FROM spent WHERE day < ?", (day - KEPT_DAYS,))
        return Grant(scopes, tokens)

    def settle(self, grant: Grant, tokens: int) -> None:
        """Correct what was booked to what was spent."""
        with self._using() as db:
            for scope in grant.scopes:
                db.execute(
                    "UPDATE spent SET tokens = max(0, tokens + ?) WHERE scope = ?",
                    (tokens - grant.tokens, scope),
                )

    def forget(self, scope: str) -> None:
        """Begin a scope anew."""
        with self._using() as db:
            db.execute("DELETE FROM spent WHERE scope = ?", (scope,))

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """Hold a transaction. Raises RequestError when the file cannot be used."""
        if self._db is None:
            raise RequestError("analyzer_unavailable", "the analyzer is not running")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise RequestError(
                "analyzer_unavailable",
                f"{self.path}: cannot be used ({error}); it keeps the budgets, so nothing is asked",
            ) from None
