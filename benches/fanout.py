"""One session at `max` to 100 and to 1000 clients, beside a Node `ws` server that does the same.

Prints medians of interleaved runs, and how much memory a client costs. It asserts nothing about
time; every client must have received every tick.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import crowd
import harness
import replay

from tardisd.market.span import Span

CROWDS = {100: (200_000, 5_000), 1000: (40_000, 500)}  # clients: (our ticks, the baseline's)


def ours(store: Path, rows: int, clients: int, ticks: int) -> dict[str, Any]:
    """Replay some `ticks` to so many clients; return what they counted, and memory."""
    times = replay.trades(replay.REPLAYED[0], rows).ts_event
    end = int(times[ticks // len(replay.REPLAYED)]) // 1_000_000 * 1_000_000
    create = crowd.request(
        "crowd", replay.REPLAYED, Span(replay.START, end), speed="max", when_full="block"
    )
    with tempfile.TemporaryDirectory() as folder:
        port = harness.free_port()
        config = replay.configure(store, Path(folder), port)
        config.write_text(config.read_text() + "max_clients = 2000\n")
        with harness.daemon(config) as (child, _):
            with (
                crowd.crowd(port, 1, {**create, "session_id": "one"}) as let_run,
                ExitStack() as stack,
            ):
                one = harness.memory(child.pid)
                stack.enter_context(crowd.crowd(port, 1, {**create, "session_id": "another"}))
                before = harness.memory(child.pid)
                a_session = before - one  # with its one client, which comes on top below
                with crowd.crowd(port, clients, create) as let_all_run:
                    each = (harness.memory(child.pid) - before - a_session) / (clients - 1)
                    began = harness.cpu_seconds(child.pid)
                    result = let_all_run()
                    result["cpu"] = harness.cpu_seconds(child.pid) - began
                let_run()
            result["bytes_each"] = each
            result["peak_memory_bytes"] = harness.peak_memory(child.pid)
    if result["ticks"] != clients * result["end"]["ticks"]:
        raise SystemExit(f"bench: not every client has had every tick: {result}")
    return result


def theirs(node: str, clients: int, ticks: int, padding: int) -> dict[str, Any]:
    """Run the Node server once."""
    port = harness.free_port()
    command = [node, str(harness.HERE / "fanout.mjs"), str(port), str(ticks), str(padding)]
    create = {"type": "create_session", "session_id": "crowd"}
    with harness.running(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        with crowd.crowd(port, clients, create) as let_run:
            return let_run()


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="trades stored per series")
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    node = harness.install_baseline()
    store, _ = replay.prepare(asked.rows)
    kept: dict[str, Any] = {}
    rows: list[crowd.Row] = []
    for clients, (ticks, baseline_ticks) in CROWDS.items():
        mine, node_s, padding = [], [], 0
        for _ in range(asked.runs):
            mine.append(ours(store, asked.rows, clients, ticks))
            if not padding:
                plain = theirs(node, 1, 1000, 0)
                wanted = mine[0]["bytes"] // mine[0]["ticks"]
                padding = max(0, wanted - plain["bytes"] // 1000 - len(',"padding":""'))
            node_s.append(theirs(node, clients, baseline_ticks, padding))
        rate, node_rate = (
            statistics.median(one["ticks"] / one["seconds"] for one in runs)
            for runs in (mine, node_s)
        )
        cpu = statistics.median(one["cpu"] / one["ticks"] for one in mine)
        each = statistics.median(one["bytes_each"] for one in mine)
        peak = statistics.median(one["peak_memory_bytes"] for one in mine)
        rows += [
            (f"{clients} clients: ticks per second, tardisd", f"{rate:,.0f}", ""),
            (f"{clients} clients: ticks per second, Node ws", f"{node_rate:,.0f}", ""),
            ("  times Node", f"{rate / node_rate:.1f}", ">= 20"),
            ("  processor time per tick and client", f"{cpu * 1e9:.0f} ns", ""),
            ("  peak memory of the daemon", f"{peak / 2**20:.0f} MiB", ""),
        ]
        if clients == max(CROWDS):  # of a few clients it cannot be told from other memory
            rows.append(("  memory per client that waits", f"{each / 1000:.1f} kB", "<= 40 kB"))
        kept[str(clients)] = {"ours": mine, "theirs": node_s}
    crowd.table("one session, many clients", rows)
    harness.save("fanout", kept)


if __name__ == "__main__":
    main()
