"""Months from each venue, which fails at random, by a daemon that is killed at random: the truth.

The venue serves on loopback from a thread of this process. So that the suite stays quick, it is
five weeks and three kills; TARDISD_CHAOS=1 makes it three months and twenty.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trio
from daemon_rig import Daemon, running, wait_for
from websocket_client import DEADLINE_SECS

import tardisd.testing.venues.faults as faults
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import DAY, MINUTE, SECOND, parse_time
from tardisd.testing.exchange import suite_context
from tardisd.testing.ticks import random_candles, random_trades
from tardisd.testing.venues.binance import BinanceVenue
from tardisd.testing.venues.bybit import BybitVenue
from tardisd.testing.venues.faults import Fault, Misreport, Refuse, Reset, Truncate
from tardisd.testing.venues.okx import OkxVenue
from tardisd.testing.venues.venue import Venue
from tardisd_sqlite.plugin import SqliteOptions, SqliteStorage

CHAOS = bool(os.environ.get("TARDISD_CHAOS"))
KILLS, START, FAILING = (20, "2023-12-20", 0.02) if CHAOS else (3, "2024-02-12", 0.01)
BUDGET_SHARE = 0.85
BEGIN = parse_time(f"{START}T00:00:00Z") - 2 * DAY
NOW = parse_time("2024-03-20T12:00:30Z")
TRADE_GAP_SECS = 240
BANNED = b'{"code":-1003,"msg":"banned"}'


@dataclass(frozen=True)
class Case:
    """A venue, what is asked of it, and what it does wrong besides failing."""

    make: Callable[..., Venue]
    series: Sequence[str]
    end: str
    without: Sequence[str] = ()
    misreports: str = "limit="

    def truth(self) -> list[Batch]:
        """Return what the venue has, from two days before what is asked for."""
        return [self._rows(Series.parse(name), seed) for seed, name in enumerate(self.series)]

    def _rows(self, series: Series, seed: int) -> Batch:
        start, interval = BEGIN, series.data_type.interval
        if interval is not None:
            count = (NOW - start) // interval.nominal_ns + 10
            batch = random_candles(series, count, start, seed)
        else:
            count = (NOW - start) // (TRADE_GAP_SECS * SECOND)
            batch = random_trades(series, count, start, seed, mean_gap_ms=TRADE_GAP_SECS * 1000)
        fields = {name: column for name, column in batch.fields.items() if name not in self.without}
        ids = batch.ids
        if ids is not None and "id" in self.without:
            swap = series.symbol.settle is not None
            ids = np.array([b"%08x-5e8c" % it for it in ids.tolist()]) if swap else None
        return Batch(series, batch.ts_event, fields, ids, batch.sides)


CASES = {
    "binance": Case(
        BinanceVenue,
        [
            "binance:BTC/USDT@candle_1m",
            "binance:BTC/USDT:USDT@candle_5m",
            "binance:BTC/USDT@agg_trade",
            "binance:BTC/USDT@trade",
            "binance:BTC/USDT:USDT@agg_trade",
        ],
        end="2024-03-20T12:00:00Z",
        misreports=r"limit=|\.zip$",
    ),
    "bybit": Case(
        BybitVenue,
        [
            "bybit:BTC/USDT@candle_1m",
            "bybit:BTC/USDT:USDT@candle_1m",
            "bybit:BTC/USDT@trade",
            "bybit:BTC/USDT:USDT@trade",
        ],
        end="2024-03-20T00:00:00Z",
        without=["trades", "id"],
    ),
    "okx": Case(
        OkxVenue,
        [
            "okx:BTC/USDT@candle_1m",
            "okx:BTC/USDT:USDT@candle_5m",
            "okx:BTC/USDT@trade",
            "okx:BTC/USDT:USDT@trade",
        ],
        end="2024-03-20T12:00:00Z",
        without=["trades"],
        misreports=r"limit=|\.zip$",
    ),
}


def everything_fails_at_times(case: Case, chance: random.Random) -> list[Fault]:
    often = {"times": None, "chance": FAILING}
    # What is missing from an answer, and from the answer to the doubt as well, would be believed:
    # so that happens to answers that are far from each other.
    lacks = [
        Misreport(match="limit=", change=change, skip=chance.randrange(at, at + 10))
        for at, change in ((5, faults.missing), (45, faults.empty), (85, faults.missing))
    ]
    certain = [Refuse(status=500, skip=10), Reset(skip=20), faults.html_page(skip=30)]
    return [
        *lacks,
        *certain,
        Refuse(status=500, **often),
        Refuse(status=503, **often),
        Refuse(status=429, retry_after="0.05", **often),
        Refuse(match="/api/v3/", status=418, retry_after="0.3", body=BANNED, times=2, chance=0.1),
        Reset(**often),
        Reset(after_bytes=2000, **often),
        Truncate(after_bytes=500, **often),
        faults.html_page(match="limit=", **often),
        faults.not_a_number(match="limit=", **often),
        faults.wrong_checksum(**{**often, "chance": 0.1}),
        Misreport(match=case.misreports, change=faults.duplicated, **often),
        Misreport(match=case.misreports, change=faults.unsorted, **often),
    ]


@contextmanager
def serving(venue: Venue) -> Iterator[Venue]:
    """Serve from a thread while the block lasts."""
    ready, ends = threading.Event(), trio.Event()
    token: list[trio.lowlevel.TrioToken] = []

    async def serve() -> None:
        token.append(trio.lowlevel.current_trio_token())
        async with venue.serve():
            ready.set()
            await ends.wait()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        assert ready.wait(DEADLINE_SECS)
        yield venue
    finally:
        token[0].run_sync_soon(ends.set)
        thread.join(30)


def config_of(venue: Venue, share: float = BUDGET_SHARE) -> str:
    urls = {"rest": "rest_url", "swap": "swap_rest_url", "archive": "archive_url"}
    lines = [f'{urls[role]} = "{url}"' for role, url in venue.urls.items()]
    return "\n".join(
        [
            '[daemon]\ndata_dir = "{folder}/data"\ncontrol_socket = "{folder}/control.sock"',
            'log_format = "text"\n[storages.main]\nplugin = "sqlite"\n[exchanges.venue]',
            f'plugin = "{venue.exchange}"\nbudget_share = {share}',
            *lines,
        ]
    )


def ended(daemon: Daemon, job: int) -> dict:
    """Return a job when it has ended."""

    def look() -> dict | None:
        shown = daemon.ask("backfill.show", job=job)
        return shown if shown["ended_at"] else None

    return wait_for(look, "the end of the job")


def kill_now_and_then(
    daemon: Daemon, venue: Venue, job: int, chance: random.Random, count: int,
    least: int = 5, most: int = 40,
) -> int:  # fmt: skip
    """Kill the daemon and start it again, each time some requests later; return how often."""
    for kills in range(count):
        enough = len(venue.requests) + chance.randrange(least, most)

        def reached(enough: int = enough) -> str:
            if len(venue.requests) >= enough:
                return "far"
            return "ended" if daemon.ask("backfill.show", job=job)["ended_at"] else ""

        if wait_for(reached, "more requests") == "ended":
            return kills
        daemon.kill()
        daemon.start()
    return count


async def stored(folder: Path, wanted: dict[Series, Span]) -> dict[Series, Batch]:
    """Return what a storage, which nobody else uses, has."""
    storage = SqliteStorage(SqliteOptions(), suite_context("main", folder))
    found = {}
    async with storage.run():
        for series, span in wanted.items():
            assert (await storage.coverage(series)).covers(span)
            async with storage.read(series, span) as batches:
                found[series] = Batch.concat([part async for part in batches])
    return found


@pytest.mark.parametrize("name", CASES)
def test_months_through_faults_and_kills(tmp_path, name):
    case, chance = CASES[name], random.Random(name)
    truth = case.truth()
    span = Span(BEGIN + 2 * DAY, parse_time(case.end))
    words = [*case.series, "--from", START, "--to", case.end]
    venue = case.make({batch.series: batch for batch in truth}, clock=NOW, seed=1,
                      faults=everything_fails_at_times(case, chance))  # fmt: skip
    with serving(venue), running(tmp_path, config_of(venue)) as daemon:
        job = int(daemon.json("backfill", "run", *words)["id"])
        assert kill_now_and_then(daemon, venue, job, chance, KILLS) == KILLS
        shown = ended(daemon, job)
        for _ in range(3):  # of a file that is damaged twice running a gap is left, to be asked for
            failed = [part["message"] for part in shown["results"] if part["state"] != "finished"]
            assert all("the next backfill asks again" in told for told in failed), shown
            if all(part["complete"] for part in shown["results"]):
                break
            shown = ended(daemon, int(daemon.json("backfill", "run", *words)["id"]))
        assert shown["state"] == "finished", shown
        before = len(venue.requests)
        again = daemon.json("backfill", "run", *words, "--wait")
        assert [result["complete"] for result in again["results"]] == [True] * len(truth)
        assert len(venue.requests) == before
        daemon.stop()
    assert {seen.fault for seen in venue.requests} >= {"Refuse", "Reset", "Rewrite", "Misreport"}
    assert max(venue.most_used().values()) <= BUDGET_SHARE
    found = trio.run(stored, tmp_path / "data", {batch.series: span for batch in truth})
    for batch in truth:
        expected = batch.within(span)
        lost = np.setdiff1d(expected.ts_event, found[batch.series].ts_event)
        assert not len(lost), f"{batch.series} lacks {len(lost)} rows from {lost[0]} to {lost[-1]}"
        assert len(found[batch.series]) == len(expected) > 1000
        assert bool(same_rows(found[batch.series], expected).all())


def test_a_budget_outlives_kills(tmp_path):
    # Bybit does not tell what was used, as Binance does in every answer.
    candles = Series.parse("bybit:BTC/USDT@candle_1m")
    venue = BybitVenue(
        {candles: random_candles(candles, (NOW - BEGIN) // MINUTE, BEGIN)}, clock=NOW
    )
    words = [candles, "--from", START, "--to", "2024-03-20"]
    share = 0.08
    with serving(venue), running(tmp_path, config_of(venue, share)) as daemon:
        job = int(daemon.json("backfill", "run", *words)["id"])
        assert kill_now_and_then(daemon, venue, job, random.Random(1), 3, most=12, least=4) == 3
        assert ended(daemon, job)["state"] == "finished"
    assert share / 2 < venue.most_used()["rest requests"] <= share
