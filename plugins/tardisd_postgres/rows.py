"""Batches to rows of a tick table and back: which columns each kind has; speaks no SQL but names.

Every kind of tick has a table of its own. A row's place in its series is (ts, seq). `seq` is the
numeric venue id where there is one. Rows without one (text ids, or none) are numbered within their
instant in the order in which they came: from 0 where a kind has no ids, else from `FIRST_PLACE` on,
far below every id. Candles need no `seq`: their open time is their key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tardisd.errors import DataError
from tardisd.market.columns import BUY, SCHEMAS, SELL, Batch, Ids, Sides
from tardisd.market.decimals import Bools, Ints
from tardisd.market.series import Series
from tardisd_postgres.binary import (
    CharColumn,
    Column,
    IntColumn,
    NumericColumn,
    Reader,
    TextColumn,
)

FIRST_PLACE = -(2**62)

_LETTERS = np.zeros(2, np.uint8)
_LETTERS[BUY], _LETTERS[SELL] = ord("b"), ord("s")


@dataclass(frozen=True)
class Table:
    """The table of one kind of tick; partitioned by month, or by year where rows are few."""

    kind: str

    @property
    def name(self) -> str:
        """The name of the table."""
        return self.kind

    @property
    def dead(self) -> str:
        """The name of the table of rows that running reads may still want."""
        return f"{self.kind}_replaced"

    @property
    def unit(self) -> str:
        """NumPy's unit of the partitions: `Y` or `M`."""
        return "Y" if self.kind in ("candle", "funding", "open_interest") else "M"

    @property
    def has_seq(self) -> bool:
        """Whether several rows may share an instant."""
        return self.kind != "candle"

    @property
    def first_place(self) -> int:
        """The `seq` of the first row of an instant that has no numeric id."""
        return FIRST_PLACE if SCHEMAS[self.kind].has_id else 0

    @cached_property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Names and types of the columns, in the order in which rows are read."""
        schema = SCHEMAS[self.kind]
        found = [("ts", "bigint NOT NULL")]
        if self.has_seq:
            found.append(("seq", "bigint NOT NULL"))
        if schema.has_side:
            found.append(("side", '"char"'))
        for name in schema.fields:
            missing = "" if name in schema.optional else " NOT NULL"
            found.append((name, f"numeric{missing}"))
        if schema.has_id:
            found.append(("text_id", "text"))
        return tuple(found)

    @property
    def key(self) -> str:
        """The columns that order the rows of a series."""
        return "ts, seq" if self.has_seq else "ts"

    @property
    def read_names(self) -> str:
        """The columns that a read wants, for SQL."""
        return ", ".join(f'"{name}"' for name, _ in self.columns)

    @property
    def written_names(self) -> str:
        """The columns that are written, for SQL."""
        return f"series_id, born, {self.read_names}"

    def encoded(self, series_id: int, born: int, batch: Batch, seq: Ints | None) -> list[Column]:
        """Return the columns of rows to be written."""
        schema = SCHEMAS[self.kind]
        found: list[Column] = [IntColumn(series_id, 4), IntColumn(born, 4)]
        found.append(IntColumn(batch.ts_event))
        if self.has_seq:
            assert seq is not None
            found.append(IntColumn(seq))
        if schema.has_side:
            found.append(CharColumn(None if batch.sides is None else _LETTERS[batch.sides]))
        found += [NumericColumn(batch.fields.get(name)) for name in schema.fields]
        if schema.has_id:
            texts = batch.ids if batch.ids is not None and batch.ids.dtype.kind == "S" else None
            found.append(TextColumn(texts))
        return found

    def place_of(self, message: bytes, last_seq: int) -> tuple[int, int]:
        """Return (ts, seq) of a row, not the first one, that COPY sent."""
        if not self.has_seq:
            return struct.unpack_from(">q", message, 6)[0], last_seq
        ts, _, seq = struct.unpack_from(">qiq", message, 6)
        return ts, seq

    def decoded(self, series: Series, messages: list[bytes]) -> Rows:
        """Return the rows that COPY sent. Raises StorageCorrupt."""
        schema = SCHEMAS[self.kind]
        reader = Reader(messages)
        times = reader.ints()
        seq = reader.ints() if self.has_seq else None
        sides, sided = reader.chars() if schema.has_side else (None, None)
        fields = {}
        for name in schema.fields:
            if (column := reader.numerics()) is not None:
                fields[name] = column
        texts, named = reader.texts() if schema.has_id else (None, None)
        if sides is not None:
            sides = np.where(sides == _LETTERS[SELL], SELL, BUY).astype(np.uint8)
        batch = Batch(series, times, fields)
        return Rows(batch, seq, sides, sided, texts, named)


# Named one by one, because a kind or column that the core gets later needs a migration.
TABLES = {
    kind: Table(kind)
    for kind in (
        "candle", "trade", "agg_trade", "quote", "liquidation", "funding", "open_interest",
        "book_snapshot", "book_delta",
    )
}  # fmt: skip


def table_of(series: Series) -> Table:
    """Return the table of the series' rows. Raises DataError when its kind is not stored."""
    if (table := TABLES.get(series.data_type.kind)) is None:
        raise DataError(f"{series.data_type.kind} rows cannot be stored")
    return table


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as they came from the database: a batch without ids and sides, and those by row."""

    batch: Batch
    seq: Ints | None
    sides: Sides | None
    sided: Bools | None
    texts: Ids | None
    named: Bools | None

    def batches(self) -> Iterator[Batch]:
        """Yield the rows as batches; there is more than one only where rows differ in sort.

        All rows of a batch have sides or none, and their ids are all numbers or all texts.
        """
        rows = len(self.batch)
        if not rows:
            return
        sort = self._sort()
        edges = [0, *(np.flatnonzero(sort[1:] != sort[:-1]) + 1).tolist(), rows]
        for first, last in pairwise(edges):
            at = slice(first, last)
            part = self.batch if last - first == rows else self.batch[at]
            yield Batch(
                part.series, part.ts_event, part.fields, self._ids(at), self._part_sides(at)
            )

    def _sort(self) -> NDArray[np.int8]:
        sort = np.zeros(len(self.batch), np.int8)
        if self.sided is not None:
            sort += self.sided
        if self.named is not None and self.seq is not None:
            sort += 2 * (self.named | (self.seq < 0))
        return sort

    def _ids(self, at: slice) -> Ids | None:
        if self.named is None or self.texts is None or self.seq is None:
            return None
        seq, named = self.seq[at], self.named[at]
        if seq[0] >= 0 and not named[0]:
            return seq
        return self.texts[at] if named.any() else None

    def _part_sides(self, at: slice) -> Sides | None:
        if self.sides is None or self.sided is None or not self.sided[at][0]:
            return None
        return self.sides[at]

    def whole(self) -> Batch:
        """Return the rows as one batch. Raises DataError when only some of them have sides."""
        parts = list(self.batches())
        if not parts:
            return Batch.empty(self.batch.series)
        if len({part.sides is None for part in parts}) > 1:
            raise mixed_sides()
        return Batch.concat(parts)


def mixed_sides() -> DataError:
    """Return what is raised when a taker side is there in one row and not in another."""
    return DataError("rows with and without a taker side cannot share a series", column="side")


def places(times: Ints) -> Ints:
    """Return for each of the sorted rows how many rows of its instant come before it."""
    at = np.arange(len(times))
    starts = np.ones(len(times), np.bool_)
    starts[1:] = times[1:] != times[:-1]
    return at - np.maximum.accumulate(np.where(starts, at, 0))


def first_seq(table: Table, batch: Batch) -> Ints | None:
    """Return `seq` of rows at instants at which nothing is stored."""
    if not table.has_seq:
        return None
    if has_numbers(batch):
        assert batch.ids is not None
        return batch.ids
    return table.first_place + places(batch.ts_event)


def has_numbers(batch: Batch) -> bool:
    """Tell whether the rows' ids are numbers."""
    return batch.schema.has_id and batch.ids is not None and batch.ids.dtype.kind == "i"


def refuse_negative(batch: Batch) -> None:
    """Raise DataError for an id below zero, where places of rows without a number are."""
    if has_numbers(batch) and len(batch) and batch.ids is not None and int(batch.ids.min()) < 0:
        at = int(np.argmax(batch.ids < 0))
        raise DataError("id is below zero", row=at, column="id", value=str(batch.ids[at]))
