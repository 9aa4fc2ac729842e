"""Binance's archives: which files are taken, what is checked, and what is done without one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from binance_rig import (
    NOW,
    SPOT,
    SWAP,
    asked,
    assert_same,
    at,
    candles,
    fetched,
    plugin_at,
    sources,
    span,
    trades,
    venue_of,
)

import tardisd.testing.venues.faults as faults
from tardisd.backfill.job import run_backfill
from tardisd.errors import PluginError, RequestError, Retry
from tardisd.market.series import Series
from tardisd.market.span import Gap, Span
from tardisd.market.time import DAY, HOUR, MINUTE, parse_time
from tardisd.testing.exchange import fetch_pages
from tardisd.testing.memory import MemoryStorage
from tardisd.testing.venues.faults import Misreport, Refuse, Reset, Rewrite, Truncate
from tardisd_binance.archive import DAILY, MONTHLY, Plan, file_at

MINUTES = candles(f"{SPOT}@candle_1m", "01-25", "03-21")
SECONDS = candles(f"{SPOT}@candle_1s", "03-18", "03-20")
RAW = trades(f"{SPOT}@trade", "03-15T09:00", 9000, 60_000)
AGGS = trades(f"{SPOT}@agg_trade", "03-15T09:00", 9000, 60_000)
SWAP_AGGS = trades(f"{SWAP}@agg_trade", "03-15T09:00", 9000, 60_000)
SWAP_RAW = trades(f"{SWAP}@trade", "03-15T09:00", 9000, 60_000)


@pytest.mark.parametrize(
    ("series", "period", "path", "start", "end"),
    [
        (f"{SPOT}@candle_1m", MONTHLY,
         "/data/spot/monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2024-02.zip", "02-01", "03-01"),
        (f"{SPOT}@candle_1M", MONTHLY,
         "/data/spot/monthly/klines/BTCUSDT/1mo/BTCUSDT-1mo-2024-02.zip", "02-01", "03-01"),
        (f"{SWAP}@agg_trade", DAILY,
         "/data/futures/um/daily/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2024-02-29.zip",
         "02-29", "03-01"),
        (f"{SPOT}@trade", DAILY,
         "/data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2024-02-29.zip", "02-29", "03-01"),
    ],
)  # fmt: skip
def test_where_files_lie(series, period, path, start, end):
    file = file_at(Series.parse(series), at("02-29T23:59"), period)
    assert (file.path, file.span) == (path, span(start, end))


def test_the_year_ends():
    file = file_at(Series.parse(f"{SPOT}@trade"), parse_time("2023-12-31T00:00:00Z"), MONTHLY)
    assert file.span == Span(parse_time("2023-12-01T00:00:00Z"), at("01-01"))


def plan(series: str, worth: int = 0, now: int = NOW) -> Plan:
    return Plan(Series.parse(series), now, worth)


def test_months_for_most_of_a_month_and_days_for_less():
    end = at("03-20T12:00")
    trades_plan = plan(f"{SPOT}@trade")

    def name(ts, end=end):
        file = trades_plan.at(at(ts), end)
        return None if file is None else file.name

    assert name("02-01") == "BTCUSDT-trades-2024-02.zip"
    assert name("02-25") == "BTCUSDT-trades-2024-02-25.zip"
    assert name("02-01", at("02-03")) == "BTCUSDT-trades-2024-02-01.zip"
    assert name("03-19T23:00") == "BTCUSDT-trades-2024-03-19.zip"
    assert name("03-20T01:00") is None
    trades_plan.missing(file_at(Series.parse(f"{SPOT}@trade"), at("02-01"), MONTHLY))
    assert name("02-01") == "BTCUSDT-trades-2024-02-01.zip"
    # A month that has long been over without a file, nor one of two days, has none.
    trades_plan.missing(file_at(Series.parse(f"{SPOT}@trade"), at("01-05"), MONTHLY))
    for day in ("01-05", "01-06"):
        assert name(day) == f"BTCUSDT-trades-2024-{day}.zip"
        trades_plan.missing(file_at(Series.parse(f"{SPOT}@trade"), at(day), DAILY))
    assert name("01-07") is None
    assert trades_plan.next_start(at("01-05"), end) == at("02-01")


def test_a_day_is_expected_some_hours_after_it_ends():
    assert plan(f"{SPOT}@trade", now=at("03-20T07:59")).at(at("03-19"), at("03-20")) is None
    assert plan(f"{SPOT}@trade", now=at("03-20T08:00")).at(at("03-19"), at("03-20")) is not None


def test_weeks_are_in_months_only():
    weekly = plan(f"{SPOT}@candle_1w")
    assert weekly.at(at("03-04"), NOW) is None
    file = weekly.at(at("02-26"), NOW)
    assert file is not None
    assert file.period == MONTHLY


def test_a_file_must_be_worth_it():
    candle_plan = plan(f"{SPOT}@candle_1m", worth=4000 * MINUTE)
    assert candle_plan.at(at("02-28"), NOW) is None
    assert candle_plan.next_start(at("02-28"), NOW) == NOW
    assert candle_plan.next_start(at("01-31"), NOW) == at("02-01")


async def test_candles_from_months_then_over_rest(tmp_path):
    wanted = span("01-30", "03-20T11:00")
    venue = venue_of(MINUTES)
    pages = await fetched(venue, tmp_path, str(MINUTES.series), wanted)
    assert_same(pages, MINUTES, wanted)
    assert sources(pages) == ["REST klines", "BTCUSDT-1m-2024-02.zip"]
    assert pages[0].source == "REST klines"
    assert pages[-1].source == "REST klines"
    february = next(page for page in pages if page.source.startswith("http"))
    path, _, sha256 = february.source.partition(" sha256:")
    assert path == f"{venue.archive_url}/data/spot/monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2024-02.zip"
    assert len(sha256) == 64
    assert list((tmp_path / "downloads" / "binance").rglob("*.zip*")) == []


@pytest.mark.parametrize("truth", [RAW, AGGS, SWAP_AGGS], ids=str)
async def test_trades_from_days_then_over_rest(tmp_path, truth):
    wanted = span("03-16T12:00", "03-20T11:00")
    venue = venue_of(truth)
    pages = await fetched(venue, tmp_path, str(truth.series), wanted)
    assert_same(pages, truth, wanted)
    named = (
        "BTCUSDT-trades-2024-03-1{}.zip" if truth is RAW else "BTCUSDT-aggTrades-2024-03-1{}.zip"
    )
    assert sources(pages)[:-1] == [named.format(day) for day in (6, 7, 8, 9)]
    assert sources(pages)[-1].startswith("REST ")


async def test_seconds_from_days(tmp_path):
    wanted = span("03-18T06:00", "03-20")
    pages = await fetched(venue_of(SECONDS), tmp_path, str(SECONDS.series), wanted)
    assert_same(pages, SECONDS, wanted)
    assert all(len(page.batch) <= 2**17 for page in pages)


@pytest.mark.parametrize("year", [2021, 2022, 2024, 2025])
@pytest.mark.parametrize("kind", [SPOT, SWAP])
async def test_each_form_that_files_have_had(tmp_path, kind, year):
    """Header or none, ms or µs, `True` or `true`: as each year's files are."""
    first = parse_time(f"{year}-03-05T12:00:00Z")
    truth = trades(f"{kind}@trade", "03-15T09:00", 3000, 60_000)
    truth = replace(truth, ts_event=truth.ts_event - truth.ts_event[0] + first)
    wanted = Span(first - HOUR, first + DAY)
    venue = venue_of(truth, clock=first + 30 * DAY)
    pages = await fetched(venue, tmp_path, str(truth.series), wanted)
    assert_same(pages, truth, wanted)
    assert all(".zip" in page.source for page in pages)


