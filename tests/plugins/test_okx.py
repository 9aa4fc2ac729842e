"""The exchange plugin `okx` against OKX on loopback: conformance, bounds, faults, limits."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import trio

from tardisd.backfill.job import run_backfill
from tardisd.errors import PluginError, RequestError, Retry
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.series import Instrument, Series, Symbol
from tardisd.market.span import Coverage, Gap, Span
from tardisd.market.time import DAY, HOUR, MINUTE, SECOND, parse_time
from tardisd.plugins.base import Context
from tardisd.testing.exchange import Case, ExchangeSuite, fetch_pages, joined, suite_context
from tardisd.testing.memory import MemoryStorage
from tardisd.testing.ticks import random_candles, random_trades
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
    stale,
    unsorted,
)
from tardisd.testing.venues.okx import OkxVenue
from tardisd.venue.book import BudgetBook
from tardisd.venue.budget import Limit
from tardisd.venue.client import Patience
from tardisd_okx.plugin import Okx, OkxOptions
from tardisd_okx.rest import LIMITS

SPOT = Series.parse("okx:BTC/USDT@candle_1m")
SWAP = Series.parse("okx:BTC/USDT:USDT@candle_1m")
HALVES = Series.parse("okx:BTC/USDT:USDT@candle_12h")
WEEKS = Series.parse("okx:BTC/USDT@candle_1w")
MONTHS = Series.parse("okx:BTC/USDT:USDT@candle_1M")
SPOT_TRADES = Series.parse("okx:BTC/USDT@trade")
SWAP_TRADES = Series.parse("okx:BTC/USDT:USDT@trade")
START = parse_time("2024-03-01T00:00:00Z")
NOON = parse_time("2024-03-06T12:00:00Z")
NOW = NOON + 30 * SECOND
NEVER, ONLY = {"archives": "never"}, {"archives": "only"}
QUICK = Patience(attempts=6, first_wait_secs=0.002, most_wait_secs=0.01)
HURRIED = replace(QUICK, request_secs=1.0)  # for who is kept waiting on purpose: machines are slow
# Tests of other things need not wait for two-second windows.
GENEROUS = {name: Limit(name, 100_000, 2.0) for name in LIMITS}


def candles(series: Series, n: int, start: int, seed: int = 0) -> Batch:
    batch = random_candles(series, n, start, seed)
    fields = {name: column for name, column in batch.fields.items() if name != "trades"}
    return Batch(series, batch.ts_event, fields)


DATA = {
    SPOT: candles(SPOT, 10_000, START - DAY),
    SWAP: candles(SWAP, 10_000, START - DAY, 1),
    HALVES: candles(HALVES, 400, START - 180 * DAY),
    WEEKS: candles(WEEKS, 60, parse_time("2023-02-20T00:00:00Z")),
    MONTHS: candles(MONTHS, 51, parse_time("2020-01-01T00:00:00Z")),
    SPOT_TRADES: random_trades(SPOT_TRADES, 20_000, START - DAY, 2, mean_gap_ms=30_000),
    SWAP_TRADES: random_trades(SWAP_TRADES, 20_000, START - DAY, 3, mean_gap_ms=30_000),
}


@asynccontextmanager
async def okx(
    tmp_path: Path, *, data=None, book=None, options=None, limits=None, patience=QUICK, **venue
):
    venue.setdefault("clock", NOW)
    venue.setdefault("limits", {})
    async with OkxVenue(DATA if data is None else data, **venue).serve() as served:
        chosen = OkxOptions(
            rest_url=served.rest_url, archive_url=served.archive_url, **(options or {})
        )
        context = suite_context("okx", tmp_path)
        if book is not None:
            context = Context("okx", tmp_path, context.sessions, book)
        plugin = Okx(chosen, context, patience=patience, limits=limits or GENEROUS)
        async with plugin.run():
            yield plugin, served


async def fetched(plugin: Okx, series: Series, span: Span) -> Batch:
    pages = await fetch_pages(plugin, series, span)
    assert pages[0].span.start == span.start
    assert pages[-1].span.end == span.end
    return joined(series, pages)


def assert_same(found: Batch, expected: Batch) -> None:
    assert len(found) == len(expected)
    assert bool(same_rows(found, expected).all())


class TestOkx(ExchangeSuite):
    cases: ClassVar = [
        Case(str(SPOT), "2024-03-06T00:00:00Z", "2024-03-06T11:00:00Z"),
        Case(str(SWAP), "2024-03-01T00:00:00Z", "2024-03-04T00:00:00Z"),
        Case(str(WEEKS), "2023-03-06T00:00:00Z", "2024-02-05T00:00:00Z"),
        Case(str(MONTHS), "2020-01-01T00:00:00Z", "2022-03-01T00:00:00Z"),
        Case(str(SWAP_TRADES), "2024-03-03T12:00:00Z", "2024-03-06T06:00:00Z"),
        Case(str(SPOT_TRADES), "2024-03-06T00:00:00Z", "2024-03-06T04:00:00Z"),
    ]

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.tmp_path = tmp_path

    @asynccontextmanager
    async def exchange(self):
        async with okx(self.tmp_path) as (plugin, _):
            yield plugin


@pytest.mark.parametrize("archives", ["prefer", "never"])
@pytest.mark.parametrize("series", DATA, ids=str)
async def test_every_row_comes_as_it_is(tmp_path, series, archives):
    first = int(DATA[series].ts_event[0])
    start = first if series.data_type.interval else NOW - 2 * DAY
    interval = series.data_type.interval
    end = NOW - MINUTE if interval is None else interval.floor(NOW)
    async with okx(tmp_path, options={"archives": archives}) as (plugin, venue):
        found = await fetched(plugin, series, Span(start, end))
        assert_same(found, DATA[series].within(Span(start, end)))
        files = [seen for seen in venue.requests if seen.role == "archive"]
        assert bool(files) == (
            archives == "prefer" and series.data_type.name in ("candle_1m", "trade")
        )
    assert not any((tmp_path / "downloads").rglob("*.zip"))


# Candles ------------------------------------------------------------------------------------


async def test_the_open_candle_is_left_out_by_the_venue_s_clock(tmp_path):
    minute = NOW - NOW % MINUTE
    before = minute - MINUTE
    cases = {NOW: minute, minute: before, minute + SECOND: before, minute + 2 * SECOND: minute}
    for clock, last in cases.items():
        async with okx(tmp_path, clock=clock) as (plugin, _):
            pages = await fetch_pages(plugin, SWAP, Span(NOW - HOUR, NOW + DAY))
        assert pages[-1].span.end == last
        assert pages[-1].batch.ts_event[-1] == last - MINUTE


async def test_what_okx_does_not_confirm_is_not_closed(tmp_path):
    minute = NOW - NOW % MINUTE

    def unconfirmed(body: bytes) -> bytes:
        return body.replace(b'","1"]', b'","0"]', 2)

    fault = Rewrite(change=unconfirmed, match="market/candles", times=None)
    async with okx(tmp_path, faults=[fault]) as (plugin, _):
        pages = await fetch_pages(plugin, SWAP, Span(minute - HOUR, minute))
        assert pages[-1].span.end == minute - 2 * MINUTE
        with pytest.raises(PluginError, match=r"not confirmed the candle of .* long after"):
            await fetch_pages(plugin, SWAP, Span(minute - 2 * HOUR, minute - HOUR))


async def test_nothing_is_asked_of_the_future(tmp_path):
    async with okx(tmp_path) as (plugin, venue):
        assert await fetch_pages(plugin, SWAP, Span(NOW + DAY, NOW + 300 * DAY)) == []
        assert len(venue.requests) == 1


async def test_years_before_the_first_candle_are_few_questions(tmp_path):
    span = Span(START - 900 * DAY, START + HOUR)
    data = {SWAP: DATA[SWAP]}
    async with okx(tmp_path, data=data, options=NEVER) as (plugin, venue):
        pages = await fetch_pages(plugin, SWAP, span)
        assert len(venue.requests) < 60
    assert pages[0].gaps[0].cause == "no_trades"
    assert pages[0].holes == ()
    assert (pages[0].span.start, pages[-1].span.end) == (span.start, span.end)
    assert_same(joined(SWAP, pages), DATA[SWAP].within(span))


@pytest.mark.parametrize("options", [{}, NEVER], ids=["prefer", "never"])
async def test_what_is_before_the_first_candle_was_not_traded(tmp_path, options):
    first = START + 3 * DAY + 7 * HOUR
    span = Span(START - 100 * DAY, first + DAY)
    data = {SPOT: candles(SPOT, 5000, first),
            Series.parse("okx:BTC/USDT@candle_1M"):
                candles(Series.parse("okx:BTC/USDT@candle_1M"), 3, START)}  # fmt: skip
    async with okx(tmp_path, data=data, options=options, clock=START + 60 * DAY) as (plugin, _):
        pages = await fetch_pages(plugin, SPOT, span)
    gaps = [gap for page in pages for gap in page.gaps]
    assert Coverage(gap.span for gap in gaps) == Coverage([Span(span.start, first)])
    assert {gap.cause for gap in gaps} == {"no_trades"}
    assert not any(page.holes for page in pages)
    assert_same(joined(SPOT, pages), data[SPOT].within(span))


async def test_candles_no_longer_kept_stay_unknown(tmp_path):
    span = Span(parse_time("2019-11-15T00:00:00Z"), START)
    async with okx(tmp_path, options=NEVER) as (plugin, _):
        pages = await fetch_pages(plugin, SWAP, span)
    known = parse_time("2020-02-01T00:00:00Z")
    assert pages[0].gaps[0].span == Span(span.start, known)
    assert pages[0].holes[0].start == known
    assert pages[0].holes[0].end > START - 2 * DAY
    assert_same(joined(SWAP, pages), DATA[SWAP].within(span))


async def test_a_candle_that_is_late_is_not_taken_for_missing(tmp_path):
    whole, minute = DATA[SWAP], NOW - NOW % MINUTE
    for absent, reach in ((3, 3), (30, 10)):
        data = {SWAP: whole[whole.ts_event < minute - absent * MINUTE]}
        async with okx(tmp_path, data=data) as (plugin, _):
            pages = await fetch_pages(plugin, SWAP, Span(minute - HOUR, minute))
            assert pages[-1].span.end == minute - reach * MINUTE


@pytest.mark.parametrize("archives", ["prefer", "never"])
async def test_holes_of_the_venue_stay_holes(tmp_path, archives):
    whole = DATA[SWAP]
    gone = (whole.ts_event >= START + 5 * HOUR) & (whole.ts_event < START + 30 * HOUR)
    span = Span(START, START + 3 * DAY)
    options = {"archives": archives}
    async with okx(tmp_path, data={SWAP: whole[~gone]}, options=options) as (plugin, _):
        assert_same(await fetched(plugin, SWAP, span), whole[~gone].within(span))


async def test_the_files_of_candles(tmp_path):
    span = Span(START - 8 * HOUR, START + 3 * DAY)
    lacking = Misreport(match=r"03-02\.zip", change=missing)
    wrong = Rewrite(match=r"03-03\.zip", change=lambda data: data[:-900], times=None)
    async with okx(tmp_path, faults=[lacking, wrong]) as (plugin, venue):
        assert_same(await fetched(plugin, SWAP, span), DATA[SWAP].within(span))
        assert {seen.fault for seen in venue.requests} == {"", "Misreport", "Rewrite"}
        names = [seen.path.rpartition("-")[2] for seen in venue.requests if seen.role == "archive"]
    assert set(names) == {"01.zip", "02.zip", "03.zip"}
    aside = tmp_path / "downloads" / "okx" / "refused"
    assert "BTC-USDT-SWAP-candlesticks-2024-03-03.zip" in {path.name for path in aside.iterdir()}


async def test_a_month_is_one_file(tmp_path):
    data = {SPOT: candles(SPOT, 62 * 1440, parse_time("2023-12-31T16:00:00Z"))}
    span = Span(parse_time("2023-12-31T16:00:00Z"), parse_time("2024-02-01T00:00:00Z"))
    async with okx(tmp_path, data=data) as (plugin, venue):
        assert_same(await fetched(plugin, SPOT, span), data[SPOT].within(span))
        files = [seen.path for seen in venue.requests if seen.role == "archive"]
        assert [path.rpartition("/")[2] for path in files] == [
            "BTC-USDT-candlesticks-2024-01.zip",
        ]  # fmt: skip


# Trades ---------------------------------------------------------------------------------------


async def test_trades_come_from_files_while_there_are_any(tmp_path):
    span = Span(START, NOW - HOUR)
    async with okx(tmp_path) as (plugin, venue):
        pages = await fetch_pages(plugin, SWAP_TRADES, span)
        files = [seen.path[-14:-4] for seen in venue.requests if seen.status == 200
                 and seen.role == "archive"]  # fmt: skip
    assert files == ["2024-03-01", "2024-03-02", "2024-03-03", "2024-03-04"]
    assert_same(joined(SWAP_TRADES, pages), DATA[SWAP_TRADES].within(span))
    assert pages[-1].span.end == span.end
    assert "sha256:" in pages[0].source
    assert pages[-1].source == "REST history-trades"


async def test_contracts_become_the_base_asset(tmp_path):
    amounts = ["0.01", "0.02", "12345.67"]
    whole = DATA[SWAP_TRADES]
    batch = whole[whole.ts_event > NOW - HOUR][:3]
    fields = {**batch.fields, "amount": type(batch.fields["amount"]).of(amounts)}
    data = {SWAP_TRADES: Batch(SWAP_TRADES, batch.ts_event, fields, batch.ids, batch.sides)}
    async with okx(tmp_path, data=data) as (plugin, _):
        pages = await fetch_pages(plugin, SWAP_TRADES, Span(NOW - HOUR, NOW - MINUTE))
    assert joined(SWAP_TRADES, pages).fields["amount"].texts() == amounts


async def test_many_trades_of_one_millisecond(tmp_path):
    whole = DATA[SPOT_TRADES]
    part = whole[whole.ts_event > NOW - DAY][:1500]
    times = part.ts_event.copy()
    times[:] = NOW - 2 * HOUR
    times[-50:] += SECOND
    data = {SPOT_TRADES: Batch(SPOT_TRADES, times, part.fields, part.ids, part.sides)}
    async with okx(tmp_path, data=data, options=NEVER) as (plugin, _):
        pages = await fetch_pages(plugin, SPOT_TRADES, Span(NOW - 2 * HOUR - MINUTE, NOW - HOUR))
    assert_same(joined(SPOT_TRADES, pages), data[SPOT_TRADES])


@pytest.mark.parametrize("skip", range(3))
async def test_an_answer_without_the_newest_trades_is_not_believed(tmp_path, skip):
    """Its ids follow each other, so nothing else tells that a stretch lacks its end."""
    stale = Misreport(
        match="type=2", change=lambda batch: batch[: len(batch) // 2], times=2, skip=3 * skip
    )
    span = Span(NOW - 8 * HOUR, NOW - HOUR)
    async with okx(tmp_path, options=NEVER, faults=[stale]) as (plugin, venue):
        assert_same(await fetched(plugin, SPOT_TRADES, span), DATA[SPOT_TRADES].within(span))
        assert any(seen.fault for seen in venue.requests), "the fault met nobody"


async def test_ids_that_do_not_follow_each_other(tmp_path):
    whole = DATA[SPOT_TRADES]
    kept = whole[np.flatnonzero(np.arange(len(whole)) % 7 % 3 > 0)]
    span = Span(NOW - 2 * DAY, NOW - HOUR)
    async with okx(tmp_path, data={SPOT_TRADES: kept}, options=NEVER) as (plugin, venue):
        assert_same(await fetched(plugin, SPOT_TRADES, span), kept.within(span))
        questions = {seen.query for seen in venue.requests}
        assert len(venue.requests) < 2.8 * len(questions), "soon asked for no more than twice"


async def test_trades_too_old_for_rest_stay_unknown(tmp_path):
    later = NOW + 100 * DAY
    reach = later - 85 * DAY
    data = {SPOT_TRADES: random_trades(SPOT_TRADES, 3000, reach - DAY, mean_gap_ms=120_000)}
    async with okx(tmp_path, data=data, options=NEVER, clock=later) as (plugin, _):
        with pytest.raises(RequestError, match="last three months; set archives") as caught:
            await fetch_pages(plugin, SPOT_TRADES, Span(reach - 2 * DAY, reach - DAY))
        assert caught.value.code == "no_data"
        pages = await fetch_pages(plugin, SPOT_TRADES, Span(reach - 2 * DAY, reach + DAY))
    assert pages[0].holes == (Span(reach - 2 * DAY, reach),)
    assert_same(joined(SPOT_TRADES, pages), data[SPOT_TRADES].within(Span(reach, reach + DAY)))


async def test_the_first_trade_that_okx_has(tmp_path):
    first = NOW - 3 * HOUR
    data = {SPOT_TRADES: random_trades(SPOT_TRADES, 300, first, mean_gap_ms=30_000)}
    span = Span(NOW - DAY, NOW - HOUR)
    async with okx(tmp_path, data=data, options=NEVER) as (plugin, _):
        pages = await fetch_pages(plugin, SPOT_TRADES, span)
        assert all(not page.holes for page in pages), "it was listed three hours ago"
        assert_same(joined(SPOT_TRADES, pages), data[SPOT_TRADES].within(span))
    old = Instrument("okx", SPOT_TRADES.symbol, "0.1", "0.00001", START - 900 * DAY)
    async with okx(tmp_path, data=data, options=NEVER, instruments=[old]) as (plugin, _):
        pages = await fetch_pages(plugin, SPOT_TRADES, span)
        unknown = [hole for page in pages for hole in page.holes]
        assert (unknown[0].start, unknown[-1].end) == (span.start, first + 10**6)
        assert_same(joined(SPOT_TRADES, pages),
                    data[SPOT_TRADES].within(Span(first + 10**6, span.end)))  # fmt: skip


# Faults ---------------------------------------------------------------------------------------

REST_FAULTS = {
    "429": Refuse(status=429, retry_after="0"),
    "50011 under 200": Refuse(status=200, headers={"Retry-After": "0.01"}),
    "500": Refuse(status=500, times=3),
    "503": Refuse(status=503),
    "50013": Refuse(status=429, body=b'{"code":"50013","msg":"busy"}', retry_after="0"),
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


@pytest.mark.parametrize("series", [SWAP, SPOT_TRADES], ids=str)
@pytest.mark.parametrize("name", REST_FAULTS)
async def test_it_survives(tmp_path, name, series):
    fault = replace(REST_FAULTS[name], skip=2, match="history-")
    span = Span(NOON - 3 * DAY, NOON - DAY) if series is SWAP else Span(NOW - DAY, NOW - HOUR)
    patience = HURRIED if isinstance(fault, Stall) else QUICK
    served = okx(tmp_path, faults=[fault], options=NEVER, patience=patience)
    async with served as (plugin, venue):
        assert_same(await fetched(plugin, series, span), DATA[series].within(span))
        assert any(seen.fault for seen in venue.requests), "the fault met nobody"


FILE_FAULTS = {
    "500": Refuse(status=500, times=3),
    "reset in the middle": Reset(after_bytes=3000),
    "cut off": Truncate(after_bytes=3000),
    "spoilt": Rewrite(change=lambda data: data[:2000] + b"\0" * 50 + data[2050:]),
    "shortened": Rewrite(change=lambda data: data[:-1000]),
    "html": html_page(),
    "duplicated": Misreport(change=duplicated),
    "unsorted": Misreport(change=unsorted),
    "gone": Refuse(status=404, times=None),
}


@pytest.mark.parametrize("name", FILE_FAULTS)
async def test_files_of_trades_survive(tmp_path, name):
    fault = replace(FILE_FAULTS[name], match=r"03-02\.zip")
    span = Span(START + DAY, START + 2 * DAY)
    async with okx(tmp_path, faults=[fault]) as (plugin, venue):
        assert_same(await fetched(plugin, SWAP_TRADES, span), DATA[SWAP_TRADES].within(span))
        assert any(seen.fault for seen in venue.requests), "the fault met nobody"


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (Refuse(status=403), r"refuses to serve this place \(50121.*rest_url.*proxy"),
        (Refuse(status=200, body=b'{"code":"50051","msg":"no"}'), "refuses to serve this place"),
        (Refuse(status=403, body=b"<html>Access denied</html>"), "user agent .tardisd/.*proxy"),
        (Refuse(status=400, body=b'{"code":"50039","msg":"before"}'), r"refused \(50039: before"),
        (Refuse(status=404, body=b"<html>"), "not there; check rest_url"),
    ],
)
async def test_what_is_final_ends_it_at_once(tmp_path, refusal, words):
    fault = replace(refusal, times=None, match="market/")
    async with okx(tmp_path, faults=[fault], options=NEVER) as (plugin, venue):
        with pytest.raises(RequestError, match=words):
            await fetch_pages(plugin, SPOT_TRADES, Span(NOW - HOUR, NOW - MINUTE))
        assert sum(bool(seen.fault) for seen in venue.requests) == 1


async def test_a_venue_that_stays_down_is_told(tmp_path):
    faults = [Refuse(status=503, times=None)]
    async with okx(tmp_path, faults=faults) as (plugin, _):
        with pytest.raises(Retry, match=r"50001: Service temporarily unavailable.*given up after"):
            await plugin.server_time()


async def test_two_instances_share_one_budget_and_never_exceed_it(tmp_path):
    book = BudgetBook()
    async with okx(tmp_path, book=book, limits=LIMITS,
                   options={"archives": "never"}) as (one, venue):  # fmt: skip
        other = Okx(one.options, Context("other", tmp_path, None, book), patience=QUICK)
        async with other.run(), trio.open_nursery() as nursery:
            nursery.start_soon(fetched, one, SWAP, Span(START, START + 3 * DAY))
            nursery.start_soon(fetched, other, SPOT, Span(START, START + 2 * DAY))
    counted = OkxVenue({}).own_limits()
    sent = [seen.ts for seen in venue.requests if seen.path.endswith("history-candles")]
    times = np.array(sent)
    most = max(int(((times >= ts) & (times < ts + 2 * SECOND)).sum()) for ts in sent)
    assert len(sent) >= 24
    # 17 may be sent; that none is left is told in virtual time, and here the machine may be slow.
    assert 8 <= most <= 0.85 * counted["market/history-candles"].weight


# Requests that cannot be honoured -------------------------------------------------------------


@pytest.mark.parametrize(
    ("series", "words"),
    [
        ("okx:NOPE/USDT:USDT@candle_1m", "no instrument NOPE-USDT-SWAP .51001.*spelt"),
        ("okx:NOPE/USDT:USDT@trade", "no instrument NOPE-USDT-SWAP"),
        ("okx:BTC/USDT@candle_8h", "no candle_8h; it has trade and candle_<interval>.*6h, 12h"),
        ("okx:BTC/USDT@agg_trade", "no agg_trade; it has trade"),
    ],
)
async def test_what_okx_lacks_is_refused(tmp_path, series, words):
    async with okx(tmp_path) as (plugin, _):
        with pytest.raises(RequestError, match=words):
            await fetch_pages(plugin, Series.parse(series), Span(START, START + HOUR))


async def test_archives_alone(tmp_path):
    span = Span(START, START + DAY)
    async with okx(tmp_path, options=ONLY) as (plugin, venue):
        assert_same(await fetched(plugin, SPOT_TRADES, span), DATA[SPOT_TRADES].within(span))
        assert_same(await fetched(plugin, SPOT, span), DATA[SPOT].within(span))
        assert {seen.role for seen in venue.requests} == {"archive"}
        with pytest.raises(RequestError, match=r"files of trade and candle_1m only.*archives = "):
            await fetch_pages(plugin, WEEKS, span)
        assert await plugin.server_time() > NOW
        before = parse_time("2021-09-01T00:00:00Z")
        with pytest.raises(RequestError, match="no such old trade: the archives have trades since"):
            await fetch_pages(plugin, SPOT_TRADES, Span(before, before + DAY))


async def test_instruments(tmp_path):
    swap = Instrument(
        "okx", Symbol("ETH", "USDT", "USDT"), "0.01", "0.01", START, None, {"ctVal": "0.1"}
    )
    spot = Instrument("okx", Symbol("BTC", "USDT"), "0.1", "0.00000001", START)
    async with okx(tmp_path, data={}, instruments=[spot, swap]) as (plugin, _):
        found = await plugin.instruments()
        assert await plugin.server_time() == NOW
    assert [(it.symbol, it.tick_size, it.lot_size, it.listed_at) for it in found] == [
        (spot.symbol, "0.1", "0.00000001", START), (swap.symbol, "0.01", "0.01", START),
    ]  # fmt: skip
    assert found[0].extra == {"venue_id": "BTC-USDT", "status": "live"}
    assert found[1].extra["contract_size"] == "0.1"


# Files that are wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("change", [stale, missing])
async def test_candles_of_a_file_that_rest_contradicts_are_had_over_rest(tmp_path, change):
    """The end of a file is compared with REST: venues publish files that differ from it."""

    def at_the_end(batch: Batch) -> Batch:
        return Batch.concat([batch[:-50], change(batch[-50:])])

    fault = Misreport(match=r"03-03\.zip", change=at_the_end, times=None)
    span = Span(START + DAY, START + 4 * DAY)
    async with okx(tmp_path, faults=[fault]) as (plugin, _):
        pages = await fetch_pages(plugin, SPOT, span)
    assert_same(joined(SPOT, pages), DATA[SPOT].within(span))
    assert any(seen.source == "REST candles" for seen in pages)
    assert not any("03-03.zip" in seen.source for seen in pages)
    assert any("03-04.zip" in seen.source for seen in pages)


async def test_trades_that_rest_contradicts_are_kept_and_told(tmp_path, caplog):
    def at_the_end(batch: Batch) -> Batch:
        return stale(batch)

    fault = Misreport(match=r"03-03\.zip", change=at_the_end, times=None)
    span = Span(START + DAY, START + 4 * DAY)
    async with okx(tmp_path, faults=[fault]) as (plugin, _):
        pages = await fetch_pages(plugin, SWAP_TRADES, span)
    found, wanted = joined(SWAP_TRADES, pages), DATA[SWAP_TRADES].within(span)
    assert len(found) == len(wanted)
    assert int(np.count_nonzero(~same_rows(found, wanted))) == 1
    assert [record.message for record in caplog.records] == ["archive and REST differ"]


async def test_agreeing_files_are_compared_without_a_word(tmp_path, caplog):
    span = Span(START + DAY, START + 4 * DAY)
    for series in (SPOT, SPOT_TRADES, SWAP_TRADES):
        async with okx(tmp_path, faults=[]) as (plugin, venue):
            assert_same(await fetched(plugin, series, span), DATA[series].within(span))
            files = [seen for seen in venue.requests if seen.path.endswith(".zip")]
            compared = [seen for seen in venue.requests if "market/history" in seen.path]
            assert len(compared) >= len(files) >= 2
    assert not caplog.records


async def test_a_rest_that_does_not_answer_leaves_files_uncompared(tmp_path):
    gone = Refuse(match="history-trades", status=500, times=None)
    day = Span(START + DAY, START + 2 * DAY)
    async with okx(tmp_path, faults=[gone]) as (plugin, _):
        assert_same(await fetched(plugin, SPOT_TRADES, day), DATA[SPOT_TRADES].within(day))


@pytest.mark.parametrize("options", [{}, ONLY], ids=["prefer", "only"])
async def test_a_file_that_stays_wrong_costs_its_day_and_no_other(tmp_path, options):
    """Trades that are too old for REST are in files alone."""
    old = START - 300 * DAY
    trades = random_trades(SPOT_TRADES, 3000, old, 2, mean_gap_ms=100_000)
    fault = Rewrite(change=lambda body: body[:-100], match=r"05-07\.zip", times=None)
    span, storage = Span(old, old + 3 * DAY), MemoryStorage()
    lost = Span(parse_time("2023-05-06T16:00:00Z"), parse_time("2023-05-07T16:00:00Z"))
    data = {SPOT_TRADES: trades, SPOT: DATA[SPOT]}
    async with okx(tmp_path, data=data, faults=[fault], options=options) as (plugin, _):
        with pytest.raises(RequestError, match=r"05-07\.zip: .*put aside") as told:
            await run_backfill(SPOT_TRADES, span, plugin, storage, lambda _: None)
        assert told.value.code == "no_data"
    assert (await storage.coverage(SPOT_TRADES)).gaps(span) == [lost]
    assert list(await storage.gaps(SPOT_TRADES)) == [Gap(lost, "fetch_failed")]
