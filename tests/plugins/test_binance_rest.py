"""Binance over REST: pages, edges, faults and limits, against the venue on loopback."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from binance_rig import (
    HASTY,
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tardisd.testing.venues.faults as faults
from tardisd.errors import PluginError, RequestError, Retry
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Gap, Span
from tardisd.market.time import MILLISECOND, SECOND
from tardisd.testing.exchange import fetch_pages, joined
from tardisd.testing.venues.faults import Misreport, Refuse, Reset, Rewrite, Stall, Truncate
from tardisd.venue.budget import Limit

MINUTES = candles(f"{SPOT}@candle_1m", "03-17", "03-21")
AGGS = trades(f"{SPOT}@agg_trade", "03-20T09:00", 6000, 1000)
RAW = trades(f"{SPOT}@trade", "03-20T09:00", 6000, 1000)
DAY = span("03-18", "03-19")
HOUR = span("03-20T09:10", "03-20T10:20")


def without(batch: Batch, first: int, last: int) -> Batch:
    return batch[np.r_[0:first, last : len(batch)]]


def never(batch: Batch, wanted: Span) -> dict[str, object]:
    return {"series": str(batch.series), "wanted": wanted, "archives": "never"}


@pytest.mark.parametrize("kind", [SPOT, SWAP])
async def test_candles_come_in_the_cheapest_pages(tmp_path, kind):
    truth = candles(f"{kind}@candle_1m", "03-17", "03-21")
    venue = venue_of(truth, compress=True)
    pages = await fetched(venue, tmp_path, **never(truth, DAY))
    assert_same(pages, truth, DAY)
    assert [len(page.batch) for page in pages] == ([1000, 440] if kind == SPOT else [500, 500, 440])
    assert {seen.weight for seen in venue.requests if "klines" in seen.path} == {2}
    assert sources(pages) == ["REST klines"]


@pytest.mark.parametrize("interval", ["1s", "3m", "4h", "1d", "3d", "1w", "1M"])
async def test_every_interval(tmp_path, interval):
    truth = candles(f"{SPOT}@candle_{interval}", "01-01", "03-21")
    wanted = Span(int(truth.ts_event[0]), min(int(truth.ts_event[-1]), at("03-01")))
    if interval == "1s":
        truth = truth[:10_000]
        wanted = Span(wanted.start, int(truth.ts_event[-1]))
    venue = venue_of(truth)
    pages = await fetched(venue, tmp_path, **never(truth, wanted))
    assert_same(pages, truth, wanted)


async def test_the_candle_in_progress_is_left_out(tmp_path):
    venue = venue_of(MINUTES)
    pages = await fetched(venue, tmp_path, **never(MINUTES, Span(at("03-20T11:50"), NOW)))
    assert pages[-1].span.end == at("03-20T12:00")
    # Binance's servers take a moment: a candle that has closed just now may not be final.
    venue = venue_of(MINUTES, clock=at("03-20T12:00") + SECOND)
    pages = await fetched(venue, tmp_path, **never(MINUTES, Span(at("03-20T11:50"), NOW)))
    assert pages[-1].span.end == at("03-20T11:59")


async def test_a_candle_in_progress_on_another_grid_is_left_out_too(tmp_path):
    """Where candles of three days begin is the venue's affair."""
    aligned = candles(f"{SPOT}@candle_3d", "01-01", "03-21")
    truth = replace(aligned, ts_event=aligned.ts_event - 24 * 3600 * SECOND)
    last = int(truth.ts_event[-2])
    venue = venue_of(truth, clock=last + 48 * 3600 * SECOND + 5 * SECOND)
    pages = await fetched(venue, tmp_path, **never(truth, Span(int(truth.ts_event[3]), NOW)))
    found = joined(truth.series, pages)
    assert int(found.ts_event[-1]) == int(truth.ts_event[-3])
    assert pages[-1].span.end == last


async def test_the_future_has_no_pages(tmp_path):
    venue = venue_of(MINUTES)
    assert await fetched(venue, tmp_path, **never(MINUTES, span("03-21", "03-22"))) == []


