"""What surrounds the daemon is broken: files, disks, ports, configs, plugins; it says what to do.

Nothing acknowledged is lost by any of it, and what still works goes on working.
"""

from __future__ import annotations

import re
import shutil
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from daemon_rig import (
    CONFIG,
    DAY,
    OPEN_MS,
    Daemon,
    Witness,
    klines,
    run,
    running,
    store_candles,
    wait_for,
)
from websocket_client import DEADLINE_SECS

SERIES = "binance:BTC/USDT@candle_1m"
ROWS = 20_000


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: Any) -> Path:
    """Return the folder of a daemon that has stored two series and stopped."""
    folder: Path = tmp_path_factory.mktemp("pristine")
    with running(folder) as daemon:
        store_candles(daemon, ROWS, ("BTC", "ETH"))
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """Return a copy of that folder; its config names the copy."""
    shutil.copytree(pristine / "data", tmp_path / "data")
    (tmp_path / "config.toml").write_text(CONFIG.replace("{folder}", str(tmp_path)))
    return tmp_path


def refused(folder: Path, code: int = 1, config: str = "config.toml") -> str:
    """Return what `tardisd run` says as it refuses to run."""
    said = run("tardisd", "run", "-c", folder / config, code=code).stderr
    assert not (folder / "control.sock").exists()
    return said


@pytest.mark.parametrize(
    "content", [b"garbage" * 1000, b"SQLite format 3\0" + b"garbage" * 1000], ids=["any", "sqlite"]
)
def test_a_store_that_is_none(folder: Path, content: bytes) -> None:
    path = folder / "data" / "tardisd.sqlite"
    path.write_bytes(content)
    said = refused(folder)
    assert f"[storages.main] cannot start: {path} is not a tardisd storage" in said
    assert "move it away or set another path" in said
    assert path.read_bytes() == content


@pytest.mark.parametrize(("name", "what"), [("tardisd", "storage version 999"), ("state", "999")])
def test_a_store_from_the_future(folder: Path, name: str, what: str) -> None:
    path = folder / "data" / f"{name}.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    said = refused(folder)
    assert str(path) in said
    assert what in said
    assert "upgrade tardisd" in said


def test_a_state_that_is_none(folder: Path) -> None:
    path = folder / "data" / "state.sqlite"
    path.write_bytes(b"junk" * 1000)
    said = refused(folder)
    assert str(path) in said
    assert "move the file away" in said
    path.unlink()
    with running(folder) as daemon:
        assert len(daemon.json("series", "list")) == 2


def test_a_second_daemon_on_the_same_store_or_port(folder: Path) -> None:
    with running(folder) as first:
        witness = Witness(first, series=[SERIES], speed=600, **DAY)
        other = folder / "other.toml"
        text = CONFIG.replace("{folder}/control.sock", str(folder / "2.sock"))
        other.write_text(text.replace("{folder}", str(folder)))
        said = run("tardisd", "run", "-c", other, code=1).stderr
        assert f"is in use by process {first.process.pid}; stop that daemon" in said
        (folder / "second").mkdir()
        text = CONFIG.replace("{folder}", str(folder / "second"))
        other.write_text(text.replace("127.0.0.1:0", f"127.0.0.1:{first.port}"))
        said = run("tardisd", "run", "-c", other, code=1).stderr
        assert f"[sinks.ws] cannot start: cannot listen on 127.0.0.1:{first.port}" in said
        assert "another program uses it" in said
        other.write_text(CONFIG.replace("{folder}", str(folder)))
        assert "another daemon listens on" in run("tardisd", "run", "-c", other, code=1).stderr
        assert len(witness.finish(first).ticks) == 1440


