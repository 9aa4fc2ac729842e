"""Derived candles against real ones: a recording's own bars, and a venue's minutes and hours."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
from derive_model import FIELDS, Row, candle

from tardisd.market.columns import Batch, pack_ids
from tardisd.market.decimals import Decimals
from tardisd.market.series import DataType, Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import MILLISECOND, MINUTE
from tardisd.replay.derive import CandleBuilder


def lines(path: Path) -> Iterator[list[str]]:
    """Return the cells of a file's lines, without a heading."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    return (cells for cells in csv.reader(io.StringIO(text)) if cells[0].isdigit())


def nanoseconds(cell: str) -> int:
    """Return ns for the milliseconds or microseconds of a kline file."""
    return int(cell) * (MILLISECOND if len(cell) == 13 else MILLISECOND // 1000)


def klines(path: Path, series: Series) -> Batch:
    """Return the candles of a file as the venue publishes them."""
    rows = list(lines(path))
    columns = dict(zip(FIELDS, (1, 2, 3, 4, 5, 7, 8), strict=True))
    return Batch(
        series,
        np.array([nanoseconds(row[0]) for row in rows], np.int64),
        {name: Decimals.of([row[at] for row in rows]) for name, at in columns.items()},
    )


def built(source: Batch, name: str, coverage: Span | None = None, rows: int = 4096) -> Batch:
    """Return the candles built of a batch that is fed piece by piece."""
    series = replace(source.series, data_type=DataType.parse(name))
    span = coverage or source.extent()
    builder = CandleBuilder(series, source.series, span, Coverage([span]), ())
    parts = [builder.feed(source[at : at + rows]) for at in range(0, len(source), rows)]
    parts.append(builder.finish())
    assert not [gap for part in parts for gap in part.gaps]
    return Batch.concat([part.closed for part in parts])


def values(batch: Batch) -> list[list[str | None]]:
    """Return the fields of each row as text."""
    return [list(row) for row in zip(*(batch.fields[n].texts() for n in FIELDS), strict=True)]


@pytest.mark.parametrize("name", ["BTCUSDT", "ETHUSDT"])
def test_minutes_of_real_trades_are_the_bars_of_the_recording(shared_data, name):
    folder = shared_data / "expected"
    trades = list(lines(folder / f"binance-futures_2024-07_{name}_trades.csv.gz"))
    source = Batch(
        Series.of("binance", f"{name[:3]}/USDT:USDT", "trade"),
        np.array([nanoseconds(row[3]) for row in trades], np.int64),
        {
            "price": Decimals.of([r[1] for r in trades]),
            "amount": Decimals.of([r[2] for r in trades]),
        },
        pack_ids([row[0] for row in trades]),
        np.array([row[4] == "sell" for row in trades], np.uint8),
    )
    bars = list(lines(folder / f"binance-futures_2024-07_{name}_bars1m.csv"))
    first, last = nanoseconds(bars[0][0]), nanoseconds(bars[-1][0])
    candles = built(source, "candle_1m", Span(first, last + MINUTE), 1000)
    assert candles.ts_event.tolist() == [nanoseconds(bar[0]) for bar in bars]
    expected = [[f"{Decimal(cell).normalize():f}" for cell in bar[1:]] for bar in bars]
    assert values(candles) == expected


@pytest.mark.parametrize(
    ("path", "finer", "coarser"),
    [
        ("um/FILUSDT-1m-2025-02.csv.gz", "candle_1m", ["candle_1h", "candle_1d", "candle_1w"]),
        ("um/AVAXUSDT-1m-2023-09.csv.gz", "candle_1m", ["candle_4h", "candle_1M"]),
        ("spot/ADABTC-1m-2021-11-27.csv", "candle_1m", ["candle_5m", "candle_1h", "candle_1d"]),
        ("spot/BTCUSDT-1h-2025-01.csv", "candle_1h", ["candle_4h", "candle_1d", "candle_1M"]),
    ],
)
def test_coarser_candles_of_real_ones_are_those_of_plain_arithmetic(
    shared_data, path, finer, coarser
):
    source = klines(shared_data / "klines" / path, Series.of("binance", "FIL/USDT", finer))
    rows = [
        Row(ts, ts, dict(zip(FIELDS, row, strict=True)))
        for ts, row in zip(source.ts_event.tolist(), values(source), strict=True)
    ]
    for name in coarser:
        candles = built(source, name)
        interval = candles.series.data_type.interval
        opens = [interval.floor(row.at) for row in rows]
        groups = [
            (at, [row for _, row in group])
            for at, group in groupby(zip(opens, rows, strict=True), itemgetter(0))
        ]
        span = source.extent()
        whole = [(at, g) for at, g in groups if at >= span.start and interval.close(at) <= span.end]
        assert candles.ts_event.tolist() == [at for at, _ in whole]
        assert values(candles) == [list(candle(group, "candle")) for _, group in whole]
        assert len(candles) > 0


def test_minutes_made_of_minutes_are_the_venues_own(shared_data):
    """Five minutes made of one, and hours made of those, are hours made of minutes."""
    path = shared_data / "klines" / "um" / "AVAXUSDT-1m-2023-09.csv.gz"
    minutes = klines(path, Series.of("binance", "AVAX/USDT:USDT", "candle_1m"))
    assert values(built(minutes, "candle_1m")) == values(minutes)
    fives = built(minutes, "candle_5m")
    assert values(built(fives, "candle_1h")) == values(built(minutes, "candle_1h"))


def test_an_hour_opens_at_its_first_trade(shared_data):
    """A real day has minutes without a trade, which repeat the price of the minute before."""
    path = shared_data / "klines" / "spot" / "ADABTC-1m-2021-11-27.csv"
    minutes = klines(path, Series.of("binance", "ADA/BTC", "candle_1m"))
    silent = (minutes.fields["volume"].mantissa == 0) & (minutes.fields["trades"].mantissa == 0)
    assert silent.any()
    previous = minutes.fields["close"].mantissa[:-1]
    assert (minutes.fields["open"].mantissa[1:][silent[1:]] == previous[silent[1:]]).all()
    # The venue's own minutes open at their first trade: not where the one before has closed.
    assert (minutes.fields["open"].mantissa[1:][~silent[1:]] != previous[~silent[1:]]).any()
    heard = minutes[~silent]
    assert values(built(minutes, "candle_1m"))[0] == values(minutes)[0]
    for name in ("candle_3m", "candle_1h"):
        hours = built(minutes, name)
        at = np.searchsorted(heard.ts_event, hours.ts_event)
        loud = np.isin(
            hours.ts_event,
            [hours.series.data_type.interval.floor(t) for t in heard.ts_event.tolist()],
        )
        opens = heard[at[loud]].fields["open"].texts()
        assert hours[loud].fields["open"].texts() == opens
