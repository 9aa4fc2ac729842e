"""Read what Binance answers, on one core: REST JSON and archive files, to checked exact pages.

Prints rows per second of processor time, medians of interleaved runs, and peak memory. It asserts
nothing about time; it does check that every row was read.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import harness
import msgspec
import trio

import tardisd_binance
from tardisd.dumps.archive import read_dump
from tardisd.market.check import check_batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import MILLISECOND, parse_time
from tardisd.testing.ticks import random_candles, random_trades
from tardisd_binance import rows

START = parse_time("2024-03-01T00:00:00Z")
EVER = Span(0, 2**62)
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
TRADES = Series.parse("binance:BTC/USDT@trade")
AGG_TRADES = Series.parse("binance:BTC/USDT@agg_trade")
PAGE_ROWS = 1000
FILE_ROWS = 200_000  # made once and repeated with later times, so that huge files are made fast


def klines_json(count: int) -> bytes:
    """Return an answer of `/api/v3/klines`."""
    batch = random_candles(CANDLES, count, START)
    names = ("open", "high", "low", "close", "volume")
    columns = [[f"{float(text or 0):.8f}" for text in batch.fields[n].texts()] for n in names]
    opens = (batch.ts_event // MILLISECOND).tolist()
    return msgspec.json.encode(
        [
            [ts, *prices, ts + 59_999, "6470.12345678", 17, "0.05000000", "3235.06000000", "0"]
            for ts, *prices in zip(opens, *columns, strict=True)
        ]
    )


def agg_trades_json(count: int) -> bytes:
    """Return an answer of `/api/v3/aggTrades`."""
    batch = random_trades(AGG_TRADES, count, START)
    assert batch.ids is not None
    prices, amounts = (batch.fields[name].texts() for name in ("price", "amount"))
    times = (batch.ts_event // MILLISECOND).tolist()
    return msgspec.json.encode(
        [
            {"a": id_, "p": f"{float(price or 0):.8f}", "q": f"{float(amount or 0):.8f}",
             "f": id_ + 7, "l": id_ + 7, "T": ts, "m": id_ % 3 == 0, "M": True}
            for ts, id_, price, amount in zip(
                times, batch.ids.tolist(), prices, amounts, strict=True
            )
        ]
    )  # fmt: skip


def read_pages(series: Series, made: Callable[[int], bytes], count: int) -> tuple[int, float]:
    """Read answers as the plugin does; return the rows and the CPU seconds."""
    body, reader = made(PAGE_ROWS), rows.READERS[series.data_type.kind]
    check_batch(reader(body, series))  # what is imported on first use is not what is measured
    found = 0
    begin = time.process_time()
    for _ in range(count // PAGE_ROWS):
        batch = reader(body, series)
        check_batch(batch)
        found += len(batch)
    return found, time.process_time() - begin


async def read_file(series: Series, path: Path) -> tuple[int, float]:
    """Read a file as the plugin does, page by page; return the rows and the CPU seconds."""
    formats = [format_() for format_ in tardisd_binance.tardisd_formats()]
    found = 0
    begin = time.process_time()
    async with read_dump(path, series, formats, path.parent) as dump:
        for piece in dump.pieces(EVER):
            page = await dump.load(piece, "")
            check_batch(page.batch, page.span)
            found += len(page.batch)
    return found, time.process_time() - begin


def write_trades(path: Path, count: int) -> None:
    """Write a zip of a spot trades file, in the venue's own words."""
    batch = random_trades(TRADES, min(count, FILE_ROWS), START, mean_gap_ms=20)
    assert batch.ids is not None
    prices, amounts = (batch.fields[name].texts() for name in ("price", "amount"))
    cells = [
        (f"{float(price or 0):.8f},{float(amount or 0):.8f},64.50000000", side)
        for price, amount, side in zip(
            prices, amounts, ["True", "False", "False"] * len(batch), strict=False
        )
    ]
    ids, times = batch.ids, batch.ts_event // MILLISECOND
    step = int(times[-1] - times[0]) + 1
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        member = archive.open(f"{path.stem}.csv", "w", force_zip64=True)
        with member:
            for turn in range(-(-count // len(batch))):
                left = count - turn * len(batch)
                here = zip(
                    (ids + turn * len(batch)).tolist(), (times + turn * step).tolist(), cells,
                    strict=True,
                )  # fmt: skip
                lines = [f"{id_},{cell},{ts},{side},True\n" for id_, ts, (cell, side) in here]
                member.write("".join(lines[:left]).encode())


def write_klines(path: Path, count: int) -> None:
    """Write a zip of a spot klines file."""
    batch = random_candles(CANDLES, count, START)
    names = ("open", "high", "low", "close", "volume")
    columns = [[f"{float(text or 0):.8f}" for text in batch.fields[n].texts()] for n in names]
    opens = (batch.ts_event // MILLISECOND).tolist()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(
            f"{path.stem}.csv",
            "".join(
                f"{ts},{','.join(prices)},{ts + 59_999},6470.12345678,17,0.05000000,3235.06,0\n"
                for ts, *prices in zip(opens, *columns, strict=True)
            ),
        )


MEASURED: dict[str, Callable[[Path, int], tuple[int, float]]] = {
    "klines, REST JSON": lambda _, count: read_pages(CANDLES, klines_json, count),
    "agg trades, REST JSON": lambda _, count: read_pages(AGG_TRADES, agg_trades_json, count),
    "klines, archive CSV": lambda folder, _: trio.run(
        partial(read_file, CANDLES, folder / "klines.csv")
    ),
    "klines, archive zip": lambda folder, _: trio.run(
        partial(read_file, CANDLES, folder / "klines.zip")
    ),
    "trades, archive CSV": lambda folder, _: trio.run(
        partial(read_file, TRADES, folder / "trades.csv")
    ),
    "trades, archive zip": lambda folder, _: trio.run(
        partial(read_file, TRADES, folder / "trades.zip")
    ),
}


def measure(label: str, folder: Path, count: int) -> tuple[float, int]:
    """Measure in a process of its own, on one core; return rows per second and peak memory."""
    command = [sys.executable, os.fspath(Path(__file__)), "--run", label, os.fspath(folder),
               "--rows", str(count)]  # fmt: skip
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(found[0]) == count, f"{label}: {found[0]} rows of {count}"
    return count / float(found[1]), int(found[2])


def main() -> None:
    """Make the files, measure in turn, print and keep the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        found, seconds = MEASURED[asked.run[0]](Path(asked.run[1]), asked.rows)
        print(found, seconds, harness.peak_memory(os.getpid()))
        return
    rates: dict[str, list[float]] = {label: [] for label in MEASURED}
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        write_klines(Path(name, "klines.zip"), asked.rows)
        write_trades(Path(name, "trades.zip"), asked.rows)
        for stem in ("klines", "trades"):
            with zipfile.ZipFile(Path(name, f"{stem}.zip")) as archive:
                archive.extractall(name)
        for _ in range(asked.runs):
            for label in MEASURED:
                rate, peak = measure(label, Path(name), asked.rows)
                rates[label].append(rate)
                results[f"{label}, peak MiB"] = peak / 2**20
    for label, found in rates.items():
        results[f"{label}, rows/s"] = statistics.median(found)
    for label, value in sorted(results.items()):
        print(f"{label:<45} {value:>12,.0f}")
    harness.save("backfill", results)


if __name__ == "__main__":
    main()
