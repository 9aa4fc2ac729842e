"""Leases: the right of one daemon to fetch a series, for as long as it is alive; fetches nothing.

A lease is a row with an owner and a time at which it expires, by the server's clock. Its owner
renews it thrice in that time. A daemon that dies stops renewing, and whoever waits gets it then;
the same daemon, started anew, gets it at once, because a file in its data folder says who it is.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from tardisd.errors import StorageError
from tardisd.log import Log
from tardisd.market.series import Series
from tardisd_postgres.access import Access, only
from tardisd_postgres.schema import Connection

log = Log("tardisd.postgres")

POLL_SECS = 1.0
_KEY = "exchange = %s AND kind = %s AND venue_id = %s AND data_type = %s"


def _new_owner() -> str:
    return f"{socket.gethostname()}:{secrets.token_hex(8)}"


class Leases:
    """The leases that this instance holds or waits for."""

    def __init__(self, access: Access, lease_secs: float) -> None:
        self._access = access
        self._secs = lease_secs
        self._owner = _new_owner()

    def identify(self, path: Path) -> None:
        """Be the owner that the file names, or name this one there; does I/O."""
        try:
            found = path.read_text(encoding="utf-8").strip()
        except OSError:
            found = ""
        # A copied folder must not make two machines one.
        if found.startswith(f"{socket.gethostname()}:"):
            self._owner = found
            return
        with suppress(OSError):  # nowhere to write: a later start is then somebody else
            path.write_text(f"{self._owner}\n", encoding="utf-8")

    @asynccontextmanager
    async def held(self, series: Series) -> AsyncIterator[None]:
        """Wait for the lease on the series and hold it for as long as the block lasts.

        Raises StorageError, and ends the block, when it was lost: this daemon could not renew it in
        time, and another took it.
        """
        await self._wait(series)
        lost = False
        try:
            async with trio.open_nursery() as nursery:

                async def renew() -> None:
                    nonlocal lost
                    while await self._renewed(series):
                        await trio.sleep(self._secs / 3)
                    lost = True
                    nursery.cancel_scope.cancel()

                nursery.start_soon(renew)
                yield
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise only(group) from None
        finally:
            with trio.CancelScope(shield=True):
                await self._release(series)
        if lost:
            raise StorageError(
                f"the lease on {series} ran out and another daemon took it; what is missing is"
                " fetched by it, or when the backfill is run again"
            )

    async def _wait(self, series: Series) -> None:
        waits = False
        while (owner := await self._access.write(partial(self._take, series))) is not None:
            if not waits:
                log.info("another daemon fetches this series", series=series, owner=owner)
                waits = True
            await trio.sleep(POLL_SECS)

    def _take(self, series: Series, connection: Connection) -> tuple[str | None, bool]:
        """Take the lease; return None, or who has it."""
        connection.execute(
            "INSERT INTO lease (exchange, kind, venue_id, data_type) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            series.key,
        )
        # A row that somebody is just taking is skipped rather than waited for.
        row = connection.execute(
            f"SELECT 1 FROM lease WHERE {_KEY} AND (owner IS NULL OR owner = %s"
            " OR expires_at < clock_timestamp()) FOR UPDATE SKIP LOCKED",
            (*series.key, self._owner),
        ).fetchone()
        if row is None:
            held = connection.execute(f"SELECT owner FROM lease WHERE {_KEY}", series.key)
            return str((held.fetchone() or ("somebody",))[0]), False
        self._extend(series, connection)
        return None, True

    def _extend(self, series: Series, connection: Connection) -> None:
        connection.execute(
            "UPDATE lease SET owner = %s, expires_at = clock_timestamp() + %s * interval '1 second'"
            f" WHERE {_KEY}",
            (self._owner, self._secs, *series.key),
        )

    async def _renewed(self, series: Series) -> bool:
        """Renew the lease, also a late one that nobody has taken; False when somebody has."""

        def change(connection: Connection) -> tuple[bool, bool]:
            row = connection.execute(
                f"SELECT owner FROM lease WHERE {_KEY} FOR UPDATE", series.key
            ).fetchone()
            if row is None or row[0] != self._owner:
                return False, False
            self._extend(series, connection)
            return True, True

        return await self._access.write(change)

    async def _release(self, series: Series) -> None:
        """Give the lease back at once, if the server is there; else it expires."""

        def change(connection: Connection) -> tuple[None, bool]:
            connection.execute(
                f"UPDATE lease SET owner = NULL, expires_at = NULL WHERE {_KEY} AND owner = %s",
                (*series.key, self._owner),
            )
            return None, True

        try:
            await self._access.write(change, patience=0)
        except StorageError as error:
            log.warning("lease not given back, it expires", series=series, error=error.message)
