"""Bybit's dump files: recognised by content, read to the digit."""

from __future__ import annotations

import gzip
from decimal import Decimal

import pytest

import tardisd_bybit
import tardisd_csv
from tardisd.errors import DataError
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import parse_range
from tardisd.plugins.format import Sample
from tardisd.testing.memory import MemoryStorage
from tardisd.transfer.importing import import_files
from tardisd_bybit.formats import BybitSpotTrades, BybitSwapTrades

FORMATS = [f() for plugin in (tardisd_bybit, tardisd_csv) for f in plugin.tardisd_formats()]
SWAP, SPOT = "bybit:BTC/USDT:USDT@trade", "bybit:BTC/USDT@trade"
SWAP_HEADER = (
    "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,"
    "foreignNotional"
)
DAY = Span(*parse_range("2024-03-01..2024-03-02", now=0))
T0 = DAY.start // 10**9


def swap_row(at: str, side: str, size: str, price: str, number: int, symbol="BTCUSDT") -> str:
    return (
        f"{at},{symbol},{side},{size},{price},ZeroPlusTick,00fcc5e9-d36f-51ae-9906-{number:012x},"
        f"3.6672e+06,{size},12.5"
    )


async def load(tmp_path, series: str, files: dict[str, str | bytes], **options):
    storage = MemoryStorage()
    opened = []
    for number, (name, data) in enumerate(files.items()):
        path = tmp_path / f"{number}"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        opened.append((name, path.open("rb")))
    try:
        result = await import_files(
            opened, Series.parse(series), storage, FORMATS,
            covers=None, spool_dir=tmp_path, progress=lambda _: None, **options,
        )  # fmt: skip
    finally:
        for _, file in opened:
            file.close()
    async with storage.read(Series.parse(series), Span(0, 2**62)) as batches:
        rows = [batch async for batch in batches]
    return result, rows[0] if rows else None, await storage.coverage(Series.parse(series))


@pytest.mark.parametrize("extra", ["", ",RPI"])
async def test_swap_trades_newest_first(tmp_path, extra):
    tail = ",0" if extra else ""
    rows = [
        swap_row(f"{T0 + 3}.0547", "Sell", "0.038", "65065.80", 3) + tail,
        swap_row(f"{T0 + 3}.0547", "Buy", "0.1", "65066", 2) + tail,
        swap_row(f"{T0}", "Buy", "1", "65065.10", 1) + tail,
    ]
    text = "\n".join([SWAP_HEADER + extra, *rows]) + "\n"
    name = "BTCUSDT2024-03-01.csv.gz"
    result, batch, coverage = await load(tmp_path, SWAP, {name: gzip.compress(text.encode())})
    assert result.files[0].format == "bybit_swap_trades"
    assert batch.ts_event.tolist() == [T0 * 10**9, *[(T0 + 3) * 10**9 + 54_700_000] * 2]
    assert batch.sides.tolist() == [0, 1, 0]
    assert batch.ids.tolist()[0] == b"00fcc5e9-d36f-51ae-9906-000000000001"
    prices = [Decimal(text) for text in batch.fields["price"].texts()]
    assert prices == [Decimal("65065.1"), Decimal("65065.8"), Decimal(65066)]
    assert coverage == Coverage([DAY])


async def test_spot_rows_have_no_id_of_their_own(tmp_path):
    day = "id,timestamp,price,volume,side,rpi\n" + "".join(
        f"{n},{T0 * 1000 + n // 3},106456.9,0.000500,{'buy' if n % 2 else 'sell'},0\n"
        for n in range(1, 40)
    )
    following = day.replace(str(T0)[:-5], str(T0 + 86_400)[:-5])
    files = {"BTCUSDT_2024-03-01.csv": day, "BTCUSDT_2024-03-02.csv": following}
    assert day != following
    result, batch, coverage = await load(tmp_path, SPOT, files)
    assert result.added == len(batch) == 78
    assert batch.ids is None
    assert coverage == Coverage([Span(DAY.start, DAY.end + DAY.length)])


@pytest.mark.parametrize(
    ("name", "venue_id", "covers"),
    [
        ("BTCUSDT2020-03-25.csv.gz", "BTCUSDT", "2020-03-25..2020-03-26"),
        ("1000PEPEUSDT2024-03-01.csv", "1000PEPEUSDT", "2024-03-01..2024-03-02"),
        ("BTCUSDT_2026-07-25.csv.gz", "BTCUSDT", "2026-07-25..2026-07-26"),
        ("BTCUSDT-2022-12.csv.gz", "BTCUSDT", "2022-12-01..2023-01-01"),
        ("BTCUSDT2024-02-30.csv.gz", None, None),
        ("trades.csv", None, None),
    ],
)
def test_names_state_symbol_and_span(name, venue_id, covers):
    cells = [SWAP_HEADER.split(",")]
    layout = BybitSwapTrades().match(Sample(name, cells), "trade")
    expected = None if covers is None else parse_range(covers, now=0)
    assert (layout.venue_id, layout.covers) == (venue_id, expected)


def test_each_format_takes_its_own_header():
    swap = [SWAP_HEADER.split(",")]
    spot = [["id", "timestamp", "price", "volume", "side"]]
    assert BybitSwapTrades().match(Sample("x", spot), "trade") is None
    assert BybitSpotTrades().match(Sample("x", swap), "trade") is None
    assert BybitSwapTrades().match(Sample("x", swap), "candle") is None
    assert BybitSpotTrades().match(Sample("x", []), "trade") is None


@pytest.mark.parametrize(
    ("series", "symbol", "words"),
    [
        (SPOT, "BTCUSDT", "of the swap market.*BTC/USDT:USDT"),
        (SWAP, "BTCUSD", "inverse contract"),
        ("bybit:ETH/USDT:USDT@trade", "BTCUSDT", "another symbol"),
        ("bybit:BTC/USDT:USDT@candle_1m", "BTCUSDT", "import it with data type trade"),
    ],
)
async def test_files_of_something_else_are_refused(tmp_path, series, symbol, words):
    text = f"{SWAP_HEADER}\n{swap_row(f'{T0}.5', 'Buy', '1', '2', 1, symbol)}\n"
    with pytest.raises(DataError, match=words):
        await load(tmp_path, series, {"x.csv": text})


@pytest.mark.parametrize("cell", ["1709251200.0123456789", "-1", "nan", ""])
async def test_a_bad_time_is_named_with_its_line(tmp_path, cell):
    rows = [swap_row(f"{T0 + n}.25", "Buy", "1", "2", n) for n in range(3)]
    rows[1] = rows[1].replace(f"{T0 + 1}.25", cell)
    with pytest.raises(DataError, match=r"x\.csv, line 3, column timestamp"):
        await load(tmp_path, SWAP, {"x.csv": "\n".join([SWAP_HEADER, *rows])})
