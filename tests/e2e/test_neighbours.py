"""All neighbours at once: the same session everywhere is the same, whatever dies on the way.

One daemon keeps ticks in SQLite and in a PostgreSQL of its own, and gives sessions to WebSocket,
files, a Redis of its own, HTTP, and a receiver of webhooks that is a process. Every consumer
recomputes the content hash from what it got.
"""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import consumers
import pytest
from consumers import Taken
from daemon_rig import Daemon, running, wait_for
from drill_rig import Holder, HoldingVenue, Hook, Neighbour, hook_at
from postgres_rig import own_server
from redis_rig import private_redis
from venue_rig import ended, instance_of, serving

from tardisd.market.series import Series
from tardisd.market.time import DAY, MILLISECOND, parse_time
from tardisd.testing.ticks import random_candles

pytestmark = pytest.mark.services
KILLS = 3
MADE = ["synthetic:BTC/USDT@trade", "synthetic:BTC/USDT@candle_1m"]
FETCHED = "binance:ETH/USDT@candle_1m"
START = parse_time("2024-03-01T00:00:00Z")
FETCHED_DAYS = 15
SINKS = ["redis", "hook", "lines", "tables"]
CONFIG = """
[daemon]
data_dir = "{folder}/data"
control_socket = "{folder}/control.sock"
storage = "postgres"
log_format = "text"

[storages.postgres]
plugin = "postgres"
dsn = "DSN"

[storages.sqlite]
plugin = "sqlite"

[exchanges.made]
plugin = "synthetic"
trades_per_second = 0.5

[sinks.ws]
plugin = "websocket"
listen = "127.0.0.1:0"

[sinks.http]
plugin = "http"
listen = "127.0.0.1:0"

[sinks.redis]
plugin = "redis"
url = "REDIS"
stream = true
stream_length = 1_000_000
patience_secs = 45

[sinks.hook]
plugin = "webhook"
url = "HOOK"
max_attempts = 1_000_000
backoff_secs = 0.01
backoff_max_secs = 0.1
breaker_failures = 1
breaker_secs = 0.05
patience_secs = 45

[sinks.lines]
plugin = "file"
path = "{folder}/out/{session_id}.ndjson"

[sinks.tables]
plugin = "file"
format = "parquet"
path = "{folder}/out/{session_id}-{symbol}-{data_type}.parquet"
"""


