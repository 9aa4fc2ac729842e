"""Import generated Binance kline and trade files into SQLite, beside csv + Decimal + executemany.

Prints rows per second, medians of interleaved runs, and peak memory. It asserts nothing about
time; it does check that both sides end with the same number of rows.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from decimal import Decimal
from pathlib import Path

import harness
import trio

import tardisd_binance
import tardisd_sqlite
from tardisd.market.series import Series
from tardisd.market.time import MILLISECOND, parse_time
from tardisd.plugins.base import Context
from tardisd.plugins.storage import Storage
from tardisd.testing.ticks import random_candles, random_trades
from tardisd.transfer.importing import import_files

START = parse_time("2024-03-01T00:00:00Z")
SERIES = {
    "klines": Series.parse("binance:BTC/USDT@candle_1m"),
    "trades": Series.parse("binance:BTC/USDT@trade"),
}
TABLES = {
    "klines": "ts INTEGER PRIMARY KEY, open, high, low, close, volume, quote_volume, trades",
    "trades": "ts INTEGER, id INTEGER, price, amount, side, PRIMARY KEY (ts, id)",
}


def write_klines(path: Path, rows: int) -> None:
    """Write a spot kline file: 12 columns, eight digits after every point."""
    batch = random_candles(SERIES["klines"], rows, START)
    texts = [batch.fields[n].texts() for n in ("open", "high", "low", "close", "volume")]
    opens = (batch.ts_event // MILLISECOND).tolist()
    with path.open("w") as out:
        for ts, *values in zip(opens, *texts, strict=True):
            numbers = ",".join(f"{Decimal(value or 0):.8f}" for value in values)
            out.write(f"{ts},{numbers},{ts + 59_999},6470.12345678,17,0.05000000,3235.06,0\n")


def write_trades(path: Path, rows: int) -> None:
    """Write a spot trades file: 7 columns, eight digits after every point."""
    batch = random_trades(SERIES["trades"], rows, START, mean_gap_ms=20)
    assert batch.ids is not None
    texts = [batch.fields[n].texts() for n in ("price", "amount")]
    times = (batch.ts_event // MILLISECOND).tolist()
    makers = ["False", "True"]
    with path.open("w") as out:
        for ts, id_, price, amount, at in zip(
            times, batch.ids.tolist(), *texts, range(rows), strict=True
        ):
            out.write(
                f"{id_},{Decimal(price or 0):.8f},{Decimal(amount or 0):.8f},64.50000000,{ts},"
                f"{makers[at % 3 == 0]},True\n"
            )


async def ours(kind: str, path: Path, folder: Path) -> int:
    """Import the file as `tardisctl data import` does; return the rows added."""
    [plugin] = tardisd_sqlite.tardisd_storages()
    context = Context("bench", folder, None)  # type: ignore[arg-type]
    storage: Storage = plugin(plugin.Options(), context)  # type: ignore[type-arg]
    formats = [format_() for format_ in tardisd_binance.tardisd_formats()]
    async with storage.run():
        with path.open("rb") as raw:
            result = await import_files(
                [(path.name, raw)],
                SERIES[kind],
                storage,
                formats,
                covers=None,
                spool_dir=folder,
                progress=lambda _: None,
            )
    return result.added


def theirs(kind: str, path: Path, folder: Path) -> int:
    """Read with csv, keep numbers exact with Decimal, insert rows with executemany."""
    connection = sqlite3.connect(folder / "rows.sqlite")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"CREATE TABLE tick ({TABLES[kind]}) WITHOUT ROWID")
    width = TABLES[kind].count(",") + (1 if kind == "klines" else -1)
    insert = f"INSERT INTO tick VALUES ({','.join('?' * width)})"
    total = 0
    with path.open(newline="") as text:
        page: list[tuple[object, ...]] = []
        for row in csv.reader(text):
            if kind == "klines":
                exact = [str(Decimal(cell)) for cell in (*row[1:6], row[7])]
                page.append((int(row[0]), *exact, int(row[8])))
            else:
                side = "sell" if row[5] == "True" else "buy"
                exact = [str(Decimal(cell)) for cell in row[1:3]]
                page.append((int(row[4]), int(row[0]), *exact, side))
            if len(page) == 10_000:
                connection.executemany(insert, page)
                connection.commit()
                total += len(page)
                page.clear()
    connection.executemany(insert, page)
    connection.commit()
    connection.close()
    return total + len(page)


def run(side: str, kind: str, path: Path) -> None:
    """Do one run in this process; print seconds, rows and peak memory (bytes)."""
    folder = Path(tempfile.mkdtemp(dir=path.parent))
    start = time.perf_counter()
    added = trio.run(ours, kind, path, folder) if side == "ours" else theirs(kind, path, folder)
    seconds = time.perf_counter() - start
    shutil.rmtree(folder)
    print(seconds, added, harness.peak_memory(os.getpid()))


def measure(side: str, kind: str, path: Path) -> tuple[float, int, int]:
    """Run in a process of its own; return rows per second, rows, peak memory (bytes)."""
    command = [sys.executable, os.fspath(Path(__file__)), "--run", side, kind, os.fspath(path)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(found[1]) / float(found[0]), int(found[1]), int(found[2])


def main() -> None:
    """Generate the files, measure both sides in turn, print and keep the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--baseline-rows", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        run(asked.run[0], asked.run[1], Path(asked.run[2]))
        return
    results = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, write in (("klines", write_klines), ("trades", write_trades)):
            large, small = Path(name, f"{kind}.csv"), Path(name, f"{kind}-small.csv")
            packed = Path(name, f"{kind}.zip")
            write(large, asked.rows)
            write(small, asked.baseline_rows)
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(large, large.name)
            plan = {
                "tardisd": ("ours", large, asked.rows),
                "tardisd, zip": ("ours", packed, asked.rows),
                "csv + Decimal + executemany": ("theirs", small, asked.baseline_rows),
            }
            rates: dict[str, list[float]] = {label: [] for label in plan}
            for _ in range(asked.runs):
                for label, (side, path, rows) in plan.items():
                    rate, added, peak = measure(side, kind, path)
                    assert added == rows, f"{label}: {added} rows of {rows}"
                    rates[label].append(rate)
                    results[f"{kind}, {label}, peak MiB"] = peak / 2**20
            for label, found in rates.items():
                results[f"{kind}, {label}, rows/s"] = statistics.median(found)
            for path in (large, small, packed):
                path.unlink()
    for label, value in sorted(results.items()):
        print(f"{label:<55} {value:>12,.0f}")
    harness.save("import", results)


if __name__ == "__main__":
    main()
