"""tardis.dev's CSV: trades of any venue, and nothing else."""

from __future__ import annotations

import csv
import gzip
from decimal import Decimal

import pytest

import tardisd_csv
from tardisd.errors import DataError
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.testing.memory import MemoryStorage
from tardisd.transfer.importing import import_files

FORMATS = [f() for f in tardisd_csv.tardisd_formats()]
HEADER = "exchange,symbol,timestamp,local_timestamp,id,side,price,amount\n"


async def load(tmp_path, series, path, name=None, **options):
    storage = MemoryStorage()
    with path.open("rb") as raw:
        result = await import_files(
            [(name or path.name, raw)], Series.parse(series), storage, FORMATS,
            covers=None, spool_dir=tmp_path, progress=lambda _: None, **options,
        )  # fmt: skip
    async with storage.read(Series.parse(series), Span(0, 2**62)) as batches:
        return result, Batch.concat([batch async for batch in batches])


async def test_real_trades_are_sorted_by_the_venue_s_time(shared_data, tmp_path):
    path = shared_data / "tardis_csv" / "binance-futures_BTCUSDT_2020-02-22_trades.csv.gz"
    result, batch = await load(tmp_path, "binance:BTC/USDT:USDT@trade", path)
    assert result.files[0].format == "tardis_trades"
    with gzip.open(path, "rt") as file:
        rows = sorted(csv.DictReader(file), key=lambda r: (int(r["timestamp"]), int(r["id"])))
    assert batch.ts_event.tolist() == [int(row["timestamp"]) * 1000 for row in rows]
    found = [Decimal(text) for text in batch.fields["price"].texts()]
    assert found == [Decimal(row["price"]) for row in rows]


async def test_real_trades_of_a_venue_without_a_plugin(shared_data, tmp_path):
    path = shared_data / "tardis_csv" / "bitmex_trades_XBTUSD.csv"
    _, batch = await load(tmp_path, "bitmex:XBT/USD@trade", path)
    assert batch.ids.tolist()[0] == b"ccc3c1fa-212c-e8b0-1706-9b9c4f3d5ecf"
    assert batch.ts_event.tolist()[0] == 1583020803145000 * 1000


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("binance-futures_BTCUSDT_2020-02-22_quotes.csv.gz", "quotes"),
        ("huobi-dm-swap_quotes_BTC-USD.csv", "quotes"),
        ("binance-futures_book_snapshot_5_BTCUSDT.csv", "book snapshots"),
        ("deribit_incremental_book_L2_BTC-PERPETUAL.csv", "incremental_book_L2"),
    ],
)
@pytest.mark.parametrize("data_type", ["trade", "candle_1m"])
async def test_their_other_files_are_refused_by_name(shared_data, tmp_path, file, what, data_type):
    path = shared_data / "tardis_csv" / file
    with pytest.raises(DataError, match=f"tardis.dev file of {what}; only trades"):
        await load(tmp_path, f"binance:BTC/USDT:USDT@{data_type}", path)


async def test_liquidations_differ_from_trades_by_name_alone(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text(f"{HEADER}binance-futures,BTCUSDT,1582329602111000,1582329602418379,,buy,1,2\n")
    with pytest.raises(DataError, match="of liquidations"):
        await load(tmp_path, "binance:BTC/USDT:USDT@trade", path,
                   "binance-futures_liquidations_2020-02-22_BTCUSDT.csv.gz")  # fmt: skip
    _, batch = await load(tmp_path, "binance:BTC/USDT:USDT@trade", path)
    assert batch.ids is None


@pytest.mark.parametrize(
    ("origin", "symbol", "series", "words"),
    [
        ("binance", "BTCUSDT", "binance:BTC/USDT:USDT@trade", "spot market.*symbol BTC/USDT$"),
        ("binance-futures", "BTCUSDT", "binance:BTC/USDT@trade", "swap market.*BTC/USDT:USDT"),
        ("okex-swap", "BTC-USDT-SWAP", "binance:BTC/USDT:USDT@trade", "with exchange okx"),
        ("okex-swap", "BTC-USDT-SWAP", "okx:BTC/USDT:USDT@trade", "counts contracts"),
        ("deribit", "BTC-PERPETUAL", "binance:BTC/USD@trade", "with exchange deribit"),
    ],
)
async def test_files_of_another_venue_or_market_are_refused(
    tmp_path, origin, symbol, series, words
):
    path = tmp_path / "in.csv"
    path.write_text(f"{HEADER}{origin},{symbol},1582329602111000,1582329602418379,1,buy,1,2\n")
    with pytest.raises(DataError, match=words):
        await load(tmp_path, series, path)


async def test_contracts_of_okx_swaps(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text(
        f"{HEADER}okex-swap,BTC-USDT-SWAP,1582329602111000,1582329602418379,1,buy,1,2\n"
    )
    _, batch = await load(tmp_path, "okx:BTC/USDT:USDT@trade", path, contract_size="0.01")
    assert batch.fields["amount"].texts() == ["0.02"]
