"""OKX's dump files: UTC+8 days, contracts, Chinese headers."""

from __future__ import annotations

import io
import zipfile
from decimal import Decimal

import pytest

import tardisd_csv
import tardisd_okx
from tardisd.errors import DataError, RequestError
from tardisd.market.series import Instrument, Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import HOUR, parse_range
from tardisd.plugins.format import Sample
from tardisd.testing.memory import MemoryStorage
from tardisd.transfer.importing import import_files
from tardisd_okx.formats import OkxAggTrades, OkxCandles, OkxTrades

FORMATS = [f() for plugin in (tardisd_okx, tardisd_csv) for f in plugin.tardisd_formats()]
SPOT, SWAP = "okx:BTC/USDT@trade", "okx:BTC/USDT:USDT@trade"
HEADER = "instrument_name,trade_id,side,price,size,created_time"
CHINESE = "trade_id/交易id,side/交易方向,size/数量,price/价格,created_time/成交时间"
CANDLES = "instrument_name,open,high,low,close,vol,vol_ccy,vol_quote,open_time,confirm"
_START, _END = parse_range("2024-03-01..2024-03-02", now=0)
DAY = Span(_START - 8 * HOUR, _END - 8 * HOUR)
MS = 10**6


def zipped(name: str, text: str, encoding: str = "utf-8") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.csv", text.encode(encoding))
    return out.getvalue()


async def load(tmp_path, series, name, data, storage=None, **options):
    storage = storage or MemoryStorage()
    path = tmp_path / "file"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with path.open("rb") as raw:
        result = await import_files(
            [(name, raw)], Series.parse(series), storage, FORMATS,
            covers=None, spool_dir=tmp_path, progress=lambda _: None, **options,
        )  # fmt: skip
    async with storage.read(Series.parse(series), Span(0, 2**62)) as batches:
        rows = [batch async for batch in batches]
    return result, rows[0], await storage.coverage(Series.parse(series))


def trades(instrument: str, count: int = 5) -> str:
    first = DAY.start // MS + 188
    rows = [f"{instrument},{n},buy,{42000 + n}.9,{n + 1}.5,{first + n}" for n in range(count)]
    return "\n".join([HEADER, *rows]) + "\n"


def amounts(batch) -> list[Decimal]:
    return [Decimal(text) for text in batch.fields["amount"].texts()]


