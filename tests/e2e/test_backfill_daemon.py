"""Backfills of a real daemon: jobs that survive it, rules that keep up, and what people see."""

from __future__ import annotations

import hashlib
import random
import re
import signal
import sqlite3
from pathlib import Path

import pytest
from daemon_rig import Daemon, running, wait_for
from websocket_client import DEADLINE_SECS

CONFIG = """
[daemon]
data_dir = "{folder}/data"
control_socket = "{folder}/control.sock"
log_format = "text"

[storages.main]
plugin = "sqlite"

[exchanges.made]
plugin = "synthetic"
trades_per_second = 1
"""
TWO = f"""{CONFIG}
[exchanges.other]
plugin = "synthetic"
seed = 7
"""
RULES = f"""{CONFIG}
[backfills.fresh]
exchange = "made"
symbols = ["BTC/USDT"]
data_types = ["candle_1s", "trade"]
start = "-1m"
every = "1s"

[backfills.once]
exchange = "made"
symbols = ["ETH/USDT"]
data_types = ["candle_1h"]
start = "2024-03-01"
end = "2024-03-02"
"""
TRADES = "synthetic:BTC/USDT@trade"
CANDLES = "synthetic:BTC/USDT@candle_1m"
DAY = ["--from", "2024-03-01", "--to", "2024-03-02"]
# Long enough to be killed in the middle of: some thirty pages.
WEEKS = ["--from", "2024-03-01", "--to", "2024-03-18"]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with running(tmp_path_factory.mktemp("backfills"), CONFIG) as one:
        yield one


def job_of(daemon: Daemon, *words: object) -> int:
    """Begin a backfill; return its number."""
    return int(daemon.json("backfill", "run", *words)["id"])


def ended(daemon: Daemon, job: int) -> dict:
    """Return a job when it has ended."""

    def look():
        shown = daemon.json("backfill", "show", job)
        return shown if shown["ended_at"] else None

    return wait_for(look, f"the end of backfill {job}")


