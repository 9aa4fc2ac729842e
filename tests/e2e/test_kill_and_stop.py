"""Ends of a daemon: killed in the middle of work, or stopped in order; nothing stored is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from daemon_rig import (
    CONFIG,
    DAY,
    ENVIRON,
    OPEN_MS,
    Daemon,
    klines,
    run,
    running,
    store_candles,
    wait_for,
)
from websocket_client import DEADLINE_SECS, Closed

BTC, XRP = "binance:BTC/USDT@candle_1m", "binance:XRP/USDT@candle_1m"
LARGE = 500_000
FILES = """
[sinks.files]
plugin = "file"
path = "{folder}/out/{session_id}.ndjson"

[sessions.slow]
series = ["binance:BTC/USDT@candle_1m"]
start = "2024-03-01"
end = "2024-03-02"
speed = 2000
sinks = ["files"]
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: Any) -> Path:
    """Return a file of candles that takes some pages to import."""
    path: Path = tmp_path_factory.mktemp("large") / "XRP.csv"
    path.write_text(klines(LARGE, OPEN_MS - LARGE * 60_000))
    return path


def start_import(daemon: Daemon, path: Path) -> subprocess.Popen[str]:
    """Begin to import, and return when some rows are stored."""
    words = ["--exchange", "binance", "--symbol", "XRP/USDT", "--data-type", "candle_1m"]
    importing = daemon.start_ctl("data", "import", path, *words)
    wait_for(lambda: rows_of(daemon, XRP), "the first rows")
    return importing


def rows_of(daemon: Daemon, series: str) -> int:
    return sum(one["rows"] for one in daemon.ask("series.list") if one["series"] == series)


def exported(daemon: Daemon, path: Path) -> bytes:
    span = ["--from", "2023-01-01", "--to", "2025-01-01"]
    daemon.ctl("data", "export", XRP, *span, "-o", path)
    return path.read_bytes()


def test_killed_while_importing_and_replaying(tmp_path: Path, large: Path) -> None:
    with running(tmp_path) as daemon:
        store_candles(daemon)
        client = daemon.websocket()
        client.ask("create_session", session_id="running", series=[BTC], speed=60, **DAY)
        with daemon.websocket() as other:
            ended = other.replay(session_id="ended", series=[BTC], speed="max", **DAY)
        importing = start_import(daemon, large)
        before = rows_of(daemon, XRP)
        daemon.kill()
        with pytest.raises(Closed):
            client.until_type("end")
        _, said = importing.communicate(timeout=DEADLINE_SECS)
        assert importing.returncode == 3, said
        assert "hung up" in said
        assert daemon.socket.exists()
        daemon.ctl("status", code=3)

        daemon.start()  # at once: the socket is stale, the lock is released
        assert rows_of(daemon, BTC) == 1440
        after = rows_of(daemon, XRP)
        assert before <= after < LARGE, "it was killed too late"
        listed = {one["session_id"]: one for one in daemon.json("session", "list")}
        assert {name: one["status"] for name, one in listed.items()} == {
            "running": "stopped",
            "ended": "finished",
        }
        with daemon.websocket() as again:
            for name in listed:
                taken = again.ask("create_session", session_id=name, series=[BTC], **DAY)
                assert taken["code"] == "session_exists"
            assert again.ask("subscribe", session_id="running")["type"] == "subscribed"
            end = again.until_type("end")
            assert (end["reason"], end["message"]) == ("stopped", "the daemon was restarted")
            assert again.ask("subscribe", session_id="ended")["type"] == "subscribed"
            assert again.until_type("end")["hash"] == ended.hash
        told = daemon.load(large, "XRP/USDT", "candle_1m")
        assert f"{LARGE - after:,} added, {after:,} unchanged, 0 revised" in told
        daemon.ctl("session", "remove", "running")
        with daemon.websocket() as again:
            whole = again.replay(session_id="running", series=[BTC], speed="max", **DAY)
            assert whole.hash == ended.hash
        completed = exported(daemon, tmp_path / "completed.csv")
    (tmp_path / "other").mkdir()
    with running(tmp_path / "other") as daemon:  # never killed
        daemon.load(large, "XRP/USDT", "candle_1m")
        assert exported(daemon, tmp_path / "straight.csv") == completed
    assert completed.count(b"\n") == LARGE + 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_middle_of_everything(
    tmp_path: Path, large: Path, number: signal.Signals
) -> None:
    with running(tmp_path, CONFIG + FILES) as daemon:
        store_candles(daemon)
        assert daemon.notes == ["READY=1\nSTATUS=ready: 1 storage, 2 sinks"]
        daemon.ctl("session", "start", "slow")
        if number == signal.SIGTERM:  # a client that reads nothing takes all the time there is
            stuck = daemon.websocket(receive_buffer=4096)
            stuck.ask("create_session", session_id="stuck", series=[BTC], speed=1e6, **DAY)
        follower = daemon.websocket()
        follower.ask("subscribe", session_id="slow")
        follower.until_type("tick")
        watcher = daemon.start_ctl("session", "watch", "slow")
        wait_for(lambda: daemon.ask("session.show", session_id="slow")["subscribers"] == 3, "it")
        importing = start_import(daemon, large)
        daemon.process.send_signal(number)
        assert daemon.await_note("STOPPING=1") == "STOPPING=1\nSTATUS=stopping"
        end = follower.until_type("end")
        assert end["reason"] == "stopped"
        with pytest.raises(Closed) as closed:
            follower.get()
        assert closed.value.code == 1001
        daemon.check_exit()
        watched, _ = watcher.communicate(timeout=DEADLINE_SECS)
        assert "-- end" in watched
        assert "reason=stopped" in watched
        _, said = importing.communicate(timeout=DEADLINE_SECS)
        assert importing.returncode == 1
        assert "stopping" in said
        assert not daemon.socket.exists()
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["slow.ndjson"]
        lines = (tmp_path / "out" / "slow.ndjson").read_text().splitlines()
        assert [json.loads(line)["seq"] for line in lines] == list(range(1, end["ticks"] + 1))
        daemon.start()
        assert rows_of(daemon, BTC) == 1440
        assert rows_of(daemon, XRP) > 0
        listed = {one["session_id"]: one["status"] for one in daemon.json("session", "list")}
        assert listed["slow"] == "stopped"


