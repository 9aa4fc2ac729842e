"""Take in whole dump files: read and check every row, then give them back in order, page by page.

Rows need not be sorted: each block is, and pages are cut out of all blocks by time (see `spool`),
so that the pages are in order whatever a file's own order was. Stores nothing; blocking work runs
in threads, reading and parsing side by side.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from decimal import Decimal
from itertools import islice
from typing import BinaryIO, TypeVar

import numpy as np
import trio

from tardisd.dumps.order import Conflict, is_settled, settle
from tardisd.dumps.reading import FileReader
from tardisd.dumps.source import Block
from tardisd.dumps.spool import Part, Spool
from tardisd.errors import DataError
from tardisd.market.check import check_batch
from tardisd.market.columns import Batch
from tardisd.market.decimals import Ints
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.plugins.exchange import Page
from tardisd.plugins.format import FileFormat
from tardisd.progress import Progress
from tardisd.supervise import attempt

ItemT = TypeVar("ItemT")


class Intake:
    """The files of one import on their way into the spool, and out of it."""

    def __init__(
        self,
        series: Series,
        spool: Spool,
        formats: Sequence[FileFormat],
        contract_size: Decimal | None = None,
    ) -> None:
        self.series = series
        self.contract_size = contract_size
        self.spool = spool
        self.formats = formats
        self.readers: list[FileReader] = []
        self._in_order = True
        self._last: Batch | None = None

    async def read(
        self, name: str, raw: BinaryIO, before: Progress, progress: Callable[[Progress], None]
    ) -> None:
        """Read one file into the spool; `before` is how far the import has come."""
        row = sum(reader.rows for reader in self.readers)
        reader = FileReader(name, raw, self.series, self.formats, row, self.contract_size)
        self.readers.append(reader)

        def blocks() -> Generator[tuple[Block, int], None, None]:
            with reader.open() as source:
                for block in reader.blocks(source):
                    yield block, source.position

        def add(block: Block) -> None:
            self._add(*reader.take(block))

        async def take(item: tuple[Block, int]) -> None:
            block, position = item
            await trio.to_thread.run_sync(add, block)
            done = before.done + position
            progress(Progress(done, before.total, before.unit, before.message))

        await overlap(blocks(), take)
        reader.finish()

    def _add(self, batch: Batch, rows: Ints) -> None:
        if not len(batch):
            return
        if self._in_order:
            self._in_order = is_settled(batch) and self._continues(batch)
        self.spool.add(batch, rows)

    def _continues(self, batch: Batch) -> bool:
        """Tell whether a settled batch is settled also with what came before it."""
        times, last = batch.ts_event, self._last
        of_last = 0 if last is None else int(np.searchsorted(times, last.ts_event[-1], "right"))
        seam = batch[: max(of_last, 1)]
        if last is not None:
            seam = Batch.concat([last, seam])
        newest = batch[int(np.searchsorted(times, times[-1])) :]
        # Where the whole batch is of one time, which is that of the rows before, all of them count.
        self._last = seam if last is not None and of_last == len(batch) else newest
        return is_settled(seam)

    def check(self, progress: Callable[[Progress], None]) -> list[Part]:
        """Cut the rows into pages; look for repeats among blocks where there may be some."""
        try:
            parts = self.spool.parts()
        except DataError as error:
            raise DataError(error.reason, file=self.readers[0].name) from None
        done = 0
        for part in () if self._in_order else parts:
            batch, rows = self.spool.load(part)
            try:
                batch, rows = settle(batch, rows)
                check_batch(batch)
            except Conflict as conflict:
                raise self._conflict(conflict) from None
            except DataError as error:
                raise self._located(error, rows) from None
            done += part.count
            trio.from_thread.run_sync(
                progress, Progress(done, self.spool.count, "rows", "checking")
            )
        return parts

    def known(self, covers: Span | None) -> Coverage:
        """Return what the files say is complete, besides each candle of theirs by itself."""
        spans = [] if covers is None else [covers]
        for reader in self.readers:
            extent, layout = reader.finish(), reader.recipe.layout
            if layout.archive or self.series.data_type.interval is None:
                spans.append(extent)
            if layout.covers is not None and covers is None:
                stated = Span(*layout.covers)
                if stated.start <= extent.start and extent.end <= stated.end:
                    spans.append(stated)
        return Coverage(spans)

    def page(self, part: Part, known: Coverage, source: str) -> Page:
        """Return the part's rows as a page; what it covers is `known` and its rows themselves."""
        batch, rows = self.spool.load(part)
        if not self._in_order:
            batch, rows = settle(batch, rows)
        covered = known
        if self.series.data_type.interval is not None:
            covered = known.union(Coverage(_runs(batch)))
        fields = {name: column.reduced() for name, column in batch.fields.items()}
        batch = Batch(batch.series, batch.ts_event, fields, batch.ids, batch.sides)
        hull = covered.hull
        assert hull is not None
        return Page(batch, hull, source=source, holes=tuple(covered.gaps(hull)))

    def _reader_of(self, row: int) -> FileReader:
        return next(reader for reader in reversed(self.readers) if reader.first_row <= row)

    def _conflict(self, conflict: Conflict) -> DataError:
        first, second = conflict.rows
        reader, other = self._reader_of(second), self._reader_of(first)
        line, _ = other.locate(first)
        place = f"{other.unit} {line}"
        where = place if other is reader else f"{other.name}, {place}"
        message = f"{conflict.message} ({where})"
        return reader.error(message, conflict.column, *reader.locate(second))

    def _located(self, error: DataError, rows: Ints) -> DataError:
        if error.row is None:
            return error
        row = int(rows[error.row])
        reader = self._reader_of(row)
        return reader.error(error.reason, error.column, *reader.locate(row))


def _runs(batch: Batch) -> Iterator[Span]:
    """Yield the spans of adjacent candles."""
    opens, ends = batch.ts_event, batch.release()
    breaks = np.flatnonzero(opens[1:] > ends[:-1]) + 1
    starts = [0, *breaks.tolist()]
    stops = [*(breaks - 1).tolist(), len(batch) - 1]
    for start, stop in zip(starts, stops, strict=True):
        yield Span(int(opens[start]), int(ends[stop]))


async def overlap(
    items: Generator[ItemT, None, None], take: Callable[[ItemT], Awaitable[None]]
) -> None:
    """Make the next item in a thread while one is taken; an error of either ends both."""
    send, receive = trio.open_memory_channel[ItemT](1)

    def following() -> list[ItemT]:
        return list(islice(items, 1))

    async def produce() -> None:
        async with send:
            while made := await trio.to_thread.run_sync(following):
                await send.send(made[0])

    async def both() -> None:
        # The channel closes last, when the other task is cancelled already: else that would raise
        # an error of its own beside the one that ends both.
        async with receive, trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            async for item in receive:
                await take(item)

    try:
        failure = await attempt(both)
    finally:
        items.close()
    if failure is not None:
        raise failure