def test_flipped_bytes_are_told_and_only_they_are_lost(folder: Path) -> None:
    store = folder / "data" / "tardisd.sqlite"
    with sqlite3.connect(store) as connection:
        flip_a_byte(connection)
    connection.close()
    with running(folder) as daemon:
        witness = Witness(daemon, series=["binance:ETH/USDT@candle_1m"], speed=600, **DAY)
        with daemon.websocket() as client:
            answer = client.ask("create_session", series=[SERIES], speed="max", **DAY)
        assert (answer["type"], answer["code"]) == ("error", "internal")
        assert f"the rows of {SERIES} in 2024-03-01T00:00:00.000Z" in answer["message"]
        assert "fail their checksum" in answer["message"]
        out = folder / "out.csv"
        span = ["--from", "2024-03-01", "--to", "2024-03-20"]
        said = daemon.ctl("data", "export", SERIES, *span, "-o", out, code=1)
        assert "fail their checksum" in said
        assert not list(folder.glob("*out.csv*"))
        # What the message says to do is what helps.
        advice = re.search("`tardisctl (.*?)`", said)
        assert advice is not None
        daemon.ctl(*advice[1].split(), "--yes")
        path = folder / "BTCUSDT-1m-2024-03-01.csv"
        path.write_text(klines(ROWS))
        told = daemon.load(path, "BTC/USDT", "candle_1m")
        counts = re.search(r"([\d,]+) added, ([\d,]+) unchanged", told)
        assert counts is not None, told
        added, unchanged = (int(text.replace(",", "")) for text in counts.groups())
        assert added + unchanged == ROWS
        assert 0 < added < ROWS
        assert len(witness.finish(daemon).ticks) == 1440


