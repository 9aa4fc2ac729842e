"""Append and read candles and trades in PostgreSQL, beside the driver's plain inserts and fetches.

The baselines, in the same run and on the same rows: `executemany` of one INSERT a row, and a query
whose rows are fetched with `fetchmany`. Prints rows per second, medians of interleaved runs. It
asserts nothing about time; it does check that both sides end with the same rows.

Uses the database that $TARDISD_TEST_POSTGRES names (default: the one on this machine) in a schema
of its own, which is gone afterwards. The server's settings are its own, and count: say which.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import harness
import numpy as np
import psycopg
import trio

import tardisd_postgres
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import parse_time
from tardisd.plugins.base import Context
from tardisd.plugins.exchange import Page
from tardisd.plugins.secret import Secret
from tardisd.plugins.storage import Storage
from tardisd.testing.ticks import random_candles, random_trades

DSN = os.environ.get("TARDISD_TEST_POSTGRES") or "postgresql://127.0.0.1:5432/postgres"
START = parse_time("2024-03-01T00:00:00Z")
SERIES = {
    "candles": Series.parse("binance:BTC/USDT@candle_1m"),
    "trades": Series.parse("binance:BTC/USDT@trade"),
}
TABLES = {
    "candles": "ts bigint PRIMARY KEY, open numeric, high numeric, low numeric, close numeric,"
    " volume numeric, quote_volume numeric, trades numeric",
    "trades": "ts bigint, id bigint, side text, price numeric, amount numeric,"
    " PRIMARY KEY (ts, id)",
}
ORDERS = {"candles": "ts", "trades": "ts, id"}


def batch_of(kind: str, rows: int) -> Batch:
    """Return the rows that are stored."""
    if kind == "candles":
        return random_candles(SERIES[kind], rows, START)
    return random_trades(SERIES[kind], rows, START, mean_gap_ms=20)


def pages_of(batch: Batch, rows: int) -> list[Page]:
    """Return pages of so many rows, whole instants each, as a backfill brings them."""
    marks = [*np.unique(batch.ts_event[::rows]).tolist(), batch.extent().end]
    spans = [Span(*marks[at : at + 2]) for at in range(len(marks) - 1)]
    return [Page(batch.within(span), span, source="bench") for span in spans]


async def append(storage: Storage[Any], batch: Batch, rows: int) -> float:
    """Store the pages; return rows per second."""
    pages = pages_of(batch, rows)
    begun = time.perf_counter()
    added = 0
    for page in pages:
        added += (await storage.append(batch.series, page)).added
    took = time.perf_counter() - begun
    assert added == len(batch)
    return added / took


async def read(storage: Storage[Any], batch: Batch) -> float:
    """Read all in order; return rows per second."""
    begun = time.perf_counter()
    async with storage.read(batch.series, batch.extent()) as stream:
        found = [one async for one in stream]
    took = time.perf_counter() - begun
    assert same_rows(Batch.concat(found), batch).all()
    return len(batch) / took


class Spent:
    """Processor time so far: ours, and the server's for us where it runs on this machine."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'tardisd bench'"
        pids = [row[0] for row in connection.execute(query)]
        self.server = sum(map(harness.cpu_seconds, pids))
        self.ours = time.process_time()

    def since(self, before: Spent, rows: int) -> dict[str, float]:
        """Return microseconds per row since then."""
        spent = {"server": self.server - before.server, "ours": self.ours - before.ours}
        return {name: secs / rows * 1e6 for name, secs in spent.items()}


def plain_rows(batch: Batch) -> list[tuple[Any, ...]]:
    """Return the rows as Python values."""
    columns: list[list[Any]] = [batch.ts_event.tolist()]
    if batch.ids is not None and batch.sides is not None:
        columns += [batch.ids.tolist(), [("buy", "sell")[side] for side in batch.sides]]
    for field in batch.fields.values():
        columns.append([Decimal(text or 0) for text in field.texts()])
    return list(zip(*columns, strict=True))


def insert(connection: psycopg.Connection[Any], kind: str, batch: Batch, rows: int) -> float:
    """The baseline of appending: `executemany`, one transaction a page; return rows per second."""
    values = plain_rows(batch)
    marks = ", ".join(["%s"] * len(values[0]))
    statement = f"INSERT INTO plain_{kind} VALUES ({marks}) ON CONFLICT DO NOTHING".encode()
    begun = time.perf_counter()
    for first in range(0, len(values), rows):
        with connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(statement, values[first : first + rows])
    return len(values) / (time.perf_counter() - begun)