async def test_before_the_listing_there_is_nothing(tmp_path):
    venue = venue_of(MINUTES)
    wanted = span("01-01", "03-17T01:00")
    pages = await fetched(venue, tmp_path, **never(MINUTES, wanted))
    assert_same(pages, MINUTES, wanted)
    assert len(asked(venue, "klines")) <= 5
    wanted = span("01-01", "02-01")
    pages = await fetched(venue_of(MINUTES), tmp_path, **never(MINUTES, wanted))
    assert_same(pages, MINUTES, wanted)


async def test_holes_are_asked_for_again_and_then_believed(tmp_path):
    truth = without(without(MINUTES, 1500, 1530), 1700, 1701)
    truth = without(truth, 2700, len(truth) - 10)  # and a long one, to the end of the span
    venue = venue_of(truth)
    pages = await fetched(venue, tmp_path, **never(truth, DAY))
    assert_same(pages, truth, DAY)


@pytest.mark.parametrize("change", [faults.missing, faults.duplicated, faults.unsorted])
async def test_a_bad_page_of_candles_is_mended(tmp_path, change):
    venue = venue_of(
        MINUTES, faults=[Misreport(match="klines.*limit=1000", change=change, times=2)]
    )
    assert_same(await fetched(venue, tmp_path, **never(MINUTES, DAY)), MINUTES, DAY)


async def test_two_answers_that_lack_their_beginning_are_mended(tmp_path):
    """The second is about what the first lacks, and brings only some of it."""
    lack = Misreport(match="klines", change=lambda it: it[len(it) // 2 :], times=2)
    venue = venue_of(MINUTES, faults=[lack])
    assert_same(await fetched(venue, tmp_path, **never(MINUTES, DAY)), MINUTES, DAY)


async def test_an_empty_page_in_the_middle_is_not_believed(tmp_path):
    slip = Misreport(match="klines.*limit=1000", change=faults.empty, times=2, skip=1)
    venue = venue_of(MINUTES, faults=[slip])
    assert_same(await fetched(venue, tmp_path, **never(MINUTES, DAY)), MINUTES, DAY)
    twice = Misreport(match="klines", change=faults.empty, times=2, skip=1)  # and the doubt
    venue = venue_of(MINUTES, faults=[twice])
    assert_same(await fetched(venue, tmp_path, **never(MINUTES, DAY)), MINUTES, DAY)
    always = Misreport(match="klines.*limit=1000", change=faults.empty, times=None)
    with pytest.raises(PluginError, match="answers emptily"):
        await fetched(venue_of(MINUTES, faults=[always]), tmp_path, **never(MINUTES, DAY))


async def test_candles_that_open_late_are_kept_as_they_are(tmp_path):
    """As in December 2017: some seconds late for a while, then on the grid again."""
    times = MINUTES.ts_event.copy()
    times[2000:2441] += 7 * SECOND
    truth = replace(MINUTES, ts_event=times)
    venue = venue_of(truth)
    pages = await fetched(venue, tmp_path, **never(truth, DAY))
    assert_same(pages, truth, DAY)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=st.integers(0, 3000),
    count=st.integers(1, 1600),
    gone=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 700)), max_size=3),
)
async def test_no_candle_is_lost_at_any_edge(tmp_path, first, count, gone):
    kept = np.ones(len(MINUTES), np.bool_)
    for start, length in gone:
        kept[start : start + length] = False
    kept[-1] = True
    truth = MINUTES[kept]
    wanted = Span(
        int(MINUTES.ts_event[first]), int(MINUTES.ts_event[min(first + count, len(MINUTES) - 1)])
    )
    pages = await fetched(venue_of(truth, limits={}), tmp_path, **never(truth, wanted))
    assert_same(pages, truth, Span(wanted.start, min(wanted.end, at("03-20T12:00"))))


@pytest.mark.parametrize("truth", [AGGS, RAW], ids=["agg_trade", "trade"])
async def test_trades_are_walked_by_id(tmp_path, truth):
    venue = venue_of(truth)
    pages = await fetched(venue, tmp_path, **never(truth, HOUR))
    assert_same(pages, truth, HOUR)
    path = "aggTrades" if truth is AGGS else "historicalTrades"
    assert all("fromId" in query or "startTime" in query for query in asked(venue, path))
    assert not any("fromId" in q and "startTime" in q for q in asked(venue, path))
    assert sources(pages) == [f"REST {path}"]