def flip_a_byte(connection: sqlite3.Connection) -> None:
    """Damage the first chunk of the first series."""
    number, data = connection.execute(
        "SELECT d.id, data FROM chunk c JOIN chunk_data d ON c.id = d.id"
        " WHERE series_id = 1 ORDER BY first_ts LIMIT 1"
    ).fetchone()
    damaged = bytearray(data)
    damaged[len(damaged) // 2] ^= 0xFF
    connection.execute("UPDATE chunk_data SET data = ? WHERE id = ?", (bytes(damaged), number))


# No file of the daemon may be larger than a megabyte: as if the disk were full then.
SMALL_DISK = ("sh", "-c", 'ulimit -f 2048 && exec "$0" "$@"')


def test_a_disk_that_is_full(folder: Path) -> None:
    pieces = []
    for at in range(12):
        path = folder / f"XRP-{at}.csv"
        path.write_text(klines(6000, OPEN_MS + at * 6000 * 60_000, price=at + 1))
        pieces.append(path)
    large = folder / "LARGE.csv"
    large.write_text("".join(path.read_text() for path in pieces))
    with running(folder, prefix=SMALL_DISK) as daemon:
        witness = Witness(daemon, series=[SERIES], speed=600, **DAY)
        said = daemon.load(large, "XRP/USDT", "candle_1m", code=1)
        assert "cannot keep the rows in" in said  # before anything was stored
        assert "free space" in said
        acknowledged = 0
        for path in pieces:
            done = daemon.start_ctl(
                "data", "import", path,
                "--exchange", "binance", "--symbol", "XRP/USDT", "--data-type", "candle_1m",
            )  # fmt: skip
            _, said = done.communicate(timeout=DEADLINE_SECS)
            if done.returncode:
                break
            acknowledged += 6000
        assert done.returncode == 1, "the disk never became full"
        assert f"{folder}/data/tardisd.sqlite" in said
        assert "space" in said
        assert stored_rows(daemon) == acknowledged > 0
        assert len(witness.finish(daemon).ticks) == 1440
    with running(folder) as daemon:
        assert stored_rows(daemon) == acknowledged
        told = daemon.load(large, "XRP/USDT", "candle_1m")
        assert f"{72_000 - acknowledged:,} added, {acknowledged:,} unchanged" in told


def test_more_clients_than_files_may_be_open(folder: Path) -> None:
    few = ("sh", "-c", 'ulimit -n 64 && exec "$0" "$@"')
    with running(folder, prefix=few) as daemon:
        witness = Witness(daemon, series=[SERIES], speed=600, **DAY)
        address = ("127.0.0.1", daemon.port)
        crowd = [socket.create_connection(address, 30) for _ in range(200)]
        told = 'cannot accept clients error="too many open files;'
        wait_for(lambda: told in daemon.log, "the daemon to say so")
        # Files are left for everything but more clients: reading, writing, and the owner's word.
        done = daemon.json(
            "data", "export", "binance:ETH/USDT@candle_1m",
            "--from", "2024-03-01", "--to", "2024-04-01", "-o", folder / "eth.csv",
        )  # fmt: skip
        assert done["rows"] == ROWS
        path = folder / "XRPUSDT-1m-2024-03-01.csv"
        path.write_text(klines(ROWS))
        daemon.load(path, "XRP/USDT", "candle_1m")
        assert stored_rows(daemon) == ROWS
        assert daemon.json("session", "list")[0]["status"] == "active"
        for one in crowd:
            one.close()
        assert len(witness.finish(daemon).ticks) == 1440
        assert daemon.log.count(told) == 1  # not at every attempt


def stored_rows(daemon: Daemon) -> int:
    listed = {one["series"]: one["rows"] for one in daemon.json("series", "list")}
    return int(listed.get("binance:XRP/USDT@candle_1m", 0))


BROKEN = {
    "raises.py": 'raise RuntimeError("boom")\n',
    "typo.py": "def (\n",
    "lacking.py": "import nothing_like_this\n",
}


def test_plugins_that_cannot_be_imported(folder: Path) -> None:
    place = folder / "plugins"
    place.mkdir()
    for name, text in BROKEN.items():
        (place / name).write_text(text)
    with running(folder, f'{CONFIG}\n[plugins]\ndirs = ["{place}"]\n') as daemon:
        listed = {one["name"]: one for one in daemon.json("plugin", "list")}
        assert listed["raises"]["state"] == listed["typo"]["state"] == "failed"
        assert "RuntimeError: boom (raises.py:1" in listed["raises"]["reason"]
        assert listed["lacking"]["state"] == "unavailable"
        assert "pip install nothing_like_this" in listed["lacking"]["reason"]
        assert listed["sqlite"]["state"] == "loaded"
        assert 'plugin failed plugin=raises reason="RuntimeError: boom' in daemon.log
        assert len(daemon.json("series", "list")) == 2
    text = daemon.config.read_text() + '\n[sinks.mine]\nplugin = "raises"\n'
    daemon.config.write_text(text)
    line = text.splitlines().index('plugin = "raises"') + 1
    said = refused(folder, 78)
    assert said.startswith(f"{daemon.config}:{line}: sinks.mine.plugin: ")
    assert "RuntimeError: boom" in said


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[[[", 1, "config: not TOML"),
        ("[daemon]\ndata_dir = 5\n", 2, "daemon.data_dir: expected"),
        (
            '[storages.main]\nplugin = "sqlit"',
            2,
            "storages.main.plugin: no storage plugin is named",
        ),
        ('[storages.main]\nplugin = "sqlite"\npaht = "x"', 3, "storages.main.paht: "),
        (
            '[storages.main]\nplugin = "sqlite"\n[sinks.ws]\nplugin = "websocket"\n'
            'listen = "0.0.0.0:1"\n',
            5,
            "set token, or listen on 127.0.0.1",
        ),
    ],
)
def test_a_config_that_is_wrong(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    for command in ("run", "check"):
        lines = run("tardisd", command, "-c", path, code=78).stderr.splitlines()
        assert any(one.startswith(f"{path}:{line}: ") and said in one for one in lines), lines


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    for path, said in (
        (tmp_path / "none.toml", "no such file; begin with `tardisd config example"),
        (tmp_path, "cannot be read"),
        (tmp_path / "bytes.toml", "not UTF-8"),
    ):
        assert said in run("tardisd", "run", "-c", path, code=78).stderr


def test_a_control_socket_whose_place_is_taken(folder: Path) -> None:
    place = folder / "control.sock"
    place.write_text("mine")
    said = run("tardisd", "run", "-c", folder / "config.toml", code=1).stderr
    assert "exists and is not a socket; remove it" in said
    assert place.read_text() == "mine"
    place.unlink()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(place))
    with running(folder) as daemon:
        assert len(daemon.json("series", "list")) == 2