@pytest.mark.parametrize("change", [faults.unsorted, faults.duplicated])
async def test_a_shuffled_or_repeating_file_is_put_right(tmp_path, change):
    bad = Misreport(match=r"\.zip", change=change, times=None)
    wanted = span("03-16", "03-18")
    venue = venue_of(RAW, faults=[bad])
    pages = await fetched(venue, tmp_path, str(RAW.series), wanted)
    assert_same(pages, RAW, wanted)
    assert all(".zip" in page.source for page in pages)


async def test_candles_that_a_file_lacks_are_had_over_rest(tmp_path):
    def without_the_end(batch):
        return batch[:-5]

    bad = Misreport(match=r"2024-02\.zip", change=without_the_end, times=None)
    wanted = span("02-01", "03-01")
    venue = venue_of(MINUTES, faults=[bad])
    assert_same(await fetched(venue, tmp_path, str(MINUTES.series), wanted), MINUTES, wanted)


async def test_holes_of_a_file_are_asked_for(tmp_path):
    bad = Misreport(match=r"2024-02\.zip", change=faults.missing, times=None)
    wanted = span("02-01", "03-01")
    venue = venue_of(MINUTES, faults=[bad])
    assert_same(await fetched(venue, tmp_path, str(MINUTES.series), wanted), MINUTES, wanted)


