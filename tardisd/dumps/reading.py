"""Read one file of an import: open, recognise, parse, sort and check each block; stores nothing.

Errors name the file, the physical line, the column and the value. Blocking: run it in threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from itertools import islice
from typing import BinaryIO

import numpy as np

from tardisd.dumps.blocks import BlockReader
from tardisd.dumps.cells import Parsed, meaning, read_places
from tardisd.dumps.formats import Recipe, choose_format, take_sample
from tardisd.dumps.grid import Grid
from tardisd.dumps.order import Conflict, settle
from tardisd.dumps.parquet import ParquetSource, open_file
from tardisd.dumps.source import Block, Source
from tardisd.errors import DataError
from tardisd.market.check import check_batch
from tardisd.market.columns import Batch
from tardisd.market.decimals import Ints
from tardisd.market.series import SWAP, Series
from tardisd.market.span import Span
from tardisd.plugins.format import FileFormat


class FileReader:
    """One file of an import. `blocks` may run in one thread while `take` runs in another.

    `first_row` is the number, within the import, of the file's first row; `contract_size` is how
    much of the base asset one contract is, for files that count contracts.
    """

    def __init__(
        self,
        name: str,
        raw: BinaryIO,
        series: Series,
        formats: Sequence[FileFormat],
        row: int,
        contract_size: Decimal | None = None,
    ) -> None:
        self.name = name
        self.series = series
        self.first_row = row
        self.extent: Span | None = None
        self.last = 0
        self.unit = "line"
        self.notes: tuple[str, ...] = ()
        self._contract_size = contract_size
        self._raw = raw
        self._formats = formats
        self._block_rows: list[int] = []
        interval = series.data_type.interval
        self._grid = None if interval is None else Grid(interval)
        self._grid_error: DataError | None = None

    @property
    def rows(self) -> int:
        """Number of rows taken so far."""
        return sum(self._block_rows)

    @contextmanager
    def open(self) -> Iterator[Source | ParquetSource]:
        """Open the file and recognise its format; DataError when that fails."""
        with open_file(self.name, self._raw) as source:
            sample = take_sample(self.name, source.member, source.peek())
            self.recipe: Recipe = choose_format(sample, self.series, self._formats)
            self._reader = BlockReader(self.recipe, self.series, self.name)
            self.unit = source.unit
            used = [self.recipe.labels[at] for at in meaning(self.recipe, self.series).values()]
            self.notes = tuple(
                f"column {label} holds floats: taken as the shortest decimals that mean them"
                for label in used
                if label in source.floats
            )
            self._check_contracts()
            yield source

    def _check_contracts(self) -> None:
        fields = self.recipe.layout.contracts
        self._in_contracts = fields if self.series.symbol.kind == SWAP else frozenset[str]()
        if self._in_contracts and self._contract_size is None:
            raise DataError(
                f"the file counts contracts, and how much {self.series.symbol.base} one contract"
                " is is not known here; say so with --contract-size, as the venue's instrument"
                " list does",
                file=self.name,
            )

    def blocks(self, source: Source | ParquetSource) -> Iterator[Block]:
        """Yield the file's rows as text."""
        return source.blocks(skip_header=self.recipe.layout.header)

    def take(self, block: Block) -> tuple[Batch, Ints]:
        """Return the block's checked rows in storage order, and their numbers in the import."""
        parsed = self._read(block)
        first = self.first_row + self.rows
        batch, rows = parsed.batch, np.arange(first, first + len(parsed.batch))
        self._block_rows.append(len(batch))
        if not len(batch):
            return batch, rows
        try:
            batch, rows = settle(batch, rows)
        except Conflict as conflict:
            lines = [self._place(block, row - first)[0] for row in conflict.rows]
            raise self.error(
                f"{conflict.message} ({self.unit} {lines[0]})",
                conflict.column,
                *self._place(block, conflict.rows[1] - first),
            ) from None
        try:
            check_batch(batch)
        except DataError as error:
            if error.row is None:
                raise DataError(error.reason, file=self.name) from None
            line, cells = self._place(block, int(rows[error.row]) - first)
            raise self.error(error.reason, error.column, line, cells) from None
        self._look_at_grid(block, batch, parsed.close_times, rows, first)
        extent = batch.extent()
        if self.extent is None:
            self.extent, self.last = extent, int(batch.ts_event[-1])
        else:
            self.last = max(self.last, int(batch.ts_event[-1]))
            self.extent = Span(
                min(self.extent.start, extent.start), max(self.extent.end, extent.end)
            )
        return batch, rows

    def _read(self, block: Block) -> Parsed:
        try:
            parsed = self._reader.read(block)
        except DataError as error:
            raise DataError(
                error.reason, file=error.file, line=error.line, column=error.column,
                value=error.value, unit=self.unit,
            ) from None  # fmt: skip
        if not self._in_contracts:
            return parsed
        assert self._contract_size is not None
        fields = dict(parsed.batch.fields)
        try:
            for name in self._in_contracts & set(fields):
                fields[name] = fields[name].times(self._contract_size)
        except ValueError as error:
            raise DataError(
                f"contracts of {self._contract_size} {self.series.symbol.base}: {error}",
                file=self.name,
            ) from None
        return replace(parsed, batch=replace(parsed.batch, fields=fields))

    def finish(self) -> Span:
        """Return the extent of all rows; DataError when there is none, or of another interval."""
        if self.extent is None:
            raise DataError("the file has no rows", file=self.name)
        verdict = None if self._grid is None else self._grid.verdict()
        if verdict is not None:
            message, column = verdict
            if column is not None and self._grid_error is not None:
                at = self._grid_error
                raise DataError(
                    message, file=self.name, line=at.line, column=at.column, value=at.value,
                    unit=self.unit,
                )  # fmt: skip
            raise DataError(message, file=self.name)
        return self.extent

    def locate(self, row: int) -> tuple[int, list[str]]:
        """Return the physical line and the cells of a row of the import, by reading once more."""
        rest = row - self.first_row
        with open_file(self.name, self._raw) as source:
            source.peek()
            for block, count in zip(self.blocks(source), self._block_rows, strict=False):
                if rest < count:
                    return self._place(block, rest)
                rest -= count
        raise DataError("the file changed while it was imported; try again", file=self.name)

    def error(self, reason: str, column: str | None, line: int, cells: list[str]) -> DataError:
        """Return the error of a row, its column named as the file does."""
        role = "time" if column == "timestamp" else column
        at = meaning(self.recipe, self.series).get(role or "")
        if at is None:
            return DataError(reason, file=self.name, line=line, unit=self.unit)
        label = self.recipe.labels[at]
        return DataError(
            reason, file=self.name, line=line, column=label, value=cells[at], unit=self.unit
        )

    def _place(self, block: Block, row: int) -> tuple[int, list[str]]:
        place = next(islice(read_places(block, self.recipe, self.name), row, None))
        return place.line, place.cells

    def _look_at_grid(
        self, block: Block, batch: Batch, close_times: Ints | None, rows: Ints, first: int
    ) -> None:
        if self._grid is None:
            return
        if close_times is not None:
            close_times = close_times[rows - first]
        if self._grid.look(batch.ts_event, close_times, rows):
            assert self._grid.first_bad is not None
            column = "time" if close_times is None else "close_time"
            place = self._place(block, self._grid.first_bad - first)
            self._grid_error = self.error("", column, *place)
