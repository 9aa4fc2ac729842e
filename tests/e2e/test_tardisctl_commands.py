"""`tardisctl` as people run it: real processes, a real daemon, exit codes, stdout and stderr."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from websocket_client import DEADLINE_SECS

CONFIG = """
[daemon]
data_dir = "{folder}/data"
control_socket = "{folder}/control.sock"

[storages.main]
plugin = "sqlite"

[exchanges.made]
plugin = "synthetic"

[sessions.demo]
series = ["binance:BTC/USDT@candle_1m"]
start = 2024-03-01T00:00:00Z
end = 2024-03-01T02:00:00Z
speed = "max"
"""
OPEN = 1_709_251_200_000
SERIES = "binance:BTC/USDT@candle_1m"
SPAN = ["--from", "2024-03-01", "--to", "2024-03-01T02:00:00Z"]


def klines(count, missing=()):
    """Return Binance klines from 2024-03-01 on, some of them left out."""
    rows = []
    for at in range(count):
        start = OPEN + at * 60_000
        if at not in missing:
            prices = "61130.98,61150.00,61098.00,61119.34,25.61200"
            rows.append(f"{start},{prices},{start + 59_999},1564694.15,1200,12.1,739000.11,0")
    return "\n".join(rows) + "\n"


class Daemon:
    """A running `tardisd`, and `tardisctl` to ask it."""

    def __init__(self, program, folder):
        self.program = program
        self.folder = folder
        self.config = folder / "config.toml"
        self.config.write_text(CONFIG.format(folder=folder))
        self.socket = folder / "control.sock"
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
            (folder / "log").open("wb") as log,
        ):
            notify.settimeout(60)
            notify.bind(str(folder / "notify"))
            self.process = subprocess.Popen(
                [program / "tardisd", "run", "-c", self.config],
                env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify")},
                stderr=log,
            )
            while b"READY=1" not in notify.recv(4096):
                pass

    def ctl(self, *words, code=0, **options):
        """Run tardisctl and return what it printed; it must exit with `code`."""
        done = subprocess.run(
            [self.program / "tardisctl", "--socket", self.socket, *words],
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECS,
            check=False,
            **options,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done

    def json(self, *words):
        """Return the one JSON value that a command prints."""
        return json.loads(self.ctl("--json", *words).stdout)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def daemon(program, tmp_path_factory):
    one = Daemon(program, tmp_path_factory.mktemp("ctl"))
    yield one
    one.kill()


@pytest.fixture(scope="module")
def stored(daemon):
    """Return the daemon with two hours of candles, a hole in them."""
    path = daemon.folder / "BTCUSDT-1m-2024-03-01.csv"
    path.write_text(klines(120, missing={30, 31}))
    imported = ["data", "import", path, "--exchange", "binance", "--symbol", "BTC/USDT"]
    imported += ["--data-type", "candle_1m", "--covers", "2024-03-01..2024-03-01T02:00:00Z"]
    assert "118 added, 0 unchanged, 0 revised" in daemon.ctl(*imported).stdout
    assert "0 added, 118 unchanged, 0 revised" in daemon.ctl(*imported).stdout
    return daemon


def test_status(daemon):
    text = daemon.ctl("status").stdout
    assert "sqlite" in text
    assert "synthetic" in text
    status = daemon.json("status")
    assert status["pid"] == daemon.process.pid
    assert {one["state"] for one in status["instances"]} == {"running"}


def test_the_socket_by_config_and_environment(daemon):
    ctl = daemon.program / "tardisctl"
    for words, environ in (
        (["-c", daemon.config], {}),
        ([], {"TARDISD_SOCKET": str(daemon.socket)}),
    ):
        whole = {**os.environ, "TARDISD_SOCKET": "", **environ}
        done = subprocess.run([ctl, *words, "status"], env=whole, capture_output=True, check=True)
        assert b"sqlite" in done.stdout


def test_what_is_stored_and_what_is_missing(stored):
    (info,) = stored.json("series", "list")
    assert (info["series"], info["rows"]) == (SERIES, 118)
    lines = stored.ctl("series", "list").stdout.splitlines()
    assert lines[0].split()[0] == "SERIES"
    assert lines[1].split()[:2] == [SERIES, "118"]
    (span,) = stored.json("series", "coverage", SERIES)["spans"]
    assert (span["from"], span["to"]) == (OPEN, OPEN + 7_200_000)
    (gap,) = stored.json("series", "gaps", SERIES)["gaps"]
    assert (gap["from"], gap["to"], gap["cause"]) == (OPEN + 1800_000, OPEN + 1920_000, "unknown")
    text = stored.ctl("series", "gaps", SERIES, "--to", "2024-03-01T03:00:00Z").stdout
    assert "not_fetched" in text
    assert "2m" in text


@pytest.mark.parametrize("form", ["csv", "ndjson"])
def test_exporting(stored, tmp_path, form):
    path = tmp_path / "out"
    words = ["data", "export", SERIES, *SPAN, "--format", form]
    assert "118 rows" in stored.ctl(*words, "-o", path).stdout
    assert [found.name for found in tmp_path.iterdir()] == ["out"]
    text = path.read_text()
    assert len(text.splitlines()) == 118 + (form == "csv")
    assert stored.ctl(*words, "-o", "-").stdout == text
    with (tmp_path / "redirected").open("wb") as out:
        subprocess.run(
            [stored.program / "tardisctl", "--socket", stored.socket, *words, "-o", "-"],
            stdout=out,
            check=True,
        )
    assert (tmp_path / "redirected").read_text() == text


def test_an_export_that_fails_leaves_nothing(stored, tmp_path):
    words = ["data", "export", SERIES, *SPAN, "--storage", "none", "-o", tmp_path / "out"]
    assert "no storage" in stored.ctl(*words, code=1).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_session_by_commands(stored):
    words = ["session", "create", "--series", SERIES, *SPAN, "--id", "s", "--paused"]
    assert stored.ctl(*words, "--speed", "60").stdout == "s paused\n"
    assert "s" in stored.ctl("session", "list").stdout
    assert stored.json("session", "show", "s")["speed"] == 60
    assert "s resumed" in stored.ctl("session", "resume", "s").stdout
    assert "s paused" in stored.ctl("session", "pause", "s").stdout
    assert "s speed changed" in stored.ctl("session", "speed", "s", "max").stdout
    assert "s stopped" in stored.ctl("session", "stop", "s").stdout
    refused = stored.ctl("session", "pause", "s", code=1).stderr
    assert refused.startswith("error: ")
    stored.ctl("session", "remove", "s")
    refused = stored.ctl("session", "show", "s", code=1).stderr
    assert "tardisctl session list" in refused


def test_moving_a_session_by_commands(stored):
    words = ["session", "create", "--series", SERIES, *SPAN, "--id", "m", "--paused"]
    stored.ctl(*words, "--max-idle", "0.01", "--loop", "--until", "2024-03-01T01:30:00Z")
    assert stored.ctl("session", "step", "m").stdout == "m stepped 1 at 2024-03-01T00:01:00.000Z\n"
    assert stored.json("session", "step", "m", "4")["count"] == 4
    assert stored.json("session", "step", "m", "-2")["count"] == -2
    assert stored.json("session", "show", "m")["epoch"] == 2
    assert "m sought at 2024-03-01T01:00:00.000Z" in stored.ctl(
        "session", "seek", "m", "2024-03-01T01:00:00Z"
    ).stdout  # fmt: skip
    assert "at 2024-03-01T00:59:00.000Z" in stored.ctl("session", "seek", "m", "-60").stdout
    assert "at 2024-03-01T01:29:00.000Z" in stored.ctl("session", "seek", "m", "+30m").stdout
    assert "at 2024-03-01T00:29:00.000Z" in stored.ctl("session", "seek", "m", "-1h").stdout
    assert "at 2024-03-01T01:29:00.000Z" in stored.ctl("session", "seek", "m", "+1h").stdout
    refused = stored.ctl("session", "seek", "m", "2024-04-01", code=1).stderr
    assert "is outside the session" in refused
    assert "write +90s" in stored.ctl("session", "seek", "m", "+soon", code=2).stderr
    assert "write +90s" in stored.ctl("session", "seek", "m", "-1x", code=2).stderr
    assert "Move a session" in stored.ctl("session", "seek", "-h").stdout
    stored.ctl("session", "step", "m", "3")
    proof = stored.json("session", "verify", "m")
    assert (proof["equal"], proof["ticks"], proof["epoch"]) == (True, 3, 7)
    assert stored.ctl("session", "verify", "m").stdout.startswith("m equal: 3 ticks, hash ")


def test_when_candles_of_a_session_are_released(stored):
    words = ["session", "create", "--series", SERIES, *SPAN, "--paused"]
    stored.ctl(*words, "--id", "late", "--publish-delay", "1500")
    assert "at 2024-03-01T00:01:01.500Z" in stored.ctl("session", "step", "late").stdout
    stored.ctl(*words, "--id", "early", "--release", "open-lookahead")
    assert "at 2024-03-01T00:00:00.000Z" in stored.ctl("session", "step", "early").stdout
    stored.ctl(*words, "--id", "kept", "--lockstep", "--ack-timeout", "5")
    refused = stored.ctl(*words, "--id", "not", "--publish-delay", "-1", code=1).stderr
    assert "publish_delay_ms" in refused


def test_watching_a_session(stored):
    words = ["session", "create", "--series", SERIES, *SPAN, "--id", "w", "--paused"]
    stored.ctl(*words, "--speed", "max")
    watch = subprocess.Popen(
        [stored.program / "tardisctl", "--socket", stored.socket, "session", "watch", "w"],
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + DEADLINE_SECS
    while not stored.json("session", "show", "w")["subscribers"]:
        assert time.monotonic() < deadline
    stored.ctl("session", "resume", "w")
    text, _ = watch.communicate(timeout=DEADLINE_SECS)
    assert watch.returncode == 0
    assert f"2024-03-01T00:01:00.000Z {SERIES} open=61130.98" in text
    assert "-- gap" in text
    assert "-- end" in text
    assert "reason=finished" in text


def test_a_preset(stored):
    assert stored.ctl("session", "start", "demo").stdout == "demo active\n"
    assert "configured: demo" in stored.ctl("session", "start", "dmeo", code=1).stderr


def test_plugins_and_configuration(daemon):
    assert "sqlite" in daemon.ctl("plugin", "list").stdout
    shown = daemon.ctl("config", "show").stdout
    assert '[storages.main]\nplugin = "sqlite"' in shown
    assert "valid" in daemon.ctl("config", "check").stdout
    good = daemon.config.read_text()
    daemon.config.write_text(good.replace("[exchanges.made]", "[exchanges.made]\nsede = 1"))
    done = daemon.ctl("config", "check", code=78)
    daemon.config.write_text(good)
    line = good.splitlines().index("[exchanges.made]") + 2
    assert f"{daemon.config}:{line}: exchanges.made.sede: " in done.stderr


def test_deleting(daemon):
    path = daemon.folder / "ETHUSDT-1m.csv"
    path.write_text(klines(5))
    words = ["--exchange", "binance", "--symbol", "ETHUSDT", "--data-type", "candle_1m"]
    daemon.ctl("data", "import", path, *words)
    series = "binance:ETH/USDT@candle_1m"
    asked = daemon.ctl("series", "delete", series, "--all", code=1, input="n\n")
    assert "Delete all of" in asked.stderr
    assert "deleted 5 rows" in daemon.ctl("series", "delete", series, "--all", "--yes").stdout
    daemon.ctl("series", "delete", series, "--yes", code=2)


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["series", "gaps", "nonsense"],
        ["series", "gaps", SERIES, "--from", "yesterday"],
        ["session", "speed", "s", "-1"],
        ["session", "create", "--series", SERIES],
        ["data", "import", "/no/such/file"],
        ["completion", "tcsh"],
    ],
)
def test_usage(daemon, words):
    done = daemon.ctl(*words, code=2)
    assert done.stdout == ""
    assert "Error" in done.stderr


def test_a_backfill(daemon):
    series = "synthetic:BTC/USDT@candle_1m"
    words = ["backfill", "run", series, *SPAN, "--wait"]
    assert daemon.ctl(*words).stdout.startswith(f"{series}: ")
    (again,) = daemon.json(*words)["results"]
    assert again["pages"] == 0


def test_a_bad_file_is_refused_whole(daemon):
    path = daemon.folder / "bad.csv"
    path.write_text(klines(50) + "garbage\n")
    words = ["--exchange", "binance", "--symbol", "XRPUSDT", "--data-type", "candle_1m"]
    assert "line 51" in daemon.ctl("data", "import", path, *words, code=1).stderr
    assert "XRP" not in daemon.ctl("series", "list").stdout


def test_nobody_there(program, tmp_path):
    for words, code in (
        (["--socket", tmp_path / "none"], 3),
        (["-c", tmp_path / "none.toml"], 78),
    ):
        done = subprocess.run(
            [program / "tardisctl", *words, "status"], capture_output=True, text=True, check=False
        )
        assert done.returncode == code
        assert done.stdout == ""
    assert "none.toml:1: config: " in done.stderr


def test_no_permission(daemon):
    program = (
        "import os, tardisd.control.client; from tardisd.cli import ctl;"
        " os.geteuid() or os.setuid(65534); ctl.main()"  # root may do anything
    )
    daemon.socket.chmod(0)
    words = [sys.executable, "-c", program, "--socket", daemon.socket, "status"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    daemon.socket.chmod(0o660)
    assert done.returncode == 77
    assert "no permission" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(program, shell):
    words = [program / "tardisctl", "completion", shell]
    done = subprocess.run(words, capture_output=True, check=True)
    assert b"_TARDISCTL_COMPLETE" in done.stdout


def test_completing_names_from_the_daemon(stored):
    environ = {
        **os.environ,
        "_TARDISCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": f"tardisctl --socket {stored.socket} series gaps binance:",
        "COMP_CWORD": "5",
    }
    ctl = stored.program / "tardisctl"
    done = subprocess.run([ctl], env=environ, capture_output=True, check=True)
    assert SERIES.encode() in done.stdout


def test_stopping(program, tmp_path):
    one = Daemon(program, tmp_path)
    try:
        second = subprocess.run(
            [program / "tardisd", "run", "-c", one.config],
            capture_output=True,
            timeout=DEADLINE_SECS,
            check=False,
        )
        assert second.returncode == 1
        assert b"another daemon listens" in second.stderr
        assert one.ctl("stop").stdout == "stopped\n"
        assert one.process.wait(DEADLINE_SECS) == 0
        one.ctl("status", code=3)
        assert not one.socket.exists()
    finally:
        one.kill()


def test_a_killed_daemon_leaves_a_socket_that_is_replaced(program, tmp_path):
    one = Daemon(program, tmp_path)
    one.kill()
    assert one.socket.exists()
    one.ctl("status", code=3)
    (tmp_path / "notify").unlink()
    two = Daemon(program, tmp_path)
    two.ctl("status")
    two.process.send_signal(signal.SIGTERM)
    assert two.process.wait(DEADLINE_SECS) == 0


def test_parquet_goes_out_and_comes_back(stored, tmp_path):
    path = tmp_path / "out.parquet"
    words = ["data", "export", SERIES, *SPAN, "--format", "parquet"]
    assert "118 rows" in stored.ctl(*words, "-o", path).stdout
    ctl = [stored.program / "tardisctl", "--socket", stored.socket, *words, "-o", "-"]
    piped = subprocess.run(ctl, capture_output=True, check=True).stdout
    assert piped == path.read_bytes(), "a pipe cannot be sought in"
    back = ["data", "import", path, "--exchange", "binance", "--symbol", "BTC/USDT"]
    back += ["--data-type", "candle_1m"]
    assert "0 added, 118 unchanged, 0 revised" in stored.ctl(*back).stdout
    table = pq.read_table(path)
    floats = table.set_column(1, "open", table["open"].cast(pa.float64()))
    pq.write_table(floats, path)
    told = stored.ctl(*back).stdout
    assert "0 added, 118 unchanged, 0 revised" in told
    assert "out.parquet: column open holds floats: taken as the shortest decimals" in told


def test_contracts_are_told_on_the_command_line(stored, tmp_path):
    path = tmp_path / "BTC-USDT-SWAP-trades-2024-03-01.csv"
    rows = [f"BTC-USDT-SWAP,{n},buy,61130.9,{n}.5,{OPEN + n}" for n in range(3)]
    header = "instrument_name,trade_id,side,price,size,created_time"
    path.write_text("\n".join([header, *rows]))
    words = ["data", "import", path, "--exchange", "okx", "--symbol", "BTC/USDT:USDT"]
    words += ["--data-type", "trade"]
    assert "counts contracts" in stored.ctl(*words, code=1).stderr
    assert "contract_size" in stored.ctl(*words, "--contract-size", "x", code=1).stderr
    assert "3 added" in stored.ctl(*words, "--contract-size", "0.01").stdout
    span = ["--from", "2024-03-01", "--to", "2024-03-02", "-o", "-"]
    text = stored.ctl("data", "export", "okx:BTC/USDT:USDT@trade", *span).stdout
    assert [line.split(",")[3] for line in text.splitlines()[1:]] == ["0.005", "0.015", "0.025"]
