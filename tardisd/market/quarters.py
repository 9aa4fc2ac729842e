"""Trades folded into quarter-hours: what long candles are made of without reading every trade."""

from __future__ import annotations

from tardisd.market.columns import Batch
from tardisd.market.fold import as_candles, fold, starts_of
from tardisd.market.series import DataType, Series
from tardisd.market.time import Interval

QUARTER = DataType.parse("candle_15m")


def quarter() -> Interval:
    """Return the interval of a quarter-hour."""
    interval = QUARTER.interval
    assert interval is not None
    return interval


def quarters_of(source: Series) -> Series:
    """Return the series of candles that trades are folded into."""
    return Series(source.exchange, source.symbol, QUARTER)


def in_quarters(trades: Batch) -> Batch:
    """Return sorted trades as candles of a quarter-hour.

    Raises DataError when a volume is too large to be kept exactly.
    """
    return joined([as_candles(trades, quarters_of(trades.series))])


def joined(parts: list[Batch]) -> Batch:
    """Return quarter-hours in order, those of one time folded into one. Raises DataError."""
    rows = Batch.concat(parts)
    return fold(rows, starts_of(rows.ts_event))
