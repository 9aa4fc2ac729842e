"""Parquet in and out: every value exact, floats told, damage refused."""

from __future__ import annotations

import datetime
import io
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from import_rig import MS, T0, candles, import_text, stored

from tardisd.dumps import parquet
from tardisd.errors import DataError
from tardisd.market.columns import Batch, pack_ids
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.plugins.exchange import Page
from tardisd.testing.memory import MemoryStorage
from tardisd.transfer.exporting import export_series

CANDLE = "okx:BTC/USDT@candle_1m"
TRADE = "okx:BTC/USDT@trade"
PRICES = ("open", "high", "low", "close")
ROWS = 50


def times(unit: str, zone: str | None = "UTC") -> pa.Array:
    ns = pa.array([(T0 + 60_000 * n) * MS for n in range(ROWS)])
    return ns.cast(pa.timestamp("ns", zone)).cast(pa.timestamp(unit, zone))


def table_of(time: pa.Array, price: pa.Array, **columns: pa.Array) -> bytes:
    names = {"timestamp": time, **dict.fromkeys(PRICES, price), "volume": price, **columns}
    out = io.BytesIO()
    pq.write_table(pa.table(names), out)
    return out.getvalue()


def decimals(type_: pa.DataType) -> pa.Array:
    return pa.array([Decimal(n) / 8 for n in range(ROWS)], type_)


