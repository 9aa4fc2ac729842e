"""Whole ways through the system: minimal config, presets, steering, backfill, round trips."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_rig import CONFIG, DAY, Daemon, klines, run, running, store_candles, wait_for
from websocket_client import DEADLINE_SECS, WebSocket

BTC = "binance:BTC/USDT@candle_1m"
EVERYTHING = """
[exchanges.made]
plugin = "synthetic"

[sinks.files]
plugin = "file"
path = "{folder}/out/{session_id}.ndjson"

[sinks.blocked]
plugin = "file"
path = "{folder}/blocked/{session_id}.ndjson"

[sessions.both]
series = ["binance:BTC/USDT@candle_1m"]
start = "2024-03-01"
end = "2024-03-02"
speed = "max"
sinks = ["ws", "files", "blocked"]

[sessions.empty]
series = ["binance:DOGE/USDT@candle_1m"]
start = "2024-03-01"
end = "2024-03-02"
sinks = ["ws"]
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: Any) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("ways")
    config = CONFIG.replace("[storages.main]", "shutdown_secs = 2\n\n[storages.main]")
    with running(folder, config + EVERYTHING) as one:
        store_candles(one)
        yield one


def test_the_minimal_config_is_complete(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        '[daemon]\n\n[storages.main]\nplugin = "sqlite"\n\n[sinks.ws]\nplugin = "websocket"\n'
    )
    environ = {"XDG_DATA_HOME": str(tmp_path / "share"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    environ |= {"HOME": str(tmp_path), "TARDISD_CONFIG": str(config)}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
    whole = {**inherited, **environ}
    assert "ok" in run("tardisd", "check", env=whole).stdout
    shown = json.loads(run("tardisd", "config", "show", "--json", env=whole).stdout)
    assert shown["daemon"]["data_dir"] == str(tmp_path / "share" / "tardisd")
    assert shown["sinks"]["ws"]["listen"] == "127.0.0.1:8001"
    # The usual port may be taken on this machine: only the port is another here.
    text = config.read_text() + 'listen = "127.0.0.1:0"\n'
    (tmp_path / "run").mkdir(mode=0o700)
    with running(tmp_path, text, environ=environ) as daemon:
        daemon.socket = tmp_path / "run" / "tardisd" / "control.sock"
        assert run("tardisctl", "status", env=whole).stdout.startswith("NAME")
        store_candles(daemon)
        assert (tmp_path / "share" / "tardisd" / "tardisd.sqlite").exists()
        with daemon.websocket() as client:
            assert len(client.replay(series=[BTC], speed="max", **DAY).ticks) == 1440


def test_a_preset_with_sinks_one_of_which_fails(daemon: Daemon) -> None:
    (daemon.folder / "blocked").write_text("a file where a folder should be")
    assert daemon.ctl("session", "start", "both") == "both active\n"
    lines = wait_for(lambda: complete(daemon, "both"), "the file of the preset")
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, 1441))
    shown = daemon.json("session", "show", "both")
    assert (shown["status"], shown["origin"]) == ("finished", "preset both")
    facts = {one["name"]: one for one in shown["sinks"]}
    assert (facts["ws"]["state"], facts["files"]["state"]) == ("done", "done")
    assert facts["blocked"]["state"] in ("failing", "cut_off")
    assert str(daemon.folder / "blocked") in facts["blocked"]["error"]
    table = daemon.ctl("session", "show", "both")
    assert re.search(r"^sinks +ws done, files done, blocked (failing|cut off) \(.*\)$", table, re.M)
    again = daemon.ctl("session", "start", "both", "--id", "both-2")
    assert again == "both-2 active\n"
    wait_for(lambda: complete(daemon, "both-2"), "the second file")
    hashes = {daemon_end(daemon, name)["hash"] for name in ("both", "both-2")}
    assert len(hashes) == 1
    assert "DOGE/USDT@candle_1m: it is not stored" in daemon.ctl(
        "session", "start", "empty", code=1
    )
    refused = daemon.ctl("session", "start", "bth", code=1)
    assert "configured: both, empty" in refused


def complete(daemon: Daemon, session_id: str) -> list[str] | None:
    path = daemon.folder / "out" / f"{session_id}.ndjson"
    return path.read_text().splitlines() if path.exists() else None


