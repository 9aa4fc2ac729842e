"""The way from tasks to the server: pooled connections, threads, and patience; knows no ticks.

A call borrows one connection for one thread's work and gives it back before it returns. The driver
cannot be cancelled halfway: a cancelled task waits for its thread, so that what it began is done
whole or not at all; only the waits for a server that is away are left at once.

When the server goes away amid a transaction, the call is made again once it is back. Of a commit
whose answer got lost nobody knows whether it took place. So the transaction's number is asked for
before each commit, and the server says afterwards what became of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import psycopg
import trio
from psycopg import errors

from tardisd.errors import StorageError
from tardisd.log import Log
from tardisd.supervise import Backoff
from tardisd_postgres import schema, words
from tardisd_postgres.schema import Connection
from tardisd_postgres.words import Away

log = Log("tardisd.postgres")

T = TypeVar("T")

# A server that has vanished without a word is given up after about half a minute.
_KEEPALIVE: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
# Rows are read in the order of an index, a bounded number at a time. The planner, who knows little
# of tables that have just been filled, must not read and sort all of them for that.
_SETTINGS = (
    "SET enable_sort = off; SET enable_bitmapscan = off; SET enable_seqscan = off; SET jit = off;"
    " SET client_encoding = 'UTF8'; SET timezone = 'UTC'; SET statement_timeout = 0;"
    " SET idle_in_transaction_session_timeout = 0"
)
_FIRST_WAIT_SECS, _MOST_WAIT_SECS = 0.2, 5.0
_CONFLICTS_FORGIVEN = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where the data is kept: how to connect, the schema, and what the server knows us as."""

    dsn: str = field(repr=False)
    schema: str
    application: str

    def __str__(self) -> str:
        return words.place(self.dsn)

    def connect(self) -> Connection:
        """Return a new connection. Raises Away or StorageError."""
        given = psycopg.conninfo.conninfo_to_dict(self.dsn)
        extra = {name: value for name, value in _KEEPALIVE.items() if name not in given}
        extra.setdefault("application_name", self.application)
        try:
            connection = psycopg.connect(self.dsn, autocommit=True, **extra)
        except psycopg.Error as error:
            raise words.connect_failed(str(self), error) from None
        try:
            connection.execute(f"SET search_path TO {self.schema}; {_SETTINGS}".encode())
        except psycopg.Error as error:
            connection.close()
            raise self.told(error, connection) from None
        return connection

    def told(self, error: psycopg.Error, connection: Connection | None) -> StorageError:
        """Return what to raise for an error of the driver."""
        if words.is_lost(error, connection):
            return Away(f"{self} went away ({words.flat(error)})")
        return words.told(str(self), error)

    @contextmanager
    def failures(self, connection: Connection) -> Iterator[None]:
        """Raise what the driver complains of as StorageError, or as Away."""
        try:
            yield
        except psycopg.Error as error:
            raise self.told(error, connection) from error


