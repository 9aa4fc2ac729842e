"""Archive files of the test venues, read by the importer, are the rows that the venue was given."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

import tardisd_binance
import tardisd_bybit
import tardisd_okx
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.time import DAY, parse_time
from tardisd.testing.memory import MemoryStorage
from tardisd.testing.ticks import random_candles, random_trades
from tardisd.testing.venues.binance import BinanceVenue
from tardisd.testing.venues.bybit import BybitVenue
from tardisd.testing.venues.okx import OkxVenue
from tardisd.transfer.importing import import_files

VENUES = {"binance": BinanceVenue, "bybit": BybitVenue, "okx": OkxVenue}
FORMATS = [
    format_()
    for plugin in (tardisd_binance, tardisd_bybit, tardisd_okx)
    for format_ in plugin.tardisd_formats()
]
OKX = "/cdn/okex/traderecords"


@pytest.mark.parametrize(
    ("series", "path", "day"),
    [
        (
            "binance:BTC/USDT@candle_1m",
            "/data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2025-06-02.zip",
            "2025-06-02T00:00:00Z",
        ),
        (
            "binance:BTC/USDT:USDT@agg_trade",
            "/data/futures/um/daily/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2025-06-02.zip",
            "2025-06-02T00:00:00Z",
        ),
        (
            "binance:BTC/USDT@trade",
            "/data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2024-06-02.zip",
            "2024-06-02T00:00:00Z",
        ),
        (
            "bybit:BTC/USDT:USDT@trade",
            "/trading/BTCUSDT/BTCUSDT2025-06-02.csv.gz",
            "2025-06-02T00:00:00Z",
        ),
        (
            "bybit:BTC/USDT@trade",
            "/spot/BTCUSDT/BTCUSDT_2024-06-02.csv.gz",
            "2024-06-02T00:00:00Z",
        ),
        (
            "okx:BTC/USDT:USDT@trade",
            f"{OKX}/trades/daily/20250602/BTC-USDT-SWAP-trades-2025-06-02.zip",
            "2025-06-01T16:00:00Z",
        ),
        (
            "okx:BTC/USDT@trade",
            f"{OKX}/trades/daily/20210602/BTC-USDT-trades-2021-06-02.zip",
            "2021-06-01T16:00:00Z",
        ),
        (
            "okx:BTC/USDT:USDT@candle_1m",
            f"{OKX}/candlesticks/daily/20250602/BTC-USDT-SWAP-candlesticks-2025-06-02.zip",
            "2025-06-01T16:00:00Z",
        ),
    ],
)
async def test_files_come_back_as_they_were_given(series, path, day):
    series, start = Series.parse(series), parse_time(day)
    if series.data_type.interval is not None:
        truth = random_candles(series, 1440, start)
        if series.exchange == "okx":  # which does not count trades
            truth = replace(truth, fields={n: c for n, c in truth.fields.items() if n != "trades"})
    else:
        truth = random_trades(series, 3000, start, mean_gap_ms=20_000)
    venue_type = VENUES[series.exchange]
    client = httpx.AsyncClient(trust_env=False, verify=False)
    async with venue_type({series: truth}, clock=start + 40 * DAY).serve() as venue, client:
        answer = await client.get(venue.archive_url + path)
    assert answer.status_code == 200
    storage = MemoryStorage()
    name = path.rpartition("/")[2]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as raw:
        raw.write(answer.content)
        raw.seek(0)
        result = await import_files(
            [(name, raw)], series, storage, FORMATS, covers=None, contract_size="0.01",
            spool_dir=Path(folder), progress=lambda _: None,
        )  # fmt: skip
    end = start + DAY
    expected = truth[truth.ts_event < end]
    if path.startswith("/spot/"):  # Bybit's spot files number their lines; they have no ids
        expected = replace(expected, ids=None)
    assert result.added == len(expected)
    coverage = await storage.coverage(series)
    async with storage.read(series, next(iter(coverage))) as batches:
        got = Batch.concat([batch async for batch in batches])
    assert len(got) == len(expected)
    assert same_rows(got, expected).all()
    if expected.ids is not None:
        assert got.ids.astype("S20").tolist() == expected.ids.astype("S20").tolist()