async def test_a_file_that_differs_from_rest_is_not_used_for_candles(tmp_path):
    bad = Misreport(match=r"2024-02\.zip", change=faults.stale, times=None)
    wanted = span("02-01", "03-01")
    venue = venue_of(MINUTES, faults=[bad])
    pages = await fetched(venue, tmp_path, str(MINUTES.series), wanted)
    assert_same(pages, MINUTES, wanted)
    assert sources(pages) == ["REST klines"]


async def test_a_damaged_file_is_fetched_once_more(tmp_path):
    bad = Rewrite(match=r"2024-02\.zip$", change=lambda body: body[:-100] + bytes(100))
    wanted = span("02-01", "03-01")
    venue = venue_of(MINUTES, faults=[bad])
    pages = await fetched(venue, tmp_path, str(MINUTES.series), wanted)
    assert_same(pages, MINUTES, wanted)
    assert sources(pages) == ["BTCUSDT-1m-2024-02.zip"]
    assert len(asked(venue, "CHECKSUM")) == 2


@pytest.mark.parametrize(
    "bad",
    [
        faults.wrong_checksum(times=None),
        Rewrite(match=r"2024-02\.zip$", change=lambda body: body[:-100] + bytes(100), times=None),
    ],
    ids=["checksum", "file"],
)
async def test_a_file_that_stays_wrong_is_put_aside(tmp_path, bad):
    wanted = span("02-01", "03-01")
    venue = venue_of(MINUTES, faults=[bad])
    pages = await fetched(venue, tmp_path, str(MINUTES.series), wanted)
    assert_same(pages, MINUTES, wanted)
    assert sources(pages) == ["REST klines"]
    aside = tmp_path / "downloads" / "binance" / "refused"
    assert len(list(aside.iterdir())) == 2
    [told] = aside.glob("*.txt")
    assert "its SHA-256 is" in told.read_text()
    assert told.with_suffix("").stat().st_size > 1_000_000


async def test_a_file_that_contradicts_itself_is_put_aside(tmp_path):
    def twice(batch):
        rows = np.insert(np.arange(len(batch)), 7, 7)
        fields = {name: column[rows] for name, column in batch.fields.items()}
        fields["price"].mantissa[7] += 100
        return replace(batch[rows], fields=fields)

    bad = Misreport(match=r"\.zip", change=twice, times=None)
    wanted = span("03-17", "03-18")
    venue = venue_of(AGGS, faults=[bad])
    pages = await fetched(venue, tmp_path, str(AGGS.series), wanted)
    assert_same(pages, AGGS, wanted)
    assert sources(pages) == ["REST aggTrades"]
    [told] = (tmp_path / "downloads" / "binance" / "refused").glob("*.txt")
    assert "another row of this id has other content" in told.read_text()


@pytest.mark.parametrize(
    "trouble",
    [
        Reset(match=r"\.zip$", after_bytes=300_000, times=7),
        Truncate(match=r"\.zip$", after_bytes=300_000, times=7),
        Refuse(match=r"\.zip", status=503, times=3),
    ],
    ids=["reset", "cut off", "slow down"],
)
async def test_a_download_goes_on_where_it_broke_off(tmp_path, trouble):
    wanted = span("02-01", "03-01")
    venue = venue_of(MINUTES, faults=[trouble])
    if isinstance(trouble, Refuse):
        venue.faults.faults[0] = replace(trouble, retry_after="0.01")
    pages = await fetched(venue, tmp_path, str(MINUTES.series), wanted)
    assert_same(pages, MINUTES, wanted)
    assert sources(pages) == ["BTCUSDT-1m-2024-02.zip"]


