"""Candles built from the trades themselves, exactly; generates no price of its own.

An interval in which nobody traded has a flat candle of volume zero at the last price, as venues
report it. An interval that lies wholly in an outage has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from tardisd.market.columns import Batch
from tardisd.market.decimals import DIGITS, POWERS, Bools, Decimals
from tardisd.market.series import Series
from tardisd.market.span import Gap, Span
from tardisd.market.time import DAY, MINUTE, Interval
from tardisd.plugins.exchange import Page

from .noise import Ints
from .trades import Tape, Trades

PAGE_ROWS = 50_000
_STEP_TRADES = 1_000_000  # half a second of work at most, then look for a cancellation


@dataclass(frozen=True, slots=True)
class _Parts:
    """Candles from some of their trades, in order; several may have one open.

    Prices are in ticks and volumes in lots. Turnovers are whole and fraction (`/ power`) apart: in
    ticks times lots a busy month is beyond int64.
    """

    opens: Ints
    open: Ints
    high: Ints
    low: Ints
    close: Ints
    volume: Ints
    whole: Ints
    fraction: Ints
    trades: Ints

    def __getitem__(self, at: slice) -> _Parts:
        return _Parts(*(getattr(self, field.name)[at] for field in fields(self)))

    def prices(self) -> dict[str, Ints]:
        """Return the columns of prices (ticks)."""
        return {"open": self.open, "high": self.high, "low": self.low, "close": self.close}


def _summarize(trades: Trades, opens: Ints, tape: Tape) -> _Parts:
    """Return a part per candle of `opens` that has trades here; `opens` starts at or before all."""
    bounds = np.append(np.searchsorted(trades.times, opens[1:]), len(trades))
    starts = np.concatenate(([0], bounds[:-1]))
    busy = bounds > starts
    starts, bounds = starts[busy], bounds[busy]
    market = tape.market
    # Sums over one step stay far within int64: prices below 2**27 ticks, some 50,000 trades.
    turnover = np.add.reduceat(trades.ticks * trades.lots, starts)
    power = POWERS[market.price_scale + market.amount_scale]
    unit = market.tick_unit * market.lot_unit
    whole = turnover // power
    return _Parts(
        opens[busy],
        trades.ticks[starts],
        np.maximum.reduceat(trades.ticks, starts),
        np.minimum.reduceat(trades.ticks, starts),
        trades.ticks[bounds - 1],
        np.add.reduceat(trades.lots, starts),
        whole * unit,
        (turnover - whole * power) * unit,
        bounds - starts,
    )


def _join(parts: list[_Parts], power: int) -> _Parts:
    """Return one row per open."""
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(_Parts)
    }
    opens = columns["opens"]
    if not len(opens):
        return _Parts(**columns)
    first = np.flatnonzero(np.concatenate(([True], opens[1:] != opens[:-1])))
    last = np.append(first[1:], len(opens)) - 1
    fraction = np.add.reduceat(columns["fraction"], first)
    carry = fraction // power
    return _Parts(
        opens[first],
        columns["open"][first],
        np.maximum.reduceat(columns["high"], first),
        np.minimum.reduceat(columns["low"], first),
        columns["close"][last],
        np.add.reduceat(columns["volume"], first),
        np.add.reduceat(columns["whole"], first) + carry,
        fraction - carry * power,
        np.add.reduceat(columns["trades"], first),
    )


def grid(interval: Interval, span: Span) -> Ints:
    """Return the opens of all candles that open in `span`."""
    first = interval.ceil(span.start)
    if interval.fixed_ns is not None:
        return np.arange(first, span.end, interval.fixed_ns, dtype=np.int64)
    if first >= span.end:
        return np.empty(0, np.int64)
    month = np.datetime64(first, "ns").astype("datetime64[M]")
    last = np.datetime64(span.end - 1, "ns").astype("datetime64[M]")
    months = np.arange(month, last + 1, interval.count)
    return months.astype("datetime64[ns]").astype(np.int64)


def down_gaps(tape: Tape, interval: Interval, span: Span) -> tuple[Gap, ...]:
    """Return the runs of candles opening in `span` that an outage swallowed whole."""
    gaps = []
    for outage in tape.activity.outages(Span(span.start - DAY, span.end + DAY)):
        start, end = interval.ceil(outage.start), interval.floor(outage.end)
        part = Span(start, end).intersect(span) if start < end else None
        if part is not None:
            gaps.append(Gap(part, "exchange_down"))
    return tuple(gaps)


class Candles:
    """All candles of one series that open in a span; every one of them must have closed."""

    def __init__(self, tape: Tape, series: Series, interval: Interval, span: Span) -> None:
        self._tape = tape
        self._series = series
        self._interval = interval
        self._span = span
        self._done = span.start
        self._parts = [_Parts(*(np.empty(0, np.int64) for _ in fields(_Parts)))]
        self._last_ticks: int | None = None

    def pages(self) -> Iterator[Page | None]:
        """Yield the candles page by page; None for a step of work that completed no candle."""
        interval, span = self._interval, self._span
        first = interval.ceil(span.start)
        if first >= span.end:
            yield Page(Batch.empty(self._series), span)
            return
        end = interval.close(interval.floor(span.end - 1))
        minutes = max(PAGE_ROWS // 2 * interval.nominal_ns // MINUTE, 1)
        work = 0
        for step, trades in self._tape.stream(Span(first, end), PAGE_ROWS, minutes):
            if len(trades):
                opens = grid(interval, Span(interval.floor(step.start), step.end))
                self._parts.append(_summarize(trades, opens, self._tape))
            work += len(trades)
            closed = interval.floor(step.end)
            rows = (closed - self._done) // interval.nominal_ns
            if rows >= PAGE_ROWS // 2 or work >= _STEP_TRADES or step.end == end:
                work = 0
                upto = span.end if step.end == end else closed
                yield self._page(upto) if upto > self._done else None

    def _page(self, upto: int) -> Page:
        """Return the page of all candles that open before `upto` and have not been given yet."""
        market = self._tape.market
        scale = market.price_scale + market.amount_scale
        span = Span(self._done, upto)
        self._done = upto
        opens = grid(self._interval, span)
        gaps = down_gaps(self._tape, self._interval, span)
        for gap in gaps:
            opens = opens[(opens < gap.span.start) | (opens >= gap.span.end)]
        if not len(opens):
            return Page(Batch.empty(self._series), span, gaps)
        if self._last_ticks is None:
            self._last_ticks = self._tape.last_ticks(int(opens[0]))
        joined = _join(self._parts, POWERS[scale])
        ready = joined[: int(np.searchsorted(joined.opens, upto))]
        self._parts = [joined[len(ready.opens) :]]
        # Row 0 stands for all that was before; a candle without trades repeats the last close.
        known = np.concatenate(([self._last_ticks], ready.close))
        at = np.searchsorted(ready.opens, opens, "right")
        busy = np.zeros(len(opens), np.bool_)
        busy[np.searchsorted(opens, ready.opens)] = True
        self._last_ticks = int(known[-1])
        columns = {
            name: Decimals(_spread(busy, column, known[at]) * market.tick_unit, market.price_scale)
            for name, column in ready.prices().items()
        }
        nothing = np.zeros(len(opens), np.int64)
        volume = _spread(busy, ready.volume, nothing) * market.lot_unit
        columns["volume"] = Decimals(volume, market.amount_scale)
        fraction = _spread(busy, ready.fraction, nothing) * POWERS[DIGITS - scale]
        columns["quote_volume"] = Decimals.from_parts(_spread(busy, ready.whole, nothing), fraction)
        columns["trades"] = Decimals(_spread(busy, ready.trades, nothing))
        return Page(Batch(self._series, opens, columns), span, gaps)


def _spread(busy: Bools, values: Ints, otherwise: Ints) -> Ints:
    column = otherwise.copy()
    column[busy] = values
    return column
