"""Backfill from Binance: how fast its answers and files are read, and a whole job beside ccxt.

First answers and files are read on one core, to checked exact pages: rows per second of processor
time, and peak memory. Then a daemon backfills candles from Binance on loopback, over REST and from
its archives, and a plain loop of ccxt's `fetch_ohlcv` puts the same into SQLite rows: same pages,
limits off on both sides, rows per second on the clock and of processor time; once with no distance
between, where processors decide, and once with the distance of real venues, where waiting does.
With no distance ccxt is nearly as fast as Python can be, and the daemon one or two times as fast;
from afar ccxt waits for each answer, so that its rate does not depend on how many rows are asked
for, and it is given a tenth of them. Medians of interleaved runs. It asserts nothing about time; it
does check that every row came. ccxt is installed on first use.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import harness
import msgspec
import trio

import tardisd_binance
from tardisd.allocator import keep_freed_memory
from tardisd.dumps.archive import read_dump
from tardisd.market.check import check_batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import DAY, MILLISECOND, MINUTE, format_time, parse_time
from tardisd.testing.ticks import random_candles, random_trades
from tardisd.testing.venues.binance import BinanceVenue
from tardisd.testing.venues.faults import Stall
from tardisd.venue.budget import Limit
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


async def serve_venue(count: int, away_secs: float) -> None:
    """Be Binance, as far away as told, with limits that nobody reaches; print its URLs."""
    other = Series.parse("binance:ETH/USDT@candle_1m")
    batch = random_candles(CANDLES, count, START)
    data = {CANDLES: batch, other: random_candles(other, 10, START)}
    limits = {"rest weight": Limit("rest weight", 10**9, 60, aligned=True)}
    clock = START + count * MINUTE + 10 * DAY
    far = [Stall(secs=away_secs, times=None)] if away_secs else []
    async with BinanceVenue(data, limits=limits, clock=clock, faults=far).serve() as venue:
        print(json.dumps(venue.urls), flush=True)
        await trio.sleep_forever()


@contextmanager
def venue_of(count: int, away_secs: float = 0.0) -> Iterator[dict[str, str]]:
    """Run the venue in a process of its own; yield its URLs."""
    command = [sys.executable, Path(__file__), "--venue", str(away_secs), "--candles", str(count)]
    with harness.running(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        yield json.loads(child.stdout.readline())


def run_tardisd(archives: str, urls: dict[str, str], count: int) -> tuple[float, float, int]:
    """Backfill with a daemon; return seconds on the clock and of the processor, and its peak."""
    with tempfile.TemporaryDirectory() as folder:
        config, socket = Path(folder, "config.toml"), f"{folder}/control.sock"
        config.write_text(
            f"""
            [daemon]
            data_dir = "{folder}/data"
            control_socket = "{socket}"
            [storages.main]
            plugin = "sqlite"
            [exchanges.binance]
            plugin = "binance"
            rest_url = "{urls["rest"]}"
            swap_rest_url = "{urls["swap"]}"
            archive_url = "{urls["archive"]}"
            archives = "{archives}"
            budget_share = 1.0
            """
        )

        def backfill(series: str, minutes: int) -> int:
            words = ["--from", format_time(START), "--to", format_time(START + minutes * MINUTE)]
            command = [harness.BIN / "tardisctl", "--socket", socket, "--json", "backfill", "run",
                       series, *words, "--wait"]  # fmt: skip
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            return int(json.loads(told)["results"][0]["added"])

        with harness.daemon(config) as (child, _):
            # After the first job the daemon has heard how high the venue's limits are.
            backfill("binance:ETH/USDT@candle_1m", 10)
            begun, used = time.monotonic(), harness.processor_secs(child.pid)
            added = backfill(str(CANDLES), count)
            seconds = time.monotonic() - begun
            used = harness.processor_secs(child.pid) - used
            assert added == count, f"{added} rows of {count}"
            return seconds, used, harness.peak_memory(child.pid)


def run_ccxt(url: str, count: int, folder: str) -> None:
    """Fetch with ccxt, insert rows with executemany; print seconds, rows and peak memory."""
    ccxt = importlib.import_module("ccxt")
    binance = ccxt.binance(
        {"enableRateLimit": False, "options": {"fetchMarkets": {"types": ["spot"]}}}
    )
    binance.urls["api"]["public"] = f"{url}/api/v3"
    binance.load_markets()
    connection = sqlite3.connect(Path(folder, "rows.sqlite"))
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(
        "CREATE TABLE candle (ts INTEGER PRIMARY KEY, open, high, low, close, volume)"
    )
    begun, since, found = time.monotonic(), START // MILLISECOND, 0
    used = time.process_time()
    end = since + count * MINUTE // MILLISECOND
    while since < end:
        page = binance.fetch_ohlcv("BTC/USDT", "1m", since, PAGE_ROWS)
        page = [row for row in page if row[0] < end]
        if not page:
            break
        connection.executemany("INSERT INTO candle VALUES (?,?,?,?,?,?)", page)
        connection.commit()
        since, found = page[-1][0] + 60_000, found + len(page)
    seconds, used = time.monotonic() - begun, time.process_time() - used
    connection.close()
    print(seconds, used, found, harness.peak_memory(os.getpid()))


def measure_ccxt(url: str, count: int) -> tuple[float, float, int]:
    """Measure ccxt in a process of its own; return what `run_tardisd` does."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, os.fspath(Path(__file__)), "--ccxt", url, folder,
                   "--candles", str(count)]  # fmt: skip
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(told[2]) == count, f"ccxt: {told[2]} rows of {count}"
    return float(told[0]), float(told[1]), int(told[3])


