"""The storage plugin: the methods of the contract, and its options; holds no SQL."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, ClassVar, TypeVar

import msgspec
import psycopg
import trio

from tardisd.market.columns import Batch
from tardisd.market.series import Instrument, Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.plugins.base import Context, Options
from tardisd.plugins.exchange import Page
from tardisd.plugins.pages import check_page
from tardisd.plugins.secret import Secret
from tardisd.plugins.storage import Appended, Provenance, SeriesInfo, Storage
from tardisd.wall import wall_ns
from tardisd_postgres import catalogue, ticks
from tardisd_postgres.access import Access, Place, only
from tardisd_postgres.catalogue import Entry
from tardisd_postgres.changes import Change
from tardisd_postgres.leases import Leases
from tardisd_postgres.pins import Pins, lock_class
from tardisd_postgres.reading import Cursor
from tardisd_postgres.rows import refuse_negative, table_of
from tardisd_postgres.schema import Connection
from tardisd_postgres.words import PartitionGone

T = TypeVar("T")

# PostgreSQL cuts names that are longer.
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class PostgresOptions(Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a `[storages.<name>]` section with `plugin = "postgres"`."""

    dsn: Annotated[
        Secret,
        msgspec.Meta(description="how to connect, as postgresql://user:password@host/database"),
    ]
    schema: Annotated[
        str, msgspec.Meta(description="where the tables are; made when it is not there")
    ] = "tardisd"
    pool_min: Annotated[int, msgspec.Meta(ge=2, description="connections kept open")] = 5
    pool_max: Annotated[int, msgspec.Meta(ge=2, description="connections at most")] = 20
    patience_secs: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            description="how long a call waits for a lost server; replays wait as long as it takes",
        ),
    ] = 300.0
    lease_secs: Annotated[
        float,
        msgspec.Meta(
            ge=3, description="after so long others may fetch what a dead daemon was fetching"
        ),
    ] = 60.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.schema) or self.schema.startswith("pg_"):
            raise ValueError(
                f"schema {self.schema[:80]!r} is not a plain name; use lower-case letters, digits"
                " and _"
            )
        if self.pool_min > self.pool_max:
            raise ValueError(f"pool_min {self.pool_min} is more than pool_max {self.pool_max}")
        try:
            psycopg.conninfo.conninfo_to_dict(self.dsn.reveal())
        except psycopg.Error:  # what it says may quote the password
            raise ValueError(
                "dsn is not a connection string; write postgresql://user:password@host/database"
            ) from None