async def test_raw_trades_are_found_by_the_aggregates_if_they_tell(tmp_path):
    # The venue tells 25,000,000 more than an aggregate's id as the id of its first trade.
    raw = replace(RAW, ids=RAW.ids + 26_000_000)
    aggregates = replace(AGGS, ids=RAW.ids + 1_000_000)
    venue = venue_of(raw, aggregates)
    assert_same(await fetched(venue, tmp_path, **never(raw, HOUR)), raw, HOUR)
    assert len(asked(venue, "historicalTrades")) < 10


async def test_many_trades_of_one_millisecond_stay_together(tmp_path):
    times = AGGS.ts_event.copy()
    times[1000:3500] = times[1000]
    truth = replace(AGGS, ts_event=times)
    venue = venue_of(truth)
    wanted = Span(int(times[900]), int(times[3600]))
    assert_same(await fetched(venue, tmp_path, **never(truth, wanted)), truth, wanted)
    wanted = Span(int(times[1000]), int(times[1000]) + MILLISECOND)
    assert_same(await fetched(venue_of(truth), tmp_path, **never(truth, wanted)), truth, wanted)


async def test_a_span_before_after_and_between_trades(tmp_path):
    for wanted in (
        span("03-20T08:00", "03-20T08:30"),
        span("03-20T08:00", "03-20T09:05"),
        Span(int(AGGS.ts_event[-1]) + 1, at("03-20T11:59")),
        Span(int(AGGS.ts_event[5]) + 1, int(AGGS.ts_event[5]) + 2),
    ):
        pages = await fetched(venue_of(AGGS), tmp_path, **never(AGGS, wanted))
        assert_same(pages, AGGS, wanted)


async def test_missing_ids_are_asked_for_again_and_then_believed(tmp_path):
    truth = without(without(AGGS, 1500, 1501), 2000, 2900)
    assert_same(await fetched(venue_of(truth), tmp_path, **never(truth, HOUR)), truth, HOUR)


async def test_an_empty_answer_beside_missing_ids_is_not_believed(tmp_path):
    """Ids that are missing for good use up the doubts about holes, not those about the end."""
    truth = without(AGGS, 2000, 2900)
    assert truth.ids is not None
    slip = Misreport(match=f"fromId={truth.ids[1999] + 1}", change=faults.empty, skip=3)
    venue = venue_of(truth, faults=[slip])
    assert_same(await fetched(venue, tmp_path, **never(truth, HOUR)), truth, HOUR)
    assert [seen.fault for seen in venue.requests].count("Misreport") == 1


@pytest.mark.parametrize(
    "change", [faults.missing, faults.duplicated, faults.unsorted, faults.empty]
)
async def test_a_bad_page_of_trades_is_mended(tmp_path, change):
    bad = Misreport(match="aggTrades.*limit=1000", change=change, times=1, skip=1)
    venue = venue_of(AGGS, faults=[bad])
    assert_same(await fetched(venue, tmp_path, **never(AGGS, HOUR)), AGGS, HOUR)


async def test_an_empty_answer_to_the_first_question_is_not_believed(tmp_path):
    bad = Misreport(match="aggTrades.*limit=1$|aggTrades.*limit=1&", change=faults.empty)
    venue = venue_of(AGGS, faults=[bad])
    assert_same(await fetched(venue, tmp_path, **never(AGGS, HOUR)), AGGS, HOUR)


async def test_a_newest_trade_that_is_not_told_is_asked_for_again(tmp_path):
    """Believed, it would cover all of the span as if nobody had traded."""
    bad = Misreport(match="api/v3/trades", change=faults.empty, times=2)
    venue = venue_of(RAW, faults=[bad])
    assert_same(await fetched(venue, tmp_path, **never(RAW, HOUR)), RAW, HOUR)
    assert len(asked(venue, "api/v3/trades")) == 3


