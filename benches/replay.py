"""Replay five million stored trades to one WebSocket client at `max`, beside a Node `ws` server.

Prints medians of interleaved runs, bytes per message, memory, first-tick latency and bytes per
stored trade. It asserts nothing about time; it does check that what arrived is what was stored.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import tempfile
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import harness
import trio

import tardisd_sqlite
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import MILLISECOND, SECOND, format_time, parse_time
from tardisd.plugins.base import Context
from tardisd.plugins.exchange import Page
from tardisd.plugins.sessions import Sessions
from tardisd.plugins.storage import Storage
from tardisd.testing.ticks import random_trades

START = parse_time("2024-03-01T00:00:00Z")
REPLAYED = [
    Series.of("bench", f"{name}/USDT", "trade") for name in ("AAA", "BBB", "CCC", "DDD", "EEE")
]
STORED = REPLAYED + [
    Series.of("bench", f"{name}/USDT", "trade") for name in ("FFF", "GGG", "HHH", "III", "JJJ")
]
PAGE_ROWS = 100_000
SMALL = 50_000
SAMPLE_EVERY = 9_973
SESSION = "bench-session"


def trades(series: Series, rows: int) -> Batch:
    """Return the trades of a series: the same ones on every call."""
    return random_trades(series, rows, START, seed=STORED.index(series))


def common_end(rows: int) -> int:
    """Return a time (ns) after the last trade of every series; all are covered up to it."""
    return max(int(trades(series, rows).ts_event[-1]) for series in STORED) + SECOND


async def fill(storage: Storage[Any], rows: int) -> tuple[int, int]:
    """Store `rows` trades for each series; return (rows, bytes) as the storage counts them."""
    everything = common_end(rows)
    async with storage.run():
        for series in STORED:
            batch = trades(series, rows)
            cursor = START
            for first in range(0, rows, PAGE_ROWS):
                part = batch[first : first + PAGE_ROWS]
                # Equal times must not be torn apart by a page's end.
                end = int(part.ts_event[-1]) + 1 if first + PAGE_ROWS < rows else everything
                part = batch.within(Span(cursor, end))
                await storage.append(series, Page(part, Span(cursor, end), source="bench"))
                cursor = end
        infos = await storage.list_series()
    return sum(info.rows for info in infos), sum(info.size_bytes for info in infos)


def prepare(rows: int) -> tuple[Path, dict[str, int]]:
    """Return a folder with a filled store (made once per version of the storage), and its sizes."""
    sources = [*Path(tardisd_sqlite.__file__).parent.glob("*.py"), Path(__file__)]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"tardisd-bench-{rows}-{key}"
    if not (folder / "sizes.json").exists():
        print(f"storing {len(STORED) * rows:,} trades in {folder} (once) …", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        (plugin,) = tardisd_sqlite.tardisd_storages()
        context = Context("main", folder, NoSessions())
        stored, size = trio.run(fill, plugin(plugin.Options(), context), rows)
        on_disk = sum(path.stat().st_size for path in folder.glob("tardisd.sqlite*"))
        sizes = {"rows": stored, "chunk_bytes": size, "file_bytes": on_disk}
        (folder / "sizes.json").write_text(json.dumps(sizes))
    return folder, json.loads((folder / "sizes.json").read_text())


class NoSessions:
    """Stands where the storage asks for sessions, which it never does."""

    def __getattr__(self, name: str) -> Sessions:
        raise AssertionError(f"a storage asked for sessions.{name}")


def configure(store: Path, folder: Path, port: int) -> Path:
    """Write the smallest configuration that replays to a WebSocket; return its path."""
    config = folder / "config.toml"
    config.write_text(
        f'[daemon]\ndata_dir = "{folder}"\ncontrol_socket = "{folder}/control.sock"\n'
        f'[storages.main]\nplugin = "sqlite"\npath = "{store}/tardisd.sqlite"\n'
        f'[sinks.ws]\nplugin = "websocket"\nlisten = "127.0.0.1:{port}"\n'
    )
    return config


def count(port: int, end: int, name: str = SESSION, *options: str) -> dict[str, Any]:
    """Replay everything up to `end` (ns) through the counting client; return what it reports."""
    request = {
        "type": "create_session",
        "session_id": name,
        "series": [str(series) for series in REPLAYED],
        "start_time": START // MILLISECOND,
        "end_time": format_time(end),
        "speed": "max",
        "ephemeral": True,  # a client that leaves early leaves no replay running behind it
    }
    command = [harness.build_counter(), str(port), json.dumps(request), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: the client failed: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    result["rate"] = result["ticks"] / result["seconds"] if result["seconds"] else 0.0
    return result


def check_sample(path: Path, rows: int) -> int:
    """Compare the sampled messages with the trades that were stored; return how many there are."""
    batches = {str(series.symbol): trades(series, rows) for series in REPLAYED}
    expected_seq = 1
    lines = path.read_text().splitlines()
    for line in lines:
        message = json.loads(line, parse_float=Decimal)
        data = message["data"]
        batch = batches[data["symbol"]]
        at = int(data["id"]) - int(batch.ids[0])
        found = (
            message["seq"],
            data["timestamp"],
            Decimal(data["price"]),
            Decimal(data["amount"]),
            data["side"],
        )
        price, amount = (batch.fields[name][at : at + 1].texts()[0] for name in ("price", "amount"))
        stored = (
            expected_seq,
            int(batch.ts_event[at]) // MILLISECOND,
            Decimal(price),
            Decimal(amount),
            ("buy", "sell")[int(batch.sides[at])],
        )
        if found != stored:
            raise SystemExit(f"bench: message differs from what was stored: {line} != {stored}")
        expected_seq += SAMPLE_EVERY
    return len(lines)


def measure_small(store: Path, folder: Path, rows: int) -> Mapping[str, Any]:
    """Measure memory for few ticks, and the latency of first ticks, on a fresh daemon."""
    first = trades(REPLAYED[0], rows).ts_event
    end = int(first[SMALL // len(REPLAYED)])
    port = harness.free_port()
    with harness.daemon(configure(store, folder, port)) as (child, _):
        small = count(port, end, "small")
        memory = harness.peak_memory(child.pid)
        latencies = [count(port, end, f"l{i}", "-n", "1")["first_tick_ms"] for i in range(9)]
        everything = common_end(rows)
        wide = [count(port, everything, f"w{i}", "-n", "1")["first_tick_ms"] for i in range(9)]
    return {
        "ticks": small["ticks"],
        "peak_memory_bytes": memory,
        "first_tick_ms": statistics.median(latencies),
        "first_tick_of_all_ms": statistics.median(wide),
    }


def measure_large(
    store: Path, folder: Path, rows: int, runs: int, baseline_ticks: int
) -> Mapping[str, Any]:
    """Run daemon and baseline by turns."""
    node = harness.install_baseline()
    end = common_end(rows)
    ours, theirs, memory, checked, padding = [], [], 0, 0, 0
    sample = folder / "sample.ndjson"
    port = harness.free_port()
    with harness.daemon(configure(store, folder, port)) as (child, _):
        for run in range(runs):
            before = harness.cpu_seconds(child.pid)
            options = ("-s", str(sample), str(SAMPLE_EVERY)) if run == 0 else ()
            ours.append(count(port, end, f"{SESSION}-{run}", *options))
            ours[-1]["cpu"] = harness.cpu_seconds(child.pid) - before
            if run == 0:
                memory = harness.peak_memory(child.pid)
                checked = check_sample(sample, rows)
                padding = match_size(node, ours[0]["bytes"] // ours[0]["ticks"])
            theirs.append(baseline(node, baseline_ticks, padding))
            rates = f"{ours[-1]['rate']:>12,.0f} {theirs[-1]['rate']:>12,.0f}"
            print(f"run {run + 1}: tardisd, node (ticks/s) {rates}", flush=True)
    expected = rows * len(REPLAYED)
    for result in ours:
        end_message = result["end"]
        if (result["ticks"], end_message["ticks"]) != (expected, expected):
            raise SystemExit(f"bench: expected {expected} ticks, got {result}")
        if end_message["hash"] != ours[0]["end"]["hash"]:
            raise SystemExit("bench: the content hash differs between runs")
    return {
        "ours": ours,
        "theirs": theirs,
        "peak_memory_bytes": memory,
        "checked_messages": checked,
        "hash": ours[0]["end"]["hash"],
    }


def baseline(node: str, ticks: int, padding: int) -> dict[str, Any]:
    """Run the Node server once for one client."""
    port = harness.free_port()
    command = [node, str(harness.HERE / "baseline.mjs"), str(port), str(ticks), str(padding)]
    with harness.running(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        return count(port, START + SECOND)


def match_size(node: str, wanted: int) -> int:
    """Return the padding (bytes) with which the baseline's messages are as long as ours."""
    plain = baseline(node, 1000, 0)
    lacking = wanted - plain["bytes"] // plain["ticks"]
    return max(0, lacking - len(',"padding":""'))


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="trades per series")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--baseline-ticks", type=int, default=5_000_000)
    asked = parser.parse_args()
    harness.build_counter()
    harness.install_baseline()
    store, sizes = prepare(asked.rows)
    with tempfile.TemporaryDirectory() as name:
        small = measure_small(store, Path(name), asked.rows)
    with tempfile.TemporaryDirectory() as name:
        large = measure_large(store, Path(name), asked.rows, asked.runs, asked.baseline_ticks)
    ours, theirs = large["ours"], large["theirs"]
    rate, node_rate = (statistics.median(run["rate"] for run in runs) for runs in (ours, theirs))
    cpu = statistics.median(run["cpu"] / run["ticks"] for run in ours)
    lines = [
        ("ticks per second, tardisd", f"{rate:,.0f}"),
        ("ticks per second, Node ws", f"{node_rate:,.0f}"),
        ("ratio", f"{rate / node_rate:.1f}"),
        ("processor time per tick, tardisd", f"{cpu * 1e9:,.0f} ns"),
        ("bytes per message, tardisd", f"{ours[0]['bytes'] / ours[0]['ticks']:.1f}"),
        ("bytes per message, Node ws", f"{theirs[0]['bytes'] / theirs[0]['ticks']:.1f}"),
        (f"peak memory, {small['ticks']:,} ticks", f"{small['peak_memory_bytes'] / 2**20:.0f} MiB"),
        (
            f"peak memory, {ours[0]['ticks']:,} ticks",
            f"{large['peak_memory_bytes'] / 2**20:.0f} MiB",
        ),
        (f"first tick, {sizes['rows']:,} rows stored", f"{small['first_tick_ms']:.1f} ms"),
        ("first tick, whole range asked for", f"{small['first_tick_of_all_ms']:.1f} ms"),
        ("bytes per stored trade (chunks)", f"{sizes['chunk_bytes'] / sizes['rows']:.2f}"),
        ("bytes per stored trade (file)", f"{sizes['file_bytes'] / sizes['rows']:.2f}"),
        ("messages compared with the store", f"{large['checked_messages']}"),
        ("content hash, every run", large["hash"]),
    ]
    for label, value in lines:
        print(f"{label:<40} {value:>16}")
    harness.save("replay", {"sizes": sizes, "small": small, **large})


if __name__ == "__main__":
    main()