class PostgresStorage(Storage[PostgresOptions]):
    """Ticks in a PostgreSQL database, one row each, shared by any number of daemons."""

    name: ClassVar[str] = "postgres"
    Options: ClassVar[type[PostgresOptions]] = PostgresOptions

    def __init__(self, options: PostgresOptions, context: Context) -> None:
        super().__init__(options, context)
        place = Place(options.dsn.reveal(), options.schema, f"tardisd {context.name}"[:63])
        self._access = Access(place, options.pool_min, options.pool_max, options.patience_secs)
        self._lock_class = lock_class(options.schema)
        self._pins = Pins(self._access, self._lock_class)
        self._leases = Leases(self._access, options.lease_secs)
        self._numbers: dict[tuple[str, str, str, str], int] = {}

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Make or migrate the tables and hold connections. Raises StorageError, StorageNewer."""
        owner = self.context.data_dir / f"{self.context.name}.owner"
        await trio.to_thread.run_sync(self._leases.identify, owner)
        async with self._access.opened(), self._pins.opened():
            yield

    async def probe(self) -> None:
        """Return when the database answers."""
        await self._access.read(catalogue.listing, patience=0)

    async def append(self, series: Series, page: Page) -> Appended:
        """Commit the page's rows and coverage in one transaction."""
        access = self._access

        def prepare() -> Batch:
            table_of(series)
            batch = check_page(series, page)
            refuse_negative(batch)
            return batch

        batch = await trio.to_thread.run_sync(prepare)
        try:
            return await self._append(series, page, batch)
        except PartitionGone:  # somebody has dropped one since it was made
            access.partitions.forget()
            return await self._append(series, page, batch)

    async def _append(self, series: Series, page: Page, batch: Batch) -> Appended:
        access, table = self._access, table_of(series)
        if missing := access.partitions.missing(table, batch.ts_event):
            await access.read(lambda link: access.partitions.make(link, table, missing))
        return await self._change(series, lambda change: change.append(page, batch, wall_ns()))

    async def delete(self, series: Series, span: Span) -> int:
        """Remove the rows in `span`, its coverage and what was recorded of its gaps."""
        return await self._change(series, lambda change: change.delete(span))

    async def record_gaps(self, series: Series, gaps: Sequence[Gap]) -> None:
        """Keep why spans have no data."""
        await self._change(series, lambda change: (None, change.record_gaps(gaps)))

    async def _change(self, series: Series, work: Callable[[Change], tuple[T, bool]]) -> T:
        return await self._access.write(
            lambda connection: work(Change(connection, self._lock_class, series))
        )

    async def put_instrument(self, instrument: Instrument) -> None:
        """Keep the instrument."""

        def change(connection: Connection) -> tuple[None, bool]:
            catalogue.put_instrument(connection, instrument)
            return None, True

        await self._access.write(change)

    @asynccontextmanager
    async def read(
        self, series: Series, span: Span
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Batch]]:
        """Open a stream of the rows in `span` as they are now.

        When the server goes away it waits, and goes on behind the last row that was delivered.
        """
        series_id = await self._number(series)
        # Without a buffer one batch is ready ahead: the one that waits to be sent.
        send, receive = trio.open_memory_channel[Batch](0)
        if series_id is None or not span:
            send.close()
            with receive:
                yield receive
            return
        cursor = Cursor(series, span)
        try:
            async with self._pins.held(series_id), trio.open_nursery() as nursery:
                first = await self._step(cursor)
                nursery.start_soon(self._feed, send, cursor, first)
                with receive:
                    yield receive
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise only(group) from None

    async def _feed(
        self, send: trio.MemorySendChannel[Batch], cursor: Cursor, first: list[bytes]
    ) -> None:
        """Decode what is read while the server prepares what comes after it."""
        table = table_of(cursor.series)
        raw, pieces = trio.open_memory_channel[list[bytes]](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._fetch, raw, cursor, first)
            with send:
                async for messages in pieces:
                    rows = await trio.to_thread.run_sync(table.decoded, cursor.series, messages)
                    for batch in rows.batches():
                        try:
                            await send.send(batch)
                        except trio.BrokenResourceError:  # the caller closed the channel
                            nursery.cancel_scope.cancel()
                            return

    async def _fetch(
        self, raw: trio.MemorySendChannel[list[bytes]], cursor: Cursor, messages: list[bytes]
    ) -> None:
        with raw:
            while messages:
                await raw.send(messages)
                if cursor.position is None:
                    return
                messages = await self._step(cursor)

    async def _step(self, cursor: Cursor) -> list[bytes]:
        return await self._access.read(cursor.step, patience=math.inf, returned=self._pins.renew)

    async def coverage(self, series: Series) -> Coverage:
        """Return the spans known to be complete."""

        def look(connection: Connection, entry: Entry) -> Coverage:
            return catalogue.coverage(connection, entry.id)

        return await self._look(series, Coverage(), look)

    async def gaps(self, series: Series) -> Sequence[Gap]:
        """Return the gaps whose cause was recorded."""
        return await self._look(series, [], lambda link, entry: catalogue.gaps(link, entry.id))

    async def list_series(self) -> Sequence[SeriesInfo]:
        """Return what is stored; reads counters, not rows."""
        return await self._access.read(catalogue.listing)

    async def last_before(self, series: Series, ts: int) -> Batch | None:
        """Return the last row with event time before `ts`."""

        def look(connection: Connection, entry: Entry) -> Batch | None:
            table = table_of(series)
            first, last = entry.first_ts, entry.last_ts
            if first is None or last is None or ts <= first:
                return None
            rows = ticks.last_before(connection, table, series, entry.id, first, min(ts, last + 1))
            return next(rows.batches(), None)

        return await self._look(series, None, look)

    async def version(self, series: Series) -> int:
        """Return the series' version."""
        return await self._look(series, 0, lambda _, entry: entry.version)

    async def instrument(self, series: Series) -> Instrument | None:
        """Return the instrument kept for the series."""
        return await self._access.read(lambda link: catalogue.instrument(link, series))

    async def provenance(self, series: Series, limit: int) -> Sequence[Provenance]:
        """Return where the pages stored last came from, newest first."""
        return await self._look(
            series, [], lambda link, entry: catalogue.notes(link, entry.id, limit)
        )

    def lease(self, series: Series) -> AbstractAsyncContextManager[None]:
        """Hold the right to fetch the series, among all daemons that share the database."""
        return self._leases.held(series)

    async def _number(self, series: Series) -> int | None:
        """Return the series' number in the tables, which it keeps for ever."""
        if (known := self._numbers.get(series.key)) is not None:
            return known
        entry = await self._access.read(
            lambda link: catalogue.find(link, series), patience=math.inf
        )
        if entry is not None:
            self._numbers[series.key] = entry.id
        return None if entry is None else entry.id

    async def _look(self, series: Series, nothing: T, look: Callable[[Connection, Entry], T]) -> T:
        def work(connection: Connection) -> T:
            entry = catalogue.find(connection, series)
            return nothing if entry is None else look(connection, entry)

        return await self._access.read(work)