TROUBLES = {
    "500": Refuse(status=500, times=2),
    "503": Refuse(status=503, times=2),
    "429": Refuse(status=429, retry_after="0.05", times=2),
    "418": Refuse(status=418, retry_after="0.05", body=b'{"code":-1003,"msg":"banned"}'),
    "-1008": Refuse(status=400, body=b'{"code":-1008,"msg":"Server is busy."}'),
    "html": faults.html_page(times=2),
    "nan": faults.not_a_number(match="klines", times=2),
    "truncated json": Rewrite(match="klines", change=lambda body: body[: len(body) // 2]),
    "cut off": Truncate(after_bytes=100, times=2),
    "reset": Reset(after_bytes=100, times=2),
    "reset at once": Reset(times=2),
    "stall": Stall(secs=600.0),
    "stall within": Stall(secs=600.0, after_bytes=50),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_what_may_pass_passes(tmp_path, trouble):
    venue = venue_of(MINUTES, faults=[trouble])
    patience = replace(HASTY, request_secs=1.0 if isinstance(trouble, Stall) else 30.0)
    pages = await fetched(venue, tmp_path, patience=patience, **never(MINUTES, DAY))
    assert_same(pages, MINUTES, DAY)


@pytest.mark.parametrize(
    ("trouble", "error", "told"),
    [
        (Refuse(status=451, times=None), RequestError, "restricted location); for spot use"),
        (Refuse(status=403, times=None, retry_after="0"), Retry, "Binance's firewall refuses"),
        (Refuse(status=429, times=None, retry_after="300"), Retry, "not asked: too many requests"),
        (Refuse(status=418, times=None), Retry, "not asked: Binance banned this address"),
        (Refuse(status=401, times=None, body=b'{"code":-2014,"msg":"API-key format invalid."}'),
         RequestError, "wants an API key"),
        (faults.html_page(times=None), Retry, "a web page came instead of JSON"),
        (faults.not_a_number(match="klines", times=None), Retry, "not the JSON expected"),
        (Refuse(status=404, times=None, body=b""), RequestError, "not there (HTTP 404 Not Found)"),
        (Refuse(status=302, times=None, headers={"Location": "https://login"}), RequestError,
         "leads to https://login"),
    ],
)  # fmt: skip
async def test_what_does_not_pass_is_told(tmp_path, trouble, error, told):
    venue = venue_of(MINUTES, faults=[trouble])
    with pytest.raises(error) as caught:
        await fetched(venue, tmp_path, **never(MINUTES, DAY))
    assert told in caught.value.message


async def test_an_unknown_symbol_is_told_at_once(tmp_path):
    venue = venue_of(MINUTES)
    with pytest.raises(RequestError, match=r"no symbol NOSUCHUSDT .*-1121: Invalid symbol"):
        await fetched(venue, tmp_path, "binance:NOSUCH/USDT@candle_1m", DAY, archives="never")
    assert len(asked(venue, "klines")) == 1


@pytest.mark.parametrize(
    ("series", "told"),
    [
        (f"{SWAP}@candle_1s", "binance has no candle_1s of USD-M swaps; it has agg_trade, trade"),
        (f"{SPOT}@candle_7m", "candle_<interval> with one of 1s, 1m, 3m"),
        (f"{SPOT}@funding", "binance has no funding of spot"),
    ],
)
async def test_what_binance_does_not_have(tmp_path, series, told):
    with pytest.raises(RequestError) as caught:
        await fetched(venue_of(MINUTES), tmp_path, series, DAY)
    assert told in caught.value.message


async def test_old_swap_trades_are_not_had_over_rest(tmp_path):
    truth = trades(f"{SWAP}@agg_trade", "03-17T00:00", 6000, 60_000)
    with pytest.raises(RequestError, match=r"48 hours .*archives"):
        await fetched(venue_of(truth), tmp_path, **never(truth, span("03-17", "03-18")))
    wanted = span("03-18", "03-20T12:00")
    venue = venue_of(truth)
    pages = await fetched(venue, tmp_path, **never(truth, wanted))
    assert pages[0].holes == (pages[0].span,)
    reach = pages[0].span.end
    assert 0 < reach - (NOW - 48 * 3600 * SECOND) <= 10 * 60 * SECOND
    assert_same(pages, truth, Span(reach, wanted.end))
    assert [seen.status for seen in venue.requests if seen.status != 200] == []


async def test_raw_swap_trades_are_not_had_over_rest(tmp_path):
    with pytest.raises(RequestError, match=r"USD-M has no raw trades over REST; .*archives"):
        await fetched(venue_of(MINUTES), tmp_path, f"{SWAP}@trade", DAY, archives="never")


async def test_instruments_of_spot_and_swap(tmp_path):
    swap = candles(f"{SWAP}@candle_1m", "03-17", "03-18")
    venue = venue_of(MINUTES, swap, limits={"rest weight": Limit("rest weight", 1200, 60.0)})
    async with venue.serve(), plugin_at(venue, tmp_path) as plugin:
        found = {str(it.symbol): it for it in await plugin.instruments()}
        assert plugin.context.budgets.opened[0].usage() == {"spot weight": 20 / 1200}
    assert set(found) == {"BTC/USDT", "BTC/USDT:USDT"}
    assert found["BTC/USDT"].tick_size == "0.01000000"
    assert found["BTC/USDT"].extra == {"venue_id": "BTCUSDT", "status": "TRADING"}
    assert found["BTC/USDT:USDT"].listed_at == at("03-17")
    venue = venue_of(MINUTES, swap, faults=[Refuse(match="fapi", status=451, times=None)])
    async with venue.serve(), plugin_at(venue, tmp_path) as plugin:
        assert [str(it.symbol) for it in await plugin.instruments()] == ["BTC/USDT"]
    venue = venue_of(MINUTES, swap, faults=[Refuse(status=451, times=None)])
    async with venue.serve(), plugin_at(venue, tmp_path) as plugin:
        with pytest.raises(RequestError, match="restricted location"):
            await plugin.instruments()


async def test_the_rate_limit_is_never_exceeded_and_well_used(tmp_path):
    """A limit so small that it counts: 60 weight per second and a half, of which 85 % are used."""
    limit = Limit("rest weight", 60, 1.5)
    venue = venue_of(MINUTES, AGGS, limits={"rest weight": limit})
    series = [Series.parse(f"{SPOT}@candle_1m"), Series.parse(f"{SPOT}@agg_trade")]
    async with venue.serve(), plugin_at(venue, tmp_path, archives="never") as plugin:
        budget = plugin.context.budgets.opened[0]
        budget._windows["spot weight"].limit = limit
        for _ in range(5):
            for one, wanted in zip(series, (span("03-17", "03-20"), HOUR), strict=True):
                await fetch_pages(plugin, one, wanted)
    # That none is left is told in virtual time; here the machine may be slow.
    assert 0.5 < venue.most_used()["rest weight"] <= 0.85
    assert {seen.status for seen in venue.requests} == {200}


async def test_two_instances_share_one_budget(tmp_path):
    from tardisd.testing.exchange import suite_context

    venue = venue_of(MINUTES)
    context = suite_context("binance", tmp_path)
    async with (
        venue.serve(),
        plugin_at(venue, tmp_path, context) as one,
        plugin_at(venue, tmp_path, replace(context, name="other"), budget_share=0.5) as two,
    ):
        for plugin in (one, two):
            await plugin.server_time()
        [budget] = {id(b): b for b in context.budgets.opened if "spot weight" in b.usage()}.values()
        assert budget.usage()["spot weight"] == 2 / 6000


async def test_what_others_use_is_seen_in_the_headers(tmp_path):
    venue = venue_of(MINUTES)
    venue.meters["rest weight"].charge(3000, venue.now())
    async with venue.serve(), plugin_at(venue, tmp_path) as plugin:
        await plugin.server_time()
        assert plugin.context.budgets.opened[0].usage()["spot weight"] >= 3000 / 6000


async def test_a_page_that_changes_while_it_is_read(tmp_path):
    stale = Misreport(match="klines", change=faults.stale, times=1)
    venue = venue_of(MINUTES, faults=[stale])
    pages = await fetched(venue, tmp_path, **never(MINUTES, DAY))
    found = joined(MINUTES.series, pages)
    assert len(found) == 1440  # what was stale is revised when the last candles are fetched again


async def test_what_is_before_the_first_candle_was_not_traded(tmp_path):
    days = candles(f"{SPOT}@candle_1d", "03-10", "03-20")
    wanted = span("03-01", "03-18")
    venue = venue_of(candles(f"{SPOT}@candle_1h", "03-10T07:00", "03-20"), days)
    for series in (f"{SPOT}@candle_1h", f"{SPOT}@candle_1d"):
        pages = await fetched(venue, tmp_path, series, wanted)
        [gap] = [gap for page in pages for gap in page.gaps]
        begin = "03-10T07:00" if "1h" in series else "03-10"
        assert gap == Gap(span("03-01", begin), "no_trades")