def daemon_end(daemon: Daemon, session_id: str) -> dict[str, Any]:
    with daemon.websocket() as client:
        client.ask("subscribe", session_id=session_id)
        return client.until_type("end")


def test_a_session_steered_from_outside(daemon: Daemon) -> None:
    words = ["session", "create", "--series", BTC, "--from", "2024-03-01", "--to", "2024-03-02"]
    created = daemon.json(*words, "--id", "steered", "--speed", "600", "--paused")
    assert (created["session_id"], created["status"]) == ("steered", "paused")
    assert "exists already" in daemon.ctl(*words, "--id", "steered", code=1)
    with daemon.websocket() as client:
        follow(client, "steered")
        assert daemon.json("session", "resume", "steered")["type"] == "resumed"
        first = client.until_type("tick")
        assert first["seq"] == 1
        assert daemon.json("session", "pause", "steered")["type"] == "paused"
        clock = client.until_type("paused")["clock"]
        shown = daemon.json("session", "show", "steered")
        assert (shown["status"], shown["clock"], shown["speed"]) == ("paused", clock, 600)
        assert "still running; stop it first" in daemon.ctl("session", "remove", "steered", code=1)
        told = daemon.json("session", "speed", "steered", "50000")
        assert (told["type"], told["speed"]) == ("speed_changed", 50_000)
        assert client.until_type("speed_changed")["speed"] == 50_000
        assert daemon.json("session", "show", "steered")["clock"] == clock
        daemon.ctl("session", "resume", "steered")
        client.until(lambda message: message.get("seq") == 100)
        assert daemon.json("session", "stop", "steered")["type"] == "stopped"
        assert client.until_type("end")["reason"] == "stopped"
    listed = {one["session_id"]: one["status"] for one in daemon.json("session", "list")}
    assert listed["steered"] == "stopped"
    assert "it has been stopped" in daemon.ctl("session", "pause", "steered", code=1)
    assert daemon.json("session", "watch", "steered")["reason"] == "stopped"
    assert daemon.json("session", "remove", "steered")["type"] == "removed"
    refused = daemon.ctl("session", "show", "steered", code=1)
    assert refused.splitlines()[1] == "hint: tardisctl session list"


def follow(client: WebSocket, session_id: str) -> None:
    assert client.ask("subscribe", session_id=session_id)["type"] == "subscribed"


