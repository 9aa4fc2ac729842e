"""What the benches of sinks share: five stored series replayed at `max` into one sink."""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import replay

from tardisd.market.time import format_time
from tardisd.testing.blocks import make_blocks


class Control:
    """A daemon's control socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._answers = self._socket.makefile("rb")

    def ask(self, method: str, **params: object) -> Any:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._answers.readline())
        if "error" in answer:
            raise SystemExit(f"bench: {answer['error']}")
        return answer["result"]


@contextmanager
def daemon(rows: int, sinks: str) -> Iterator[Control]:
    """Run a daemon over `rows` trades of each series, with sinks as a piece of configuration."""
    store, _ = replay.prepare(rows)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.toml"
        config.write_text(
            f'[daemon]\ndata_dir = "{folder}"\ncontrol_socket = "{folder}/control.sock"\n'
            f'[storages.main]\nplugin = "sqlite"\npath = "{store}/tardisd.sqlite"\n'
            f"{sinks}\n"
        )
        with harness.daemon(config):
            yield Control(Path(folder) / "control.sock")


def play(control: Control, name: str, rows: int, sink: str) -> tuple[int, float]:
    """Replay everything into a sink at `max`; return (ticks, seconds until it had them all)."""
    begun = time.monotonic()
    control.ask(
        "session.create",
        series=[str(series) for series in replay.REPLAYED],
        start_time=format_time(replay.START),
        end_time=format_time(replay.common_end(rows)),
        speed="max",
        session_id=name,
        sinks=[sink],
    )
    while True:
        shown = control.ask("session.show", session_id=name)
        if shown["sinks"][0]["state"] == "done":
            return shown["seq"], time.monotonic() - begun
        if shown["sinks"][0]["state"] != "open":
            raise SystemExit(f"bench: the sink failed: {shown['sinks']}")
        time.sleep(0.005)


def some_data(count: int) -> list[bytes]:
    """Return the `data` of so many trades, as the sinks get them."""
    blocks = make_blocks([replay.trades(replay.REPLAYED[0], count)], "bench")
    return [bytes(row) for block in blocks for grid in block.encode("data").grids() for row in grid]
