"""How exactly ticks are paced, by the client's own clock: alone, at high speed, and beside `max`.

The error of a tick is how much later it was read than its place in market time says, counted from
when the answer to `resume` was read. It asserts nothing about time.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from pathlib import Path
from typing import Any

import crowd
import harness
import numpy as np
import replay

from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import SECOND
from tardisd.testing.ticks import random_trades

SPARSE = Series.of("bench", "PACED/USDT", "trade")  # 100 ticks in a market second
DENSE = Series.of("bench", "DENSE/USDT", "trade")  # 1,000
GAPS_MS = {SPARSE: 10, DENSE: 1}


def filled(seconds: int) -> Path:
    """Return a store with both series, long enough for every case."""
    span = Span(replay.START, replay.START + 1000 * seconds * SECOND)

    def make(series: Series) -> Batch:
        rows = 1100 * seconds * 1000 // GAPS_MS[series]
        made = random_trades(series, rows, replay.START, mean_gap_ms=GAPS_MS[series])
        return made.within(span)

    return crowd.store(f"paced-{seconds}", [SPARSE, DENSE], make, span)


def paced(port: int, folder: Path, series: Series, speed: float, seconds: int) -> dict[str, Any]:
    """Replay for so many wall seconds; return percentiles of the error (ms) and the speed."""
    end = replay.START + int(speed * seconds * SECOND)
    name = f"{series.symbol.base}-{speed:g}".lower()
    create = crowd.request(name, [series], Span(replay.START, end), speed=speed)
    path = folder / f"{name}.times"
    with crowd.crowd(port, 1, create, "-t", str(path)) as let_run:
        let_run()
    pairs = np.fromfile(path, np.int64).reshape(-1, 2)
    read, market = pairs[1:, 0] - pairs[0, 0], pairs[1:, 1] * 1_000_000 - replay.START
    late = (read - market / speed) / 1e6
    tenth = max(len(late) // 10, 1)
    return {
        "ticks": len(late),
        "p50_ms": float(np.percentile(late, 50)),
        "p99_ms": float(np.percentile(late, 99)),
        "drift_ms": float(np.median(late[-tenth:]) - np.median(late[:tenth])),
        "speed": float((market[-1] - market[0]) / (read[-1] - read[0])),
    }


def beside(port: int, folder: Path, seconds: int) -> dict[str, Any]:
    """Pace a session while another runs at `max`."""
    stop = threading.Event()
    rates: list[float] = []
    span = Span(replay.START, replay.START + 500 * seconds * SECOND)

    def flood() -> None:
        while not stop.is_set():
            create = crowd.request(f"max-{len(rates)}", [DENSE], span, speed="max", ephemeral=True)
            with crowd.crowd(port, 1, create) as let_run:
                result = let_run()
                rates.append(result["ticks"] / result["seconds"])

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        return {**paced(port, folder, SPARSE, 20, seconds), "rates": rates}
    finally:
        stop.set()
        thread.join()


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=10, help="wall time of each case")
    asked = parser.parse_args()
    store = filled(asked.seconds)
    kept: dict[str, Any] = {}
    rows: list[crowd.Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), harness.free_port()
        with harness.daemon(replay.configure(store, folder, port)) as (child, _):
            for speed in (1, 10, 100):
                before = harness.cpu_seconds(child.pid)
                found = kept[f"{speed}x"] = paced(port, folder, SPARSE, speed, asked.seconds)
                load = (harness.cpu_seconds(child.pid) - before) / asked.seconds
                rows += [
                    (f"{speed}x: error, median", f"{found['p50_ms']:.2f} ms", "< 0.8 ms"),
                    (f"{speed}x: error, 99th percentile", f"{found['p99_ms']:.2f} ms", "< 3 ms"),
                    (f"{speed}x: later at the end than at the beginning",
                     f"{found['drift_ms']:.2f} ms", "0"),
                    (f"{speed}x: processor", f"{load:.0%}", ""),
                ]  # fmt: skip
            found = kept["1000x"] = paced(port, folder, DENSE, 1000, asked.seconds)
            rows += [
                ("1000x, 1,000 ticks a second: speed", f"{found['speed']:.2f}", ">= 999"),
                ("1000x: error, 99th percentile", f"{found['p99_ms']:.2f} ms", ""),
            ]
            found = kept["beside"] = beside(port, folder, asked.seconds)
            rows += [
                ("20x beside a session at max: error, median", f"{found['p50_ms']:.2f} ms", ""),
                ("  99th percentile", f"{found['p99_ms']:.2f} ms", "< 4 ms"),
                ("  ticks per second of the session at max", f"{np.median(found['rates']):,.0f}",
                 ""),
            ]  # fmt: skip
    crowd.table("pacing", rows)
    harness.save("pacing", kept)


if __name__ == "__main__":
    main()
