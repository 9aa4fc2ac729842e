"""The storage plugin: the methods of the contract, and its options; holds no SQL.

A read borrows a connection for as long as one chunk takes, so that any number of them, however
slow, leave room for each other and for the writer.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec
import trio

from tardisd.market.columns import Batch
from tardisd.market.series import Instrument, Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.plugins.base import Context, Options
from tardisd.plugins.exchange import Page
from tardisd.plugins.pages import check_page
from tardisd.plugins.storage import Appended, Provenance, Quarters, SeriesInfo, Storage
from tardisd.wall import wall_ns
from tardisd_sqlite import catalogue, chunks
from tardisd_sqlite.access import Access, Handle
from tardisd_sqlite.changes import Change
from tardisd_sqlite.quarters import DayRecords


class SqliteOptions(Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a `[storages.<name>]` section with `plugin = "sqlite"`."""

    path: Annotated[
        str,
        msgspec.Meta(description="the database file; a relative path begins at data_dir"),
    ] = "tardisd.sqlite"
    durability: Annotated[
        Literal["normal", "full"],
        msgspec.Meta(
            description="normal: a power cut may lose the last pages (a crash of tardisd does not);"
            " full: it does not, and every page waits for the disk"
        ),
    ] = "normal"

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ValueError("path is empty; name the database file")