async def test_spot_trades_of_a_day_in_beijing(tmp_path):
    name = "BTC-USDT-trades-2024-03-01"
    data = zipped(name, trades("BTC-USDT"))
    result, batch, coverage = await load(tmp_path, SPOT, f"{name}.zip", data)
    assert result.files[0].format == "okx_trades"
    assert coverage == Coverage([DAY])
    assert batch.ids.tolist() == list(range(5))
    assert amounts(batch) == [n + Decimal("1.5") for n in range(5)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk"])
async def test_headers_in_two_languages(tmp_path, encoding):
    name = "BTC-USDT-trades-2024-03-01"
    first = DAY.start // MS
    text = f"{CHINESE}\r\n719977054,buy,0.00527188,84760.0,{first}\r\n"
    data = zipped(name, text, encoding)
    _, batch, _ = await load(tmp_path, SPOT, f"{name}.zip", data)
    assert batch.ids.tolist() == [719977054]
    assert batch.fields["price"].texts() == ["84760"]
    assert amounts(batch) == [Decimal("0.00527188")]


async def test_contracts_become_the_base_asset(tmp_path):
    name = "BTC-USDT-SWAP-trades-2024-03-01"
    data = zipped(name, trades("BTC-USDT-SWAP"))
    expected = [(n + Decimal("1.5")) * Decimal("0.01") for n in range(5)]
    _, batch, _ = await load(tmp_path, SWAP, f"{name}.zip", data, contract_size="0.01")
    assert amounts(batch) == expected
    storage = MemoryStorage()
    known = Instrument("okx", Series.parse(SWAP).symbol, extra={"contract_size": "0.01"})
    await storage.put_instrument(known)
    _, batch, _ = await load(tmp_path, SWAP, f"{name}.zip", data, storage)
    assert amounts(batch) == expected


async def test_contracts_of_unknown_size_are_refused(tmp_path):
    data = trades("BTC-USDT-SWAP")
    with pytest.raises(DataError, match=r"counts contracts.*--contract-size"):
        await load(tmp_path, SWAP, "x.csv", data)
    for size, words in (("0", "not above zero"), ("-1", "not above"), ("much", "not a number")):
        with pytest.raises(RequestError, match=words):
            await load(tmp_path, SWAP, "x.csv", data, contract_size=size)
    with pytest.raises(DataError, match=r"contracts of 1E-18 BTC.*fraction digits"):
        await load(tmp_path, SWAP, "x.csv", data, contract_size="1E-18")
    _, batch, _ = await load(tmp_path, SPOT, "y.csv", trades("BTC-USDT"), contract_size="0.01")
    assert amounts(batch)[0] == Decimal("1.5"), "spot has no contracts"


@pytest.mark.parametrize(
    ("series", "instrument", "volume"),
    [("okx:ETH/USDT@candle_1m", "ETH-USDT", "23503.2"),
     ("okx:ETH/USDT:USDT@candle_1m", "ETH-USDT-SWAP", "2350.32")],
)  # fmt: skip
async def test_candles_count_the_base_asset(tmp_path, series, instrument, volume):
    name = f"{instrument}-candlesticks-2024-03-01"
    rows = [
        f"{instrument},3839.44,3843.58,3836.71,3838.16,23503.2,2350.32,9024127.30277,"
        f"{(DAY.start // MS) + n * 60_000},1"
        for n in (0, 1, 1, 2)
    ]
    data = zipped(name, "\n".join([CANDLES, *rows]))
    _, batch, coverage = await load(tmp_path, series, f"{name}.zip", data)
    assert batch.ts_event.tolist() == [DAY.start + n * 60 * 10**9 for n in range(3)]
    assert batch.fields["volume"].texts() == [volume] * 3
    assert batch.fields["quote_volume"].texts() == ["9024127.30277"] * 3
    assert coverage == Coverage([DAY])


@pytest.mark.parametrize(
    ("name", "series", "words"),
    [
        ("BTC-USDT-aggtrades-2023-03-01.csv", SPOT, "import it with data type agg_trade"),
        ("BTC-USDT-trades-2023-03-01.csv", "okx:BTC/USDT@agg_trade", "data type trade"),
        ("x.csv", "okx:BTC/USDT:USDT@trade", "another symbol"),
        ("ETH-USDT-trades-2023-03-01.csv", SPOT, "file name says ETH-USDT"),
        ("BTC-USDT-SWAP-trades-2023-03-01.csv", SPOT, "swap market"),
    ],
)
async def test_files_of_something_else_are_refused(tmp_path, name, series, words):
    with pytest.raises(DataError, match=words):
        await load(tmp_path, series, name, trades("BTC-USDT"), contract_size="1")


def test_months_are_months_in_beijing():
    cells = [CANDLES.split(",")]
    sample = Sample("BTC-USDT-SWAP-candlesticks-2023-12.zip", cells)
    layout = OkxCandles().match(sample, "candle")
    start, end = parse_range("2023-11-30T16:00:00Z..2023-12-31T16:00:00Z", now=0)
    assert (layout.venue_id, layout.market, layout.covers) == (
        "BTC-USDT-SWAP",
        "swap",
        (start, end),
    )
    bad = Sample("BTC-USDT-candlesticks-2023-13.zip", cells)
    assert OkxCandles().match(bad, "candle").covers is None


def test_each_format_takes_its_own_header():
    spelt = [HEADER.upper().split(",")]
    assert OkxTrades().match(Sample("x", spelt), "trade") is not None
    assert OkxAggTrades().match(Sample("x", spelt), "agg_trade") is not None
    assert OkxTrades().match(Sample("x", spelt), "agg_trade") is None
    assert OkxTrades().match(Sample("x", [["time", "price"]]), "trade") is None
    assert OkxTrades().match(Sample("x", []), "trade") is None
    assert OkxCandles().match(Sample("x", spelt), "candle") is None
