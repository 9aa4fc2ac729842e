"""What people and the world do wrong with backfills: refused at once, told why, nothing lost.

A real daemon and the three venues on loopback.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import trio
from daemon_rig import Daemon, running, wait_for
from venue_rig import HEAD, ended, instance_of, serving

from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import DAY, HOUR, MILLISECOND, MINUTE, SECOND, format_time, parse_time
from tardisd.testing.exchange import suite_context
from tardisd.testing.ticks import random_candles, random_trades
from tardisd.testing.venues.binance import BinanceVenue
from tardisd.testing.venues.bybit import GEO_PAGE, BybitVenue
from tardisd.testing.venues.faults import Misreport, Refuse, stale
from tardisd.testing.venues.okx import OkxVenue
from tardisd.testing.venues.venue import Venue, VenueClock
from tardisd.wall import wall_ns
from tardisd_sqlite.plugin import SqliteOptions, SqliteStorage

START = parse_time("2024-03-01T00:00:00Z")
NOW = parse_time("2024-03-05T12:00:30Z")
HOURS = ["--from", "2024-03-02T00:00:00Z", "--to", "2024-03-02T05:00:00Z"]
VENUES = {"binance": BinanceVenue, "bybit": BybitVenue, "okx": OkxVenue}


def data_of(exchange: str) -> dict[Series, Batch]:
    minutes = Series.parse(f"{exchange}:BTC/USDT@candle_1m")
    trades = Series.parse(f"{exchange}:BTC/USDT:USDT@trade")
    months = Series.parse(f"{exchange}:BTC/USDT@candle_1M")
    days = Series.parse(f"{exchange}:BTC/USDT@candle_1d")
    made = random_trades(trades, 3000, START, mean_gap_ms=100_000)
    if exchange == "bybit":
        ids = np.array([f"{at:08x}-d31-5e8c".encode() for at in range(len(made))], np.bytes_)
        made = Batch(trades, made.ts_event, made.fields, ids, made.sides)
    return {
        minutes: random_candles(minutes, 8 * 1440, START),
        months: random_candles(months, 3, START),
        days: random_candles(days, 30, START),
        trades: made,
    }


@dataclass
class World:
    """A daemon that has all three venues."""

    daemon: Daemon
    venues: dict[str, Venue]

    def asked(self, exchange: str) -> int:
        return len(self.venues[exchange].requests)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    venues = {name: make(data_of(name), clock=NOW) for name, make in VENUES.items()}
    with serving(*venues.values()):
        config = HEAD + "".join(map(instance_of, venues.values()))
        with running(tmp_path_factory.mktemp("bad_input"), config) as daemon:
            yield World(daemon, venues)


@pytest.fixture(autouse=True)
def _no_faults_left(request):
    yield
    if "world" in request.fixturenames:
        for venue in request.getfixturevalue("world").venues.values():
            venue.faults.faults.clear()


@pytest.mark.parametrize("exchange", VENUES)
def test_an_unknown_symbol_is_refused_at_once(world, exchange):
    before = world.asked(exchange)
    words = [f"{exchange}:NOPE/USDT@candle_1m", *HOURS, "--wait"]
    told = world.daemon.ctl("backfill", "run", *words, code=1)
    assert "NOPE" in told
    assert "is it spelt as the venue does" in told
    assert "spot (BTC/USDT) or swap (BTC/USDT:USDT)" in told
    assert world.asked(exchange) - before <= 3
    gaps = world.daemon.json("series", "gaps", words[0], *HOURS)
    assert [gap["cause"] for gap in gaps["gaps"]] == ["not_fetched"]


@pytest.mark.parametrize(
    "series",
    ["binance:BTC/USDT:USDT@candle_1s", "binance:BTC/USDT@candle_7m", "bybit:BTC/USDT@candle_8h",
     "okx:BTC/USDT@candle_8h", "bybit:BTC/USDT@agg_trade"],
)  # fmt: skip
def test_what_the_venue_lacks_is_refused_by_name(world, series):
    before = world.asked(series.partition(":")[0])
    told = world.daemon.ctl("backfill", "run", series, *HOURS, "--wait", code=1)
    assert f"has no {series.partition('@')[2]}" in told
    assert "1m" in told, "it says what there is"
    assert world.asked(series.partition(":")[0]) - before <= 1


@pytest.mark.parametrize("exchange", VENUES)
def test_the_future_and_an_end_before_the_start(world, exchange):
    series = f"{exchange}:BTC/USDT@candle_1m"
    future = ["--from", "2024-03-06", "--to", "2024-03-07"]
    told = world.daemon.ctl("backfill", "run", series, *future, "--wait", code=1)
    assert f"lies in the future; the clock of {exchange} says 2024-03-05T12:00:30" in told
    backwards = ["--from", "2024-03-03", "--to", "2024-03-02"]
    assert "must be after from" in world.daemon.ctl("backfill", "run", series, *backwards, code=1)
    assert world.daemon.json("series", "coverage", series, *future)["spans"] == []


@pytest.mark.parametrize("exchange", VENUES)
def test_before_the_listing_nobody_traded(world, exchange):
    series = f"{exchange}:BTC/USDT@candle_1m"
    words = ["--from", "2024-02-20", "--to", "2024-03-01T02:00:00Z"]
    before = world.asked(exchange)
    [result] = world.daemon.json("backfill", "run", series, *words, "--wait")["results"]
    assert (result["state"], result["complete"], result["added"]) == ("finished", True, 120)
    assert world.asked(exchange) - before < 20
    gaps = world.daemon.json("series", "gaps", series, *words)["gaps"]
    assert {gap["cause"] for gap in gaps} == {"no_trades"}
    assert (gaps[0]["start"], gaps[-1]["end"]) == (
        "2024-02-20T00:00:00.000Z", "2024-03-01T00:00:00.000Z"
    )  # fmt: skip
    before = world.asked(exchange)
    world.daemon.json("backfill", "run", series, *words, "--wait")
    assert world.asked(exchange) == before


@pytest.mark.parametrize("exchange", VENUES)
def test_a_place_that_is_not_served_is_told_at_once(world, exchange):
    words = ["--from", "2024-03-04T00:00:00Z", "--to", "2024-03-04T04:00:00Z"]
    series, page = f"{exchange}:BTC/USDT@candle_1m", {"Content-Type": "text/html"}
    refusal = {
        "binance": Refuse(status=451, times=None),
        "bybit": Refuse(status=403, body=GEO_PAGE, headers=page, times=None),
        "okx": Refuse(status=403, times=None),
    }[exchange]
    world.venues[exchange].faults.add(refusal)
    before = world.asked(exchange)
    told = world.daemon.ctl("backfill", "run", series, *words, "--wait", code=1)
    assert "refuses to serve this place" in told
    assert "proxy" in told
    assert world.asked(exchange) - before <= 2
    gaps = world.daemon.json("series", "gaps", series, *words)["gaps"]
    assert [gap["cause"] for gap in gaps] == ["fetch_failed"]
    assert "refuses to serve this place" in gaps[0]["reason"]


def test_an_incomplete_backfill_names_the_command_that_says_why(world):
    told = world.daemon.ctl(
        "backfill", "run", "bybit:BTC/USDT:USDT@trade", "--wait",
        "--from", "2024-03-04", "--to", "2024-03-06",
    )  # fmt: skip
    hint = told.strip().rpartition("as yet: tardisctl ")[2].split()
    assert hint[:2] == ["series", "gaps"]
    assert "not_fetched" in world.daemon.ctl(*hint)


async def stored(folder, series: Series) -> Batch:
    storage = SqliteStorage(SqliteOptions(), suite_context("main", folder))
    async with storage.run():
        [span] = await storage.coverage(series)
        async with storage.read(series, span) as batches:
            return Batch.concat([part async for part in batches])


class LiveClock(VenueClock):
    """A venue's clock that runs, `by` ns away from this machine's."""

    def __init__(self, by: int) -> None:
        super().__init__()
        self._by = by

    def __call__(self) -> int:
        return wall_ns() + self._by


@pytest.mark.parametrize("by", [HOUR, -HOUR], ids=["slow", "fast"])
def test_a_clock_that_is_wrong_by_an_hour(tmp_path, by):
    """Ours is wrong, for the venue's counts: the newest candles keep coming, and no open one.

    What the venue revised after it was stored is taken over.
    """
    series, clock = Series.parse("binance:BTC/USDT@candle_1s"), LiveClock(by)
    begin = (clock() - 20 * MINUTE) // MINUTE * MINUTE
    truth = random_candles(series, 2400, begin)
    early = Misreport(match="klines.*interval=1s", change=stale)
    venue = BinanceVenue({series: truth}, clock=clock, faults=[early])
    rule = (
        '[backfills.fresh]\nexchange = "binance"\nsymbols = ["BTC/USDT"]\n'
        'data_types = ["candle_1s"]\nstart = "-5m"\nevery = "1s"\njitter = "100ms"\n'
    )
    with serving(venue), running(tmp_path, HEAD + instance_of(venue) + rule) as daemon:

        def newest() -> int:
            spans = daemon.ask("series.coverage", series=str(series))["spans"]
            return max((span["to"] for span in spans), default=0) * MILLISECOND

        first = wait_for(newest, "the first candles")
        wait_for(lambda: newest() >= first + 2 * SECOND, "newer candles")
        assert newest() <= clock()
        daemon.kill()
        daemon.start()
        wait_for(lambda: newest() >= first + 6 * SECOND, "newer candles after a restart")
        assert newest() <= clock()
        shown = daemon.json("series", "show", series)
        assert sum(page["revised"] for page in shown["pages"]) == 1
        assert "rows revised" in (tmp_path / "log.0").read_text()
        daemon.stop()
    found = trio.run(stored, tmp_path / "data", series)
    reach = int(found.ts_event[0]), int(found.ts_event[-1]) + SECOND
    assert bool(same_rows(found, truth.within(Span(*reach))).all())


# No file of the daemon may be larger than half a megabyte: as if the disk were full then.
SMALL_DISK = ("sh", "-c", 'ulimit -f 1024 && exec "$0" "$@"')


@pytest.mark.parametrize("archives", ["never", "prefer"])
def test_a_disk_that_is_full_in_the_middle(tmp_path, archives):
    series, begin = Series.parse("binance:BTC/USDT@candle_1m"), START - 40 * DAY
    truth = random_candles(series, 44 * 1440, begin)
    venue = BinanceVenue({series: truth}, clock=NOW)
    words = [series, "--from", format_time(begin), "--to", format_time(START + 3 * DAY)]
    with serving(venue):
        config = HEAD + instance_of(venue, archives=f'"{archives}"')
        with running(tmp_path, config, prefix=SMALL_DISK) as daemon:
            told = daemon.ctl("backfill", "run", *words, "--wait", code=1)
            assert "space" in told
            [span] = daemon.json("series", "coverage", series)["spans"]
            rows = daemon.json("series", "show", series)["rows"]
            assert rows * MINUTE == (span["to"] - span["from"]) * MILLISECOND > 2 * DAY
        with running(tmp_path, config) as daemon:
            job = int(daemon.json("backfill", "run", *words)["id"])
            [result] = ended(daemon, job)["results"]
            assert (result["state"], result["complete"]) == ("finished", True)
            daemon.stop()
    found = trio.run(stored, tmp_path / "data", series)
    assert bool(same_rows(found, truth.within(Span(begin, START + 3 * DAY))).all())
    assert not any((tmp_path / "data" / "downloads").rglob("*.zip*"))