class SqliteStorage(Storage[SqliteOptions]):
    """Ticks in one SQLite file, as columnar chunks."""

    name: ClassVar[str] = "sqlite"
    Options: ClassVar[type[SqliteOptions]] = SqliteOptions

    def __init__(self, options: SqliteOptions, context: Context) -> None:
        super().__init__(options, context)
        self.path = context.data_dir / Path(options.path).expanduser()
        self._access = Access(self.path, options.durability)

    def claims(self) -> frozenset[str]:
        """Return the file, which has one owner."""
        return frozenset({f"file {os.path.realpath(self.path)}"})

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Own the file and keep it open. Raises StorageError, StorageLocked, StorageNewer."""
        async with self._access.opened():
            yield

    async def probe(self) -> None:
        """Return when the file can be read."""
        await self._access.read(lambda handle: catalogue.listing(handle.connection))

    async def append(self, series: Series, page: Page) -> Appended:
        """Commit the page's rows and coverage in one transaction."""

        def change(handle: Handle) -> tuple[Appended, bool]:
            batch = check_page(series, page)
            return Change(handle.connection, handle.codec, series).append(page, batch, wall_ns())

        return await self._access.write(change)

    async def delete(self, series: Series, span: Span) -> int:
        """Remove the rows in `span`, its coverage and what was recorded of its gaps."""

        def change(handle: Handle) -> tuple[int, bool]:
            return Change(handle.connection, handle.codec, series).delete(span)

        rows = await self._access.write(change)
        # Every write begins by removing dead chunks: this one gives their room back.
        await self._access.write(lambda _: (None, True))
        return rows

    async def record_gaps(self, series: Series, gaps: Sequence[Gap]) -> None:
        """Keep why spans have no data."""

        def change(handle: Handle) -> tuple[None, bool]:
            return None, Change(handle.connection, handle.codec, series).record_gaps(gaps)

        await self._access.write(change)

    async def put_instrument(self, instrument: Instrument) -> None:
        """Keep the instrument."""

        def change(handle: Handle) -> tuple[None, bool]:
            catalogue.put_instrument(handle.connection, instrument)
            return None, True

        await self._access.write(change)

    @asynccontextmanager
    async def read(
        self, series: Series, span: Span
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Batch]]:
        """Open a stream of the rows in `span` as they are now, one batch per chunk."""
        pin = self._access.pins.hold()
        try:
            entry = await self._find(series)
            if entry is not None:
                self._access.pins.settle(pin, entry.id, entry.version)
            # Without a buffer one chunk is read ahead: the one that waits to be sent.
            send, receive = trio.open_memory_channel[Batch](0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._feed, send, series, entry, span)
                with receive:
                    yield receive
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:  # what went wrong, here or in the caller's block
                raise group.exceptions[0] from None
            raise
        finally:
            self._access.pins.release(pin)

    async def _feed(
        self,
        send: trio.MemorySendChannel[Batch],
        series: Series,
        entry: catalogue.Entry | None,
        span: Span,
    ) -> None:
        place: tuple[int, int] | None = None
        with send:
            while entry is not None and span:
                step = partial(self._step, series, entry, span, place)
                if (found := await self._access.read(step)) is None:
                    break
                place, batch = found
                try:
                    if len(batch):
                        await send.send(batch)
                except trio.BrokenResourceError:  # the caller closed the channel
                    break

    def _step(
        self,
        series: Series,
        entry: catalogue.Entry,
        span: Span,
        place: tuple[int, int] | None,
        handle: Handle,
    ) -> tuple[tuple[int, int], Batch] | None:
        connection = handle.connection
        if place is None:
            place = chunks.place_before(connection, entry.id, entry.version, span.start)
        found = chunks.after(connection, entry.id, entry.version, place, span.end)
        if found is None:
            return None
        chunk, data = found
        place = (chunk.first_ts, chunk.part)
        if chunk.last_ts < span.start:
            return place, Batch.empty(series)
        batch = chunks.decode(handle.codec, series, entry.id, chunk, data)
        first, last = batch.ts_event.searchsorted((span.start, span.end)).tolist()
        return place, batch[first:last] if last - first < len(batch) else batch

    async def coverage(self, series: Series) -> Coverage:
        """Return the spans known to be complete."""

        def look(handle: Handle) -> Coverage:
            entry = catalogue.find(handle.connection, series)
            return catalogue.coverage(handle.connection, entry.id) if entry else Coverage()

        return await self._access.read(look)

    async def gaps(self, series: Series) -> Sequence[Gap]:
        """Return the gaps whose cause was recorded."""

        def look(handle: Handle) -> list[Gap]:
            entry = catalogue.find(handle.connection, series)
            return catalogue.gaps(handle.connection, entry.id) if entry else []

        return await self._access.read(look)

    async def list_series(self) -> Sequence[SeriesInfo]:
        """Return what is stored; reads counters, not rows."""
        return await self._access.read(lambda handle: catalogue.listing(handle.connection))

    async def last_before(self, series: Series, ts: int) -> Batch | None:
        """Return the last row with event time before `ts`; decodes one chunk."""

        def look(handle: Handle) -> Batch | None:
            entry = catalogue.find(handle.connection, series)
            found = entry and chunks.last_before(handle.connection, entry.id, ts)
            if not entry or not found:
                return None
            batch = chunks.decode(handle.codec, series, entry.id, *found)
            end = int(batch.ts_event.searchsorted(ts))
            return batch[end - 1 : end]

        return await self._access.read(look)

    async def quarters(self, series: Series, span: Span) -> Quarters:
        """Return what is kept of trades folded into quarter-hours."""

        def look(handle: Handle) -> Quarters | None:
            entry = catalogue.find(handle.connection, series)
            if entry is None:
                return None
            return DayRecords(handle.connection, handle.codec, series, entry.id).read(span)

        return await self._access.read(look) or await super().quarters(series, span)

    async def version(self, series: Series) -> int:
        """Return the series' version."""
        entry = await self._find(series)
        return entry.version if entry else 0

    async def instrument(self, series: Series) -> Instrument | None:
        """Return the instrument kept for the series."""
        return await self._access.read(
            lambda handle: catalogue.instrument(handle.connection, series)
        )

    async def provenance(self, series: Series, limit: int) -> Sequence[Provenance]:
        """Return where the pages stored last came from, newest first."""

        def look(handle: Handle) -> list[Provenance]:
            entry = catalogue.find(handle.connection, series)
            return catalogue.notes(handle.connection, entry.id, limit) if entry else []

        return await self._access.read(look)

    async def _find(self, series: Series) -> catalogue.Entry | None:
        return await self._access.read(lambda handle: catalogue.find(handle.connection, series))
