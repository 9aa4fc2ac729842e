"""Rules begin jobs when they are due, by the venue's clock, and keep the newest data coming."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from backfill_rig import CANDLES, OTHERS, START, TRADES, Rig, in_place, until

from tardisd.backfill import jobs
from tardisd.backfill.ledger import find_gaps
from tardisd.backfill.rules import rules_running, span_at, version_of
from tardisd.config.model import BackfillRule
from tardisd.config.schema import BackfillTable, Moment
from tardisd.errors import Retry
from tardisd.market.decimals import Decimals
from tardisd.market.span import Coverage, Span
from tardisd.market.time import DAY, HOUR, MINUTE, SECOND
from tardisd.plugins.exchange import Page

NOW = START + 2 * DAY


def rule(*series, start="-2h", end=None, every=None, at=None, jitter=0):
    """Return a rule as a configuration would give it."""
    table = BackfillTable(
        exchange="made", symbols=("BTC/USDT",), data_types=("trade",), start=Moment.parse(start)
    )
    return BackfillRule(
        name="btc",
        exchange="made",
        storage="main",
        series=series or (CANDLES,),
        start=table.start,
        end=None if end is None else Moment.parse(end),
        every=every,
        at=at,
        jitter=jitter,
        table=table,
    )


@pytest.fixture
def rig(tmp_path, monkeypatch):
    monkeypatch.setattr(trio.to_thread, "run_sync", in_place)
    return Rig(tmp_path)


def local_clock(offset=0):
    """Return a wall clock that runs with trio's and is wrong by `offset` ns."""
    return lambda: NOW + offset + int(trio.current_time() * SECOND)


@asynccontextmanager
async def alive(rig, *rules, offset=0):
    """Run a book and its rules."""
    clock = local_clock(offset)
    async with rig.life(now=clock) as book, rules_running(book, rules, now=clock):
        yield book


async def run_for(rig, secs, *rules, offset=0):
    """Let a daemon live for so many seconds; return its jobs."""
    async with alive(rig, *rules, offset=offset) as book:
        await trio.sleep(secs)
        for job in book.active():
            await job.ended.wait()
        return book.jobs()


@pytest.mark.parametrize("offset", [0, HOUR, -HOUR], ids=["right", "fast", "slow"])
async def test_the_newest_rows_keep_coming_whatever_our_clock_says(rig, autojump_clock, offset):
    rig.venue.opened = NOW
    done = await run_for(rig, 600.5, rule(CANDLES, TRADES, every=30 * SECOND), offset=offset)
    assert {job.state for job in done} == {"finished"}
    newest = NOW + 10 * MINUTE
    candles = await rig.rows(CANDLES)
    assert int(candles.ts_event[-1]) == newest - MINUTE
    assert await rig.storage.coverage(CANDLES) == Coverage([Span(NOW - 2 * HOUR, newest)])
    [covered] = await rig.storage.coverage(TRADES)
    assert covered.start == NOW - 2 * HOUR
    assert 0 <= newest - covered.end < SECOND
    assert await find_gaps(rig.storage, CANDLES) == []


async def test_nothing_is_asked_for_while_no_candle_has_closed(rig, autojump_clock):
    rig.venue.opened = NOW
    done = await run_for(rig, 119.5, rule(every=SECOND))
    assert len(rig.venue.asked) == 2
    assert done[-1].idle
    # Runs that found nothing to do leave one record where they follow each other.
    assert [job.idle for job in done] == [False, True, False, True]


async def test_revisions_of_recent_candles_are_taken_over(rig, autojump_clock, caplog):
    caplog.set_level("INFO", "tardisd")
    rig.venue.opened = NOW
    async with alive(rig, rule(every=MINUTE)) as book:
        await trio.sleep(30)
        stored = await rig.rows(CANDLES)
        recent = stored[-jobs.RECENT_CANDLES - 1 :]
        volume = recent.fields["volume"]
        wrong = Decimals(volume.mantissa + 1, volume.scale)
        spoilt = replace(recent, fields={**recent.fields, "volume": wrong})
        await rig.storage.append(CANDLES, Page(spoilt, spoilt.extent()))
        await trio.sleep(60)
        revised = book.jobs()[-1]
    assert revised.parts[0].rows.revised == jobs.RECENT_CANDLES
    again = await rig.rows(CANDLES)
    left = again.fields["volume"][:120].equals(stored.fields["volume"])
    assert (~left).sum() == 1  # older than what is asked for again
    assert "rows revised" in caplog.text


async def test_daily_at_a_time_of_day(rig, autojump_clock):
    rig.venue.opened = NOW
    done = await run_for(rig, 3 * 86_400, rule(at=2 * HOUR))
    begun = [job.created_at - NOW for job in done]
    assert begun[0] < SECOND  # a new rule begins at once
    assert [round(one / MINUTE) for one in begun[1:]] == [120, 26 * 60, 50 * 60]