def test_stopped_by_command_and_watchdog_told(tmp_path: Path) -> None:
    with running(tmp_path, environ={"WATCHDOG_USEC": "200000"}) as daemon:
        daemon.await_note("WATCHDOG=1")
        assert daemon.ctl("stop") == "stopped\n"
        assert daemon.process.wait(DEADLINE_SECS) == 0
        daemon.check_log()


def test_exit_codes(tmp_path: Path) -> None:
    nobody = tmp_path / "nobody.sock"
    assert "start it with" in run("tardisctl", "--socket", nobody, "status", code=3).stderr
    run("tardisctl", "nonsense", code=2)
    run("tardisd", "run", "--nonsense", code=2)
    run("tardisd", "run", "-c", tmp_path / "none.toml", code=78)
    run("tardisctl", "-c", tmp_path / "none.toml", "status", code=78)
    with running(tmp_path) as daemon:
        assert daemon.socket.stat().st_mode & 0o777 == 0o660
        assert (daemon.folder / "data").stat().st_mode & 0o777 == 0o700
        assert "no session" in daemon.ctl("session", "show", "who", code=1)
        daemon.socket.chmod(0)
        program = (
            "import os, tardisd.control.client; from tardisd.cli import ctl;"
            " os.geteuid() or os.setuid(65534); ctl.main()"  # root may do anything
        )
        words = [sys.executable, "-c", program, "--socket", str(daemon.socket), "status"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=ENVIRON)
        assert done.returncode == 77
        assert "no permission" in done.stderr


def test_a_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "config.toml"
    path.write_text(
        CONFIG.replace('"{folder}/data"', f'"{tmp_path}/file/data"').replace(
            "{folder}", str(tmp_path)
        )
    )
    said = run("tardisd", "run", "-c", path, code=1).stderr
    assert f"data_dir {tmp_path}/file/data cannot be made" in said
    assert "set another [daemon] data_dir" in said


def test_a_broken_pipe_is_no_error(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        store_candles(daemon, 20_000)
        span = ["--from", "2024-03-01", "--to", "2024-03-20"]
        reading, writing = os.pipe()
        export = daemon.start_ctl("data", "export", BTC, *span, "-o", "-", stdout=writing)
        os.close(writing)
        os.read(reading, 100)
        os.close(reading)
        _, said = export.communicate(timeout=DEADLINE_SECS)
        assert "Traceback" not in said
        assert rows_of(daemon, BTC) == 20_000