async def test_archives_out_of_reach_are_done_without_for_candles_only(tmp_path):
    gone = Refuse(match=r"\.zip", status=500, times=None)
    wanted = span("02-01", "02-10")
    pages = await fetched(venue_of(MINUTES, faults=[gone]), tmp_path, str(MINUTES.series), wanted)
    assert_same(pages, MINUTES, wanted)
    with pytest.raises(Retry, match="CHECKSUM: HTTP 500"):
        await fetched(
            venue_of(RAW, faults=[gone]), tmp_path, str(RAW.series), span("03-16", "03-18")
        )


async def test_a_day_that_is_not_there_is_had_over_rest(tmp_path):
    gone = Refuse(match=r"2024-03-17\.zip", status=404, times=None)
    wanted = span("03-16", "03-19")
    venue = venue_of(AGGS, faults=[gone])
    pages = await fetched(venue, tmp_path, str(AGGS.series), wanted)
    assert_same(pages, AGGS, wanted)
    assert sources(pages) == [
        "BTCUSDT-aggTrades-2024-03-16.zip", "REST aggTrades", "BTCUSDT-aggTrades-2024-03-18.zip"
    ]  # fmt: skip


@pytest.mark.parametrize("truth", [SWAP_AGGS, SWAP_RAW], ids=str)
async def test_what_nobody_has_stays_unknown(tmp_path, truth):
    gone = Refuse(match=r"2024-03-17\.zip", status=404, times=None)
    wanted = span("03-16", "03-19")
    pages = await fetched(venue_of(truth, faults=[gone]), tmp_path, str(truth.series), wanted)
    [hole] = [page for page in pages if page.holes]
    assert hole.span == span("03-17", "03-18")
    assert hole.covered == type(hole.covered)()
    assert len(hole.batch) == 0
    assert sum(len(page.batch) for page in pages) == int(
        np.count_nonzero((truth.ts_event >= wanted.start) & (truth.ts_event < wanted.end)
                         & ~((truth.ts_event >= hole.span.start)
                             & (truth.ts_event < hole.span.end)))
    )  # fmt: skip


async def test_a_file_that_stays_wrong_costs_its_day_and_no_other(tmp_path):
    """Raw trades of swaps are in files alone."""
    bad = faults.wrong_checksum(match=r"2024-03-17\.zip\.CHECKSUM", times=None)
    wanted, lost, storage = span("03-16", "03-19"), span("03-17", "03-18"), MemoryStorage()
    venue = venue_of(SWAP_RAW, faults=[bad])
    async with venue.serve(), plugin_at(venue, tmp_path) as plugin:
        with pytest.raises(RequestError, match=r"03-17\.zip: .*its SHA-256 is .*put aside") as told:
            await run_backfill(SWAP_RAW.series, wanted, plugin, storage, lambda _: None)
        assert told.value.code == "no_data"
    assert (await storage.coverage(SWAP_RAW.series)).gaps(wanted) == [lost]
    assert list(await storage.gaps(SWAP_RAW.series)) == [Gap(lost, "fetch_failed")]


async def test_years_before_the_first_day_need_no_questions(tmp_path):
    days = candles(f"{SPOT}@candle_1d", "01-25", "03-20")
    wanted = Span(parse_time("2018-01-01T00:00:00Z"), at("03-01"))
    venue = venue_of(MINUTES, days)
    pages = await fetched(venue, tmp_path, str(MINUTES.series), wanted)
    assert_same(pages, MINUTES, wanted)
    assert pages[0].span == Span(wanted.start, at("01-25"))
    assert [gap.cause for gap in pages[0].gaps] == ["no_trades"]
    assert len(venue.requests) < 30


async def test_the_hours_before_the_first_candle_were_not_traded(tmp_path):
    days = candles(f"{SPOT}@candle_1d", "01-25", "03-20")
    minutes = candles(f"{SPOT}@candle_1m", "01-25T05:00", "03-21")
    pages = await fetched(
        venue_of(minutes, days), tmp_path, str(minutes.series), span("01-01", "02-20")
    )
    gaps = [gap for page in pages for gap in page.gaps]
    assert gaps == [Gap(span("01-01", "01-25"), "no_trades"),
                    Gap(span("01-25", "01-25T05:00"), "no_trades")]  # fmt: skip


