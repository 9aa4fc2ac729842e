"""What a session at `max` delivers to one client: 5 symbols, 50 with candles, and in batches.

Prints medians of interleaved runs beside a Node `ws` server. It asserts nothing about time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import crowd
import harness
import replay

from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import MINUTE
from tardisd.testing.ticks import random_candles, random_trades

SYMBOLS = [f"{chr(65 + at // 26)}{chr(65 + at % 26)}X/USDT" for at in range(50)]
MIXED = [Series.of("bench", symbol, kind) for symbol in SYMBOLS for kind in ("trade", "candle_1m")]


def mixed(rows: int) -> tuple[Path, Span]:
    """Return a store of 50 symbols with `rows` trades each, and their candles."""
    end = replay.START + rows * 100_000_000 // MINUTE * MINUTE  # a trade each 100 ms, on average

    def make(series: Series) -> Batch:
        seed = MIXED.index(series)
        if series.data_type.interval is None:
            made = random_trades(series, rows, replay.START, seed=seed)
        else:
            made = random_candles(series, (end - replay.START) // MINUTE, replay.START, seed=seed)
        return made.within(Span(replay.START, end))

    span = Span(replay.START, end)
    return crowd.store(f"mixed-{rows}", MIXED, make, span), span


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="trades of each of 5 symbols")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--baseline-ticks", type=int, default=2_000_000)
    asked = parser.parse_args()
    node = harness.install_baseline()
    few, _ = replay.prepare(asked.rows)
    many, many_span = mixed(asked.rows // 10)
    few_span = Span(replay.START, replay.common_end(asked.rows) // 1_000_000 * 1_000_000)
    cases: dict[str, tuple[Path, Any, Span, dict[str, Any]]] = {
        "tick": (few, replay.REPLAYED, few_span, {}),
        "batch": (few, replay.REPLAYED, few_span, {"delivery": "batch"}),
        "mixed": (many, MIXED, many_span, {}),
    }
    rates: dict[str, list[float]] = {name: [] for name in [*cases, "node"]}
    times: dict[str, list[float]] = {name: [] for name in cases}
    padding = 0
    for run in range(asked.runs):
        for name, (store, series, span, options) in cases.items():
            with tempfile.TemporaryDirectory() as folder:
                port = harness.free_port()
                config = replay.configure(store, Path(folder), port)
                with harness.daemon(config) as (child, _):
                    create = crowd.request(name, series, span, speed="max", **options)
                    with crowd.crowd(port, 1, create) as let_run:
                        before = harness.cpu_seconds(child.pid)
                        result = let_run()
                        spent = harness.cpu_seconds(child.pid) - before
            ticks = result["end"]["ticks"]
            rates[name].append(ticks / result["seconds"])
            times[name].append(spent / ticks * 1e9)
            if name == "tick" and not padding:
                padding = replay.match_size(node, result["bytes"] // ticks)
        rates["node"].append(replay.baseline(node, asked.baseline_ticks, padding)["rate"])
        shown = ", ".join(f"{name} {found[-1]:,.0f}" for name, found in rates.items())
        print(f"run {run + 1}: {shown}", flush=True)
    rate = {name: statistics.median(found) for name, found in rates.items()}
    time = {name: statistics.median(found) for name, found in times.items()}
    crowd.table("one client at max", [
        ("Node ws, ticks per second", f"{rate['node']:,.0f}", ""),
        ("5 symbols, one tick per frame", f"{rate['tick']:,.0f}", ""),
        ("  times Node", f"{rate['tick'] / rate['node']:.1f}", ">= 12"),
        ("  processor time per tick", f"{time['tick']:.0f} ns", ""),
        ("50 symbols with candles, one tick per frame", f"{rate['mixed']:,.0f}", ""),
        ("  part of the rate with 5 symbols", f"{rate['mixed'] / rate['tick']:.0%}", ">= 70%"),
        ("  processor time per tick", f"{time['mixed']:.0f} ns", ""),
        ("5 symbols, in batches", f"{rate['batch']:,.0f}", ""),
        ("  times Node", f"{rate['batch'] / rate['node']:.1f}", ">= 20"),
        ("  processor time per tick", f"{time['batch']:.0f} ns", ""),
    ])  # fmt: skip
    harness.save("delivery", {"rates": rates, "processor_ns": times})


if __name__ == "__main__":
    main()
