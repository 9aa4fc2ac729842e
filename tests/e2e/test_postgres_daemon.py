"""Daemons on a real PostgreSQL that is killed and revived during a backfill and a replay."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest
from daemon_rig import Daemon, run, running, wait_for

sys.path.append(str(Path(__file__).resolve().parents[1] / "plugins"))
from postgres_rig import own_server

pytestmark = pytest.mark.services
KILLS = 3
TRADES = "synthetic:BTC/USDT@trade"
CANDLES = "synthetic:BTC/USDT@candle_1m"
SPAN = ["--from", "2024-03-01", "--to", "2024-03-04"]
CONFIG = """
[daemon]
data_dir = "{folder}/data"
control_socket = "{folder}/control.sock"
storage = "shared"
log_format = "text"

[storages.shared]
plugin = "postgres"
dsn = { env = "TARDISD_DSN" }

[storages.plain]
plugin = "sqlite"

[exchanges.made]
plugin = "synthetic"

[sinks.files]
plugin = "file"
path = "{folder}/out/{session_id}.ndjson"
"""


@pytest.fixture(scope="module")
def server():
    with own_server() as one:
        yield one


@pytest.fixture
def daemon(server, tmp_path):
    with started(server, tmp_path) as one:
        yield one


def started(server, folder):
    return running(folder, CONFIG, environ={"TARDISD_DSN": server.dsn})


def backfill(daemon: Daemon, storage: str, *more: str):
    """Begin to fetch both series; return the job's number."""
    words = ["backfill", "run", TRADES, CANDLES, *SPAN, "--storage", storage, *more]
    return daemon.json(*words)["id"]


def end_of(daemon: Daemon, session: str):
    """Return how a session has ended (why, ticks, hash), or None."""
    return re.search(
        rf"session ended session={session} epoch=1 reason=(\w+) ticks=(\d+) hash=(\w+)", daemon.log
    )


def play(daemon: Daemon, storage: str, speed: str):
    """Begin to replay both series; return the session's name."""
    series = [word for one in (TRADES, CANDLES) for word in ("--series", one)]
    words = [*series, *SPAN, "--speed", speed, "--storage", storage, "--sink", "files"]
    daemon.ctl("session", "create", *words, "--id", storage)
    return storage


def test_killed_and_revived_thrice_during_each(daemon, server, tmp_path):
    chance = random.Random(5)
    job = backfill(daemon, "shared")
    for limit in sorted(chance.random() for _ in range(KILLS)):

        def far_enough(limit=limit):
            shown = daemon.json("backfill", "show", job)
            return shown["ended_at"] or shown["done"] >= limit * shown["total"] > 0

        wait_for(far_enough, f"{limit:.0%} of the backfill")
        server.stop()
        server.start()
    shown = wait_for(
        lambda: (it := daemon.json("backfill", "show", job))["ended_at"] and it, "the backfill"
    )
    assert shown["state"] == "finished", shown
    assert daemon.json("data", "verify", TRADES)["ok"]
    backfill(daemon, "plain", "--wait")

    session = play(daemon, "shared", "60000")  # four seconds and more
    for _ in range(KILLS):
        server.stop()
        server.start()
    for name in (session, play(daemon, "plain", "max")):
        wait_for(lambda name=name: end_of(daemon, name), f"session {name} to end")
    shared, plain = end_of(daemon, "shared"), end_of(daemon, "plain")
    assert shared.groups() == plain.groups()
    assert (shared[1], int(shared[2]) > 100_000) == ("finished", True)
    path = tmp_path / "out" / "shared.ndjson"
    wait_for(path.exists, str(path))
    assert path.read_bytes().count(b"\n") == int(shared[2])
    begun = daemon.log.index("session created session=shared")
    assert begun < daemon.log.index("database away, waiting for it", begun) < shared.start()
    assert "database back" in daemon.log


def test_two_daemons_fetch_a_series_once(server, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with started(server, folders[0]) as one, started(server, folders[1]) as two:
        words = ["synthetic:ETH/USDT@trade", *SPAN, "--wait"]
        commands = [each.start_ctl("--json", "backfill", "run", *words) for each in (one, two)]
        for command in commands:
            command.communicate()
            assert command.returncode == 0
        jobs = [each.json("backfill", "list")[0] for each in (one, two)]
        rows = one.json("series", "list")
    assert sorted(job["state"] for job in jobs) == ["finished", "finished"]
    assert min(job["rows"] for job in jobs) == 0
    assert max(job["rows"] for job in jobs) == next(
        it["rows"] for it in rows if it["series"].startswith("synthetic:ETH")
    )


def test_a_daemon_without_its_database_says_why(tmp_path):
    path = tmp_path / "config.toml"
    text = CONFIG.replace("{folder}", str(tmp_path))
    path.write_text(
        text.replace('{ env = "TARDISD_DSN" }', '"postgresql://me:hunter2@127.0.0.1:1/x"')
    )
    done = run("tardisd", "run", "-c", path, code=1)
    assert (
        "[storages.shared] cannot start: PostgreSQL at 127.0.0.1:1, database x cannot"
        in done.stderr
    )
    assert "check dsn, and that the server runs" in done.stderr
    assert "hunter2" not in done.stderr
