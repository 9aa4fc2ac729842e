"""Columnar batches of one series, and the schema of each kind of tick; knows no storage.

A schema is flat: which decimal fields a tick has, in the order of the content hash, and whether it
has a venue id and a taker side. Order books fit as rows (delta) or numbered fields (snapshot).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tardisd.market.decimals import Bools, Decimals, Ints
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import SECOND, Interval

SIDES = BUY, SELL, NO_SIDE = (
    0,
    1,
    2,
)  # a batch has sides for all its rows or none; merged ticks may mix

# Venue ids: int64 when every id of the column is an integer, else fixed-width UTF-8 bytes.
Ids = NDArray[Any]
Sides = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Schema:
    """The columns of one kind of tick besides its event time."""

    fields: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    has_id: bool = False
    has_side: bool = False


# Levels of a book snapshot, best first; the content hash has room for no more than seven.
_LEVELS = 5
_LEVEL = ("bid_price", "bid_amount", "ask_price", "ask_amount")
_BOOK = tuple(f"{name}_{level}" for level in range(_LEVELS) for name in _LEVEL)

SCHEMAS: dict[str, Schema] = {
    "candle": Schema(
        ("open", "high", "low", "close", "volume", "quote_volume", "trades"),
        optional=frozenset({"quote_volume", "trades"}),
    ),
    "trade": Schema(("price", "amount"), has_id=True, has_side=True),
    "agg_trade": Schema(("price", "amount"), has_id=True, has_side=True),
    "quote": Schema(("bid_price", "bid_amount", "ask_price", "ask_amount")),
    "liquidation": Schema(("price", "amount"), has_id=True, has_side=True),
    "funding": Schema(("rate",)),
    "open_interest": Schema(("amount",)),
    "book_snapshot": Schema(_BOOK, optional=frozenset(_BOOK)),  # a side may be empty
    "book_delta": Schema(("price", "amount"), has_side=True),
    "indicator": Schema(("value",)),
}


def closes(opens: Ints, interval: Interval) -> Ints:
    """Return the close (ns) of candles that open at `opens`, by the calendar."""
    if interval.fixed_ns is not None:
        return opens + interval.fixed_ns
    moments = opens.astype("datetime64[ns]")
    months = moments.astype("datetime64[M]")
    within = moments - months.astype("datetime64[ns]")
    later: Ints = ((months + interval.count).astype("datetime64[ns]") + within).astype(np.int64)
    if len(opens) and int(within.astype(np.int64).max()) >= 28 * 86_400 * SECOND:
        later = np.array([interval.close(ts) for ts in opens.tolist()], dtype=np.int64)
    return later


def floors(times: Ints, interval: Interval) -> Ints:
    """Return the open (ns) of the interval that holds each of `times`, by the calendar."""
    if interval.fixed_ns is not None:
        anchor = interval.floor(0)
        opens: Ints = times - (times - anchor) % interval.fixed_ns
        return opens
    months = times.astype("datetime64[ns]").astype("datetime64[M]").astype(np.int64)
    months -= months % interval.count
    return months.astype("datetime64[M]").astype("datetime64[ns]").astype(np.int64)


def pack_ids(texts: Sequence[str]) -> Ids:
    """Return an id column: int64 when every text is a canonical integer, else bytes."""
    if all(
        text.isascii() and text.isdecimal() and (text[0] != "0" or text == "0") and len(text) < 20
        for text in texts
    ):  # no int64 has 20 digits, and Python refuses to read thousands of them
        try:
            return np.array([int(text) for text in texts], dtype=np.int64)
        except OverflowError:
            pass
    return np.array([text.encode() for text in texts], dtype=np.bytes_)


def concat_ids(columns: Sequence[Ids]) -> Ids:
    """Return the id columns one after another, as bytes when any of them is."""
    if all(column.dtype.kind == "i" for column in columns):
        return np.concatenate(columns)
    return np.concatenate([column.astype(np.bytes_) for column in columns])


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Consecutive ticks of one series, in order: columns of equal length."""

    series: Series
    ts_event: Ints
    fields: Mapping[str, Decimals]
    ids: Ids | None = None
    sides: Sides | None = field(default=None)

    def __len__(self) -> int:
        return len(self.ts_event)

    @property
    def schema(self) -> Schema:
        """The schema of the series' kind."""
        return SCHEMAS[self.series.data_type.kind]

    def __getitem__(self, at: slice | NDArray[np.intp] | Bools) -> Batch:
        return Batch(
            self.series,
            self.ts_event[at],
            {name: column[at] for name, column in self.fields.items()},
            None if self.ids is None else self.ids[at],
            None if self.sides is None else self.sides[at],
        )

    @classmethod
    def empty(cls, series: Series) -> Batch:
        """Return a batch without rows."""
        schema = SCHEMAS[series.data_type.kind]
        nothing = np.empty(0, np.int64)
        fields = {name: Decimals(nothing) for name in schema.fields if name not in schema.optional}
        sides = np.empty(0, np.uint8) if schema.has_side else None
        return cls(series, nothing, fields, nothing if schema.has_id else None, sides)

    @classmethod
    def concat(cls, batches: Sequence[Batch]) -> Batch:
        """Return the batches of one series one after another.

        Raises ValueError when only some of them have sides.
        """
        batches = [batch for batch in batches if len(batch)] or batches[:1]
        if len(batches) == 1:
            return batches[0]
        names = dict.fromkeys(name for batch in batches for name in batch.fields)
        fields = {
            name: Decimals.concat([_field(batch, name) for batch in batches]) for name in names
        }
        ids = [batch.ids for batch in batches if batch.ids is not None]
        if ids and len(ids) < len(batches):
            filled = [_no_ids(batch) if batch.ids is None else batch.ids for batch in batches]
            ids = [column.astype(np.bytes_) for column in filled]
        sides = [batch.sides for batch in batches if batch.sides is not None]
        if sides and len(sides) < len(batches):
            raise ValueError(f"some batches of {batches[0].series} have sides, and some have not")
        return cls(
            batches[0].series,
            np.concatenate([batch.ts_event for batch in batches]),
            fields,
            concat_ids(ids) if ids else None,
            np.concatenate(sides) if sides else None,
        )

    def release(self, publish_delay: int = 0) -> Ints:
        """Return when each tick may be seen (ns): candles at their close, all else at once."""
        interval = self.series.data_type.interval
        if interval is None:
            return self.ts_event
        return closes(self.ts_event, interval) + publish_delay

    def extent(self) -> Span:
        """Return the span that the rows prove: first instant to just after the last one ends."""
        interval = self.series.data_type.interval
        last = int(self.ts_event[-1])
        return Span(int(self.ts_event[0]), last + 1 if interval is None else interval.close(last))

    def within(self, span: Span) -> Batch:
        """Return the rows that lie wholly in `span`: candles by open and close."""
        first = int(np.searchsorted(self.ts_event, span.start, "left"))
        ends = self.ts_event if self.series.data_type.interval is None else self.release()
        if self.series.data_type.interval is None:
            last = int(np.searchsorted(ends, span.end, "left"))
        else:
            last = int(np.searchsorted(ends, span.end, "right"))
        return self[first : max(first, last)]


def _field(batch: Batch, name: str) -> Decimals:
    column = batch.fields.get(name)
    if column is not None:
        return column
    return Decimals(np.zeros(len(batch), np.int64), present=np.zeros(len(batch), np.bool_))


def _no_ids(batch: Batch) -> Ids:
    return np.zeros(len(batch), "S1")
