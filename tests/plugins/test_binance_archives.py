"""Binance's archives: recognised by content, and real ones read to the digit."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from decimal import Decimal
from pathlib import Path

import pytest

import tardisd_binance
import tardisd_csv
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import parse_range
from tardisd.plugins.format import Sample
from tardisd.testing.memory import MemoryStorage
from tardisd.transfer.importing import import_files
from tardisd_binance.formats import BinanceAggTrades, BinanceKlines, BinanceTrades

FORMATS = [
    format_() for plugin in (tardisd_binance, tardisd_csv) for format_ in plugin.tardisd_formats()
]
KLINE = [
    "1738368000000",
    "4.8",
    "4.9",
    "4.7",
    "4.8",
    "60",
    "1738368059999",
    "293.3",
    "795",
    "34.4",
    "164.2",
    "0",
]
SPOT_TRADE = ["5", "100.5", "0.001", "0.1005", "1709251200000", "True", "True"]
SPOT_AGG = ["5", "100.5", "0.001", "7", "9", "1709251200000", "False", "True"]


def day(text: str) -> tuple[int, int]:
    return parse_range(text, now=0)


@pytest.mark.parametrize(
    ("row", "format_", "kind"),
    [
        (KLINE, BinanceKlines, "candle"),
        (SPOT_TRADE, BinanceTrades, "trade"),
        (SPOT_TRADE[:-1], BinanceTrades, "trade"),
        (SPOT_AGG, BinanceAggTrades, "agg_trade"),
        (SPOT_AGG[:-1], BinanceAggTrades, "agg_trade"),
    ],
)
def test_each_shape_is_told_from_the_others(row, format_, kind):
    matched = [
        (other.name, name)
        for other in FORMATS[:3]
        for name in ("candle", "trade", "agg_trade")
        if other.match(Sample("x", [row]), name) is not None
    ]
    assert matched == [(format_.name, kind)]


@pytest.mark.parametrize(
    ("name", "member", "venue_id", "covers"),
    [
        ("BTCUSDT-1m-2023-02.zip", None, "BTCUSDT", day("2023-02-01..2023-03-01")),
        ("BTCUSDT-1mo-2023-12.csv.gz", None, "BTCUSDT", day("2023-12-01..2024-01-01")),
        ("BTCUSDT-trades-2024-03-01.csv", None, "BTCUSDT", day("2024-03-01..2024-03-02")),
        ("BTCUSDT_240329-aggTrades-2024-02-29", None, "BTCUSDT_240329", day("20240229-20240301")),
        ("download", "/tmp/1000SATSUSDT-3d-2024-01.csv", "1000SATSUSDT", day("20240101-20240201")),
        ("BTCUSDT-1m-2023-13.zip", None, None, None),
        ("BTCUSDT-1m-2023-02-30.zip", None, None, None),
        ("BTCUSDT-1m-2023-02 (1).zip", None, None, None),
        ("klines.csv", None, None, None),
    ],
)
def test_names_state_symbol_and_span(name, member, venue_id, covers):
    layout = BinanceKlines().match(Sample(name, [KLINE], member), "candle")
    assert (layout.venue_id, layout.covers, layout.archive) == (venue_id, covers, True)


def test_a_header_or_a_bad_row_does_not_hide_the_format():
    header = ["open_time", "a", "b", "c", "d", "e", "close_time", *"fghij"]
    assert BinanceKlines().match(Sample("x", [header]), "candle").header
    bad = ["oops", *KLINE[1:]]
    assert not BinanceKlines().match(Sample("x", [KLINE, bad]), "candle").header
    assert BinanceKlines().match(Sample("x", [KLINE[:-1]]), "candle") is None
    assert BinanceKlines().match(Sample("x", [KLINE]), "trade") is None


async def load(tmp_path: Path, series: Series, path: Path) -> tuple[Batch, Coverage]:
    storage = MemoryStorage()
    with path.open("rb") as raw:
        await import_files(
            [(path.name, raw)], series, storage, FORMATS,
            covers=None, spool_dir=tmp_path, progress=lambda _: None,
        )  # fmt: skip
    async with storage.read(series, Span(0, 2**62)) as batches:
        parts = [batch async for batch in batches]
    return Batch.concat(parts), await storage.coverage(series)


def text_of(path: Path) -> str:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return archive.read(archive.namelist()[0]).decode()
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


@pytest.mark.parametrize(
    ("file", "series", "covers"),
    [
        *(
            (f"um/{coin}USDT-1m-2023-02.zip", f"binance:{coin}/USDT:USDT@candle_1m",
             "2023-02-01..2023-03-01")
            for coin in ("ALGO", "AVAX", "FIL", "LINK", "NEAR")
        ),
        ("um/AVAXUSDT-1m-2023-09.csv.gz", "binance:AVAX/USDT:USDT@candle_1m",
         "2023-09-01..2023-10-01"),
        ("um/FILUSDT-1m-2025-02.csv.gz", "binance:FIL/USDT:USDT@candle_1m",
         "2025-02-01..2025-03-01"),
        ("spot/ADABTC-1m-2021-11-27.csv", "binance:ADA/BTC@candle_1m", "2021-11-27..2021-11-28"),
        ("spot/BTCUSDT-1h-2024-12.csv", "binance:BTC/USDT@candle_1h", "2024-12-01..2025-01-01"),
        ("spot/BTCUSDT-1h-2025-01.csv", "binance:BTC/USDT@candle_1h", "2025-01-01..2025-02-01"),
    ],
)  # fmt: skip
async def test_every_row_of_a_real_archive(shared_data, tmp_path, file, series, covers):
    path = shared_data / "klines" / file
    batch, coverage = await load(tmp_path, Series.parse(series), path)
    rows = [row for row in csv.reader(io.StringIO(text_of(path))) if row[0].isdecimal()]
    assert len(batch) == len(rows) > 700
    unit = 10**6 if len(rows[0][0]) == 13 else 10**3
    assert batch.ts_event.tolist() == [int(row[0]) * unit for row in rows]
    columns = {"open": 1, "high": 2, "low": 3, "close": 4, "volume": 5, "quote_volume": 7,
               "trades": 8}  # fmt: skip
    assert set(batch.fields) == set(columns)
    for name, at in columns.items():
        found = [Decimal(text) for text in batch.fields[name].texts()]
        assert found == [Decimal(row[at]) for row in rows]
    assert coverage == Coverage([Span(*day(covers))])


@pytest.mark.parametrize("coin", ["BTC", "ETH"])
async def test_every_row_of_real_trades(shared_data, tmp_path, coin):
    path = shared_data / "expected" / f"binance-futures_2024-07_{coin}USDT_trades.csv.gz"
    batch, coverage = await load(tmp_path, Series.parse(f"binance:{coin}/USDT:USDT@trade"), path)
    rows = list(csv.DictReader(io.StringIO(text_of(path))))
    assert batch.ts_event.tolist() == [int(row["time_ms"]) * 10**6 for row in rows]
    assert batch.ids.tolist() == [int(row["id"]) for row in rows]
    assert batch.sides.tolist() == [["buy", "sell"].index(row["side"]) for row in rows]
    for name, column in (("price", "price"), ("amount", "qty")):
        found = [Decimal(text) for text in batch.fields[name].texts()]
        assert found == [Decimal(row[column]) for row in rows]
    last = int(rows[-1]["time_ms"]) * 10**6
    assert coverage == Coverage([Span(int(rows[0]["time_ms"]) * 10**6, last + 1)])


async def test_real_trades_of_a_vendor(shared_data, tmp_path):
    path = shared_data / "tardis_csv" / "binance-futures_BTCUSDT_2020-02-22_trades.csv.gz"
    batch, _ = await load(tmp_path, Series.parse("binance:BTC/USDT:USDT@trade"), path)
    rows = list(csv.DictReader(io.StringIO(text_of(path))))
    rows.sort(key=lambda row: (int(row["timestamp"]), int(row["id"])))
    assert batch.ts_event.tolist() == [int(row["timestamp"]) * 1000 for row in rows]
    assert batch.ids.tolist() == [int(row["id"]) for row in rows]
    found = [Decimal(text) for text in batch.fields["amount"].texts()]
    assert found == [Decimal(row["amount"]) for row in rows]
