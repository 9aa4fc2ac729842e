"""Stream five million stored trades as NDJSON over HTTP at `max`, beside a Node `ws` server.

Prints medians of interleaved runs, bytes per line, processor time and memory. It asserts nothing
about time; it does check that what arrived is what was stored.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import urllib.request
from decimal import Decimal
from pathlib import Path
from typing import Any

import harness
import replay

from tardisd.market.time import MILLISECOND, format_time


def configure(store: Path, folder: Path, port: int) -> Path:
    """Write the smallest configuration that streams over HTTP; return its path."""
    config = folder / "config.toml"
    config.write_text(
        f'[daemon]\ndata_dir = "{folder}"\ncontrol_socket = "{folder}/control.sock"\n'
        f'[storages.main]\nplugin = "sqlite"\npath = "{store}/tardisd.sqlite"\n'
        f'[sinks.http]\nplugin = "http"\nlisten = "127.0.0.1:{port}"\n'
    )
    return config


def ask(port: int, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the daemon; POST when there is content."""
    data = None if content is None else json.dumps(content).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=30) as answer:
        told: dict[str, Any] = json.load(answer)
    return told


def stream(port: int, end: int, name: str, *options: str) -> dict[str, Any]:
    """Stream everything up to `end` (ns) to the counting client; return what it reports."""
    request = {
        "session_id": name,
        "series": [str(series) for series in replay.REPLAYED],
        "start_time": replay.START // MILLISECOND,
        "end_time": format_time(end),
        "speed": "max",
        "start_paused": True,
    }
    ask(port, "/api/replay/create", request)
    place = f"/api/replay/{name}"
    command = [harness.build_counter("count_http"), str(port), f"{place}/stream", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as client:
        while not ask(port, place)["subscribers"] and client.poll() is None:
            pass
        ask(port, f"{place}/resume", {})
        out, errors = client.communicate()
    if client.returncode:
        raise SystemExit(f"bench: the client failed: {errors[-2000:]}")
    result: dict[str, Any] = json.loads(out)
    result["rate"] = result["ticks"] / result["seconds"]
    return result


def check_sample(path: Path, rows: int) -> int:
    """Compare the sampled lines with the trades that were stored; return how many there are."""
    batches = {str(series.symbol): replay.trades(series, rows) for series in replay.REPLAYED}
    lines = path.read_text().splitlines()
    for place, line in enumerate(lines):
        tick = json.loads(line, parse_float=Decimal)
        batch = batches[tick["symbol"]]
        at = int(tick["id"]) - int(batch.ids[0])
        price, amount = (batch.fields[name][at : at + 1].texts()[0] for name in ("price", "amount"))
        stored = (
            1 + place * replay.SAMPLE_EVERY,
            int(batch.ts_event[at]) // MILLISECOND,
            Decimal(price),
            Decimal(amount),
        )
        found = (tick["seq"], tick["timestamp"], Decimal(tick["price"]), Decimal(tick["amount"]))
        if found != stored:
            raise SystemExit(f"bench: line differs from what was stored: {line} != {stored}")
    return len(lines)


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="trades per series")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--baseline-ticks", type=int, default=5_000_000)
    asked = parser.parse_args()
    harness.build_counter()
    node = harness.install_baseline()
    store, _ = replay.prepare(asked.rows)
    end = replay.common_end(asked.rows)
    ours, theirs, checked, padding = [], [], 0, 0
    port = harness.free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample = folder / "sample.ndjson"
        with harness.daemon(configure(store, folder, port)) as (child, _):
            for run in range(asked.runs):
                options = ("-s", str(sample), str(replay.SAMPLE_EVERY)) if run == 0 else ()
                before = harness.cpu_seconds(child.pid)
                ours.append(stream(port, end, f"bench-{run}", *options))
                ours[-1]["cpu"] = harness.cpu_seconds(child.pid) - before
                if run == 0:
                    checked = check_sample(sample, asked.rows)
                    padding = replay.match_size(node, ours[0]["bytes"] // ours[0]["ticks"])
                theirs.append(replay.baseline(node, asked.baseline_ticks, padding))
                rates = f"{ours[-1]['rate']:>12,.0f} {theirs[-1]['rate']:>12,.0f}"
                print(f"run {run + 1}: tardisd, node (ticks/s) {rates}", flush=True)
            memory = harness.peak_memory(child.pid)
    expected = asked.rows * len(replay.REPLAYED)
    for result in ours:
        if (result["ticks"], result["end"]["ticks"]) != (expected, expected):
            raise SystemExit(f"bench: expected {expected} ticks, got {result}")
        if result["end"]["hash"] != ours[0]["end"]["hash"]:
            raise SystemExit("bench: the content hash differs between runs")
    rate, node_rate = (statistics.median(run["rate"] for run in runs) for runs in (ours, theirs))
    cpu = statistics.median(run["cpu"] / run["ticks"] for run in ours)
    table = [
        ("ticks per second, tardisd over HTTP", f"{rate:,.0f}"),
        ("ticks per second, Node ws", f"{node_rate:,.0f}"),
        ("ratio", f"{rate / node_rate:.1f}"),
        ("processor time per tick, tardisd", f"{cpu * 1e9:,.0f} ns"),
        ("bytes per line, tardisd", f"{ours[0]['bytes'] / ours[0]['ticks']:.1f}"),
        ("bytes per message, Node ws", f"{theirs[0]['bytes'] / theirs[0]['ticks']:.1f}"),
        ("peak memory", f"{memory / 2**20:.0f} MiB"),
        ("lines compared with the store", f"{checked}"),
        ("content hash, every run", ours[0]["end"]["hash"]),
    ]
    for label, value in table:
        print(f"{label:<40} {value:>16}")
    harness.save("http_stream", {"ours": ours, "theirs": theirs, "peak_memory_bytes": memory})


if __name__ == "__main__":
    main()
