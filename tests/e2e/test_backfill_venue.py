"""A real daemon and a venue on loopback: bans outlive kills, and instances share an address."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from daemon_rig import running, wait_for
from websocket_client import DEADLINE_SECS

from tardisd.control.client import ControlClient
from tardisd.market.series import Series
from tardisd.market.time import DAY, SECOND, parse_time
from tardisd.testing.ticks import random_candles
from tardisd.testing.venues.binance import BinanceVenue
from tardisd.testing.venues.faults import Refuse
from tardisd.wall import wall_ns

CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
START = parse_time("2024-03-01T00:00:00Z")
WEEK = ["--from", "2024-03-01", "--to", "2024-03-08"]

CONFIG = """
[daemon]
data_dir = "{{folder}}/data"
control_socket = "{{folder}}/control.sock"
log_format = "text"

[storages.main]
plugin = "sqlite"

[exchanges.one]
plugin = "binance"
rest_url = "{rest}"
swap_rest_url = "{swap}"
archive_url = "{archive}"
archives = "never"

[exchanges.two]
plugin = "binance"
rest_url = "{rest}"
swap_rest_url = "{swap}"
archive_url = "{archive}"
archives = "never"
"""


@contextmanager
def serving(venue: BinanceVenue) -> Iterator[BinanceVenue]:
    """Let a venue serve in a thread of its own."""
    ready, over = threading.Event(), trio.Event()
    token: list[trio.lowlevel.TrioToken] = []

    async def serve() -> None:
        async with venue.serve():
            token.append(trio.lowlevel.current_trio_token())
            ready.set()
            await over.wait()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        assert ready.wait(DEADLINE_SECS)
        yield venue
    finally:
        token[0].run_sync_soon(over.set)
        thread.join(30)


@pytest.fixture
def venue():
    made = BinanceVenue({CANDLES: random_candles(CANDLES, 7 * 1440, START)}, clock=START + 9 * DAY)
    with serving(made):
        yield made


def config_of(venue: BinanceVenue) -> str:
    urls = {"rest": venue.rest_url, "swap": venue.swap_rest_url, "archive": venue.archive_url}
    return CONFIG.format(**urls)


def most_of_it_passes(state: Path) -> int:
    """Let the remembered bans end a few seconds from now; return when (ns)."""
    over = wall_ns() + 12 * SECOND  # a busy machine takes some of them to start the daemon
    with sqlite3.connect(state) as database:
        changed = database.execute("UPDATE bans SET until = ? WHERE until > ?", (over, over))
        assert changed.rowcount == 1
    database.close()
    return over


def test_a_ban_is_kept_to_through_a_kill(tmp_path, venue):
    venue.faults.add(Refuse(match="klines", status=418, skip=3, retry_after="120", times=1))
    with running(tmp_path, config_of(venue)) as one:
        words = [CANDLES.text, *WEEK, "--exchange-instance", "one"]
        job = one.json("backfill", "run", *words)["id"]

        def cooling():
            shown = one.json("backfill", "show", job)
            return shown if shown["state"] == "cooling_down" else None

        shown = wait_for(cooling, "the ban")
        assert " until 20" in shown["waiting_for"]
        one.kill()
        before = len(venue.requests)
        over = most_of_it_passes(tmp_path / "data" / "state.sqlite")
        one.start()
        assert "banned" in wait_for(cooling, "the job after the kill")["waiting_for"]
        # Another instance asks the same address, and so keeps to the ban.
        hours = ["binance:BTC/USDT@candle_1h", *WEEK, "--exchange-instance", "two"]
        other = one.json("backfill", "run", *hours)["id"]
        for one_job in (job, other):
            wait_for(lambda it=one_job: one.json("backfill", "show", it)["ended_at"], "the end")
        assert one.json("backfill", "show", job)["state"] == "finished"
        after = [seen.ts for seen in venue.requests[before:]]
        assert after
        assert min(after) >= over
        assert one.json("series", "show", CANDLES.text)["rows"] == 7 * 1440
        assert len(one.json("series", "coverage", CANDLES.text)["spans"]) == 1
        assert one.json("series", "show", CANDLES.text)["tick_size"].startswith("0.01")


def test_a_fatal_answer_is_told_at_once_and_kept_with_its_gap(tmp_path, venue):
    venue.faults.add(Refuse(match="klines", status=451, skip=2, times=1))
    with running(tmp_path, config_of(venue)) as one:
        words = ["backfill", "run", CANDLES.text, *WEEK, "--exchange-instance", "one", "--wait"]
        told = one.ctl(*words, code=1)
        assert "451" in told
        gaps = one.json("series", "gaps", CANDLES.text, *WEEK)["gaps"]
        assert [gap["cause"] for gap in gaps] == ["fetch_failed"]
        assert gaps[0]["end"] == "2024-03-08T00:00:00.000Z"
        assert "451" in gaps[0]["reason"]
        assert f"fetch_failed: {gaps[0]['reason']}" in one.ctl(
            "series", "gaps", CANDLES.text, *WEEK
        )
        assert one.json("backfill", "show", 1)["message"] == gaps[0]["reason"]
        one.ctl(*words)
        assert one.json("series", "gaps", CANDLES.text, *WEEK)["gaps"] == []


def test_a_second_run_makes_no_request(tmp_path, venue):
    with running(tmp_path, config_of(venue)) as one:
        words = ["backfill", "run", CANDLES.text, *WEEK, "--wait", "--exchange-instance", "one"]
        shown = one.json(*words)
        assert (shown["rows"], shown["state"]) == (7 * 1440, "finished")
        requests = len(venue.requests)
        one.json(*words)
        one.kill()
        one.start()
        one.json(*words)
        assert len(venue.requests) == requests


def test_progress_tells_how_much_of_the_limit_is_used(tmp_path, venue):
    told = []
    with running(tmp_path, config_of(venue)) as one, ControlClient(one.socket) as client:
        job = client.call(
            "backfill.run",
            {
                "series": [CANDLES.text],
                "from": "2024-03-01T00:00:00Z",
                "to": "2024-03-08T00:00:00Z",
                "exchange": "one",
                "wait": True,
            },
            on_notification=lambda method, params: told.append((method, params)),
        )
    assert {method for method, _ in told} == {"progress"}
    last = told[-1][1]
    assert (last["backfill"], last["state"]) == (job["id"], "finished")
    assert last["done"] == last["total"] == 7 * DAY
    assert last["message"] == "10,080 rows"
    used = [params["limit_used"] for _, params in told if params["limit_used"] is not None]
    assert all(0 <= share < 0.85 for share in used)
