"""Ticks of several series of one kind, in one order: the columns that encoders and hashes read.

Decimals are split into whole part and fraction here, once, because text and hash both need them so.
Nothing here sorts; the order is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tardisd.market.columns import NO_SIDE, Batch, Ids, Schema, Sides, concat_ids
from tardisd.market.decimals import Bools, Decimals, Ints
from tardisd.market.series import Series

Order = NDArray[np.intp]
_Column = TypeVar("_Column", Ints, Sides)


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """A decimal column: value = whole + fraction / 10**scale, both of one sign.

    `fraction` is None when the scale is 0; `present` is None when every value is.
    """

    whole: Ints
    fraction: Ints | None
    scale: int
    present: Bools | None

    def take(self, order: Order | slice) -> Parts:
        """Return the rows of `order`."""
        return Parts(
            self.whole[order],
            None if self.fraction is None else self.fraction[order],
            self.scale,
            None if self.present is None else self.present[order],
        )

    @classmethod
    def concat(cls, columns: Sequence[Decimals | None], rows: Sequence[slice]) -> Parts:
        """Return rows of the columns one after another at a common scale; None is wholly absent."""
        first = columns[0]
        if first is not None and all(_alike(first, column) for column in columns):
            mantissas = [c.mantissa[at] for c, at in zip(columns, rows, strict=True) if c]
            whole, rest = Decimals(_join(mantissas), first.scale).parts(first.scale)
            return cls(whole, rest if first.scale else None, first.scale, None)
        cut = [column and column[at] for column, at in zip(columns, rows, strict=True)]
        scale = max((column.needed_scale for column in cut if column is not None), default=0)
        total = sum(at.stop - at.start for at in rows)
        whole = np.zeros(total, np.int64)
        fraction = np.zeros(total, np.int64) if scale else None
        present: Bools | None = None
        start = 0
        for column, at in zip(cut, rows, strict=True):
            end = start + at.stop - at.start
            if column is None or column.present is not None:
                if present is None:
                    present = np.ones(len(whole), np.bool_)
                present[start:end] = False if column is None else column.present
            if column is not None:
                if fraction is None:
                    whole[start:end] = column.mantissa
                else:
                    whole[start:end], fraction[start:end] = column.parts(scale)
            start = end
        return cls(whole, fraction, scale, present)


class Rows(NamedTuple):
    """The rows `first <= i < last` of a batch, and the times (ns) at which its rows are released.

    Nothing is cut before the columns are joined: with many series the cutting would cost the most.
    """

    batch: Batch
    release: Ints
    first: int
    last: int


@dataclass(frozen=True, slots=True, eq=False)
class Ticks:
    """Rows of one kind: `series[rank[i]]` is the series of row i.

    Where every tick is released at its own time, `ts_release` is the array `ts_event` itself.
    """

    schema: Schema
    series: tuple[Series, ...]
    rank: Order
    ts_event: Ints
    ts_release: Ints
    fields: dict[str, Parts]
    ids: Ids | None
    sides: Sides | None

    def __len__(self) -> int:
        return len(self.ts_event)

    @property
    def kind(self) -> str:
        """The kind of all rows (`trade`, `candle`, …)."""
        return self.series[0].data_type.kind

    @classmethod
    def concat(
        cls,
        batches: Sequence[Batch],
        releases: Sequence[Ints],
        series: tuple[Series, ...] | None = None,
    ) -> Ticks:
        """Return the rows of batches of one kind, one batch after another, one series each.

        `series` is the table that ranks refer to; without it, it is made of the batches.
        """
        pairs = zip(batches, releases, strict=True)
        return cls.gather([Rows(batch, release, 0, len(batch)) for batch, release in pairs], series)

    @classmethod
    def gather(cls, parts: Sequence[Rows], series: tuple[Series, ...] | None = None) -> Ticks:
        """Return parts of batches as `concat` does whole ones."""
        batches = [part.batch for part in parts]
        table = series or tuple(batch.series for batch in batches)
        # Comparing series is slow; those of a session are nearly always the table's own objects.
        places = {id(one): rank for rank, one in enumerate(table)}
        ranks = [
            table.index(batch.series) if (rank := places.get(id(batch.series))) is None else rank
            for batch in batches
        ]
        schema = batches[0].schema
        rows = [slice(part.first, part.last) for part in parts]
        lengths = [part.last - part.first for part in parts]
        pairs = list(zip(batches, rows, strict=True))
        ids = [batch.ids[at] for batch, at in pairs if batch.ids is not None]
        if ids and len(ids) < len(batches):
            ids = [
                np.zeros(n, "S1") if batch.ids is None else batch.ids[at].astype(np.bytes_)
                for (batch, at), n in zip(pairs, lengths, strict=True)
            ]
        sides: list[Sides] = []
        if schema.has_side:
            sides = [
                np.full(n, NO_SIDE, np.uint8) if batch.sides is None else batch.sides[at]
                for (batch, at), n in zip(pairs, lengths, strict=True)
            ]
        events = _join([batch.ts_event[at] for batch, at in pairs])
        instants = all(part.release is part.batch.ts_event for part in parts)
        return cls(
            schema,
            table,
            np.repeat(np.array(ranks, np.intp), lengths),
            events,
            events if instants else _join([part.release[part.first : part.last] for part in parts]),
            {
                name: Parts.concat([batch.fields.get(name) for batch in batches], rows)
                for name in schema.fields
                if name not in schema.optional or any(name in batch.fields for batch in batches)
            },
            concat_ids(ids) if ids else None,
            _join(sides) if schema.has_side else None,
        )

    @classmethod
    def of(cls, batch: Batch, publish_delay: int = 0) -> Ticks:
        """Return the rows of one batch."""
        return cls.concat([batch], [batch.release(publish_delay)])

    def take(self, order: Order | slice) -> Ticks:
        """Return the rows of `order`."""
        events = self.ts_event[order]
        return Ticks(
            self.schema,
            self.series,
            self.rank[order],
            events,
            events if self.ts_release is self.ts_event else self.ts_release[order],
            {name: parts.take(order) for name, parts in self.fields.items()},
            None if self.ids is None else self.ids[order],
            None if self.sides is None else self.sides[order],
        )

    def batches(self) -> list[tuple[Batch, Order]]:
        """Return one batch per series present, each with its row numbers here (slow path)."""
        found = []
        for rank in np.unique(self.rank).tolist():
            rows = np.flatnonzero(self.rank == rank)
            part = self.take(rows)
            fields = {}
            for name, column in part.fields.items():
                if column.present is not None and not column.present.any():
                    continue
                power = 10 ** (18 - column.scale)
                fraction = np.zeros(len(rows), np.int64)
                if column.fraction is not None:
                    fraction = column.fraction * power
                fields[name] = Decimals.from_parts(column.whole, fraction, column.present)
            ids = part.ids
            if ids is not None and ids.dtype.kind == "S" and not any(ids.tolist()):
                ids = None
            sides = part.sides
            if sides is not None and (sides == NO_SIDE).all():
                sides = None
            found.append((Batch(self.series[rank], part.ts_event, fields, ids, sides), rows))
        return found


def _alike(first: Decimals, other: Decimals | None) -> bool:
    """Tell whether two columns can be joined as they are: the case of nearly every venue's data."""
    if other is None or other.fraction is not None or other.present is not None:
        return False
    return first.fraction is None and first.present is None and other.scale == first.scale


def _join(columns: list[_Column]) -> _Column:
    return columns[0] if len(columns) == 1 else np.concatenate(columns)
