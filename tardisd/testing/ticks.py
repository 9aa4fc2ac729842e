"""Random but exact batches of ticks for tests and benches, millions a second; not market-like.

The same arguments give the same rows. For data that behaves like a market, see the `synthetic`
exchange plugin.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals, Ints
from tardisd.market.series import Series
from tardisd.market.time import MILLISECOND


def random_trades(
    series: Series,
    n: int,
    start: int,
    seed: int = 0,
    *,
    mean_gap_ms: int = 100,
    base_price: str = "65000",
    tick_size: str = "0.01",
    amount_scale: int = 5,
    first_id: int = 1_000_000,
) -> Batch:
    """Return `n` trades (or agg_trades) from `start` (ns) on, with consecutive ids.

    Times are whole milliseconds, a quarter of them shared with the trade before; prices walk by
    whole ticks around `base_price`; amounts have a heavy tail.
    """
    draw = np.random.Generator(np.random.PCG64(seed))
    gaps = draw.integers(0, max(2 * mean_gap_ms * 4 // 3, 1) + 1, n, dtype=np.int64)
    gaps[draw.integers(0, 4, n, dtype=np.uint8) == 0] = 0
    gaps[:1] = 0
    times = start - start % MILLISECOND + np.cumsum(gaps) * MILLISECOND
    mantissas, scale = _walk(draw, n, base_price, tick_size)
    fields = {
        "price": Decimals(mantissas, scale),
        "amount": Decimals(_amounts(draw, n), amount_scale),
    }
    ids = np.arange(first_id, first_id + n, dtype=np.int64)
    sides = draw.integers(0, 2, n, dtype=np.uint8)
    return Batch(series, times, fields, ids, sides)


def random_candles(
    series: Series,
    n: int,
    start: int,
    seed: int = 0,
    *,
    base_price: str = "65000",
    tick_size: str = "0.01",
) -> Batch:
    """Return `n` consecutive candles, the first one opening at or after `start` (ns)."""
    interval = series.data_type.interval
    if interval is None:
        raise ValueError(f"{series} is not a candle series")
    first = interval.ceil(start)
    if interval.fixed_ns is not None:
        opens = first + np.arange(n, dtype=np.int64) * interval.fixed_ns
    else:
        months = np.datetime64(first, "ns").astype("datetime64[M]")
        steps = months + np.arange(n) * interval.count
        opens = steps.astype("datetime64[ns]").astype(np.int64)
    draw = np.random.Generator(np.random.PCG64(seed))
    walk, scale = _walk(draw, n + 1, base_price, tick_size)
    unit = _step(tick_size)[0]
    opened, closed = walk[:-1], walk[1:]
    high = np.maximum(opened, closed) + draw.integers(0, 50, n, dtype=np.int64) * unit
    low = np.minimum(opened, closed) - draw.integers(0, 50, n, dtype=np.int64) * unit
    low = np.maximum(low, np.minimum(np.minimum(opened, closed), unit))
    volume = _amounts(draw, n)
    prices = {"open": opened, "high": high, "low": low, "close": closed}
    fields = {name: Decimals(mantissas, scale) for name, mantissas in prices.items()}
    fields["volume"] = Decimals(volume, 5)
    fields["quote_volume"] = Decimals(volume * low, 5 + scale)
    fields["trades"] = Decimals(draw.integers(1, 5000, n, dtype=np.int64))
    return Batch(series, opens, fields)


def _step(tick_size: str) -> tuple[int, int]:
    """Return the tick as (mantissa, scale)."""
    tick = Decimal(tick_size)
    scale = max(-int(tick.as_tuple().exponent), 0)
    return int(tick.scaleb(scale)), scale


def _walk(draw: np.random.Generator, n: int, base_price: str, tick_size: str) -> tuple[Ints, int]:
    """Return price mantissas that walk by whole ticks between half and twice the base price."""
    unit, scale = _step(tick_size)
    base = int(Decimal(base_price).scaleb(scale)) // unit
    low = max(base // 2, 1)
    width = max(base * 2 - low, 1)
    steps = draw.integers(-8, 9, n, dtype=np.int8)
    steps[(steps > -6) & (steps < 6)] = 0
    path = base - low + np.cumsum(steps, dtype=np.int64)
    folded = np.abs((path + width) % (2 * width) - width)
    return (low + folded) * unit, scale


def _amounts(draw: np.random.Generator, n: int) -> Ints:
    """Return mantissas from 1 to some millions, mostly small."""
    coarse = draw.integers(1, 1 << 12, n, dtype=np.int64)
    shift = draw.integers(0, 12, n, dtype=np.uint8)
    return (coarse << (shift - np.minimum(shift, 2))) + (coarse & 1)