async def test_jitter_spreads_the_starts(rig, autojump_clock, monkeypatch):
    monkeypatch.setattr(random, "random", lambda: 0.5)
    rig.venue.opened = NOW
    done = await run_for(rig, 6.5 * 3600, rule(every=HOUR, jitter=20 * MINUTE))
    begun = [round((job.created_at - NOW) / MINUTE) for job in done]
    assert begun == [0, 70, 130, 190, 250, 310, 370]


async def test_a_restart_makes_up_for_one_missed_run(rig, autojump_clock):
    rig.venue.opened = NOW
    hourly = rule(every=HOUR)
    assert len(await run_for(rig, 1.5 * 3600, hourly)) == 2
    assert len(await run_for(rig, 60, hourly)) == 2  # not due yet
    await trio.sleep(5.2 * 3600)
    done = await run_for(rig, 60, hourly)
    assert [round((job.created_at - NOW) / MINUTE) for job in done] == [0, 60, 403]
    done = await run_for(rig, 60, replace(hourly, table=replace_start(hourly.table)))
    assert len(done) == 4  # a rule that was changed runs at once
    assert (await run_for(rig, 3600, hourly))[-1].state == "finished"


def replace_start(table):
    return BackfillTable(
        exchange=table.exchange,
        symbols=table.symbols,
        data_types=table.data_types,
        start=Moment.parse("-3h"),
    )


async def test_a_rule_without_times_runs_at_every_start(rig, autojump_clock):
    rig.venue.opened = NOW
    once = rule(start="2024-03-01", end="2024-03-01T06:00:00Z")
    assert len(await run_for(rig, 86_400, once)) == 1
    done = await run_for(rig, 86_400, once)
    assert [job.idle for job in done] == [False, True]
    assert len(rig.venue.asked) == 1


async def test_an_interrupted_run_is_begun_anew(rig, autojump_clock):
    rig.venue.opened = NOW
    rig.venue.hold()
    async with alive(rig, rule(every=DAY)) as book:
        await trio.sleep(60)
        assert [book.shown(job)["state"] for job in book.jobs()] == ["running"]
        await book.end_all()
        await trio.sleep(1)
    rig.venue.gate = None
    [job] = await run_for(rig, 60, rule(every=DAY))
    assert job.state == "finished"


async def test_a_rule_outlives_failures(rig, autojump_clock):
    rig.venue.opened = NOW
    rig.venue.trouble_first = True
    rig.venue.troubles = [Retry("the venue is down") for _ in range(25)]
    done = await run_for(rig, 86_400, rule(every=2 * HOUR))
    states = [job.state for job in done]
    assert states[:2] == ["failed", "failed"]
    assert states[-1] == "finished"
    assert await rig.storage.coverage(CANDLES)


async def test_a_rule_of_the_future_waits(rig, autojump_clock):
    rig.venue.opened = NOW
    done = await run_for(rig, 3601, rule(start="2024-03-03T00:30:00Z", every=10 * MINUTE))
    assert {job.state for job in done} == {"finished"}
    assert await rig.storage.coverage(CANDLES) == Coverage(
        [Span(NOW + 30 * MINUTE, NOW + 60 * MINUTE)]
    )


def test_spans_and_versions():
    relative = rule(start="-30d", end="-1d")
    assert span_at(relative, NOW) == Span(NOW - 30 * DAY, NOW - DAY)
    assert span_at(rule(start="2024-03-02", end="2030-01-01"), NOW) == Span(NOW - DAY, NOW)
    assert span_at(rule(start="2024-03-05"), NOW) is None
    assert version_of(relative) == version_of(rule(start="-30d"))
    assert version_of(relative) != version_of(rule(start="-31d"))


async def test_rules_that_changed_begin_anew_and_others_go_on(rig, autojump_clock):
    rig.venue.hold()
    clock = local_clock()
    kept = rule(TRADES, every=HOUR)
    names = {"old": rule(CANDLES), "kept": kept, "gone": rule(OTHERS[0])}
    rules = [replace(one, name=name) for name, one in names.items()]
    async with rig.life(now=clock) as book, rules_running(book, rules, now=clock) as running:
        await until(lambda: rig.venue.at_once == 3)
        before = {job.rule: job for job in book.active()}
        changed = replace(rule(CANDLES, OTHERS[1]), name="old")
        running.replace([changed, rules[1], replace(rule(OTHERS[2]), name="new")])
        await before["old"].ended.wait()
        await before["gone"].ended.wait()
        assert before["old"].state == before["gone"].state == "cancelled"
        assert not before["kept"].ended.is_set()
        rig.venue.let()
        for job in book.active():
            await job.ended.wait()
        assert {job.rule: job.state for job in book.jobs()} == {
            "old": "finished", "kept": "finished", "gone": "cancelled", "new": "finished",
        }  # fmt: skip
        count = len(book.jobs())
        running.replace([changed, rules[1], replace(rule(OTHERS[2]), name="new")])
        await until(lambda: len(book.jobs()) >= count)
        assert not book.active(), "the same rules once more change nothing"