def fetch(connection: psycopg.Connection[Any], kind: str, rows: int) -> float:
    """The baseline of reading: rows as tuples, in order; return rows per second."""
    count = 0
    begun = time.perf_counter()
    with connection.transaction(), connection.cursor("plain") as cursor:
        cursor.execute(f"SELECT * FROM plain_{kind} ORDER BY {ORDERS[kind]}".encode())
        while found := cursor.fetchmany(16_384):
            count += len(found)
    took = time.perf_counter() - begun
    assert count == rows
    return count / took


async def measure(kind: str, rows: int, page: int, few: int, runs: int) -> dict[str, float]:
    """Return the medians of one kind of rows."""
    schema = f"tardisd_bench_{secrets.token_hex(4)}"
    [plugin] = tardisd_postgres.tardisd_storages()
    options = plugin.Options(dsn=Secret(DSN), schema=schema)
    whole, part = batch_of(kind, rows), batch_of(kind, few)
    found: dict[str, list[float]] = {}
    with (
        psycopg.connect(DSN, autocommit=True) as connection,
        tempfile.TemporaryDirectory() as folder,
    ):
        connection.execute("SET client_min_messages TO warning")
        try:
            context = Context("bench", Path(folder), None)  # type: ignore[arg-type]
            storage = plugin(options, context)
            async with storage.run():
                connection.execute(f"SET search_path TO {schema}".encode())
                for _ in range(runs):
                    connection.execute(f"CREATE TABLE plain_{kind} ({TABLES[kind]})".encode())
                    figures = {"executemany": insert(connection, kind, part, page)}
                    moments = [Spent(connection)]
                    figures["append"] = await append(storage, whole, page)
                    moments.append(Spent(connection))
                    figures["read"] = await read(storage, whole)
                    moments.append(Spent(connection))
                    figures["fetchmany"] = fetch(connection, kind, few)
                    figures["append again"] = len(whole) / await again(storage, whole, page)
                    for name, before, after in (
                        ("append", *moments[:2]),
                        ("read", *moments[1:]),
                    ):
                        for who, micros in after.since(before, rows).items():
                            figures[f"{name}, {who}"] = micros
                    for name, figure in figures.items():
                        found.setdefault(name, []).append(figure)
                    await storage.delete(whole.series, whole.extent())
                    connection.execute(f"DROP TABLE plain_{kind}".encode())
                    connection.execute(b"VACUUM")
        finally:
            connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())
    return {name: statistics.median(figures) for name, figures in found.items()}


async def again(storage: Storage[Any], batch: Batch, rows: int) -> float:
    """Store the same pages once more, of which nothing is new; return the seconds it took."""
    begun = time.perf_counter()
    for page in pages_of(batch, rows):
        assert (await storage.append(batch.series, page)).unchanged == len(page.batch)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--page", type=int, default=50_000, help="rows of a page")
    parser.add_argument("--few", type=int, default=50_000, help="rows for the slow baselines")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    try:
        link = psycopg.connect(DSN)
    except psycopg.OperationalError as error:
        print(f"PostgreSQL: left out ({' '.join(str(error).split())})")
        return
    with link as connection:
        server = connection.info.server_version
        fsync = connection.execute("SHOW fsync").fetchone()
    results: dict[str, Any] = {"server": server, "fsync": fsync and fsync[0]}
    print(f"PostgreSQL {server // 10_000}, fsync {results['fsync']}; no TimescaleDB")
    for kind in SERIES:
        figures = trio.run(measure, kind, asked.rows, asked.page, asked.few, asked.runs)
        results[kind] = figures
        print(f"\n{kind}, rows per second")
        print(f"  append, COPY      {figures['append']:>12,.0f}"
              f"   {figures['append'] / figures['executemany']:.1f} x executemany")  # fmt: skip
        print(f"  executemany       {figures['executemany']:>12,.0f}   (baseline)")
        print(f"  read, in order    {figures['read']:>12,.0f}"
              f"   {figures['read'] / figures['fetchmany']:.1f} x fetchmany")  # fmt: skip
        print(f"  fetchmany         {figures['fetchmany']:>12,.0f}   (baseline)")
        print(f"  the same again    {figures['append again']:>12,.0f}   (nothing is new)")
        for what in ("append", "read"):
            server, ours = figures[f"{what}, server"], figures[f"{what}, ours"]
            print(f"  processor time of {what}: server {server:.2f} µs a row, ours {ours:.2f} µs")
    harness.save("postgres", results)


if __name__ == "__main__":
    main()
