"""The book of backfill jobs: side by side, patient, cancelled, and continued after a restart."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from backfill_rig import CANDLES, OTHERS, START, TODAY, TRADES, Rig, Venue, until

from tardisd.backfill import fetching, jobs
from tardisd.backfill.ledger import find_gaps
from tardisd.errors import PluginError, RequestError, Retry, StorageError
from tardisd.market.check import same_rows
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.market.time import DAY, HOUR
from tardisd.state import State
from tardisd.venue.budget import Limit

QUOTES = Series.parse("synthetic:BTC/USDT@quote")


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


async def test_a_job_is_done_and_remembered(rig):
    async with rig.life() as book:
        job = rig.submit(book, CANDLES, TRADES)
        assert job.state == "waiting"
        await job.ended.wait()
        shown = book.shown(job)
    assert (shown["state"], shown["id"], shown["rule"]) == ("finished", 1, None)
    assert (shown["done"], shown["total"]) == (2 * DAY, 2 * DAY)
    assert [item["state"] for item in shown["results"]] == ["finished"] * 2
    assert shown["results"][0]["added"] == 1440
    assert shown["rows"] == len(await rig.rows(CANDLES)) + len(await rig.rows(TRADES))
    async with rig.life() as book:
        [again] = book.jobs()
        assert book.shown(again) == shown
        assert book.find(1) is again


async def test_the_same_job_twice_fetches_nothing(rig):
    async with rig.life() as book:
        jobs_ = [rig.submit(book, CANDLES, CANDLES) for _ in range(3)]
        for job in jobs_:
            await job.ended.wait()
    assert sorted(job.pages for job in jobs_) == [0, 0, 4]
    assert {job.state for job in jobs_} == {"finished"}
    assert rig.venue.asked == [(CANDLES, TODAY)]


async def test_two_fetchers_of_one_series_never_run_at_once(rig):
    rig.venue.hold()
    half = Span(START + DAY // 2, START + 2 * DAY)
    async with rig.life() as book:
        first = rig.submit(book, CANDLES)
        await until(lambda: rig.venue.at_once)
        second = rig.submit(book, CANDLES, span=half)
        await until(lambda: second.parts[0].message)
        assert book.shown(second)["state"] == "waiting"
        assert book.shown(second)["waiting_for"] == "another job fetches this series"
        rig.venue.let()
        await first.ended.wait()
        await second.ended.wait()
    assert await rig.storage.coverage(CANDLES) == Coverage([Span(START, START + 2 * DAY)])
    assert second.rows == 1441  # the last covered candle once more


async def test_some_series_of_a_venue_are_fetched_side_by_side(rig):
    rig.venue.hold()
    async with rig.life() as book:
        job = rig.submit(book, *OTHERS)
        last = "4 other series of synthetic come first"
        waiting = lambda: [part.message for part in job.parts].count(last)  # noqa: E731
        await until(lambda: rig.venue.at_once == jobs.SERIES_AT_ONCE)
        assert waiting() == len(OTHERS) - jobs.SERIES_AT_ONCE
        assert book.shown(job)["waiting_for"] == last
        rig.venue.let()
        await job.ended.wait()
    assert job.state == "finished"
    assert rig.venue.most_at_once == jobs.SERIES_AT_ONCE


async def test_what_may_pass_is_tried_again(rig, autojump_clock):
    rig.venue.troubles = [Retry("the venue is busy", after=40.0), PluginError("reset")]
    async with rig.life() as book:
        job = rig.submit(book, TRADES)
        while not (shown := book.shown(job))["waiting_for"]:
            await trio.sleep(0.1)
        assert shown["state"] == "cooling_down"
        assert shown["waiting_for"] == "the venue is busy; tried again in 40 s"
        assert shown["done"] == 6 * HOUR
        await job.ended.wait()
        assert trio.current_time() >= 40
    assert job.state == "finished"
    parts = [Span(START + at * 6 * HOUR, TODAY.end) for at in range(3)]
    assert rig.venue.asked == [(TRADES, part) for part in parts]
    assert await find_gaps(rig.storage, TRADES) == []
    assert (job.done, job.total) == (DAY, DAY)


async def test_patience_ends(rig, autojump_clock):
    rig.venue.troubles = [None, *[Retry("no answer") for _ in range(fetching.MAX_ATTEMPTS)]]
    rig.venue.trouble_first = True
    half = Span(START, START + DAY // 2)
    async with rig.life() as book:
        await rig.submit(book, CANDLES, span=half).ended.wait()
        job = rig.submit(book, CANDLES)
        await job.ended.wait()
        assert (job.state, job.message) == ("failed", "no answer")
        assert book.why_failed("main", CANDLES) == "no answer"
        assert await find_gaps(rig.storage, CANDLES, TODAY) == [
            Gap(Span(half.end, TODAY.end), "fetch_failed")
        ]
        await rig.submit(book, CANDLES).ended.wait()
        assert await find_gaps(rig.storage, CANDLES, TODAY) == []


async def test_progress_gives_patience_back(rig, autojump_clock):
    rig.venue.troubles = [Retry("busy") for _ in range(3 * fetching.MAX_ATTEMPTS)]
    span = Span(START - 10 * DAY, START)
    async with rig.life() as book:
        job = rig.submit(book, TRADES, span=span)
        await job.ended.wait()
    assert job.state == "finished"
    assert (await rig.storage.coverage(TRADES)).covers(span)


async def test_what_is_final_is_not_tried_again(rig):
    rig.venue.troubles = [RequestError("bad_request", "unknown symbol; see the list")]
    async with rig.life() as book:
        job = rig.submit(book, CANDLES, OTHERS[0])
        await job.ended.wait()
        results = book.shown(job)["results"]
    assert job.state == "failed"
    assert job.message == "unknown symbol; see the list"
    assert sorted(item["state"] for item in results) == ["failed", "finished"]
    assert len(rig.venue.asked) == 2


async def test_a_stretch_out_of_reach_does_not_hold_the_newest_back(rig):
    middle = Span(START + DAY // 4, START + DAY // 2)
    async with rig.life() as book:
        await rig.submit(book, CANDLES, span=middle).ended.wait()
        rig.venue.troubles = [RequestError("no_data", "the archive begins later")]
        rig.venue.trouble_first = True
        job = rig.submit(book, CANDLES)
        await job.ended.wait()
    assert (job.state, job.message) == ("failed", "the archive begins later")
    assert await rig.storage.coverage(CANDLES) == Coverage([Span(middle.start, TODAY.end)])
    assert not await rig.storage.gaps(CANDLES)


async def test_tick_sizes_are_kept_with_the_data(rig):
    eth = Series.parse("synthetic:ETH/USDT@candle_1h")
    lists = 0
    instruments = rig.venue.instruments

    async def listing():
        nonlocal lists
        lists += 1
        return await instruments()

    rig.venue.instruments = listing
    async with rig.life() as book:
        await rig.submit(book, CANDLES, TRADES, eth, *OTHERS).ended.wait()
        await rig.submit(book, CANDLES).ended.wait()
    assert lists == 1
    kept = await rig.storage.instrument(CANDLES)
    assert kept in await instruments()
    assert str(kept.symbol) == "BTC/USDT"
    assert await rig.storage.instrument(OTHERS[0]) is None


async def test_a_venue_that_lists_nothing_holds_no_job_up(rig, autojump_clock):
    asked = []

    async def instruments():
        asked.append(trio.current_time())
        await trio.sleep_forever()

    rig.venue.instruments = instruments
    async with rig.life() as book:
        for at in range(3):
            span = Span(START + at * HOUR, START + (at + 1) * HOUR)
            await rig.submit(book, CANDLES, span=span).ended.wait()
        await trio.sleep(4000)
        job = rig.submit(book, TRADES)
        await job.ended.wait()
    assert job.state == "finished"
    assert len(asked) == 2
    assert await rig.storage.instrument(CANDLES) is None


async def test_a_bug_of_a_plugin_fails_its_job_alone(rig):
    rig.venue.troubles = [ZeroDivisionError("oops")]
    async with rig.life() as book:
        broken = rig.submit(book, CANDLES)
        await broken.ended.wait()
        fine = rig.submit(book, CANDLES)
        await fine.ended.wait()
    assert (broken.state, fine.state) == ("failed", "finished")
    assert "ZeroDivisionError: oops" in broken.message


async def test_a_full_disk_fails_the_job_at_once(rig, monkeypatch):
    async def append(series, page):
        raise StorageError("the disk is full; free some space")

    monkeypatch.setattr(rig.storage, "append", append)
    async with rig.life() as book:
        job = rig.submit(book, CANDLES)
        await job.ended.wait()
    assert (job.state, job.message) == ("failed", "the disk is full; free some space")
    assert len(rig.venue.asked) == 1


async def test_the_future_is_refused_by_the_venues_clock(rig):
    tomorrow = Span(START + 3 * DAY, START + 4 * DAY)
    async with rig.life() as book:
        job = rig.submit(book, CANDLES, span=tomorrow)
        await job.ended.wait()
        partly = rig.submit(book, CANDLES, span=Span(START + DAY, START + 4 * DAY))
        await partly.ended.wait()
        result = book.shown(partly)["results"][0]
    assert job.state == "failed"
    assert "lies in the future; the clock of synthetic says 2024-03-03T" in job.message
    assert (partly.state, result["complete"], result["added"]) == ("finished", False, 1440)


async def test_cancelling(rig):
    rig.venue.hold()
    async with rig.life() as book:
        job, other = rig.submit(book, CANDLES), rig.submit(book, *OTHERS)
        await until(lambda: rig.venue.at_once)
        assert await book.cancel(job.job_id) is job
        assert (job.state, job.ended_at is None) == ("cancelled", False)
        with pytest.raises(RequestError, match=r"has ended already \(cancelled\)"):
            await book.cancel(job.job_id)
        with pytest.raises(RequestError, match="there is no backfill 77"):
            await book.cancel(77)
        rig.venue.let()
        await other.ended.wait()
        assert other.state == "finished"
    async with rig.life() as book:
        assert [one.state for one in book.jobs()] == ["cancelled", "finished"]


async def test_a_restart_goes_on_where_it_was(rig):
    rig.venue.hold()
    async with rig.life() as book:
        job = rig.submit(book, TRADES, *OTHERS)
        await until(lambda: rig.venue.at_once)
        rig.venue.let(1)
        await until(lambda: job.pages)
        await book.end_all()
        assert job.ended.is_set()
        assert job.state not in ("finished", "failed", "cancelled")
        with pytest.raises(RequestError, match="stopping"):
            rig.submit(book, CANDLES)
    rig.venue.gate = None
    async with rig.life() as book:
        [again] = book.jobs()
        assert (again.job_id, again.ended.is_set()) == (job.job_id, False)
        await again.ended.wait()
        assert again.state == "finished"
        assert again.done == again.total
        for series in [TRADES, *OTHERS]:
            assert await rig.storage.coverage(series) == Coverage([TODAY])
        await rig.submit(book, TRADES, *OTHERS).ended.wait()
        asked = len(rig.venue.asked)
    async with rig.life() as book:
        assert [one.state for one in book.jobs()] == ["finished"] * 2
        assert book.active() == []
        assert len(rig.venue.asked) == asked


async def test_what_a_restart_no_longer_finds(rig):
    rig.venue.hold()
    async with rig.life() as book:
        rig.submit(book, CANDLES)
        await until(lambda: rig.venue.at_once)
    rig.venues.clear()
    async with rig.life() as book:
        [job] = book.jobs()
        await job.ended.wait()
        assert job.message == "no exchange instance is named 'made' any more"
    state = State(rig.folder / "state.sqlite")
    [record] = state.jobs()
    record.details.pop("parts")
    state.put_job(record)
    state.close()
    async with rig.life() as book:
        assert book.jobs() == []


async def test_two_instances_of_one_venue(tmp_path):
    rig = Rig(tmp_path, one=Venue(seed=1), two=Venue(seed=2))
    async with rig.life() as book:
        await rig.submit(book, CANDLES, exchange="two").ended.wait()
    assert rig.venues["one"].asked == []
    other = Rig(tmp_path / "other", made=Venue(seed=2))
    async with other.life() as book:
        await other.submit(book, CANDLES).ended.wait()
    assert same_rows(await rig.rows(CANDLES), await other.rows(CANDLES)).all()


async def test_refusals(rig, monkeypatch):
    monkeypatch.setattr(jobs, "MAX_ACTIVE", 1)
    rig.venue.hold()
    async with rig.life() as book:
        with pytest.raises(RequestError, match="synthetic has no quote; it has trade, candle_1s"):
            rig.submit(book, QUOTES)
        rig.submit(book, CANDLES)
        with pytest.raises(RequestError, match="1 backfills are under way"):
            rig.submit(book, TRADES)
        rig.venue.let()


async def test_history_is_bounded(rig, monkeypatch):
    monkeypatch.setattr(jobs, "KEPT", 3)
    async with rig.life() as book:
        for _ in range(6):
            await rig.submit(book, CANDLES).ended.wait()
        assert [job.job_id for job in book.jobs()] == [4, 5, 6]
    async with rig.life() as book:
        assert [job.job_id for job in book.jobs()] == [4, 5, 6]
        assert rig.submit(book, CANDLES).job_id == 7


async def test_a_cooling_venue_is_told(rig, autojump_clock):
    rig.venue.hold()
    budget = rig.venue.context.budgets.of("api.made", [Limit("minute", 100, 60.0)], 0.85)
    async with rig.life() as book:
        job = rig.submit(book, CANDLES)
        await trio.sleep(1)
        assert book.shown(job)["limit_used"] == 0
        budget.observe("minute", 42)
        assert book.shown(job)["limit_used"] == 0.42
        budget.cool_down(30, "too many requests")
        shown = book.shown(job)
        assert shown["state"] == "cooling_down"
        assert shown["waiting_for"].startswith("too many requests until 20")
        rig.venue.let()
        await job.ended.wait()
        assert book.shown(job)["waiting_for"] is None


async def test_rate_and_time_to_go(rig, autojump_clock):
    rig.venue.hold()
    async with rig.life() as book:
        job = rig.submit(book, CANDLES)
        await trio.sleep(10)
        assert book.shown(job)["eta_secs"] is None
        rig.venue.let(1)
        await until(lambda: job.pages)
        shown = book.shown(job)
        elapsed = job.done / shown["rate"]
        assert shown["eta_secs"] == pytest.approx((job.total - job.done) / shown["rate"], rel=0.01)
        assert shown["rows_per_sec"] == pytest.approx(job.rows / elapsed, rel=0.01)
        rig.venue.let()


async def test_lists_are_short(rig):
    many = [Series.parse(f"synthetic:D{at}/USDT@candle_1d") for at in range(30)]
    async with rig.life() as book:
        job = rig.submit(book, *many)
        shown = book.shown(job, whole=False)
        assert (len(shown["series"]), shown["series_count"]) == (20, 30)
        assert "results" not in shown
        await job.ended.wait()


async def test_jobs_rest_while_instances_change_places_and_go_on_with_the_new_ones(rig):
    rig.venue.hold()
    async with rig.life() as book:
        job = rig.submit(book, CANDLES)
        rig.venue.let(1)
        await until(lambda: job.pages == 1)
        async with book.held(lambda one: one is job):
            assert rig.venue.at_once == 0
            assert book.shown(job)["state"] == "waiting"
            old, rig.venues["made"] = rig.venue, Venue()
            later = rig.submit(book, TRADES)
            await trio.testing.wait_all_tasks_blocked()
            assert old.asked == [(CANDLES, TODAY)]
            assert rig.venues["made"].asked == []
        await job.ended.wait()
        await later.ended.wait()
        assert (job.state, later.state) == ("finished", "finished")
        assert len(await rig.rows(CANDLES)) == 1440
        asked = dict(rig.venues["made"].asked)
        assert asked[CANDLES].start > START, "coverage says where to go on"


async def test_a_resting_job_can_be_cancelled_and_the_daemon_stopped(rig):
    rig.venue.hold()
    async with rig.life() as book:
        jobs_ = [rig.submit(book, one) for one in (CANDLES, TRADES)]
        await until(lambda: rig.venue.at_once == 2)
        async with book.held(lambda one: True):
            await book.cancel(jobs_[0].job_id)
            assert jobs_[0].state == "cancelled"
            await book.end_all()
            assert not jobs_[1].ended_at, "it goes on in the daemon's next life"
    rig.venue.let()
    async with rig.life() as book:
        await book.find(jobs_[1].job_id).ended.wait()
        assert book.find(jobs_[1].job_id).state == "finished"


async def test_jobs_that_are_not_concerned_are_not_interrupted(rig):
    rig.venue.hold()
    async with rig.life() as book:
        job = rig.submit(book, CANDLES)
        await until(lambda: rig.venue.at_once)
        async with book.held(lambda one: False):
            assert rig.venue.at_once == 1
        rig.venue.let()
        await job.ended.wait()
        assert rig.venue.asked == [(CANDLES, TODAY)]
