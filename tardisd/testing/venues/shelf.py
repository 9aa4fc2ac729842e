"""What a test venue has of one series, and how much of it shows at a time; knows no format."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np

from tardisd.market.columns import Batch, closes
from tardisd.market.decimals import Decimals
from tardisd.testing.venues.faults import Change
from tardisd.testing.venues.printing import Piece, Printer, Rows, tidied


class LivePrinter(Protocol):
    """Prints rows as they are at a time (ns)."""

    def __call__(self, batch: Batch, *, now: int) -> Sequence[Piece]: ...


class Shelf:
    """The rows of one series, in order of time; what lies ahead of the venue's clock is hidden.

    A candle that is still open shows with what it would have so far: a part of its volume, and
    no more of its prices than the first. Where open candles are printed otherwise, `live` prints
    rows as they are at a time; closed rows alone are left to `printer`, and kept.
    """

    def __init__(
        self,
        batch: Batch,
        printer: Printer,
        *,
        backward: bool = False,
        live: LivePrinter | None = None,
    ) -> None:
        self.batch = batch
        self._live = live
        self._rows = Rows(batch, printer, backward=backward)
        self._backward = backward

    def between(self, start: int | None, end: int | None, now: int) -> tuple[int, int]:
        """Return the row numbers of `start <= ts_event < end` (ns) that show at `now`."""
        times = self.batch.ts_event
        shown = int(np.searchsorted(times, now, "right"))
        first = 0 if start is None else int(np.searchsorted(times, start, "left"))
        last = shown if end is None else int(np.searchsorted(times, end, "left"))
        return min(first, shown), max(min(last, shown), min(first, shown))

    def page(self, first: int, last: int, now: int, change: Change | None = None) -> bytes:
        """Return rows as text, in the venue's order; `change` puts others in their place."""
        opened = first < last and self._is_open(last - 1, now)
        if change is None and not opened:
            if self._backward:
                total = len(self.batch)
                return self._rows.text(total - last, total - first)
            return self._rows.text(first, last)
        batch = self.batch[first:last]
        if opened:
            batch = Batch.concat([batch[:-1], provisional(batch[-1:], now)])
        if change is not None:
            batch = change(batch)
        printer = None if self._live is None else partial(self._live, now=now)
        return self._rows.printed(batch[::-1] if self._backward else batch, printer)

    def _is_open(self, row: int, now: int) -> bool:
        interval = self.batch.series.data_type.interval
        return interval is not None and interval.close(int(self.batch.ts_event[row])) > now


def provisional(candle: Batch, now: int) -> Batch:
    """Return a batch of one candle as it looks at `now`, before its close."""
    interval = candle.series.data_type.interval
    assert interval is not None
    opened = int(candle.ts_event[0])
    passed = (now - opened) / (int(closes(candle.ts_event, interval)[0]) - opened)
    fields = dict(candle.fields)
    for name in ("high", "low", "close"):
        fields[name] = fields["open"]
    for name in ("volume", "quote_volume", "trades"):
        if name in fields:
            column = fields[name]
            part = (column.mantissa * passed).astype(np.int64)
            fraction = None if column.fraction is None else np.zeros(1, np.int64)
            fields[name] = Decimals(part, column.scale, fraction, column.present)
    return Batch(candle.series, candle.ts_event, fields)


def shelved(batch: Batch) -> Batch:
    """Return a batch fit for a shelf; ValueError when it is not in order of time."""
    if (np.diff(batch.ts_event) < 0).any():
        raise ValueError(f"the rows of {batch.series} are not in order of time")
    return tidied(batch)
