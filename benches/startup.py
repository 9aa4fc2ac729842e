"""How long `tardisctl` and `tardisd` take to start; medians of repeated runs, without limits."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness


def spend(*command: str | Path) -> float:
    """Return the wall time (ms) of one command that succeeds."""
    begun = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.monotonic() - begun) * 1e3


def ready() -> float:
    """Return the time (ms) until a daemon with a store and a WebSocket is ready."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.toml"
        config.write_text(
            f'[daemon]\ndata_dir = "{folder}"\ncontrol_socket = "{folder}/control.sock"\n'
            '[storages.main]\nplugin = "sqlite"\n'
            f'[sinks.ws]\nplugin = "websocket"\nlisten = "127.0.0.1:{harness.free_port()}"\n'
        )
        with harness.daemon(config) as (_, seconds):
            return seconds * 1e3


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    measures = {
        "python -c pass": lambda: spend(sys.executable, "-c", "pass"),
        "tardisctl --help": lambda: spend(harness.BIN / "tardisctl", "--help"),
        "tardisd --help": lambda: spend(harness.BIN / "tardisd", "--help"),
        "tardisd run, until ready": ready,
    }
    results = {}
    for label, measure in measures.items():
        measure()  # the first one fills caches
        results[label] = statistics.median(measure() for _ in range(runs))
        print(f"{label:<40} {results[label]:>13.0f} ms", flush=True)
    harness.save("startup", results)


if __name__ == "__main__":
    main()