@pytest.mark.parametrize(
    "time",
    [
        *(times(unit) for unit in ("s", "ms", "us", "ns")),
        times("ms", "Asia/Hong_Kong"),
        *(pa.array([(T0 + 60_000 * n) * MS // per for n in range(ROWS)])
          for per in (1, 1000, 10**6, 10**9)),
        pa.array([(T0 + 60_000 * n) / 1000 for n in range(ROWS)]),
        pa.array([f"2024-03-01T00:{n:02d}:00Z" for n in range(ROWS)]),
    ],
    ids=lambda time: str(time.type),
)  # fmt: skip
async def test_times_of_every_unit(tmp_path, time):
    data = table_of(time, decimals(pa.decimal128(20, 3)))
    result, storage = await import_text(tmp_path, CANDLE, {"x.parquet": data})
    rows = candles(await stored(storage, CANDLE))
    assert [row[0] for row in rows] == [T0 + 60_000 * n for n in range(ROWS)]
    assert [row[1] for row in rows] == [Decimal(n) / 8 for n in range(ROWS)]
    assert result.files[0].format == "csv_candles"


@pytest.mark.parametrize(
    ("price", "noted"),
    [
        (decimals(pa.decimal128(38, 18)), False),
        (decimals(pa.decimal256(60, 30)), False),
        (decimals(pa.decimal128(9, 3)), False),
        (pa.array([str(Decimal(n) / 8) for n in range(ROWS)]), False),
        (pa.array([str(Decimal(n) / 8) for n in range(ROWS)]).dictionary_encode(), False),
        (pa.array([n / 8 for n in range(ROWS)], pa.float64()), True),
        (pa.array([n / 8 for n in range(ROWS)], pa.float32()), True),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
async def test_numbers_of_every_type(tmp_path, price, noted):
    data = table_of(times("ms"), price)
    result, storage = await import_text(tmp_path, CANDLE, {"x.parquet": data})
    rows = candles(await stored(storage, CANDLE))
    assert [row[1] for row in rows] == [Decimal(n) / 8 for n in range(ROWS)]
    notes = result.files[0].notes
    assert [note.split()[1] for note in notes] == ([*PRICES, "volume"] if noted else [])


async def test_days_of_dates(tmp_path):
    days = pa.array([datetime.date(2024, 3, 1 + n) for n in range(5)])
    price = pa.array([Decimal("1.5")] * 5)
    data = table_of(days, price, note=pa.array([[1]] * 5))
    series = "okx:BTC/USDT@candle_1d"
    _, storage = await import_text(tmp_path, series, {"x": data})
    covered = await storage.coverage(Series.parse(series))
    assert covered == Coverage([Span(T0 * MS, (T0 + 5 * 86_400_000) * MS)])


@given(st.lists(st.floats(0, 2.0**62, width=64) | st.floats(0, 1, width=64), max_size=30))
def test_a_float_is_its_shortest_text(values):
    values = [value for value in values if Decimal(repr(value)).as_tuple().exponent >= -18]
    cells = pa.array(values, pa.float64()).cast(pa.string()).to_pylist()
    assert [Decimal(cell) for cell in cells] == [Decimal(repr(value)) for value in values]


async def refused(tmp_path, data, series=CANDLE) -> str:
    storage = MemoryStorage()
    with pytest.raises(DataError) as caught:
        await import_text(tmp_path, series, {"x.parquet": data}, storage)
    assert await storage.list_series() == []
    return str(caught.value)


async def test_bad_values_are_named_with_their_row(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "BATCH_ROWS", 7)
    price = [n / 8 for n in range(ROWS)]
    price[30] = float("nan")
    text = await refused(tmp_path, table_of(times("ms"), pa.array(price)))
    assert "x.parquet, row 31, column open: not a finite number (found 'nan')" in text
    values: list[Decimal | None] = [Decimal(1)] * ROWS
    values[40] = None
    text = await refused(tmp_path, table_of(times("ms"), pa.array(values)))
    assert "row 41, column open: value is missing" in text
    text = await refused(
        tmp_path, table_of(times("ms"), decimals(pa.decimal128(20, 3)),
                           high=pa.array([Decimal(0)] * ROWS))
    )  # fmt: skip
    assert "row 2, column high: high is below open" in text
    thin = pa.array([Decimal("1e-20")] * ROWS, pa.decimal128(38, 20))
    assert "row 1, column open: more than 18 fraction digits" in await refused(
        tmp_path, table_of(times("ms"), thin)
    )
    text = await refused(tmp_path, table_of(pa.array([T0] * ROWS), decimals(pa.decimal128(9, 3))))
    assert "another row of this candle has other content (row 1)" in text
    assert "row 2" in text


async def test_times_without_a_zone_are_refused(tmp_path):
    data = table_of(times("us", None), decimals(pa.decimal128(20, 3)))
    assert "row 1, column timestamp: '2024-03-01 00:00:00" in (
        text := await refused(tmp_path, data)
    )
    assert "has no time zone" in text


async def test_damage_is_refused(tmp_path):
    data = table_of(times("ms"), decimals(pa.decimal128(20, 3)))
    assert "cut off or damaged" in await refused(tmp_path, data[:-20])
    assert "cut off or damaged" in await refused(tmp_path, b"PAR1")
    spoilt = bytearray(data)
    spoilt[4:120] = b"\xff" * 116
    assert "damaged" in (text := await refused(tmp_path, bytes(spoilt))) or "cannot be read" in text
    nested = io.BytesIO()
    pq.write_table(pa.table({"rows": pa.array([[1], [2]])}), nested)
    assert "no column of numbers" in await refused(tmp_path, nested.getvalue())
    long = pa.array(["x" * 5000] * ROWS)
    data = table_of(times("ms"), decimals(pa.decimal128(20, 3)), symbol=long)
    assert "a text is longer" in await refused(tmp_path, data)
    other = io.BytesIO()
    pq.write_table(pa.table({"a": [1], "b": [2]}), other)
    assert "no known format of candle data matches" in await refused(tmp_path, other.getvalue())


# Export ---------------------------------------------------------------------------------------


async def exported(storage: MemoryStorage, series: str, path: Path) -> pa.Table:
    with path.open("wb") as out:
        await export_series(
            Series.parse(series), Span(0, 2**62), storage, out, "parquet", lambda _: None
        )
    return pq.read_table(path)


WIDE = ["9223372036854775806.123456789012345678", "0.000000000000000001", "0", "-5.5", "7"]


async def test_candles_go_out_and_come_back(tmp_path):
    storage, series = MemoryStorage(), Series.parse(CANDLE)
    opens = np.array([(T0 + 60_000 * n) * MS for n in range(5)], np.int64)
    low, high = ["-5.5"] * 5, [WIDE[0]] * 5
    columns = {"open": WIDE, "high": high, "low": low, "close": WIDE,
               "volume": [text.lstrip("-") for text in WIDE],
               "quote_volume": [None, "1", None, "2.5", "3"]}  # fmt: skip
    fields = {name: Decimals.of(texts) for name, texts in columns.items()}
    batch = Batch(series, opens, fields)
    await storage.append(series, Page(batch, batch.extent()))
    table = await exported(storage, CANDLE, tmp_path / "out.parquet")
    assert table.schema.names == ["datetime", *columns, "trades"]
    assert table["datetime"].type == pa.timestamp("ns", "UTC")
    assert table["open"].type == pa.decimal128(38, 18)
    for name, texts in columns.items():
        expected = [None if text is None else Decimal(text) for text in texts]
        assert table[name].to_pylist() == expected
    data = (tmp_path / "out.parquet").read_bytes()
    _, again = await import_text(tmp_path, CANDLE, {"out.parquet": data})
    assert candles(await stored(again, CANDLE)) == [
        (*row[:6], *row[6:7], None) for row in candles(await stored(storage, CANDLE))
    ]


@pytest.mark.parametrize("ids", [None, ["1", "22", "333"], ["a-b", "", 'say "so", ok']])
async def test_trades_go_out_and_come_back(tmp_path, monkeypatch, ids):
    monkeypatch.setattr("tardisd.wire.parquet.GROUP_ROWS", 2)
    storage, series = MemoryStorage(), Series.parse(TRADE)
    batch = Batch(
        series,
        np.array([T0 * MS, T0 * MS + 54_700, T0 * MS + 54_700], np.int64),
        {"price": Decimals.of(["1.5", "2", "3.25"]), "amount": Decimals.of(["0.1", "0.02", "5"])},
        None if ids is None else pack_ids(ids),
        np.array([0, 1, 0], np.uint8),
    )
    await storage.append(series, Page(batch, batch.extent()))
    table = await exported(storage, TRADE, tmp_path / "out.parquet")
    assert table.schema.names == ["datetime", "id", "price", "amount", "side"]
    assert table["side"].to_pylist() == ["buy", "sell", "buy"]
    assert table["id"].to_pylist() == [text or None for text in ids or [""] * 3]
    data = (tmp_path / "out.parquet").read_bytes()
    result, again = await import_text(tmp_path, TRADE, {"out.parquet": data})
    assert result.added == 3
    back = await stored(again, TRADE)
    assert back.ts_event.tolist() == batch.ts_event.tolist()
    assert back.fields["amount"].texts() == ["0.1", "0.02", "5"]
    assert (back.ids is None) == (ids is None)
    if ids is not None:
        assert back.ids.astype("S").tolist() == [text.encode() for text in ids]


async def test_nothing_stored_is_an_empty_table(tmp_path):
    table = await exported(MemoryStorage(), TRADE, tmp_path / "out.parquet")
    assert table.num_rows == 0
    assert table.schema.metadata[b"series"] == TRADE.encode()
