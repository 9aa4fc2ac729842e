"""Plugins of strangers that hang, block, flood or never end: contained, and named."""

from __future__ import annotations

import re
import sys

import pytest
from daemon_rig import CONFIG, DAY, Daemon, store_candles, wait_for

SERIES = "binance:BTC/USDT@candle_1m"
HEAD = """
import time
from contextlib import asynccontextmanager

import trio

import tardisd
from tardisd.log import Log
from tardisd.testing.memory import MemoryStorage

log = Log("tardisd.flooder")


class Quiet(tardisd.Writer):
    async def write(self, block):
        pass


class Base(tardisd.Sink):
    @asynccontextmanager
    async def open(self, session):
        yield Quiet()

"""
BLOCKER = """
class Blocker(Base):
    name = "blocker"

    @asynccontextmanager
    async def open(self, session):
        compute_for_ever()
        yield


def compute_for_ever():
    while True:
        time.sleep(0.01)


tardisd_sinks = tardisd.hookimpl(lambda: [Blocker])
"""
CLINGER = """
class Clinger(Base):
    name = "clinger"

    @asynccontextmanager
    async def run(self):
        yield
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()


tardisd_sinks = tardisd.hookimpl(lambda: [Clinger])
"""
FLOODER = """
class Loud(Quiet):
    async def write(self, block):
        for number in range(30_000):
            log.info("look at me", number=number)


class Flooder(Base):
    name = "flooder"

    @asynccontextmanager
    async def open(self, session):
        yield Loud()


tardisd_sinks = tardisd.hookimpl(lambda: [Flooder])
"""
HANGER = """
class Hanger(MemoryStorage):
    name = "hanger"

    async def list_series(self):
        await trio.sleep_forever()

    async def version(self, series):
        await trio.sleep_forever()


tardisd_storages = tardisd.hookimpl(lambda: [Hanger])
"""
SLOW = """
class Slow(Base):
    name = "slow"
    start_secs = 0.2

    @asynccontextmanager
    async def run(self):
        await trio.sleep_forever()
        yield


tardisd_sinks = tardisd.hookimpl(lambda: [Slow])
"""
# The same program, less patient.
HASTY = """
import sys
from tardisd import overdue, watch
watch.BEAT_SECS, watch.STILL_SECS, watch.GRACE_SECS = 0.05, 0.5, GRACE
overdue.OVERDUE_SECS = overdue.LOOK_SECS = 0.2
from tardisd.cli.daemon import main
sys.argv = sys.argv[1:]
main()
"""


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a daemon with a plugin, configured under its name."""
    started = []

    def start(name, code, kind="sink", grace=60):
        folder = tmp_path / "plugins"
        folder.mkdir(mode=0o755)
        (folder / f"{name}.py").write_text(HEAD + code)
        config = CONFIG.replace(
            "[storages.main]", "shutdown_secs = 1\nstorage = 'main'\n\n[storages.main]"
        )
        config += f'\n[plugins]\ndirs = ["{folder}"]\n\n[{kind}s.{name}]\nplugin = "{name}"\n'
        started.append(
            Daemon(
                tmp_path,
                config,
                prefix=[sys.executable, "-c", HASTY.replace(", GRACE\n", f", {grace}\n")],
            )
        )
        return started[-1]

    yield start
    for daemon in started:
        daemon.close()


def create(daemon, *more):
    span = ["--from", "2024-03-01", "--to", "2024-03-02", "--speed", "max"]
    daemon.ctl("session", "create", "--series", SERIES, *span, *more)


def test_one_that_blocks_the_loop_is_named_and_can_be_ended(start):
    daemon = start("blocker", BLOCKER, grace=0.5)
    store_candles(daemon, 10)
    client = daemon.start_ctl(
        "session", "create", "--series", SERIES, "--from", "2024-03-01", "--to", "2024-03-02",
        "--sink", "blocker",
    )  # fmt: skip
    told = r'event loop stands still .*plugin=blocker at=".*/blocker.py:\d+ in compute_for_ever"'
    wait_for(lambda: re.search(told, daemon.log), "the watch to tell")
    daemon.process.terminate()
    assert daemon.process.wait(30) == 1, "SIGTERM ends it, though no loop ever sees the signal"
    assert "stopping takes too long; ending the process unfinished=" in daemon.log
    assert "Traceback" not in daemon.log
    client.kill()


def test_one_that_never_ends_is_named_and_left(start):
    daemon = start("clinger", CLINGER, grace=0.5)
    with daemon.websocket() as client:
        client.ask("ping")
    daemon.process.terminate()
    assert daemon.process.wait(30) == 1
    assert "ending the process unfinished=sinks.clinger\n" in daemon.log
    assert "Traceback" not in daemon.log


def test_one_that_floods_the_log_is_told_and_hushed(start):
    daemon = start("flooder", FLOODER)
    store_candles(daemon, 100)
    create(daemon, "--id", "s", "--sink", "flooder")
    wait_for(
        lambda: daemon.ask("session.show", session_id="s")["sinks"][0]["state"] == "done",
        "the flood to end",
    )
    lines = [line for line in daemon.log.splitlines() if "look at me" in line]
    assert 500 <= len(lines) <= 15_000, "half at most, however slow the machine"
    assert any('flood="this event is not logged for up to 10 s"' in line for line in lines)
    daemon.stop()


def test_a_storage_that_hangs_is_named_and_holds_up_only_who_asks_it(start):
    daemon = start("hanger", HANGER, "storage")
    series = store_candles(daemon, 100)
    stuck = daemon.start_ctl(
        "session", "create", "--series", SERIES, "--from", "2024-03-01", "--to", "2024-03-02",
        "--storage", "hanger",
    )  # fmt: skip
    wait_for(lambda: "storage does not answer storage=hanger call=" in daemon.log, "a word")
    with daemon.websocket() as client:
        assert len(client.replay(series=series, speed="max", **DAY).ticks) == 100
    assert stuck.poll() is None
    daemon.stop()


def test_one_that_does_not_start_ends_the_start_by_name(start):
    with pytest.raises(AssertionError, match=r"\[sinks.slow\] cannot start: it did not start wit"):
        start("slow", SLOW)