@dataclass
class Town:
    """The daemon and its neighbours."""

    daemon: Daemon
    postgres: Any
    redis: Any
    hook: Hook
    venue: HoldingVenue

    @property
    def http_url(self) -> str:
        """Where the daemon serves HTTP."""
        return re.findall(r"http listening.*url=(\S+?)/?\s", self.daemon.log)[-1]

    def fill(self, storage: str, series: list[str], start: str, end: str) -> None:
        """Fetch series into a storage, undisturbed."""
        words = ["--from", start, "--to", end, "--storage", storage, "--wait"]
        self.daemon.ctl("backfill", "run", *series, *words)

    def create(self, name: str, storage: str, series: list[str], start: str, end: str) -> None:
        """Create a session that waits, with all sinks that sessions name."""
        chosen = [word for one in series for word in ("--series", one)]
        chosen += [word for one in SINKS for word in ("--sink", one)]
        words = ["--from", start, "--to", end, "--storage", storage, "--id", name]
        self.daemon.ctl("session", "create", *chosen, *words, "--speed", "max", "--paused")

    def follow(self, name: str) -> Holder:
        """Follow a session by WebSocket, holding it."""
        client = self.daemon.websocket()
        reply = client.ask("subscribe", session_id=name, when_full="block")
        assert reply["type"] == "subscribed", reply
        return Holder(client)

    def await_sinks(self, name: str) -> None:
        """Wait until every sink has dealt with all of an ended session."""

        def done() -> bool:
            shown = self.daemon.ask("session.show", session_id=name)["sinks"]
            return {one["state"] for one in shown} == {"done"}

        wait_for(done, f"the sinks of {name}")

    def taken(self, name: str) -> dict[str, Taken]:
        """What every sink that was named has brought to its consumer."""
        out = self.daemon.folder / "out"
        assert len(list(out.glob(f"{name}*"))) == 3, "files in parts, or left behind"
        return {
            "redis": consumers.by_redis(self.redis.client(), name),
            "hook": consumers.by_webhook(self.hook.path, name),
            "lines": consumers.by_lines(out / f"{name}.ndjson"),
            "tables": consumers.by_parquet(*out.glob(f"{name}-*.parquet")),
        }

    def exported(self, storage: str, series: str, start: str, end: str) -> bytes:
        """Return all rows of a series as CSV."""
        path = self.daemon.folder / "export.csv"
        words = ["--from", start, "--to", end, "--storage", storage, "-o", path]
        self.daemon.ctl("data", "export", series, *words)
        return path.read_bytes()

    def stored(self, storage: str, series: str, start: str, end: str) -> tuple[bytes, Any]:
        """Return all that a storage has of a series: its rows, and what they cover."""
        words = ["--from", start, "--to", end, "--storage", storage]
        covered = self.daemon.json("series", "coverage", series, *words)["spans"]
        return self.exported(storage, series, start, end), covered


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("town")
    series = Series.parse(FETCHED)
    chance = random.Random(7)
    holds = sorted(chance.sample(range(FETCHED_DAYS - 1), KILLS + 1))
    venue = HoldingVenue(
        {series: random_candles(series, FETCHED_DAYS * 1440, START)},
        [(START + DAY * (day + 1)) // MILLISECOND for day in holds],
        clock=START + 30 * DAY,
    )
    with (
        own_server() as postgres,
        private_redis(folder / "redis") as redis,
        hook_at(folder / "hook.ndjson") as hook,
        serving(venue),
    ):
        config = CONFIG.replace("DSN", postgres.dsn).replace("REDIS", redis.url)
        config = config.replace("HOOK", hook.url) + instance_of(venue, archives='"never"')
        try:
            with running(folder, config) as daemon:
                yield Town(daemon, postgres, redis, hook, venue)
        finally:
            venue.let_all_go()


def test_every_way_out_of_every_storage_has_one_hash(town):
    """With a hole in what is stored, so that gap marks take numbers among the ticks."""
    span = ("2024-02-01", "2024-02-01T12:00:00Z")
    found: dict[str, Taken] = {}
    told = set()
    for storage in ("sqlite", "postgres"):
        town.fill(storage, MADE, "2024-02-01", "2024-02-01T02:00:00Z")
        town.fill(storage, MADE, "2024-02-01T03:00:00Z", "2024-02-01T12:00:00Z")
        name = f"same-{storage}"
        town.create(name, storage, MADE, *span)
        with ThreadPoolExecutor(1) as pool:
            streamed = pool.submit(consumers.by_http, town.http_url, name)
            follower = town.follow(name)
            town.daemon.ctl("session", "resume", name)
            received = follower.read_all()
            town.await_sinks(name)
            end = received.end
            assert (end["reason"], "data_changed" in end) == ("finished", False)
            told.add(Taken(end["ticks"], end["hash"]))
            assert sum(one["type"] == "gap" for one in received.others) == len(MADE)
            ways = {"websocket": consumers.by_websocket(received), **town.taken(name)}
            ways["http"] = streamed.result()
            found |= {f"{storage} {way}": taken for way, taken in ways.items()}
    assert len(found) == 12
    assert set(found.values()) == told, found
    assert len(told) == 1
    assert told.pop().ticks > 10_000


def test_each_neighbour_is_killed_thrice_during_a_replay_and_a_backfill(town):
    """At seeded ticks, all of them while the replay and the backfill are both under way."""
    daemon, venue, chance = town.daemon, town.venue, random.Random(11)
    span = ("2024-03-01", "2024-03-03T00:00:00Z")
    weeks = ("2024-03-01", f"2024-03-{1 + FETCHED_DAYS}")
    town.fill("postgres", MADE, *span)
    town.create("drill", "postgres", MADE, *span)
    follower = town.follow("drill")
    job = daemon.json("backfill", "run", FETCHED, "--from", weeks[0], "--to", weeks[1])["id"]
    daemon.ctl("session", "resume", "drill")

    postgres = Neighbour(town.postgres, "database away, waiting for it", "database back")
    redis = Neighbour(town.redis, "redis lost", "redis is back")
    hook = Neighbour(town.hook, "webhook fails, so requests pause", "webhook answers again")
    rounds = [chance.sample([postgres, redis, hook], 3) for _ in range(KILLS)]
    first, second, third = rounds  # one by one, two at once, all at once
    groups = [*([one] for one in first), second[:2], second[2:], third]
    moments = sorted(chance.sample(range(1, 16_000), len(groups)))
    for moment, group in zip(moments, groups, strict=True):
        follower.read(moment)
        steps = [partial(one.kill, daemon) for one in group]
        # The first time the backfill stays held until the replay has met it, by itself.
        alone = postgres in group and not postgres.kills
        if postgres in group:
            venue.await_hold(postgres.kills)
            steps += [] if alone else [partial(venue.let_go, postgres.kills)]
        chance.shuffle(steps)
        for step in steps:
            step()
        # One is enough: while the session waits for it, nobody may ask for the others.
        follower.read_until(lambda group=group: any(one.is_missed(daemon) for one in group))
        assert daemon.ask("backfill.show", job=job)["ended_at"] is None
        assert daemon.ask("session.show", session_id="drill")["status"] == "active"
        if alone:
            venue.let_go(0)
        for one in chance.sample(group, len(group)):
            one.service.start()
    assert [one.kills for one in (postgres, redis, hook)] == [KILLS] * 3
    venue.let_all_go()

    received = follower.read_all()
    assert ended(daemon, job)["state"] == "finished"
    town.await_sinks("drill")
    end = received.end
    assert (end["reason"], "data_changed" in end) == ("finished", False)
    assert daemon.json("data", "verify", FETCHED)["ok"]

    # What an undisturbed daemon would have: SQLite is not among those that were killed.
    town.fill("sqlite", MADE, *span)
    town.fill("sqlite", [FETCHED], *weeks)
    for series, where in [(MADE[0], span), (MADE[1], span), (FETCHED, weeks)]:
        assert town.stored("postgres", series, *where) == town.stored("sqlite", series, *where)
    with daemon.websocket() as client:
        request = {"series": MADE, "start_time": "2024-03-01T00:00:00Z", "end_time": span[1]}
        truth = client.replay(**request, storage="sqlite", speed="max", delivery="batch").end
    whole = Taken(truth["ticks"], truth["hash"])
    assert (end["ticks"], end["hash"]) == (whole.ticks, whole.hash)
    ways = {"websocket": consumers.by_websocket(received), **town.taken("drill")}
    assert set(ways.values()) == {whole}, ways
    dead = daemon.folder / "data" / "hook-dead.ndjson"
    assert not dead.exists(), dead.read_text()
    assert "ticks lost" not in daemon.log