class Access:
    """At most `most` connections to one database, of which `least` are kept open."""

    def __init__(self, place: Place, least: int, most: int, patience_secs: float) -> None:
        self.place = place
        self.partitions = schema.Partitions()
        self._least = least
        self._patience_secs = patience_secs
        self._idle: deque[Connection] = deque()
        # One connection is for the locks that outlast a call (see `pins`).
        self._threads = trio.CapacityLimiter(most - 1)
        self._opened = False
        self._away_since: float | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Make or migrate the tables and hold connections. Raises StorageError, StorageNewer."""

        def work() -> None:
            with self._borrowed() as connection, self.place.failures(connection):
                schema.prepare(connection, self.place.schema)
            spare = [self.place.connect() for _ in range(self._least - 2)]
            self._idle.extend(spare)

        self._opened = True
        try:
            await trio.to_thread.run_sync(work, limiter=self._threads)
            yield
        finally:
            self._opened = False
            self._drop_idle()

    async def read(
        self,
        look: Callable[[Connection], T],
        *,
        patience: float | None = None,
        returned: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """Return what `look` finds, asking again while the server is away.

        `returned` is awaited before it is asked again. Raises StorageError, after `patience`
        seconds (default: the configured ones) Away.
        """

        def work() -> T:
            with self._borrowed() as connection, self.place.failures(connection):
                return look(connection)

        return await self._patiently(work, patience, returned=returned)

    async def write(
        self, change: Callable[[Connection], tuple[T, bool]], *, patience: float | None = None
    ) -> T:
        """Run `change` in a transaction of its own; it tells its result, and whether to commit.

        It is run again when the server went away or two transactions got into each other's way.
        Raises StorageError; then nothing has changed. Cancelled, either all or nothing has.
        """
        attempt = _Attempt(change)

        def work() -> T:
            with self._borrowed() as connection, self.place.failures(connection):
                return attempt.run(connection)

        return await self._patiently(work, patience)

    async def patiently(
        self, work: Callable[[], T], limiter: trio.CapacityLimiter, turn: trio.Lock
    ) -> T:
        """Return what `work`, which uses a connection of its own, returns; it takes turns.

        Raises StorageError.
        """
        return await self._patiently(work, math.inf, limiter, turn)

    async def _patiently(
        self,
        work: Callable[[], T],
        patience: float | None,
        limiter: trio.CapacityLimiter | None = None,
        turn: trio.Lock | None = None,
        returned: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        if not self._opened:
            raise StorageError(f"{self.place} is not open; call within run()")
        backoff = Backoff(first=_FIRST_WAIT_SECS, most=_MOST_WAIT_SECS)
        patience = self._patience_secs if patience is None else patience
        deadline = trio.current_time() + patience
        fresh = True
        while True:
            try:
                async with turn or nullcontext():
                    result = await trio.to_thread.run_sync(work, limiter=limiter or self._threads)
            except Away as error:
                self._note_away(error)
                # Idle connections are as dead; a new one is worth trying at once, and in any case.
                self._drop_idle()
                if not fresh and trio.current_time() >= deadline:
                    raise
                await trio.sleep(0 if fresh else backoff.next())
                fresh = False
                if returned is not None:
                    await returned()
            else:
                self._note_back()
                return result

    def _note_away(self, error: Away) -> None:
        if self._away_since is None:
            self._away_since = trio.current_time()
            log.warning("database away, waiting for it", error=error.message)

    def _note_back(self) -> None:
        if self._away_since is not None:
            waited = trio.current_time() - self._away_since
            self._away_since = None
            log.info("database back", waited_secs=round(waited, 1))

    @contextmanager
    def _borrowed(self) -> Iterator[Connection]:
        """Lend a connection to this thread."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self.place.connect()
        try:
            yield connection
        finally:
            idle = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            if idle and self._opened and len(self._idle) < self._least:
                self._idle.append(connection)
            else:
                connection.close()

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


def only(error: BaseException) -> BaseException:
    """Return what went wrong, here or in the caller's block, out of the groups of nurseries."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


class _Attempt(Generic[T]):
    """A transaction that is run until it is known to have taken place."""

    def __init__(self, change: Callable[[Connection], tuple[T, bool]]) -> None:
        self._change = change
        # Number and result of a transaction whose commit was asked for and never answered.
        self._doubt: tuple[str, T] | None = None

    def run(self, connection: Connection) -> T:
        """Run it, unless an earlier run turns out to have been committed."""
        if self._doubt is not None:
            number, result = self._doubt
            row = connection.execute("SELECT pg_xact_status(%s::xid8)", (number,)).fetchone()
            state = row[0] if row else None
            if state == "committed":
                return result
            if state == "in progress":
                raise Away("the server has not noticed yet that a connection was lost")
            self._doubt = None
        for conflicts in range(_CONFLICTS_FORGIVEN + 1):
            try:
                return self._once(connection)
            except (errors.SerializationFailure, errors.DeadlockDetected):
                if conflicts == _CONFLICTS_FORGIVEN:
                    raise
        raise AssertionError("not reached")

    def _once(self, connection: Connection) -> T:
        try:
            connection.execute("BEGIN")
            result, changed = self._change(connection)
            if changed:
                row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
                assert row is not None
                self._doubt = (str(row[0]), result)
                connection.execute("COMMIT")
                self._doubt = None
            else:
                connection.execute("ROLLBACK")
        except BaseException:
            if not connection.broken and not connection.closed:
                connection.rollback()
            raise
        return result
