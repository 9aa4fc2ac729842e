"""Plain CSV files are known by their header, or by the shape that ccxt gives them."""

from __future__ import annotations

import csv
import io
from decimal import Decimal

import pytest

import tardisd_csv
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.plugins.format import Layout, Sample
from tardisd.testing.memory import MemoryStorage
from tardisd.transfer.importing import import_files
from tardisd_csv.plain import PlainCandles, PlainTrades

FORMATS = [format_() for format_ in tardisd_csv.tardisd_formats()]
T0 = 1_709_251_200
CANDLES = Series.parse("kraken:BTC/USD@candle_1m")
TRADES = Series.parse("kraken:BTC/USD@trade")


async def load(tmp_path, series: Series, data: bytes) -> tuple[Batch, Coverage]:
    storage = MemoryStorage()
    await import_files(
        [("file", io.BytesIO(data))], series, storage, FORMATS,
        covers=None, spool_dir=tmp_path, progress=lambda _: None,
    )  # fmt: skip
    async with storage.read(series, Span(0, 2**62)) as batches:
        parts = [batch async for batch in batches]
    return Batch.concat(parts), await storage.coverage(series)


@pytest.mark.parametrize(
    "header",
    [
        "timestamp,open,high,low,close,volume",
        "Time,Open,High,Low,Close,Volume",
        "OPEN_TIME,open,high,low,close,vol",
        "date,o,h,l,c,v",
        " DateTime , Open,High,Low,Close, Volume",
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
async def test_candles_with_a_header(tmp_path, header, delimiter):
    rows = [f"{T0 + 60 * n},1.5,2,1,1.75,{n}.125" for n in range(5)]
    text = "\n".join([header, *rows]).replace(",", delimiter)
    batch, coverage = await load(tmp_path, CANDLES, text.encode())
    assert batch.ts_event.tolist() == [(T0 + 60 * n) * 10**9 for n in range(5)]
    assert batch.fields["volume"].texts() == [f"{n}.125" for n in range(5)]
    assert batch.fields["close"].texts() == ["1.75"] * 5
    assert "trades" not in batch.fields
    assert coverage == Coverage([Span(T0 * 10**9, (T0 + 300) * 10**9)])


async def test_columns_in_any_order_and_some_empty(tmp_path):
    text = (
        "exchange,Low,close,trades,note,high,Quote Volume,open,volume,timestamp,date\n"
        f'kraken,1,2,7,"a, b",3,,2,10,{T0}000,1.3.2024\n'
        f"kraken,1,2,,,3,5.5,2,10,{T0 + 60}000,1.3.2024\n"
    )
    batch, _ = await load(tmp_path, CANDLES, text.encode())
    assert batch.fields["trades"].texts() == ["7", None]
    assert batch.fields["quote_volume"].texts() == [None, "5.5"]
    assert batch.fields["low"].texts() == ["1", "1"]


async def test_six_columns_without_a_header(tmp_path):
    rows = [f"{T0 + 60 * n}000,1e1,11.0,9.5,10,1.5e-7" for n in range(4)]
    batch, _ = await load(tmp_path, CANDLES, "\n".join(rows).encode())
    assert len(batch) == 4
    assert batch.fields["volume"].texts() == ["0.00000015"] * 4


@pytest.mark.parametrize("amount", ["amount", "qty", "size", "Quantity"])
@pytest.mark.parametrize("id_", ["", "id,", "trade_id,"])
async def test_trades(tmp_path, amount, id_):
    text = f"timestamp,{id_}price,{amount},side\n"
    for n in range(4):
        number = f"{n}," if id_ else ""
        text += f"{T0 + n}.5,{number}10.5,0.{n}5,{'BUY' if n % 2 else 'sell'}\n"
    batch, coverage = await load(tmp_path, TRADES, text.encode())
    assert batch.ts_event.tolist() == [(T0 + n) * 10**9 + 500_000_000 for n in range(4)]
    assert batch.sides.tolist() == [1, 0, 1, 0]
    assert (None if batch.ids is None else batch.ids.tolist()) == ([0, 1, 2, 3] if id_ else None)
    last = (T0 + 3) * 10**9 + 500_000_001
    assert coverage == Coverage([Span(T0 * 10**9 + 500_000_000, last)])


async def test_who_made_the_trade_tells_the_taker(tmp_path):
    text = f"time,price,amount,is_buyer_maker\n{T0},1,1,true\n{T0},1,1,0\n"
    batch, _ = await load(tmp_path, TRADES, text.encode())
    assert batch.sides.tolist() == [1, 0]


def test_what_is_no_plain_file():
    rows = [[str(T0), *"12345"]]
    assert PlainCandles().match(Sample("x", rows), "candle") == Layout(
        ("time", "open", "high", "low", "close", "volume"), header=False
    )
    for cells in ([["a", "b"]], [["time", "price"]], [[str(T0), "1"]], [], [[str(T0), *"123456"]]):
        assert PlainCandles().match(Sample("x", cells), "candle") is None
        assert PlainTrades().match(Sample("x", cells), "trade") is None
    assert PlainTrades().match(Sample("x", [["time", "price", "amount"]]), "trade") is None
    assert PlainCandles().match(Sample("x", rows), "trade") is None


async def test_real_bars(shared_data, tmp_path):
    path = shared_data / "expected" / "binance-futures_2024-07_BTCUSDT_bars1m.csv"
    batch, _ = await load(tmp_path, Series.parse("kraken:BTC/USDT@candle_1m"), path.read_bytes())
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert batch.ts_event.tolist() == [int(row["open_ms"]) * 10**6 for row in rows]
    columns = {"open": "o", "high": "h", "low": "l", "close": "c", "volume": "v",
               "quote_volume": "quote_v", "trades": "n"}  # fmt: skip
    for name, column in columns.items():
        found = [Decimal(text) for text in batch.fields[name].texts()]
        assert found == [Decimal(row[column]) for row in rows]
