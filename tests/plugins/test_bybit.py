"""The exchange plugin `bybit` against Bybit on loopback: conformance, bounds, faults, limits."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tardisd.backfill.job import run_backfill
from tardisd.errors import DataError, PluginError, RequestError, Retry
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Instrument, Series, Symbol
from tardisd.market.span import Coverage, Gap, Span
from tardisd.market.time import DAY, HOUR, MINUTE, SECOND, parse_time
from tardisd.plugins.base import Context
from tardisd.testing.exchange import Case, ExchangeSuite, fetch_pages, joined, suite_context
from tardisd.testing.memory import MemoryStorage
from tardisd.testing.ticks import random_candles, random_trades
from tardisd.testing.venues.bybit import GEO_PAGE, BybitVenue
from tardisd.testing.venues.faults import (
    Misreport,
    Refuse,
    Reset,
    Rewrite,
    Stall,
    Truncate,
    duplicated,
    empty,
    html_page,
    missing,
    not_a_number,
    unsorted,
)
from tardisd.venue.book import BudgetBook
from tardisd.venue.budget import Limit, NoBans
from tardisd.venue.client import Patience, Unreadable
from tardisd_bybit import rows
from tardisd_bybit.archive import files_of, names_in
from tardisd_bybit.plugin import Bybit, BybitOptions

SPOT = Series.parse("bybit:BTC/USDT@candle_1m")
SWAP = Series.parse("bybit:BTC/USDT:USDT@candle_1m")
MONTHS = Series.parse("bybit:BTC/USDT:USDT@candle_1M")
WEEKS = Series.parse("bybit:BTC/USDT@candle_1w")
SPOT_TRADES = Series.parse("bybit:BTC/USDT@trade")
SWAP_TRADES = Series.parse("bybit:BTC/USDT:USDT@trade")
START = parse_time("2024-03-01T00:00:00Z")
NOW = parse_time("2024-03-05T12:00:30Z")
QUICK = Patience(attempts=6, first_wait_secs=0.002, most_wait_secs=0.01)
HURRIED = replace(QUICK, request_secs=1.0)  # for who is kept waiting on purpose: machines are slow


def without(batch: Batch, *, ids: bool = False, fields: tuple[str, ...] = ()) -> Batch:
    """Return the batch as Bybit can tell it."""
    kept = {name: column for name, column in batch.fields.items() if name not in fields}
    return Batch(batch.series, batch.ts_event, kept, None if ids else batch.ids, batch.sides)


def swap_trades(n: int, start: int, seed: int = 0) -> Batch:
    """Return trades with ids that are texts, and times finer than milliseconds, as swaps have."""
    batch = random_trades(SWAP_TRADES, n, start, seed, mean_gap_ms=40_000)
    ids = np.array([f"{at:08x}-d31-5e8c-a1b2".encode() for at in range(n)], np.bytes_)
    times = batch.ts_event + np.arange(n) % 7 * 100_000
    return Batch(SWAP_TRADES, np.sort(times), batch.fields, ids, batch.sides)


DATA = {
    SPOT: without(random_candles(SPOT, 6000, START), fields=("trades",)),
    SWAP: without(random_candles(SWAP, 6000, START, 1), fields=("trades",)),
    MONTHS: without(random_candles(MONTHS, 50, parse_time("2020-03-01T00:00:00Z")),
                    fields=("trades",)),
    WEEKS: without(random_candles(WEEKS, 60, parse_time("2023-01-02T00:00:00Z")),
                   fields=("trades",)),
    SPOT_TRADES: without(random_trades(SPOT_TRADES, 9000, START, 2, mean_gap_ms=35_000), ids=True),
    SWAP_TRADES: swap_trades(8000, START, 3),
}  # fmt: skip


def truth(series: Series, span: Span) -> Batch:
    return DATA[series].within(span)


@asynccontextmanager
async def bybit(tmp_path: Path, *, data=None, book=None, patience=QUICK, options=None, **venue):
    venue.setdefault("clock", NOW)
    async with BybitVenue(DATA if data is None else data, **venue).serve() as served:
        chosen = BybitOptions(
            rest_url=served.rest_url, archive_url=served.archive_url, **(options or {})
        )
        context = suite_context("bybit", tmp_path)
        if book is not None:
            context = Context("bybit", tmp_path, context.sessions, book)
        plugin = Bybit(chosen, context, patience=patience)
        async with plugin.run():
            yield plugin, served


async def fetched(plugin: Bybit, series: Series, span: Span) -> Batch:
    pages = await fetch_pages(plugin, series, span)
    assert pages[0].span.start == span.start
    return joined(series, pages)


def assert_same(found: Batch, expected: Batch) -> None:
    assert len(found) == len(expected)
    assert bool(same_rows(found, expected).all())


class TestBybit(ExchangeSuite):
    cases: ClassVar = [
        Case(str(SWAP), "2024-03-01T00:00:00Z", "2024-03-03T00:00:00Z"),
        Case(str(SPOT), "2024-03-02T11:00:00Z", "2024-03-02T11:30:00Z"),
        Case(str(MONTHS), "2020-03-01T00:00:00Z", "2022-03-01T00:00:00Z"),
        Case(str(WEEKS), "2023-01-02T00:00:00Z", "2023-06-05T00:00:00Z"),
        Case(str(SWAP_TRADES), "2024-03-01T06:00:00Z", "2024-03-03T18:00:00Z"),
        Case(str(SPOT_TRADES), "2024-03-02T00:00:00Z", "2024-03-04T00:00:00Z"),
    ]

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.tmp_path = tmp_path

    @asynccontextmanager
    async def exchange(self):
        async with bybit(self.tmp_path) as (plugin, _):
            yield plugin


@pytest.mark.parametrize("series", DATA, ids=str)
@pytest.mark.parametrize("keeps_oldest", [False, True])
async def test_every_row_comes_as_it_is(tmp_path, series, keeps_oldest):
    last = DATA[series].extent().end
    end = min(last, parse_time("2024-03-05T00:00:00Z"))
    span = Span(int(DATA[series].ts_event[0]), end)
    async with bybit(tmp_path, keeps_oldest=keeps_oldest) as (plugin, venue):
        assert_same(await fetched(plugin, series, span), truth(series, span))
        assert all(seen.status == 200 for seen in venue.requests)
    assert not any((tmp_path / "downloads" / "bybit").iterdir() if series.data_type.name == "trade"
                   else ())  # fmt: skip


# Candles ------------------------------------------------------------------------------------


async def test_the_open_candle_is_left_out_by_the_venue_s_clock(tmp_path):
    span = Span(NOW - HOUR, NOW + DAY)
    minute = NOW - NOW % MINUTE
    before = minute - MINUTE
    cases = {NOW: minute, minute: before, minute + SECOND: before, minute + 2 * SECOND: minute}
    for clock, last in cases.items():
        data = {SWAP: without(random_candles(SWAP, 7000, START), fields=("trades",))}
        async with bybit(tmp_path, data=data, clock=clock) as (plugin, _):
            pages = await fetch_pages(plugin, SWAP, span)
        assert pages[-1].span.end == last
        assert pages[-1].batch.ts_event[-1] == last - MINUTE
        assert pages[0].span.start == span.start


async def test_nothing_is_asked_of_the_future(tmp_path):
    async with bybit(tmp_path) as (plugin, venue):
        assert await fetch_pages(plugin, SWAP, Span(NOW + DAY, NOW + 300 * DAY)) == []
        assert len(venue.requests) == 2, "the month in which it begins, and the clock"


async def test_the_years_before_listing_are_covered_and_empty(tmp_path):
    span = Span(START - 3 * DAY, START + HOUR)
    async with bybit(tmp_path) as (plugin, _):
        pages = await fetch_pages(plugin, SWAP, span)
    assert [page.span.start for page in pages[:1]] == [span.start]
    assert pages[-1].span.end == span.end
    assert_same(joined(SWAP, pages), truth(SWAP, span))


@pytest.mark.parametrize("begin", [0, HOUR, 20 * DAY], ids=["month", "hour", "weeks"])
async def test_the_years_before_listing_need_no_questions(tmp_path, begin):
    first, later = START + begin, parse_time("2024-06-01T00:00:00Z")
    month = without(random_candles(MONTHS, 4, START), fields=("trades",))
    minutes = without(random_candles(SWAP, 3000, first), fields=("trades",))
    span = Span(parse_time("2019-01-01T00:00:00Z"), first + DAY)
    data = {SWAP: minutes, MONTHS: month}
    async with bybit(tmp_path, data=data, clock=later) as (plugin, venue):
        pages = await fetch_pages(plugin, SWAP, span)
        assert len(venue.requests) < 130, "years in windows of a thousand minutes are thousands"
    assert_same(joined(SWAP, pages), minutes.within(span))
    gaps = [gap for page in pages for gap in page.gaps]
    assert Coverage(gap.span for gap in gaps) == Coverage([Span(span.start, first)])
    assert {gap.cause for gap in gaps} == {"no_trades"}


async def test_a_candle_that_is_late_is_not_taken_for_missing(tmp_path):
    whole = without(random_candles(SWAP, 7000, START), fields=("trades",))
    minute = NOW - NOW % MINUTE
    late = whole[whole.ts_event < minute - 3 * MINUTE]
    async with bybit(tmp_path, data={SWAP: late}) as (plugin, _):
        pages = await fetch_pages(plugin, SWAP, Span(minute - HOUR, minute))
        assert pages[-1].span.end == minute - 3 * MINUTE
    halted = whole[whole.ts_event < minute - 30 * MINUTE]
    async with bybit(tmp_path, data={SWAP: halted}) as (plugin, _):
        pages = await fetch_pages(plugin, SWAP, Span(minute - HOUR, minute))
        assert pages[-1].span.end == minute - 10 * MINUTE


async def test_holes_of_the_venue_stay_holes(tmp_path):
    whole = DATA[SWAP]
    gone = (whole.ts_event >= START + 5 * HOUR) & (whole.ts_event < START + 30 * HOUR)
    span = Span(START, START + 2 * DAY)
    async with bybit(tmp_path, data={SWAP: whole[~gone]}) as (plugin, _):
        pages = await fetch_pages(plugin, SWAP, span)
    assert_same(joined(SWAP, pages), whole[~gone].within(span))
    assert sum(page.span.length for page in pages) == span.length


# Faults ---------------------------------------------------------------------------------------

CANDLE_FAULTS = {
    "429": Refuse(status=429, retry_after="0"),
    "10006": Refuse(status=200),
    "500": Refuse(status=500, times=3),
    "503": Refuse(status=503, retry_after="0"),
    "stall": Stall(secs=600.0),
    "stall in the middle": Stall(secs=600.0, after_bytes=200),
    "reset": Reset(),
    "reset in the middle": Reset(after_bytes=500),
    "cut off": Truncate(after_bytes=3000),
    "html": html_page(),
    "nan": not_a_number(),
    "duplicated": Misreport(change=duplicated),
    "unsorted": Misreport(change=unsorted),
    "missing": Misreport(change=missing),
    "empty": Misreport(change=empty),
    "shortened": Rewrite(change=lambda body: body[: len(body) // 2]),
}


@pytest.mark.parametrize("name", CANDLE_FAULTS)
async def test_candles_survive(tmp_path, name):
    fault = replace(CANDLE_FAULTS[name], skip=3, match="kline")
    span = Span(START, START + 4 * DAY)
    patience = HURRIED if isinstance(fault, Stall) else QUICK
    async with bybit(tmp_path, faults=[fault], patience=patience) as (plugin, venue):
        assert_same(await fetched(plugin, SWAP, span), truth(SWAP, span))
        assert any(seen.fault for seen in venue.requests), "the fault met nobody"


FILE_FAULTS = {
    "500": Refuse(status=500, times=3),
    "stall in the middle": Stall(secs=600.0, after_bytes=20_000),
    "reset": Reset(),
    "reset in the middle": Reset(after_bytes=30_000),
    "cut off": Truncate(after_bytes=30_000),
    "spoilt": Rewrite(change=lambda data: data[:5000] + b"\0" * 50 + data[5050:]),
    "shortened": Rewrite(change=lambda data: data[:-1000]),
    "html": html_page(),
    "duplicated": Misreport(change=duplicated),
    "unsorted": Misreport(change=unsorted),
}


@pytest.mark.parametrize("name", FILE_FAULTS)
async def test_trades_survive(tmp_path, name):
    fault = replace(FILE_FAULTS[name], match=r"2024-03-02\.csv")
    span = Span(START, START + 3 * DAY)
    patience = HURRIED if isinstance(fault, Stall) else QUICK
    async with bybit(tmp_path, faults=[fault], patience=patience) as (plugin, venue):
        assert_same(await fetched(plugin, SWAP_TRADES, span), truth(SWAP_TRADES, span))
        assert any(seen.fault for seen in venue.requests), "the fault met nobody"
    folder = tmp_path / "downloads" / "bybit"
    assert not any(folder.iterdir())


WEATHER = [
    Refuse(status=429, retry_after="0", chance=0.1, times=None),
    Refuse(status=500, chance=0.1, times=None),
    Reset(chance=0.05, times=None),
    Reset(after_bytes=3000, chance=0.05, times=None),
    Truncate(after_bytes=2000, chance=0.1, times=None),
    html_page(match="kline", chance=0.05, times=None),
    Misreport(change=unsorted, chance=0.05, times=None),
    Misreport(change=missing, match="kline", chance=0.05, times=None),
    Misreport(change=duplicated, match="kline", chance=0.05, times=None),
    Misreport(change=empty, match="kline", chance=0.05, times=None),
]


async def test_a_backfill_in_bad_weather_is_the_truth_and_is_done_once(tmp_path):
    candles = without(random_candles(SWAP, 60_000, START - 40 * DAY), fields=("trades",))
    data = {**DATA, SWAP: candles}
    spans = {
        SWAP: Span(START - 38 * DAY, START),
        SWAP_TRADES: Span(START, START + 3 * DAY),
        SPOT_TRADES: Span(START, START + 3 * DAY),
    }
    storage = MemoryStorage()
    async with bybit(tmp_path, data=data, faults=WEATHER, seed=1) as (plugin, venue):
        for series, span in spans.items():
            complete = False
            for _ in range(20):
                # RequestError: of a file that was damaged twice running a gap is left.
                with suppress(PluginError, DataError, RequestError):
                    result = await run_backfill(series, span, plugin, storage, lambda _: None)
                    complete = result.complete
                if complete:
                    break
            assert complete
            asked = len(venue.requests)
            await run_backfill(series, span, plugin, storage, lambda _: None)
            assert len(venue.requests) == asked
            async with storage.read(series, span) as batches:
                found = Batch.concat([batch async for batch in batches])
            assert_same(found, data[series].within(span))


async def test_a_file_that_stays_wrong_costs_its_day_and_no_other(tmp_path):
    fault = Rewrite(change=lambda data: data[:-1000], match=r"2024-03-02\.csv", times=None)
    span, day = Span(START, START + 3 * DAY), Span(START + DAY, START + 2 * DAY)
    storage = MemoryStorage()
    async with bybit(tmp_path, faults=[fault]) as (plugin, _):
        with pytest.raises(RequestError, match=r"2024-03-02.csv.gz: .*cut off or damaged") as told:
            await run_backfill(SWAP_TRADES, span, plugin, storage, lambda _: None)
        assert told.value.code == "no_data", "so that other stretches are fetched all the same"
        assert (await storage.coverage(SWAP_TRADES)).gaps(span) == [day]
        assert list(await storage.gaps(SWAP_TRADES)) == [Gap(day, "fetch_failed")]
        aside = tmp_path / "downloads" / "bybit" / "refused"
        assert sorted(path.name for path in aside.iterdir()) == [
            "BTCUSDT2024-03-02.csv.gz", "BTCUSDT2024-03-02.csv.gz.txt",
        ]  # fmt: skip
    async with bybit(tmp_path) as (plugin, venue):
        again = await run_backfill(SWAP_TRADES, span, plugin, storage, lambda _: None)
        assert again.complete
        assert len(venue.requests) == 2, "the index, and the one day"
    assert list(await storage.gaps(SWAP_TRADES)) == []
    async with storage.read(SWAP_TRADES, span) as batches:
        assert_same(Batch.concat([part async for part in batches]), truth(SWAP_TRADES, span))


async def test_evidence_that_cannot_be_kept_is_let_go(tmp_path):
    fault = Rewrite(change=lambda data: data[:-1000], match=r"2024-03-02\.csv", times=None)
    async with bybit(tmp_path, faults=[fault]) as (plugin, _):
        downloads = tmp_path / "downloads" / "bybit"
        downloads.mkdir(parents=True)
        (downloads / "refused").write_text("where a folder should be")
        with pytest.raises(RequestError, match="cut off or damaged"):
            await fetch_pages(plugin, SWAP_TRADES, Span(START, START + 3 * DAY))
        assert [path.name for path in downloads.iterdir()] == ["refused"]


async def test_what_came_before_a_restart_is_used_up(tmp_path):
    day = Span(START, START + DAY)
    folder = tmp_path / "downloads" / "bybit" / "trading_BTCUSDT_BTCUSDT2024-03-01.csv.gz"
    part = folder / "BTCUSDT2024-03-01.csv.gz.part"
    breaks_off = [
        Stall(secs=600.0, after_bytes=20_000, match=r"2024-03-01\.csv"),
        Refuse(status=500, match=r"2024-03-01\.csv", times=None),
    ]
    once = Patience(attempts=1, request_secs=2.0)
    async with bybit(tmp_path, faults=breaks_off, patience=once) as (plugin, venue):
        with pytest.raises(Retry, match="given up"):
            await fetched(plugin, SWAP_TRADES, day)
        venue.faults.faults.clear()
        assert part.stat().st_size == 20_000
        again = Bybit(plugin.options, suite_context("bybit", tmp_path), patience=QUICK)
        async with again.run():
            assert part.exists()
            assert_same(await fetched(again, SWAP_TRADES, day), truth(SWAP_TRADES, day))
    assert not folder.exists()


async def test_a_file_that_came_before_a_restart_is_told_with_its_checksum(tmp_path):
    day = Span(START, START + DAY)
    async with bybit(tmp_path) as (plugin, venue):
        async with plugin.fetch(SWAP_TRADES, day) as pages:
            first = await pages.receive()
        again = await fetch_pages(plugin, SWAP_TRADES, day)
        assert len([seen for seen in venue.requests if seen.path.endswith(".gz")]) == 1
        assert " sha256:" in first.source
        assert {page.source for page in again} == {first.source}


async def test_a_geo_block_ends_it_at_once(tmp_path):
    faults = [Refuse(status=403, body=GEO_PAGE, headers={"Content-Type": "text/html"}, times=None)]
    async with bybit(tmp_path, faults=faults) as (plugin, venue):
        for series in (SWAP, SWAP_TRADES):
            # A PluginError would be tried again for an hour.
            with pytest.raises(
                RequestError, match=r"does not serve the US.*rest_url.*proxy"
            ) as got:
                await fetch_pages(plugin, series, Span(START, START + DAY))
            assert got.value.code == "fetch_failed"
        assert len(venue.requests) == 2


async def test_a_ban_holds_everybody_back_and_is_remembered(tmp_path):
    class Memory(NoBans):
        def __init__(self):
            self.told = []

        def banned_until(self, venue):
            return max((until for _, until in self.told), default=None)

        def remember(self, venue, until, reason):
            self.told.append((reason, until))

    memory = Memory()
    limits = {"rest requests": Limit("rest requests", 2, 5)}
    async with bybit(tmp_path, limits=limits, book=BudgetBook(memory)) as (plugin, venue):
        for _ in range(3):
            with pytest.raises(Retry, match=r"access too frequent\) until") as caught:
                await fetch_pages(plugin, SWAP, Span(START, START + 4 * DAY))
            assert 580 < caught.value.after <= 605
        asked = len(venue.requests)
        again = Bybit(
            plugin.options, Context("bybit", tmp_path, None, BudgetBook(memory)), patience=QUICK
        )
        async with again.run():
            with pytest.raises(Retry, match="banned by the venue until"):
                await again.server_time()
        assert len(venue.requests) == asked
    assert 1 <= len(memory.told) <= 8, "those that were under way are told too"


async def test_two_instances_share_one_budget_and_never_exceed_it(tmp_path):
    book = BudgetBook()
    limits = {"rest requests": Limit("rest requests", 600, 5)}
    data = {SWAP: DATA[SWAP], SPOT: DATA[SPOT]}
    async with bybit(tmp_path, data=data, book=book, limits=limits,
                     options={"budget_share": 0.01}) as (one, venue):  # fmt: skip
        other = Bybit(one.options, Context("other", tmp_path, None, book), patience=QUICK)
        async with other.run(), trio.open_nursery() as nursery:
            nursery.start_soon(fetched, one, SWAP, Span(START, START + 3 * DAY))
            nursery.start_soon(fetched, other, SPOT, Span(START, START + 3 * DAY))
    assert len(venue.requests) >= 10
    assert 0.009 < max(venue.most_used().values()) <= 0.01


# Requests that cannot be honoured -------------------------------------------------------------


@pytest.mark.parametrize(
    ("series", "words"),
    [
        ("bybit:NOPE/USDT:USDT@candle_1m", "no linear symbol NOPEUSDT .10001.*spelt"),
        ("bybit:NOPE/USDT@candle_1d", "no spot symbol NOPEUSDT"),
        ("bybit:NOPE/USDT:USDT@trade", "no trades of linear NOPE/USDT:USDT"),
        ("bybit:BTC/USDT@candle_8h", "no candle_8h; it has trade and candle_<interval>.*6h, 12h"),
        ("bybit:BTC/USDT@candle_1s", "no candle_1s"),
        ("bybit:BTC/USDT@agg_trade", "no agg_trade; it has trade"),
    ],
)
async def test_what_bybit_lacks_is_refused(tmp_path, series, words):
    async with bybit(tmp_path) as (plugin, _):
        with pytest.raises(RequestError, match=words):
            await fetch_pages(plugin, Series.parse(series), Span(START, START + HOUR))


async def test_the_archive_begins_somewhere(tmp_path):
    async with bybit(tmp_path) as (plugin, _):
        with pytest.raises(RequestError, match=r"begins at 2024-03-01.*no earlier trades") as got:
            await fetch_pages(plugin, SWAP_TRADES, Span(START - DAY, START))
        assert got.value.code == "no_data"
        pages = await fetch_pages(plugin, SWAP_TRADES, Span(START - DAY, START + HOUR))
        assert pages[0].holes == (pages[0].span,) == (Span(START - DAY, START),)
        assert pages[-1].span.end == START + HOUR


async def test_a_day_without_a_file_stays_unknown(tmp_path):
    whole = DATA[SWAP_TRADES]
    quiet = Span(START + DAY, START + 2 * DAY)
    kept = whole[(whole.ts_event < quiet.start) | (whole.ts_event >= quiet.end)]
    async with bybit(tmp_path, data={SWAP_TRADES: kept}) as (plugin, _):
        span = Span(START, START + 3 * DAY)
        pages = await fetch_pages(plugin, SWAP_TRADES, span)
        assert [page.span for page in pages if page.holes] == [quiet]
        assert_same(joined(SWAP_TRADES, pages), kept.within(span))
        pages = await fetch_pages(plugin, SWAP_TRADES, Span(START, quiet.end))
        assert pages[-1].holes == (quiet,)


async def test_today_has_no_file_yet(tmp_path):
    today = NOW - NOW % DAY
    async with bybit(tmp_path) as (plugin, _):
        pages = await fetch_pages(plugin, SWAP_TRADES, Span(today - HOUR, NOW))
        assert pages[-1].span.end == min(today, START + 4 * DAY)
        assert await fetch_pages(plugin, SWAP_TRADES, Span(today, NOW)) == []


async def test_archives_can_be_left_out_or_be_all(tmp_path):
    span = Span(START, START + HOUR)
    async with bybit(tmp_path, options={"archives": "never"}) as (plugin, _):
        assert len(await fetched(plugin, SWAP, span)) == 60
        with pytest.raises(RequestError, match=r"no trade history over REST.*archives = "):
            await fetch_pages(plugin, SWAP_TRADES, span)
    async with bybit(tmp_path, options={"archives": "only"}) as (plugin, venue):
        assert len(await fetched(plugin, SWAP_TRADES, span))
        with pytest.raises(RequestError, match=r"no files of candles.*archives = "):
            await fetch_pages(plugin, SWAP, span)
        assert await plugin.server_time() > NOW
        assert {seen.role for seen in venue.requests} == {"archive"}


# Instruments, and answers as recorded -----------------------------------------------------------


async def test_all_pages_of_instruments(tmp_path):
    known = [
        Instrument("bybit", Symbol(f"A{n:04d}", "USDT", "USDT"), "0.10", "0.001", START)
        for n in range(1100)
    ]
    spot = Instrument("bybit", Symbol("BTC", "USDT"), "0.01", "0.000001")
    async with bybit(tmp_path, data={}, instruments=[spot, *known]) as (plugin, venue):
        found = await plugin.instruments()
        assert await plugin.server_time() == NOW
    assert [(it.symbol, it.tick_size, it.lot_size, it.listed_at) for it in found] == [
        (spot.symbol, "0.01", "0.000001", None),
        *((it.symbol, "0.10", "0.001", START) for it in known),
    ]
    assert found[0].extra == {"venue_id": "BTCUSDT", "status": "Trading"}
    assert len(venue.requests) == 4


def recorded(shared_data: Path, name: str) -> bytes:
    text = (shared_data / "fixtures" / "bybit" / name).read_text()
    return text[text.index("{") :].encode()


def test_recorded_klines(shared_data):
    body = recorded(shared_data, "http_get_klines_linear.json")
    found = rows.klines(body, Series.parse("bybit:BTC/USDT:USDT@candle_1m"), "linear")
    assert found.now == 1709891679050 * 10**6
    assert found.batch.ts_event.tolist() == [1709891679000 * 10**6]
    assert [found.batch.fields[name].texts() for name in found.batch.fields] == [
        ["27450"], ["27460"], ["27440"], ["27455"], ["123.45"], ["3390000"],
    ]  # fmt: skip
    inverse = recorded(shared_data, "jkorf_Endpoints_V5Api_ExchangeData_GetKlines.txt")
    with pytest.raises(Unreadable, match="asked for linear BTCUSDT, got inverse BTCUSD"):
        rows.klines(inverse, SWAP, "linear")
    series = Series.parse("bybit:BTC/USD@candle_1h")
    found = rows.klines(inverse, series, "inverse")
    theirs = json.loads(inverse)["result"]["list"][::-1]
    assert found.batch.ts_event.tolist() == [int(row[0]) * 10**6 for row in theirs]
    for at, name in enumerate(("open", "high", "low", "close", "volume", "quote_volume"), 1):
        expected = Decimals.of([row[at] for row in theirs])
        assert found.batch.fields[name].equals(expected).all()


@pytest.mark.parametrize(
    "name",
    [
        "http_get_instruments_linear.json",
        "http_get_instruments_linear_symbol_type.json",
        "http_get_instruments_inverse.json",
        "http_get_instruments_option.json",
        "http_get_instruments_spot.json",
        "http_get_instruments_spot_xstocks.json",
        "jkorf_Endpoints_V5Api_ExchangeData_GetSpotSymbols.txt",
        "jkorf_Endpoints_V5Api_ExchangeData_GetLinearInverseSymbols.txt",
    ],
)
def test_recorded_instruments(shared_data, name):
    found, cursor = rows.instruments(recorded(shared_data, name))
    theirs = json.loads(recorded(shared_data, name))["result"]["list"]
    assert cursor == ""
    assert [it.symbol for it in found] == [it["symbol"] for it in theirs]
    assert [it.price_filter.tick_size for it in found] == [
        it["priceFilter"]["tickSize"] for it in theirs
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not the JSON expected"),
        (b"<html>", "a web page came instead of JSON"),
        (b'{"retCode":0,"result":{"list":[["1709891679000","1"]]},"time":1}', "length"),
        (b'{"retCode":0,"result":{"list":[["17","1","1","1","1","1","1"]]},"time":1}', "2009"),
        (b'{"retCode":0,"result":{"list":[["x","1","1","1","1","1","1"]]},"time":1}', "integer"),
        (b'{"retCode":0,"result":{"list":[["1709891679000","1","1","NaN","1","1","1"]]},"time":1}',
         "low 'NaN': not a finite"),
        (b'{"retCode":0,"result":{"list":[["1709891679000","1","1","1","1","1","1"],'
         b'["1709891679000","1","1","1","1","2","1"]]},"time":1}', "contradicts itself"),
    ],
)  # fmt: skip
def test_odd_answers_are_never_rows(body, words):
    with pytest.raises(Unreadable, match=words):
        rows.klines(body, SWAP, "linear")


numbers = st.one_of(
    st.builds(
        lambda whole, digits: f"{whole}{'.' if digits else ''}{digits}",
        st.integers(0, 10**12),
        st.text("0123456789", max_size=10),
    ),
    st.sampled_from(["-1", "0", "1e3", "", " 1", "NaN", "1,5", "--", "9" * 25, "1.", ".5"]),
)


@given(st.lists(st.tuples(*[numbers] * 6), min_size=1, max_size=5))
def test_the_fast_way_reads_what_the_careful_one_does(table):
    lines = [[str(1709891679000 + at * 60_000), *cells] for at, cells in enumerate(table)]
    body = json.dumps({"retCode": 0, "result": {"list": lines}, "time": 1}, separators=(",", ":"))
    cells = rows._cells(body.encode())
    fast = None if cells is None else rows._parsed(cells.text)
    try:
        times, columns = rows._parsed_carefully([tuple(line) for line in lines])
    except Unreadable:
        assert fast is None
        with pytest.raises(Unreadable):
            rows.klines(body.encode(), SWAP, "linear")
        return
    found = rows.klines(body.encode(), SWAP, "linear").batch
    assert found.ts_event.tolist() == (times * 10**6).tolist()
    for column, name in zip(columns, found.fields, strict=True):
        assert found.fields[name].texts() == column.texts()
    if fast is not None:
        assert [column.texts() for column in fast[1]] == [column.texts() for column in columns]


def test_the_fast_way_is_taken():
    row = ["1709891679000", "17071", "17073.5", "17027", "17055.5", "268611", "15.74462667"]
    body = json.dumps({"result": {"list": [row] * 3}, "time": 1}, separators=(",", ":")).encode()
    assert rows._parsed(rows._cells(body).text) is not None


def test_the_index_names_the_files():
    page = (
        b'<html><a href="../">Parent</a><a href="BTCUSDT2024-03-01.csv.gz">x</a>'
        b"<A HREF='./BTCUSDT2024-03-02.csv.gz'>y</A><a href=\"ETHUSDT2024-03-01.csv.gz\">z</a>"
        b'<a href="readme.txt">r</a></html>'
    )
    names = names_in(page)
    assert [file.path for file in files_of(SWAP_TRADES, names)] == [
        "/trading/BTCUSDT/BTCUSDT2024-03-01.csv.gz", "/trading/BTCUSDT/BTCUSDT2024-03-02.csv.gz",
    ]  # fmt: skip
    with pytest.raises(Unreadable, match="cut off"):
        names_in(page[:-7])
    spot = ["BTCUSDT-2022-11.csv.gz", "BTCUSDT-2022-12.csv.gz", "BTCUSDT_2022-12-01.csv.gz"]
    taken = files_of(SPOT_TRADES, spot)
    assert [file.path.rpartition("/")[2] for file in taken] == [spot[0], spot[2]]
    only_months = files_of(SPOT_TRADES, spot[:2])
    assert len(only_months) == 2