def measure_jobs(count: int, runs: int, away_secs: float) -> dict[str, float]:
    """Backfill in turn with tardisd and with ccxt; return the medians."""
    place = f", {1000 * away_secs:g} ms away" if away_secs else ""
    if importlib.util.find_spec("ccxt") is None:
        print("installing ccxt, the baseline, beside tardisd (only for this bench, and only now)")
        subprocess.run([sys.executable, "-m", "pip", "install", "-qq", "ccxt"], check=True)
    of_ccxt = count // 10 if away_secs else count
    sides: dict[str, tuple[int, Callable[[dict[str, str]], tuple[float, float, int]]]] = {
        "job, REST": (count, lambda urls: run_tardisd("never", urls, count)),
        "job, archives and REST": (count, lambda urls: run_tardisd("prefer", urls, count)),
        "job, ccxt into SQLite rows": (of_ccxt, lambda urls: measure_ccxt(urls["rest"], of_ccxt)),
    }
    rates: dict[str, list[float]] = {label: [] for label in sides}
    costs: dict[str, list[float]] = {label: [] for label in sides}
    results: dict[str, float] = {}
    with venue_of(count, away_secs) as urls:
        # The venue prints its rows when first asked for them.
        run_tardisd("never", urls, count)
        run_tardisd("prefer", urls, count)
        for _ in range(runs):
            for label, (rows_, side) in sides.items():
                seconds, used, peak = side(urls)
                rates[label].append(rows_ / seconds)
                costs[label].append(rows_ / used)
                results[f"{label}{place}, peak MiB"] = peak / 2**20
    for label, found in costs.items():
        results[f"{label}{place}, rows per processor second"] = statistics.median(found)
    medians = {label: statistics.median(found) for label, found in rates.items()}
    theirs = medians["job, ccxt into SQLite rows"]
    for label, median in medians.items():
        results[f"{label}{place}, rows/s"] = median
        if median != theirs:
            results[f"{label}{place}, times ccxt"] = median / theirs
    return results


def main() -> None:
    """Make the files, measure in turn, print and keep the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--candles", type=int, default=500_000, help="of a job")
    parser.add_argument("--venue", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--away-ms", type=float, default=100.0, help="how far away a far venue is")
    parser.add_argument("--far-candles", type=int, default=1_000_000, help="of a far venue's job")
    parser.add_argument("--ccxt", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.venue is not None:
        trio.run(serve_venue, asked.candles, asked.venue)
        return
    if asked.ccxt:
        run_ccxt(asked.ccxt[0], asked.candles, asked.ccxt[1])
        return
    if asked.run:
        keep_freed_memory()  # as the daemon does
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
    results |= measure_jobs(asked.candles, asked.runs, 0.0)
    results |= measure_jobs(asked.far_candles, asked.runs, asked.away_ms / 1000)
    for label, value in sorted(results.items()):
        shown = f"{value:,.1f}" if label.endswith("times ccxt") else f"{value:,.0f}"
        print(f"{label:<66} {shown:>12}")
    harness.save("backfill", results)


if __name__ == "__main__":
    main()