def exported(daemon: Daemon, series: str, words: list[str], folder: Path) -> str:
    """Return a hash of all rows."""
    path = folder / "export.csv"
    daemon.ctl("data", "export", series, *words, "-o", path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """What an undisturbed daemon stores of those weeks, and what it says of it."""
    folder = tmp_path_factory.mktemp("truth")
    with running(folder, CONFIG) as one:
        shown = one.json("backfill", "run", TRADES, *WEEKS, "--wait")
        [result] = shown["results"]
        assert result["complete"]
        return exported(one, TRADES, WEEKS, folder), result["added"], result["pages"]


@pytest.mark.parametrize("seed", range(5))
def test_a_job_survives_kills(tmp_path, truth, seed):
    wanted, rows, pages = truth
    assert pages > 20
    chance = random.Random(seed)
    with running(tmp_path, CONFIG) as one:
        job = job_of(one, TRADES, *WEEKS)
        for limit in sorted(chance.random() for _ in range(2)):

            def far_enough(limit=limit):
                shown = one.json("backfill", "show", job)
                return shown["ended_at"] or shown["done"] >= limit * shown["total"] > 0

            wait_for(far_enough, f"{limit:.0%} of the job")
            if chance.random() < 0.8:
                one.kill()
            else:
                one.stop(signal.SIGTERM)
            one.start()
        shown = ended(one, job)
        assert shown["state"] == "finished"
        assert exported(one, TRADES, WEEKS, tmp_path) == wanted
        (stored,) = one.json("series", "list")
        assert stored["rows"] == rows
        (gaps,) = [one.json("series", "gaps", TRADES)["gaps"]]
        assert {gap["cause"] for gap in gaps} <= {"exchange_down"}
        assert one.json("data", "verify", TRADES)["ok"]
        again = one.json("backfill", "run", TRADES, *WEEKS, "--wait")
        assert [result["pages"] for result in again["results"]] == [0]


def test_without_wait_the_number_comes_at_once(daemon):
    told = daemon.ctl("backfill", "run", CANDLES, *DAY)
    job = int(re.fullmatch(r"backfill (\d+)\n", told)[1])
    assert ended(daemon, job)["state"] == "finished"
    listed = daemon.ctl("backfill", "list")
    assert re.search(rf"^{job} +finished +100% +- +{CANDLES} +2024-03-01T00:00:00.000Z", listed,
                     re.MULTILINE)  # fmt: skip
    shown = daemon.ctl("backfill", "show", job)
    assert re.search(r"^rows +1,\d\d\d$", shown, re.MULTILINE)
    assert f"{CANDLES}  made      finished" in shown
    assert "has ended already" in daemon.ctl("backfill", "cancel", job, code=1)
    assert "there is no backfill 999" in daemon.ctl("backfill", "show", 999, code=1)


def test_a_job_goes_on_when_who_asked_is_gone(daemon):
    words = ["--from", "2024-05-01", "--to", "2024-05-10"]
    asking = daemon.start_ctl("backfill", "run", TRADES, *words, "--wait")
    job = wait_for(
        lambda: [one["id"] for one in daemon.json("backfill", "list") if one["state"] == "running"],
        "the job",
    )[0]
    asking.send_signal(signal.SIGINT)
    _, err = asking.communicate(timeout=DEADLINE_SECS)
    assert asking.returncode == 1
    assert "interrupted" in err
    assert ended(daemon, job)["state"] == "finished"


def test_cancelling(daemon):
    job = job_of(daemon, TRADES, "--from", "2023-01-01", "--to", "2023-06-01")
    waiting = daemon.start_ctl("backfill", "run", TRADES, "--from", "2023-05-31",
                               "--to", "2023-06-01", "--wait")  # fmt: skip
    wait_for(lambda: daemon.json("backfill", "show", job)["rows"], "the first page")
    states = daemon.json("status")["backfills"]
    assert states in ({"running": 1, "waiting": 1}, {"running": 1})
    assert daemon.ctl("backfill", "cancel", job) == f"backfill {job} cancelled\n"
    covered = daemon.json("series", "coverage", TRADES, "--to", "2023-06-01")["spans"]
    assert covered[0]["start"] == "2023-01-01T00:00:00.000Z"
    out, err = waiting.communicate(timeout=DEADLINE_SECS)
    assert (waiting.returncode, err) == (0, "")
    assert re.fullmatch(rf"{TRADES}: [\d,]+ added, 0 unchanged, 0 revised\n", out)
    assert re.search(r"^backfills +none$", daemon.ctl("status"), re.MULTILINE)


def test_what_fails_says_why(daemon):
    future = ["--from", "2090-01-01", "--to", "2090-01-02"]
    told = daemon.ctl("backfill", "run", CANDLES, *future, "--wait", code=1)
    assert "lies in the future; the clock of synthetic says 20" in told
    assert re.search(r"hint: tardisctl backfill show \d+", told)
    backwards = daemon.ctl("backfill", "run", CANDLES, "--from", "now", "--to", "-1d", code=1)
    assert "must be after from" in backwards
    quotes = daemon.ctl("backfill", "run", "synthetic:BTC/USDT@quote", *DAY, code=1)
    assert "synthetic has no quote; it has trade" in quotes
    other = daemon.ctl("backfill", "run", "okx:BTC/USDT@trade", *DAY, code=1)
    assert "no exchange instance of okx is configured" in other


def test_two_instances(tmp_path):
    with running(tmp_path, TWO) as one:
        refused = one.ctl("backfill", "run", CANDLES, *DAY, code=1)
        assert "several instances are of synthetic (made, other)" in refused
        hashes = []
        for name in ("other", "made"):
            one.ctl("backfill", "run", CANDLES, *DAY, "--exchange-instance", name, "--wait")
            hashes.append(exported(one, CANDLES, DAY, tmp_path))
            one.ctl("series", "delete", CANDLES, "--all", "--yes")
        assert len(set(hashes)) == 2


def test_rules_keep_up(tmp_path):
    fresh = ["synthetic:BTC/USDT@candle_1s", TRADES]

    def newest(one: Daemon) -> list[int]:
        return [
            max((span["to"] for span in one.json("series", "coverage", series)["spans"]), default=0)
            for series in fresh
        ]

    with running(tmp_path, RULES) as one:
        seen = wait_for(lambda: [min(newest(one))] * bool(min(newest(one))), "the first rows")[0]
        wait_for(lambda: min(newest(one)) >= seen + 2000, "newer rows")
        jobs = one.json("backfill", "list")
        assert {job["state"] for job in jobs} <= {"finished", "running", "waiting"}
        assert {job["rule"] for job in jobs} == {"fresh", "once"}
        assert "once" in one.ctl("backfill", "list")
        for series in fresh:
            assert len(one.json("series", "coverage", series)["spans"]) == 1
        seen = min(newest(one))
        one.kill()
        one.start()
        wait_for(lambda: min(newest(one)) > seen, "rows after a restart")
        for series in fresh:
            assert len(one.json("series", "coverage", series)["spans"]) == 1
        rows = [it["rows"] for it in one.json("series", "list") if it["symbol"] == "ETH/USDT"]
        assert rows == [24]
        assert one.json("data", "verify", TRADES)["ok"]


def test_where_rows_came_from(daemon):
    eth = "synthetic:ETH/USDT@candle_1h"
    assert f"nothing is stored of {eth}" in daemon.ctl("series", "show", eth, code=1)
    daemon.ctl("backfill", "run", eth, *DAY, "--wait")
    shown = daemon.json("series", "show", eth)
    assert shown["rows"] == shown["pages"][0]["added"] == 24
    assert shown["tick_size"] is not None
    told = daemon.ctl("series", "show", eth)
    assert re.search(r"^2024-03-01T\S+ +2024-03-02T\S+ +24 +0 +20\S+Z +synthetic, seed 1$", told,
                     re.MULTILINE)  # fmt: skip


def test_coverage_is_drawn(daemon):
    daemon.ctl("backfill", "run", "synthetic:SOL/USDT@candle_1h", "--wait",
               "--from", "2024-01-31T06:00:00Z", "--to", "2024-02-03")  # fmt: skip
    daemon.ctl("backfill", "run", "synthetic:SOL/USDT@candle_1h", "--wait",
               "--from", "2024-02-05T12:00:00Z", "--to", "2024-02-07")  # fmt: skip
    drawn = daemon.ctl("series", "coverage", "synthetic:SOL/USDT@candle_1h").splitlines()
    assert drawn[0] == "        1   5    10   15   20   25   30"
    assert drawn[1] == f"2024-01 {' ' * 30}#"
    assert drawn[2] == "2024-02 ##..+#"
    assert drawn[3] == "        # full  + partial  . none"
    assert drawn[5].split() == ["FROM", "TO", "LENGTH"]
    whole = ["--from", "2024-02-01", "--to", "2024-02-11"]
    found = daemon.json("series", "coverage", "synthetic:SOL/USDT@candle_1h", *whole)
    assert found["months"] == [{"month": "2024-02", "days": "##..+#....".ljust(29)}]


def test_verification(tmp_path):
    with running(tmp_path, CONFIG) as one:
        nothing = one.ctl("data", "verify", TRADES, code=1)
        assert f"nothing is stored of {TRADES}" in nothing
        one.ctl("backfill", "run", TRADES, CANDLES, *DAY, "--wait")
        told = one.ctl("data", "verify", CANDLES)
        assert re.search(r"^candle_1m against trades  ok +1,440 +0$", told, re.MULTILINE)
        one.stop()
        database = sqlite3.connect(tmp_path / "data" / "tardisd.sqlite")
        with database:
            database.execute(
                "UPDATE chunk_data SET data = zeroblob(length(data)) WHERE id ="
                " (SELECT max(chunk.id) FROM chunk JOIN series ON series.id = series_id"
                "  WHERE data_type = 'trade')"
            )
        database.close()
        one.start()
        broken = one.ctl("data", "verify", TRADES, code=1)
        assert f"{TRADES} is not as it should be" in broken
        assert "is not as it should be" in one.ctl("data", "verify", CANDLES, code=1)
