"""A daemon whose configuration changes while it works: all of it is taken up, or nothing."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from daemon_rig import CONFIG, DAY, Daemon, running, store_candles, wait_for
from websocket_client import Closed, WebSocket

BTC = "binance:BTC/USDT@candle_1m"
SLOW = {"speed": 60, **DAY}

FILES = """
[sinks.files]
plugin = "file"
path = "{folder}/out/{session_id}.ndjson"
"""

MADE = """
[exchanges.made]
plugin = "synthetic"
"""

RULE = """
[backfills.btc]
exchange = "made"
symbols = ["BTC/USDT"]
data_types = ["candle_1h"]
start = "2024-03-01"
end = "2024-03-02"
"""


def write(daemon: Daemon, text: str) -> None:
    """Replace the daemon's configuration."""
    daemon.config.write_text(text.replace("{folder}", str(daemon.folder)))


def hang_up(daemon: Daemon) -> str:
    """Send SIGHUP; return the status that systemd is told when it has been dealt with."""
    daemon.forget_notes()
    before = time.monotonic_ns() // 1000
    daemon.process.send_signal(signal.SIGHUP)
    begun = dict(line.split("=") for line in daemon.await_note("RELOADING=1").splitlines())
    assert before <= int(begun["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    return daemon.await_note("READY=1")


def instances(daemon: Daemon) -> dict[str, str]:
    """Return the state of every instance, by kind and name."""
    return {f"{one['kind']} {one['name']}": one["state"] for one in daemon.ask("instance.list")}


def logged(daemon: Daemon, text: str) -> None:
    """Wait until something is in the log."""
    wait_for(lambda: text in daemon.log, text)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_instances_come_change_and_go_while_a_session_runs(tmp_path: Path) -> None:
    with running(tmp_path, CONFIG + FILES) as daemon:
        store_candles(daemon)
        client = daemon.websocket()
        client.ask("create_session", series=[BTC], session_id="live", **SLOW)
        daemon.ctl("session", "create", "--series", BTC, "--from", "2024-03-01", "--to",
                   "2024-03-02", "--id", "kept", "--speed", "60", "--sink", "files")  # fmt: skip
        write(daemon, CONFIG + FILES.replace("out/", "new/") + MADE)
        assert "READY=1" in hang_up(daemon)
        assert instances(daemon)["exchange made"] == "running"
        shown = daemon.json("config", "show")["sinks"]["files"]["path"]
        assert "/new/" in shown
        # The session that began before goes on, and into the file where it began.
        client.ask("speed_change", session_id="live", speed="max")
        assert client.until_type("end")["ticks"] == 1440
        daemon.ctl("session", "speed", "kept", "max")
        logged(daemon, "instance stopped kind=sink name=files")
        kept = (tmp_path / "out" / "kept.ndjson").read_text().splitlines()
        assert len(kept) == 1440
        daemon.ctl("session", "create", "--series", BTC, "--from", "2024-03-01", "--to",
                   "2024-03-02", "--id", "later", "--speed", "max", "--sink", "files")  # fmt: skip
        wait_for((tmp_path / "new" / "later.ndjson").exists, "the new place")
        # And what is no longer wanted goes.
        write(daemon, CONFIG)
        assert json.loads(daemon.ctl("--json", "reload")) == {
            "added": [], "removed": ["exchanges.made", "sinks.files"], "changed": [],
            "backfills": [], "sessions": [], "daemon": [], "restart_needed": [],
        }  # fmt: skip
        assert set(instances(daemon)) == {"storage main", "sink ws"}
        said = daemon.ctl("session", "create", "--series", BTC, "--from", "2024-03-01", "--to",
                          "2024-03-02", "--sink", "files", code=1)  # fmt: skip
        assert "'files' is not one of: ws" in said
        assert daemon.ctl("reload") == "nothing has changed\n"


def test_rules_and_presets(tmp_path: Path) -> None:
    with running(tmp_path, CONFIG + MADE + RULE) as daemon:
        made = "synthetic:BTC/USDT@candle_1h"
        rows = lambda: {one["series"]: one["rows"] for one in daemon.ask("series.list")}  # noqa: E731
        wait_for(lambda: rows().get(made) == 24, "the day of the rule")
        other = RULE.replace("-02", "-03").replace('"BTC/USDT"', '"BTC/USDT", "ETH/USDT"')
        preset = f'[sessions.demo]\nseries = ["{made}"]\nstart = 2024-03-01\nend = 2024-03-02\n'
        drop_ins = tmp_path / "conf.d"
        drop_ins.mkdir()
        (drop_ins / "presets.toml").write_text(preset)
        write(daemon, CONFIG + MADE + other)
        told = daemon.ctl("reload")
        assert told == "changed: backfills.btc\nchanged: sessions.demo\n"
        wait_for(lambda: sorted(rows().values()) == [48, 48], "what the changed rule wants")
        assert "demo" in daemon.ctl("session", "start", "demo")
        write(daemon, CONFIG + MADE)
        assert daemon.ctl("reload") == "changed: backfills.btc\n"


def test_a_broken_file_leaves_all_as_it_is(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        before = daemon.json("config", "show")
        broken = CONFIG + FILES + '\n[sinks.more]\nplugin = "fil"\n\n[daemno]\n'
        write(daemon, broken)
        assert "the last reload failed" in hang_up(daemon)
        assert "configuration invalid" in daemon.log
        assert "did you mean" in daemon.log
        said = daemon.ctl("reload", code=78).splitlines()
        assert [re.sub(r"^.*config\.toml:\d+: ", "", line)[:20] for line in said] == [
            "sinks.more.plugin: n", "daemno: unknown sect",
        ]  # fmt: skip
        assert daemon.json("config", "show") == before
        assert instances(daemon) == {"storage main": "running", "sink ws": "running"}
        daemon.config.unlink()
        assert "no such file" in daemon.ctl("reload", code=78)
        write(daemon, CONFIG)
        assert "failed" not in hang_up(daemon)


def test_a_port_in_use_rolls_everything_back(tmp_path: Path) -> None:
    with running(tmp_path) as daemon, socket.socket() as other:
        store_candles(daemon)
        other.bind(("127.0.0.1", 0))
        other.listen()
        client = daemon.websocket()
        client.ask("create_session", series=[BTC], session_id="live", **SLOW)
        moved = CONFIG.replace("127.0.0.1:0", f"127.0.0.1:{other.getsockname()[1]}")
        write(daemon, moved + FILES + MADE)
        said = daemon.ctl("reload", code=1)
        assert "[sinks.ws] cannot start: cannot listen on" in said
        assert "another program uses it" in said
        assert instances(daemon) == {"storage main": "running", "sink ws": "running"}
        client.ask("speed_change", session_id="live", speed="max")
        assert client.until_type("end")["ticks"] == 1440
        daemon.websocket()


def test_what_needs_the_same_port_follows_it(tmp_path: Path) -> None:
    port = free_port()
    config = CONFIG.replace("127.0.0.1:0", f"127.0.0.1:{port}")
    with running(tmp_path, config) as daemon:
        client = daemon.websocket()
        write(daemon, config + "max_clients = 1\n")
        assert daemon.ctl("reload") == "changed: sinks.ws\n"
        with pytest.raises(Closed) as closed:
            client.get()
        assert closed.value.code == 1001
        WebSocket(port).close()
        # The successor cannot start, so the one before it is back.
        (tmp_path / "cert.pem").write_text("no certificate")
        tls = 'tls_cert = "{folder}/cert.pem"\ntls_key = "{folder}/cert.pem"\n'
        write(daemon, config + tls)
        assert "cannot use tls_cert" in daemon.ctl("reload", code=1)
        assert instances(daemon)["sink ws"] == "running"
        WebSocket(port).close()
        # A section of another name may take the port over.
        write(daemon, config.replace("[sinks.ws]", "[sinks.web]"))
        assert daemon.ctl("reload") == "added: sinks.web\nremoved: sinks.ws\n"
        WebSocket(port).close()


def test_storages(tmp_path: Path) -> None:
    with running(tmp_path, CONFIG + MADE) as daemon:
        store_candles(daemon)
        daemon.ctl("session", "create", "--series", BTC, "--from", "2024-03-01", "--to",
                   "2024-03-02", "--id", "reader", "--speed", "60")  # fmt: skip
        # One file has one owner: while somebody reads it, it cannot change hands.
        full = CONFIG.replace('"sqlite"', '"sqlite"\ndurability = "full"')
        write(daemon, full + MADE)
        said = daemon.ctl("reload", code=1)
        assert "[storages.main] cannot be closed while it is used by session reader" in said
        # Another file can be opened beside it, and the session keeps its own.
        write(daemon, CONFIG.replace('"sqlite"', '"sqlite"\npath = "other.sqlite"') + MADE)
        assert daemon.ctl("reload") == "changed: storages.main\n"
        assert daemon.ask("series.list") == []
        daemon.ctl("session", "speed", "reader", "max")
        wait_for(lambda: daemon.ask("session.show", session_id="reader")["status"] == "finished",
                 "the end of the session")  # fmt: skip
        logged(daemon, "instance stopped kind=storage name=main")
        # With nobody in the way the first file comes back, and changes hands.
        write(daemon, CONFIG + MADE)
        daemon.ctl("reload")
        write(daemon, full + MADE)
        assert daemon.ctl("reload") == "changed: storages.main\n"
        assert [one["rows"] for one in daemon.ask("series.list")] == [1440]


def test_keys_that_need_a_restart_are_named(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        changed = CONFIG.replace("/data", "/elsewhere").replace("control.sock", "other.sock")
        limits = '[daemon]\nlog_level = "debug"\nmax_sessions = 1\n'
        write(daemon, changed.replace("[daemon]\n", limits))
        result = daemon.json("reload")
        assert result["restart_needed"] == ["daemon.data_dir", "daemon.control_socket"]
        assert result["daemon"] == ["daemon.log_level", "daemon.max_sessions"]
        assert daemon.json("config", "show")["daemon"]["data_dir"] == str(tmp_path / "data")
        assert "daemon.data_dir takes effect when the daemon is started again" in daemon.ctl(
            "reload", stderr=-2, capture_output=False, stdout=-1
        )
        store_candles(daemon)
        words = ["session", "create", "--series", BTC, "--from", "2024-03-01", "--to",
                 "2024-03-02", "--speed", "1"]  # fmt: skip
        daemon.ctl(*words)
        assert "the limit is 1" in daemon.ctl(*words, code=1)


def test_an_instance_is_restarted(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        client = daemon.websocket()
        assert "running" in daemon.ctl("instance", "restart", "ws")
        with pytest.raises(Closed):
            client.get()
        found = re.findall(r"websocket listening .*:(\d+)/", daemon.log)
        assert len(found) == 2
        WebSocket(int(found[1])).close()
        store_candles(daemon)
        assert "running" in daemon.ctl("instance", "restart", "main", "--kind", "storage")
        daemon.ctl("session", "create", "--series", BTC, "--from", "2024-03-01", "--to",
                   "2024-03-02", "--id", "reader", "--speed", "60")  # fmt: skip
        assert "used by session reader" in daemon.ctl("instance", "restart", "main", code=1)
        assert "no instance is named 'nobody'" in daemon.ctl(
            "instance", "restart", "nobody", code=1
        )
        assert "running" in daemon.ctl("instance", "list")


def test_reload_while_stopping_and_hang_ups_in_a_row(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        for _ in range(30):
            daemon.process.send_signal(signal.SIGHUP)
        write(daemon, CONFIG + MADE)
        daemon.ctl("reload")
        assert instances(daemon)["exchange made"] == "running"
        daemon.process.send_signal(signal.SIGHUP)
        daemon.stop()