def test_export_and_import_give_the_same_series(daemon: Daemon, tmp_path: Path) -> None:
    span = ["--from", "2024-03-01", "--to", "2024-03-02"]
    out = tmp_path / "out.csv"
    assert "1,440 rows" in daemon.ctl("data", "export", BTC, *span, "-o", out)
    words = ["--exchange", "bybit", "--symbol", "BTC/USDT", "--data-type", "candle_1m"]
    told = daemon.json("data", "import", out, *words)
    assert (told["added"], told["unchanged"], told["revised"]) == (1440, 0, 0)
    nowhere = tmp_path / "none" / "out.csv"
    refused = daemon.ctl("data", "export", BTC, *span, "-o", nowhere, code=2)
    assert f"there is no folder {nowhere.parent}" in refused
    unknown = daemon.ctl(
        "data", "export", "okx:XRP/USDT@trade", *span, "-o", tmp_path / "no.csv", code=1
    )
    assert "nothing is stored of okx:XRP/USDT@trade" in unknown
    assert not (tmp_path / "no.csv").exists()
    copy = "bybit:BTC/USDT@candle_1m"
    daemon.ctl("data", "export", copy, *span, "-o", tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_bytes() == out.read_bytes()
    with daemon.websocket() as client:
        one = client.replay(series=[BTC], speed="max", **DAY)
        two = client.replay(series=[copy], speed="max", **DAY)
    hidden = {"exchange", "replay_time"}
    facts = [
        [{key: data[key] for key in data if key not in hidden} for _, _, data in received.ticks]
        for received in (one, two)
    ]
    assert facts[0] == facts[1]


def test_coverage_gaps_and_deletion(daemon: Daemon, tmp_path: Path) -> None:
    lines = klines(600).splitlines()
    path = tmp_path / "ETHUSDT-1m.csv"
    path.write_text("\n".join(lines[:100] + lines[110:]) + "\n")
    daemon.load(path, "ETH/USDT", "candle_1m", "--covers", "2024-03-01..2024-03-01T10:00:00Z")
    eth = "binance:ETH/USDT@candle_1m"
    (gap,) = daemon.json("series", "gaps", eth)["gaps"]
    assert (gap["to"] - gap["from"], gap["cause"]) == (600_000, "unknown")
    with daemon.websocket() as client:
        span = {"start_time": "2024-03-01T00:00:00Z", "end_time": "2024-03-01T10:00:00Z"}
        received = client.replay(series=[eth], speed="max", **span)
    received.check_seq()
    (mark,) = (other for other in received.others if other["type"] == "gap")
    assert (mark["seq"], mark["from"], mark["to"]) == (101, gap["from"], gap["to"])
    cut = ["--from", "2024-03-01T05:00:00Z", "--to", "2024-03-01T06:00:00Z"]
    assert "deleted 60 rows" in daemon.ctl("series", "delete", eth, *cut, "--yes")
    spans = daemon.json("series", "coverage", eth)["spans"]
    assert len(spans) == 2
    table = daemon.ctl("series", "gaps", eth).splitlines()
    assert [line.split()[-1] for line in table[1:]] == ["unknown", "not_fetched"]
    daemon.ctl("series", "delete", eth, "--all", "--yes")
    assert eth not in daemon.ctl("series", "list")


def test_a_backfill_run_twice_fetches_nothing_more(daemon: Daemon) -> None:
    series = ["synthetic:BTC/USDT@candle_1m", "synthetic:BTC/USDT@trade"]
    words = ["backfill", "run", *series, "--wait"]
    words += ["--from", "2024-03-01", "--to", "2024-03-01T06:00:00Z"]
    first = daemon.json(*words)["results"]
    assert [one["complete"] for one in first] == [True, True]
    assert first[0]["added"] == 360
    assert first[1]["added"] > 1000
    before = daemon.json("series", "list")
    for one in daemon.json(*words)["results"]:
        assert (one["pages"], one["added"], one["unchanged"]) == (0, 0, 0)
    assert daemon.json("series", "list") == before
    with daemon.websocket() as client:
        span = {"start_time": "2024-03-01T00:00:00Z", "end_time": "2024-03-01T06:00:00Z"}
        received = client.replay(series=series, speed="max", delivery="batch", **span)
    received.check_seq()
    assert len(received.ticks) == first[0]["added"] + first[1]["added"]
    releases = [data.get("close_time", data["timestamp"]) for _, _, data in received.ticks]
    assert releases == sorted(releases)
    refused = daemon.ctl("backfill", "run", BTC, "--from", "-1d", "--to", "now", code=1)
    assert "no exchange instance of binance is configured; configured: made" in refused


def test_watching_a_running_session(daemon: Daemon) -> None:
    words = ["--series", BTC, "--from", "2024-03-01", "--to", "2024-03-01T02:00:00Z"]
    daemon.ctl("session", "create", *words, "--id", "seen", "--speed", "max", "--paused")
    watcher = daemon.start_ctl("session", "watch", "seen")
    wait_for(lambda: daemon.ask("session.show", session_id="seen")["subscribers"], "the watcher")
    daemon.ctl("session", "resume", "seen")
    text, _ = watcher.communicate(timeout=DEADLINE_SECS)
    assert watcher.returncode == 0
    lines = text.splitlines()
    assert lines[0].startswith("-- resumed")
    assert sum(f" {BTC} open=" in line for line in lines) == 120
    assert lines[-1].startswith("-- end")


@pytest.mark.parametrize(
    "words", [["series", "list"], ["session", "list"], ["status"], ["plugin", "list"]]
)
def test_tables_line_up(daemon: Daemon, words: list[str]) -> None:
    for table in daemon.ctl(*words).split("\n\n"):
        header, *rows = table.splitlines()
        starts = [match.start() for match in re.finditer(r"\S+", header)]
        for row in rows:
            assert all(at == 0 or row[at - 1 : at] in (" ", "") for at in starts), (header, row)