async def test_what_is_no_longer_listed_is_still_in_the_archives(tmp_path):
    unknown = Refuse(match="api/v3/klines", status=400, times=None)
    wanted = span("02-01", "03-01")
    venue = venue_of(MINUTES, faults=[unknown])
    pages = await fetched(venue, tmp_path, str(MINUTES.series), wanted)
    assert_same(pages, MINUTES, wanted)
    with pytest.raises(RequestError, match="no symbol BTCUSDT"):
        await fetched(venue, tmp_path, str(MINUTES.series), span("02-01", "03-10"))


async def test_archives_alone(tmp_path):
    wanted = span("02-27", "03-19")
    venue = venue_of(MINUTES, faults=[Refuse(match="/api/", status=451, times=None)])
    pages = await fetched(venue, tmp_path, str(MINUTES.series), wanted, archives="only")
    assert_same(pages, MINUTES, wanted)
    assert asked(venue, "/api/") == []
    assert asked(venue, "/fapi/") == []


async def test_two_fetches_of_one_file_do_not_meet(tmp_path):
    import trio

    wanted = span("02-01", "03-01")
    venue = venue_of(MINUTES)
    results = []
    async with venue.serve(), plugin_at(venue, tmp_path) as plugin:

        async def one():
            results.append(await fetch_pages(plugin, MINUTES.series, wanted))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
    for pages in results:
        assert_same(pages, MINUTES, wanted)


async def test_a_fetch_that_was_cut_short_leaves_the_file_for_the_next(tmp_path):
    import os

    wanted = span("02-01", "03-01")
    venue = venue_of(MINUTES)
    async with venue.serve(), plugin_at(venue, tmp_path) as plugin:
        async with plugin.fetch(MINUTES.series, wanted) as pages:
            await pages.receive()
        await fetch_pages(plugin, MINUTES.series, wanted)
        assert len(asked(venue, "2024-02.zip")) == 3  # two checksums, one file
        async with plugin.fetch(MINUTES.series, wanted) as pages:
            await pages.receive()
    downloads = tmp_path / "downloads" / "binance"
    [left] = downloads.iterdir()
    long_ago = at("01-01") / 1e9
    os.utime(left, (long_ago, long_ago))
    async with venue.serve(), plugin_at(venue, tmp_path):
        assert list(downloads.iterdir()) == []


async def test_the_next_file_comes_while_one_is_read(tmp_path):
    import trio

    wanted = span("03-16", "03-19")
    venue = venue_of(AGGS, faults=[Refuse(match=r"03-18\.zip$", status=503, retry_after="0")])
    downloads = tmp_path / "downloads" / "binance"
    async with venue.serve(), plugin_at(venue, tmp_path) as plugin:
        async with plugin.fetch(AGGS.series, wanted) as pages:
            await pages.receive()
            while not asked(venue, "03-17.zip"):
                await trio.sleep(0.01)
            assert not asked(venue, "03-18.zip"), "one ahead, and no more"
        assert_same(await fetch_pages(plugin, AGGS.series, wanted), AGGS, wanted)
        assert list(downloads.iterdir()) == []


async def test_what_goes_wrong_ahead_is_told_in_its_turn(tmp_path):
    gone = Refuse(match=r"2024-03-17\.zip", status=451, times=None)
    venue = venue_of(SWAP_RAW, faults=[gone])
    async with venue.serve(), plugin_at(venue, tmp_path) as plugin:
        found = []

        async def collect():
            async with plugin.fetch(SWAP_RAW.series, span("03-16", "03-19")) as pages:
                async for page in pages:
                    found.append(page)

        with pytest.raises(RequestError, match="451"):
            await collect()
    assert found[-1].span.end == at("03-17"), "the day before has been given"


async def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "downloads").write_text("not a folder")
    with pytest.raises(PluginError, match=r"cannot keep downloads in .*check the data_dir"):
        await fetched(venue_of(RAW), tmp_path, str(RAW.series), span("03-16", "03-17"))
