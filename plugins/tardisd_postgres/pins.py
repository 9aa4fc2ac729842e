"""Who reads which series: advisory locks on one connection that is kept for them; reads no ticks.

Whoever replaces or removes rows asks whether anybody, in any daemon, reads the series. The answer
is an advisory lock: readers share it, and the one who removes tries to take it alone. Such locks
end with their connection, so a daemon that dies leaves none behind. When the connection breaks, the
locks are taken anew: by the reader that notices, else within seconds, for the reader of a paced
session may want nothing for hours. What was removed meanwhile shows in `series.purged`, so nothing
that is read rests on them.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psycopg
import trio

from tardisd.errors import StorageError
from tardisd_postgres.access import Access, only
from tardisd_postgres.schema import Connection

LOOK_SECS = 2.0


def lock_class(schema: str) -> int:
    """Return the number under which the locks of a schema's series are taken."""
    return zlib.crc32(f"tardisd series of {schema}".encode()) - 2**31


def are_held(connection: Connection, number: int, series_id: int) -> bool:
    """Tell whether anybody reads the series; if not, nobody begins before this transaction ends."""
    row = connection.execute(
        "SELECT pg_try_advisory_xact_lock(%s, %s)", (number, series_id)
    ).fetchone()
    return row is None or not row[0]


class Pins:
    """The series that this instance reads."""

    def __init__(self, access: Access, number: int) -> None:
        self._access = access
        self._number = number
        self._readers: Counter[int] = Counter()
        self._locked: set[int] = set()
        self._connection: Connection | None = None
        self._turn = trio.Lock()
        self._thread = trio.CapacityLimiter(1)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """See that the locks are there; give the connection back at the end."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look)
                yield
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise only(group) from None
        finally:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @asynccontextmanager
    async def held(self, series_id: int) -> AsyncIterator[None]:
        """Have replaced rows of the series kept aside for as long as the block lasts.

        Raises StorageError.
        """
        self._readers[series_id] += 1
        try:
            if self._readers[series_id] == 1 or self._connection is None:
                await self._access.patiently(self._take, self._thread, self._turn)
            yield
        finally:
            self._readers[series_id] -= 1
            if not self._readers[series_id]:
                del self._readers[series_id]
                with trio.CancelScope(shield=True):
                    await self._let_go()

    async def renew(self) -> None:
        """Take the locks anew after the server was away. Raises StorageError."""
        await self._access.patiently(self._take, self._thread, self._turn)

    async def _look(self) -> None:
        """Renew the locks of readers that may be waiting for something else than rows."""
        while True:
            await trio.sleep(LOOK_SECS)
            if self._readers:
                # What is wrong the readers are told when they want rows.
                with suppress(StorageError):
                    await self.renew()

    async def _let_go(self) -> None:
        async with self._turn:
            await trio.to_thread.run_sync(self._settle_quietly, limiter=self._thread)

    def _take(self) -> None:
        """Bring the locks on the server in line with who reads."""
        connection = self._connection
        try:
            if connection is None or connection.broken:
                self._drop(connection)
                connection = self._access.place.connect()
            with self._access.place.failures(connection):
                self._settle(connection)
        except BaseException:
            self._drop(connection)
            raise
        self._connection = connection

    def _settle_quietly(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            self._settle(connection)
        except psycopg.Error:  # a lost connection has lost its locks
            self._drop(connection)

    def _settle(self, connection: Connection) -> None:
        wanted = set(self._readers)
        for name, series_ids in (
            ("pg_advisory_lock_shared", wanted - self._locked),
            ("pg_advisory_unlock_shared", self._locked - wanted),
        ):
            if series_ids:
                connection.execute(
                    f"SELECT {name}(%s, id) FROM unnest(%s::int[]) id".encode(),
                    (self._number, list(series_ids)),
                )
        if wanted == self._locked:  # it may be lost all the same
            connection.execute("SELECT 1")
        self._locked = wanted

    def _drop(self, connection: Connection | None) -> None:
        if connection is not None:
            connection.close()
        self._connection = None
        self._locked = set()
