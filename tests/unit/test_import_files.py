from __future__ import annotations

import gzip
import io
import os
import random
import threading
import zipfile
from collections.abc import Generator
from decimal import Decimal

import pytest
import trio
from import_rig import (
    FORMATS,
    KLINE_HEADER,
    MINUTE,
    MS,
    T0,
    candles,
    import_text,
    kline,
    kline_rows,
    stored,
    trade,
    trades,
)

from tardisd.dumps import source, spool
from tardisd.dumps.intake import overlap
from tardisd.errors import DataError, StorageError
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.progress import Progress
from tardisd.testing.memory import MemoryStorage
from tardisd.transfer.importing import FileResult, import_files

CANDLE = "binance:BTC/USDT@candle_1m"
TRADE = "binance:BTC/USDT@trade"
PLAIN = "okx:BTC/USDT@candle_1m"


def ms(start: int, end: int) -> Span:
    return Span((T0 + start) * MS, (T0 + end) * MS)


def zipped(*members: tuple[str, str], level: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", level) as archive:
        for name, text in members:
            archive.writestr(name, text)
    return out.getvalue()


async def refused(tmp_path, series, files, **options) -> DataError:
    storage = MemoryStorage()
    with pytest.raises(DataError) as caught:
        await import_text(tmp_path, series, files, storage, **options)
    assert await storage.list_series() == []
    return caught.value


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "header", ["", KLINE_HEADER, "\ufeff" + KLINE_HEADER, "\n\n" + KLINE_HEADER]
)
@pytest.mark.parametrize("last", ["\n", ""])
async def test_klines_are_kept_exactly(tmp_path, end, header, last):
    body = "".join(kline(n, close=f"100.{n:02d}") for n in range(50)).rstrip("\n") + last
    text = (header + body).replace("\n", end)
    result, storage = await import_text(tmp_path, CANDLE, {"any.csv": text})
    assert candles(await stored(storage, CANDLE)) == kline_rows(body)
    assert (result.added, result.unchanged, result.revised, result.rows) == (50, 0, 0, 50)
    last_open = T0 + 49 * MINUTE
    assert result.files == [FileResult("any.csv", "binance_klines", 50, T0 * MS, last_open * MS)]
    assert await storage.coverage(Series.parse(CANDLE)) == Coverage([ms(0, 50 * MINUTE)])


async def test_quoted_cells_and_microseconds(tmp_path):
    text = "".join(kline(n) for n in range(3))
    quoted = "\n".join(
        ",".join(f'"{cell}{"000" if at == 0 else "999" if at == 6 else ""}"' for at, cell in
                 enumerate(line.split(",")))
        for line in text.splitlines()
    )  # fmt: skip
    _, storage = await import_text(tmp_path, CANDLE, {"x.csv": quoted})
    assert candles(await stored(storage, CANDLE)) == kline_rows(text)


async def test_units_are_told_per_row(tmp_path):
    text = "timestamp,open,high,low,close,volume\n"
    for n, unit in enumerate(["", "000", "000000", "s"]):
        at = f"{(T0 + n * MINUTE) // 1000}" if unit == "s" else f"{T0 + n * MINUTE}{unit}"
        text += f"{at},1,1,1,1,0\n"
    _, storage = await import_text(tmp_path, PLAIN, {"x.csv": text})
    opens = [row[0] for row in candles(await stored(storage, PLAIN))]
    assert opens == [T0 + n * MINUTE for n in range(4)]


