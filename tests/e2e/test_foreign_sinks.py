"""Sinks of strangers, dropped into a folder: they get everything, and their faults stay theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from daemon_rig import CONFIG, DAY, Daemon, running, store_candles, wait_for

SERIES = "binance:BTC/USDT@candle_1m"
SINK = """
from contextlib import asynccontextmanager

import trio

from tardisd import Options, Sink, Writer, hookimpl


class Lines(Writer):
    def __init__(self, path):
        self.path = path

    async def write(self, block):
        {body}


class {name}(Sink[Options]):
    name = "{name}"
    Options = Options
    forms = ("ndjson",)

    @asynccontextmanager
    async def open(self, session):
        yield Lines(self.context.data_dir / f"{name}-{{session.session_id}}")


@hookimpl
def tardisd_sinks():
    return [{name}]
"""
BODIES = {
    "keeper": 'with self.path.open("ab") as out: out.write(block.encode("ndjson").bytes())',
    "raiser": 'raise ValueError("my disk is on fire")',
    "sleeper": "await trio.sleep_forever()",
    "quitter": "raise KeyError",
}
CONFIGURED = """
[sinks.files]
plugin = "file"
path = "{folder}/out/{session_id}.ndjson"

[plugins]
dirs = ["{folder}/plugins"]
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: Any) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("foreign")
    place = folder / "plugins"
    place.mkdir()
    config = CONFIG.replace("[storages.main]", "shutdown_secs = 2\n\n[storages.main]") + CONFIGURED
    for name, body in BODIES.items():
        (place / f"{name}.py").write_text(SINK.format(name=name, body=body))
        config += f'\n[sinks.{name}]\nplugin = "{name}"\n'
    with running(folder, config) as one:
        store_candles(one, 10_000)
        yield one


def start(daemon: Daemon, session_id: str, *sinks: str, days: int = 6) -> None:
    span = ["--from", "2024-03-01", "--to", f"2024-03-0{days + 1}", "--speed", "max"]
    chosen = [word for sink in sinks for word in ("--sink", sink)]
    daemon.ctl("session", "create", "--series", SERIES, *span, "--id", session_id, *chosen)


def sinks_of(daemon: Daemon, session_id: str) -> dict[str, dict[str, Any]]:
    shown = daemon.ask("session.show", session_id=session_id)
    return {one["name"]: one for one in shown["sinks"]}


def await_state(daemon: Daemon, session_id: str, sink: str, *states: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = sinks_of(daemon, session_id)[sink]
        return found if found["state"] in states else None

    found: dict[str, Any] = wait_for(look, f"{sink} to be {' or '.join(states)}")
    return found


def test_a_stranger_gets_every_tick(daemon: Daemon) -> None:
    start(daemon, "kept", "keeper")
    await_state(daemon, "kept", "keeper", "done")
    lines = (daemon.folder / "data" / "keeper-kept").read_text().splitlines()
    ticks = [json.loads(line) for line in lines]
    assert [tick["seq"] for tick in ticks] == list(range(1, 6 * 1440 + 1))
    assert ticks[0]["datetime"] == "2024-03-01T00:00:00.000Z"


def test_one_that_raises_is_named_and_harms_no_other(daemon: Daemon) -> None:
    start(daemon, "mixed", "raiser", "keeper", "files", "quitter")
    found = await_state(daemon, "mixed", "raiser", "failing", "cut_off")
    assert "ValueError: my disk is on fire at " in found["error"]
    assert "raiser.py:" in found["error"]
    for good in ("keeper", "files"):
        await_state(daemon, "mixed", good, "done")
    lines = (daemon.folder / "data" / "keeper-mixed").read_text().splitlines()
    assert len(lines) == 6 * 1440
    files = (daemon.folder / "out" / "mixed.ndjson").read_text().splitlines()
    assert len(files) == 6 * 1440
    assert daemon.ask("session.show", session_id="mixed")["status"] == "finished"
    table = daemon.ctl("session", "show", "mixed")
    assert "files done" in table
    assert "ValueError: my disk is on fire" in table
    assert "KeyError" in await_state(daemon, "mixed", "quitter", "failing", "cut_off")["error"]
    assert "sink failed sink=raiser session=mixed" in daemon.log
    assert daemon.log.count("sink=raiser") < 10  # not at every attempt


def test_one_that_hangs_holds_up_only_its_own_session(daemon: Daemon) -> None:
    start(daemon, "hung", "sleeper", "files")
    wait_for(
        lambda: daemon.ask("session.show", session_id="hung")["waiting_for"] == ["sink sleeper"],
        "the session to wait for the sleeper alone",
    )
    with daemon.websocket() as client:
        assert len(client.replay(series=[SERIES], speed="max", **DAY).ticks) == 1440
    assert daemon.ctl("session", "stop", "hung").startswith("hung stopped")
    await_state(daemon, "hung", "files", "done")
    daemon.stop()  # is not held up either
    assert "sink cut off sink=sleeper session=hung" in daemon.log
    assert (daemon.folder / "out" / "hung.ndjson").exists()