@pytest.mark.parametrize("pack", ["plain", "gz", "zip"])
async def test_trades(tmp_path, pack):
    text = "".join(trade(n * 7 // 3, 1000 + n, price=f"{n}.5") for n in range(1000))
    data = {
        "plain": text.encode(),
        "gz": gzip.compress(text.encode()),
        "zip": zipped(("BTCUSDT-trades-2024-03-01.csv", text)),
    }[pack]
    result, storage = await import_text(tmp_path, TRADE, {"download": data})
    rows = trades(await stored(storage, TRADE))
    assert rows == [
        (T0 + n * 7 // 3, 1000 + n, Decimal(f"{n}.5"), Decimal("0.001"),
         "sell" if (1000 + n) % 3 else "buy")
        for n in range(1000)
    ]  # fmt: skip
    covered = ms(0, 86_400_000) if pack == "zip" else Span(T0 * MS, (T0 + 999 * 7 // 3) * MS + 1)
    assert await storage.coverage(Series.parse(TRADE)) == Coverage([covered])
    assert result.files[0].format == "binance_trades"


async def test_futures_files_have_a_column_less(tmp_path):
    text = "".join(trade(n, n)[: -len(",True\n")] + "\n" for n in range(20))
    _, storage = await import_text(tmp_path, "binance:BTC/USDT:USDT@trade", {"x": text})
    assert len(await stored(storage, "binance:BTC/USDT:USDT@trade")) == 20


@pytest.mark.parametrize("tail", ["", ",True"])
async def test_the_time_of_agg_trades_is_the_sixth_column(tmp_path, tail):
    series = "binance:BTC/USDT@agg_trade"
    text = "".join(f"{n},1.5,2,{T0},{T0 + 1},{T0 + n},false{tail}\n" for n in range(9))
    _, storage = await import_text(tmp_path, series, {"x": text})
    assert [row[0] for row in trades(await stored(storage, series))] == [T0 + n for n in range(9)]


# What an import covers -----------------------------------------------------------------------


async def test_an_archive_covers_the_month_in_its_name_and_holes_in_it(tmp_path):
    text = kline(1) + kline(2) + kline(9)
    _, storage = await import_text(tmp_path, CANDLE, {"BTCUSDT-1m-2024-03.csv": text})
    march = Coverage([ms(0, 31 * 86_400_000)])
    assert await storage.coverage(Series.parse(CANDLE)) == march
    _, storage = await import_text(tmp_path, CANDLE, {"renamed.csv": text})
    assert await storage.coverage(Series.parse(CANDLE)) == Coverage([ms(MINUTE, 10 * MINUTE)])


async def test_a_name_that_the_rows_belie_covers_nothing_more(tmp_path):
    text = kline(1) + kline(2)
    for name in ("BTCUSDT-1m-2024-02.csv", "BTCUSDT-1m-2024-02-29.zip", "BTCUSDT-1m-2024-02-31"):
        _, storage = await import_text(tmp_path, CANDLE, {name: text})
        expected = Coverage([ms(MINUTE, 3 * MINUTE)])
        assert await storage.coverage(Series.parse(CANDLE)) == expected


async def test_a_plain_file_covers_only_its_runs(tmp_path):
    text = "time,open,high,low,close,volume\n"
    text += "".join(f"{T0 + n * MINUTE},1,1,1,1,1\n" for n in (0, 1, 5, 6, 9))
    _, storage = await import_text(tmp_path, PLAIN, {"BTCUSDT-1m-2024-03.csv": text})
    runs = [ms(0, 2 * MINUTE), ms(5 * MINUTE, 7 * MINUTE), ms(9 * MINUTE, 10 * MINUTE)]
    assert await storage.coverage(Series.parse(PLAIN)) == Coverage(runs)
    _, storage = await import_text(tmp_path, PLAIN, {"x": text}, covers=ms(0, 20 * MINUTE))
    expected = Coverage([ms(0, 20 * MINUTE)])
    assert await storage.coverage(Series.parse(PLAIN)) == expected


async def test_several_files_cover_each_its_own(tmp_path):
    files = {
        "BTCUSDT-1m-2024-05.csv": kline(61 * 24 * 60),
        "BTCUSDT-1m-2024-03.csv": kline(0),
    }
    result, storage = await import_text(tmp_path, CANDLE, files)
    day = 86_400_000
    months = Coverage([ms(0, 31 * day), ms(61 * day, 92 * day)])
    assert await storage.coverage(Series.parse(CANDLE)) == months
    assert [file.rows for file in result.files] == [1, 1]


# Order and repeats ---------------------------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(source, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(source, "SAMPLE_BYTES", 2048)
    monkeypatch.setattr(spool, "PAGE_ROWS", 256)
    monkeypatch.setattr(spool, "SAMPLE_EVERY", 8)


@pytest.mark.parametrize("kind", [CANDLE, TRADE])
async def test_a_shuffled_file_is_sorted_and_repeats_drop(tmp_path, small_pieces, kind):
    make = kline if kind == CANDLE else lambda n: trade(n // 5, n)
    lines = [make(n) for n in range(3000)]
    _, expected = await import_text(tmp_path, kind, {"a": "".join(lines)})
    draw = random.Random(1)
    mixed = lines + draw.sample(lines, 500)
    draw.shuffle(mixed)
    result, storage = await import_text(tmp_path, kind, {"a": "".join(mixed)})
    read = candles if kind == CANDLE else trades
    assert read(await stored(storage, kind)) == read(await stored(expected, kind))
    assert (result.added, result.rows) == (3000, 3500)
    series = Series.parse(kind)
    assert await storage.coverage(series) == await expected.coverage(series)


async def test_conflicting_rows_are_refused_wherever_they_stand(tmp_path, small_pieces):
    lines = [kline(n) for n in range(2000)]
    lines.insert(1500, kline(3, close="100.6"))
    error = await refused(tmp_path, CANDLE, {"a.csv": KLINE_HEADER + "\n" + "".join(lines)})
    assert str(error) == (
        f"a.csv, line 1503, column open_time: another row of this candle has other content (line 6)"
        f" (found '{T0 + 3 * MINUTE}')"
    )
    error = await refused(tmp_path, CANDLE, {"a": "".join(lines[:9]), "b": kline(3, "99.9")})
    assert str(error).startswith(
        "b, line 1, column open_time: another row of this candle has other"
    )
    assert "(a, line 4)" in str(error)
    error = await refused(tmp_path, TRADE, {"t": trade(5, 7) + trade(6, 8) + trade(5, 7, "9")})
    assert (error.line, error.column) == (3, "id")


async def test_equal_trades_without_ids_are_not_repeats(tmp_path):
    text = "timestamp,price,amount,side\n" + f"{T0},1,2,buy\n" * 3
    result, storage = await import_text(tmp_path, TRADE, {"x": text})
    assert result.added == len(await stored(storage, TRADE)) == 3
    result, _ = await import_text(tmp_path, TRADE, {"x": text}, storage)
    assert (result.added, result.unchanged) == (0, 3)


async def test_text_ids_keep_the_order_of_the_file(tmp_path, small_pieces):
    lines = [f"{T0 + n // 9},{n * 7919 % 1000:x}-z,{n},1,sell\n" for n in range(1000)]
    text = "timestamp,id,price,amount,side\n" + "".join(lines) + lines[500]
    result, storage = await import_text(tmp_path, TRADE, {"x": text})
    rows = trades(await stored(storage, TRADE))
    assert [row[2] for row in rows] == list(range(1000))
    assert result.added == 1000
    bad = text + lines[3].replace("sell", "buy")
    error = await refused(tmp_path, TRADE, {"x": bad})
    assert (error.line, error.column, error.value) == (1003, "id", "2f5-z")


async def test_importing_again_changes_nothing_and_revisions_count(tmp_path):
    text = "".join(kline(n) for n in range(10))
    _, storage = await import_text(tmp_path, CANDLE, {"x": text})
    version = await storage.version(Series.parse(CANDLE))
    result, _ = await import_text(tmp_path, CANDLE, {"x": text}, storage)
    assert (result.added, result.unchanged, result.revised) == (0, 10, 0)
    assert await storage.version(Series.parse(CANDLE)) == version
    result, _ = await import_text(tmp_path, CANDLE, {"x": kline(3, "100.9") + kline(10)}, storage)
    assert (result.added, result.unchanged, result.revised) == (1, 0, 1)
    assert candles(await stored(storage, CANDLE))[3][4] == Decimal("100.9")


# Refusals ------------------------------------------------------------------------------------

GOOD = [kline(n).rstrip("\n") for n in range(40)]


def with_cell(line: int, at: int, value: str) -> str:
    rows = [row.split(",") for row in GOOD]
    rows[line - 3][at] = value
    return KLINE_HEADER + "\n" + "\n".join(",".join(row) for row in rows) + "\n"


@pytest.mark.parametrize(
    ("at", "value", "column", "reason"),
    [
        (1, "abc", "open", "not a number"),
        (1, "", "open", "value is missing"),
        (2, "NaN", "high", "not a finite number"),
        (3, "-inf", "low", "not a finite number"),
        (2, "100.2", "high", "high is below close"),
        (3, "100.3", "low", "low is above open"),
        (5, "-1", "volume", "volume is negative"),
        (7, "-0.5", "quote_volume", "quote_volume is negative"),
        (1, "9" * 30, "open", "too large to be kept exactly"),
        (2, "101." + "0" * 20 + "1", "high", "more than 18 fraction digits"),
        (0, "1230768000", "open_time", "time is outside 2009..2100"),
        (0, "4102444800000", "open_time", "time is outside 2009..2100"),
        (0, "yesterday", "open_time", "is not a time"),
        (8, "1,2", None, "expected 12 columns, found 13"),
        (8, "2\n1", None, "expected 12 columns, found 9"),
        (1, '"', None, ""),
    ],
)
@pytest.mark.parametrize("line", [3, 17, 42])
async def test_a_bad_cell_is_named_with_its_physical_line(
    tmp_path, line, at, value, column, reason
):
    if value == "1230768000":
        value = "1230767999"
    error = await refused(tmp_path, CANDLE, {"a.csv": with_cell(line, at, value)})
    assert (error.file, error.column) == ("a.csv", column)
    assert error.line == line or value == '"'
    assert reason in error.reason
    if column is not None:
        assert error.value == value


async def test_a_bad_cell_far_into_a_big_file(tmp_path, small_pieces):
    lines = [trade(n, n) for n in range(5000)]
    lines[4321] = trade(4321, 4321, amount="-3")
    error = await refused(tmp_path, TRADE, {"t.csv": "".join(lines)})
    assert str(error) == "t.csv, line 4322, column qty: amount is negative (found '-3')"
    lines[4321] = trade(4321, 4321).replace("True", "maybe", 1).replace("False", "maybe", 1)
    error = await refused(tmp_path, TRADE, {"t.csv": "\n" + "".join(lines)})
    assert (error.line, error.column, error.value) == (4323, "is_buyer_maker", "maybe")


async def test_a_file_cut_off_in_a_row(tmp_path):
    text = "".join(kline(n) for n in range(30))
    error = await refused(tmp_path, CANDLE, {"a.csv": text[:-20]})
    assert error.line == 30
    assert "is the file cut off here?" in str(error)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"\n \r\n", "the file is empty"),
        (KLINE_HEADER.encode(), "the file has no rows"),
        (b"time,open,high,low,close,volume\n\n", "the file has no rows"),
        (bytes(range(256)) * 50, "not a text file"),
        ("é".encode("utf-16"), "not a text file"),
        (b"a,b,c\n" * 5, "no known format of candle data matches"),
        (KLINE_HEADER.encode() + b"1" * 300_000, "a line is longer than"),
        (KLINE_HEADER.encode() + b"\0" * 100, "not a text file"),
        (KLINE_HEADER.encode() + kline(0).encode() * 3000 + b"\xff\xfe\0", "not a text file"),
        (zipped(), "found none"),
        (zipped(("a", "x"), ("b", "y")), "found 2 members"),
        (zipped(("a.csv", kline(0)))[:-30], "the zip file is cut off or damaged"),
        (b"PK\3\4garbage", "the zip file is cut off or damaged"),
        (gzip.compress(kline(0).encode() * 99, mtime=0)[:-9], "cut off or damaged"),
        (gzip.compress(b"", mtime=0), "the file is empty"),
    ],
)
async def test_files_that_are_none(tmp_path, data, reason):
    error = await refused(tmp_path, CANDLE, {"a.csv": data})
    assert error.file == "a.csv"
    assert reason in str(error)


async def test_damage_inside_a_zip(tmp_path):
    text = "".join(kline(n, close=f"100.{n}") for n in range(900))
    whole = zipped(("a.csv", text), level=zipfile.ZIP_STORED)
    damaged = whole.replace(b"100.77,", b"100.78,", 1)
    error = await refused(tmp_path, CANDLE, {"a.zip": damaged})
    assert "Bad CRC-32" in str(error)
    encrypted = bytearray(whole)
    for magic, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        encrypted[whole.index(magic) + offset] |= 1
    error = await refused(tmp_path, CANDLE, {"a.zip": bytes(encrypted)})
    assert "encrypted" in str(error)


async def test_a_zip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "RATIO_FREE_BYTES", 2**20)
    bomb = zipped(("a.csv", kline(0) + "\n" * 5_000_000))
    error = await refused(tmp_path, CANDLE, {"a.zip": bomb})
    assert "expands more than" in str(error)


async def test_a_pipe_is_refused(tmp_path):
    read, write = os.pipe()
    os.close(write)
    with open(read, "rb") as pipe, pytest.raises(DataError, match="not a regular file"):
        await import_files(
            [("-", pipe)], Series.parse(CANDLE), MemoryStorage(), FORMATS,
            covers=None, spool_dir=tmp_path, progress=lambda _: None,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("series", "text", "reason"),
    [
        (TRADE, kline(0) * 3, "looks like binance_klines (candle), not like trade data"),
        (CANDLE, trade(0, 1), "looks like binance_trades (trade), not like candle data"),
        ("binance:BTC/USDT@agg_trade", trade(0, 1), "import it with data type trade"),
        (TRADE, f"1,1.5,2,3,3,{T0},true,true\n", "import it with data type agg_trade"),
        ("okx:BTC/USDT@trade", trade(0, 1), "binance_trades (trade) of binance, not of okx"),
        (TRADE, "timestamp,price,amount\n", "no known format of trade data matches"),
    ],
)
async def test_the_wrong_data_type_names_what_the_file_looks_like(tmp_path, series, text, reason):
    error = await refused(tmp_path, series, {"a": text})
    assert reason in str(error)


async def test_the_wrong_symbol(tmp_path):
    error = await refused(tmp_path, CANDLE, {"ETHUSDT-1m-2024-03.zip": kline(0)})
    assert "the file name says ETHUSDT" in str(error)
    swap = "binance:BTC/USDT:USDT@candle_1m"
    await import_text(tmp_path, swap, {"BTCUSDT-1m-2024-03.zip": kline(0)})
    text = "symbol,timestamp,price,amount,side\n" + f"BTC-USDT,{T0},1,1,buy\n" * 9
    await import_text(tmp_path, "okx:BTC/USDT@trade", {"x": text})
    error = await refused(tmp_path, "okx:BTC/USDT@trade", {"x": text + f"ETH-USDT,{T0},1,1,buy\n"})
    assert (error.line, error.column, error.value) == (11, "symbol", "ETH-USDT")


HOUR = 60 * MINUTE


@pytest.mark.parametrize(
    ("interval", "every", "reason"),
    [
        ("1m", HOUR, "candle closes 3599999 ms after its open, which is not 1m"),
        ("1h", MINUTE, "candle closes 59999 ms after its open, which is not 1h"),
        ("1M", 24 * HOUR, "which is not 1M"),
    ],
)
@pytest.mark.parametrize("rows", [1, 50])
async def test_klines_of_another_interval(tmp_path, interval, every, reason, rows):
    text = "".join(kline(n, every=every) for n in range(rows))
    error = await refused(tmp_path, f"binance:BTC/USDT@candle_{interval}", {"a": text})
    assert reason in str(error)
    assert (error.line, error.column) == (1, "close_time")


async def test_months_weeks_and_odd_rows_fit(tmp_path):
    rows = {
        "1w": [(T0 - 4 * 24 * HOUR, 7 * 24 * HOUR), (T0 + 3 * 24 * HOUR, 7 * 24 * HOUR)],
        "1M": [(T0, 31 * 24 * HOUR), (T0 + 31 * 24 * HOUR, 30 * 24 * HOUR)],
        # An outage cuts one candle short and shifts those after it, as in February 2018.
        "1m": [*((T0 + n * MINUTE, MINUTE) for n in range(20)), (T0 + 20 * MINUTE, 14_838),
               *((T0 + 40 * MINUTE + 13_000 + n * MINUTE, MINUTE) for n in range(20))],
    }  # fmt: skip
    for interval, opens in rows.items():
        text = "".join(f"{at},1,1,1,1,0,{at + every - 1},0,0,0,0,0\n" for at, every in opens)
        series = f"binance:BTC/USDT@candle_{interval}"
        _, storage = await import_text(tmp_path, series, {"a": text})
        assert len(await stored(storage, series)) == len(opens)


@pytest.mark.parametrize(
    ("interval", "every", "rows", "reason"),
    [
        ("1h", MINUTE, 3, "candle opens 1 m after the one before, which is not 1h"),
        ("1m", HOUR, 4, "the nearest are 1 h"),
        ("1m", 90_000, 5, "candle opens 90 s after the one before"),
        ("1d", HOUR, 30, "which is not 1d"),
        ("1M", 24 * HOUR, 30, "which is not 1M"),
    ],
)
async def test_plain_candles_of_another_interval(tmp_path, interval, every, rows, reason):
    text = "".join(f"{T0 + n * every},1,1,1,1,0\n" for n in range(rows))
    error = await refused(tmp_path, f"okx:BTC/USDT@candle_{interval}", {"a": text})
    assert reason in str(error)


async def test_one_bad_file_refuses_them_all(tmp_path):
    files = {"a.csv": kline(0), "b.csv": kline(1) + "oops\n"}
    error = await refused(tmp_path, CANDLE, files)
    assert (error.file, error.line) == ("b.csv", 2)


async def test_naive_times_are_refused(tmp_path):
    text = "datetime,open,high,low,close,volume\n2024-03-01 00:00:00,1,1,1,1,1\n"
    error = await refused(tmp_path, PLAIN, {"a": text})
    assert "has no time zone" in str(error)
    assert (error.line, error.column) == (2, "datetime")
    _, storage = await import_text(tmp_path, PLAIN, {"a": text.replace(":00,", ":00Z,")})
    assert candles(await stored(storage, PLAIN))[0][0] == T0


# Around the work -----------------------------------------------------------------------------


async def test_progress_reaches_its_total(tmp_path, small_pieces):
    seen: list[Progress] = []
    text = "".join(trade(n, n) for n in range(2000)).encode()
    files = [("a", io.BytesIO(text)), ("b", io.BytesIO(trade(2001, 2001).encode()))]
    await import_files(
        files, Series.parse(TRADE), MemoryStorage(), FORMATS,
        covers=None, spool_dir=tmp_path, progress=seen.append,
    )  # fmt: skip
    read = [step.done for step in seen if step.unit == "bytes"]
    assert read == sorted(read)
    assert read[-1] == seen[0].total == len(text) + len(trade(2001, 2001))
    assert [step.message for step in seen][-1] == "storing"
    assert (seen[-1].done, seen[-1].total, seen[-1].unit) == (2001, 2001, "rows")
    assert list(tmp_path.iterdir()) == []


async def test_a_storage_that_fails_ends_the_import(tmp_path):
    class Full(MemoryStorage):
        async def append(self, series, page):
            raise StorageError("disk full")

    with pytest.raises(StorageError, match="disk full"):
        await import_text(tmp_path, CANDLE, {"a": kline(0)}, Full())


async def test_a_missing_spool_folder_is_told(tmp_path):
    with pytest.raises(StorageError, match="cannot make a temporary file"):
        await import_text(tmp_path / "nowhere", CANDLE, {"a": kline(0)})


async def test_a_layout_of_two_formats_is_refused_by_name(tmp_path):
    class Rival(type(FORMATS[0])):
        name = "rival"

    text = "time,open,high,low,close,volume\n" + f"{T0},1,1,1,1,1\n"
    files = [("a.csv", io.BytesIO(text.encode()))]
    with pytest.raises(DataError, match="formats csv_candles and rival both claim this file"):
        await import_files(
            files, Series.parse(PLAIN), MemoryStorage(), [*FORMATS, Rival()],
            covers=None, spool_dir=tmp_path, progress=lambda _: None,
        )  # fmt: skip


@pytest.mark.parametrize("message", ["reading a", "storing"])
async def test_an_import_can_be_cancelled(tmp_path, small_pieces, message):
    storage = MemoryStorage()
    text = "".join(trade(n, n) for n in range(3000)).encode()

    def cancel(step: Progress) -> None:
        if step.message == message:
            scope.cancel()

    with trio.CancelScope() as scope:
        await import_files(
            [("a", io.BytesIO(text))], Series.parse(TRADE), storage, FORMATS,
            covers=None, spool_dir=tmp_path, progress=cancel,
        )  # fmt: skip
    assert scope.cancelled_caught
    kept = len(await stored(storage, TRADE))
    assert kept == 0 if message == "reading a" else 0 < kept < 3000


async def test_a_descriptor_that_cannot_be_read_is_told(tmp_path):
    fd = os.open(tmp_path / "a.csv", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"time\n")
    with open(fd, "rb") as file, pytest.raises(DataError, match=r"a\.csv: cannot be read"):
        await import_files(
            [("a.csv", file)], Series.parse(CANDLE), MemoryStorage(), FORMATS,
            covers=None, spool_dir=tmp_path, progress=lambda _: None,
        )  # fmt: skip


async def test_what_ends_an_overlap_is_told_though_the_other_side_is_ready_just_then():
    for _ in range(200):  # about every sixth time both threads report in the same round of the loop
        both = threading.Barrier(2)

        def items(both: threading.Barrier = both) -> Generator[int]:
            yield 0
            both.wait()
            yield 1

        async def take(item: int, both: threading.Barrier = both) -> None:
            await trio.to_thread.run_sync(both.wait)
            raise ValueError(item)

        with pytest.raises(ValueError, match="0"):
            await overlap(items(), take)
