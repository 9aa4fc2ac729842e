"""One run of a backfill, against a storage in memory and venues that behave and misbehave."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace

import numpy as np
import pytest
import trio

from tardisd.backfill.job import BackfillResult, run_backfill
from tardisd.backfill.ledger import find_gaps
from tardisd.errors import DataError, PluginError, RequestError
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.market.time import DAY, HOUR, MINUTE, parse_time
from tardisd.plugins.exchange import Page
from tardisd.testing.exchange import fetch_pages, joined, suite_context
from tardisd.testing.memory import MemoryStorage
from tardisd_synthetic.plugin import Synthetic, SyntheticOptions

CANDLES = Series.parse("synthetic:BTC/USDT@candle_1m")
TRADES = Series.parse("synthetic:BTC/USDT@trade")
START = parse_time("2024-03-25T00:00:00Z")  # the venue is down from 04:56 to 08:22
TODAY = Span(START, START + DAY)


class Watched(Synthetic):
    """The made-up venue in small pages, which notes what it is asked for and can go wrong."""

    def __init__(self, spoil=lambda page: page, now=START + 2 * DAY):
        options = SyntheticOptions(trades_per_second=0.2)
        super().__init__(options, suite_context(), now=lambda: now)
        self.asked = []
        self.spoil = spoil

    def fetch(self, series, span):
        self.asked.append(span)
        return self.small(super().fetch(series, span))

    @trio.as_safe_channel
    async def small(self, fetching):
        async with fetching as pages:
            async for page in pages:
                cuts = [*range(page.span.start, page.span.end, 6 * HOUR), page.span.end]
                for part in itertools.starmap(Span, itertools.pairwise(cuts)):
                    first, last = np.searchsorted(page.batch.ts_event, [part.start, part.end])
                    common = [gap.span.intersect(part) for gap in page.gaps]
                    gaps = tuple(Gap(gap, "exchange_down") for gap in common if gap)
                    yield self.spoil(Page(page.batch[first:last], part, gaps, page.source))


def silent(progress):
    pass


async def stored(storage, series):
    async with storage.read(series, Span(0, 2**62)) as batches:
        return Batch.concat([Batch.empty(series), *[batch async for batch in batches]])


async def test_everything_is_fetched_once():
    storage, venue = MemoryStorage(), Watched()
    reports = []
    result = await run_backfill(CANDLES, TODAY, venue, storage, reports.append)
    rows = await stored(storage, CANDLES)
    assert result == BackfillResult(pages=4, added=1440 - 206, complete=True)
    assert len(rows) == result.added
    assert same_rows(rows, joined(CANDLES, await fetch_pages(Watched(), CANDLES, TODAY))).all()
    assert await storage.coverage(CANDLES) == Coverage([TODAY])
    assert [report.done for report in reports] == [6 * HOUR, 12 * HOUR, 18 * HOUR, DAY]
    assert {(report.total, report.unit) for report in reports} == {(DAY, "ns")}
    version = await storage.version(CANDLES)
    again = await run_backfill(CANDLES, TODAY, venue, storage, reports.append)
    assert again == BackfillResult(complete=True)
    assert len(venue.asked) == 1
    assert len(reports) == 4
    assert await storage.version(CANDLES) == version


async def test_the_venues_outage_is_known_afterwards():
    storage = MemoryStorage()
    await run_backfill(CANDLES, TODAY, Watched(), storage, silent)
    [gap] = await find_gaps(storage, CANDLES)
    assert gap == Gap(Span(START + 296 * MINUTE, START + 502 * MINUTE), "exchange_down")


@pytest.mark.parametrize("series", [CANDLES, TRADES], ids=["candles", "trades"])
async def test_only_what_is_missing_is_fetched(series):
    storage, venue = MemoryStorage(), Watched()
    middle = Span(START + 10 * HOUR, START + 12 * HOUR)
    await run_backfill(series, middle, venue, storage, silent)
    result = await run_backfill(series, TODAY, venue, storage, silent)
    after = middle.end - (MINUTE if series is CANDLES else 0)
    assert venue.asked == [middle, Span(START, middle.start), Span(after, TODAY.end)]
    assert result.unchanged == (series is CANDLES)
    assert result.complete
    rows = await stored(storage, series)
    assert same_rows(rows, joined(series, await fetch_pages(Watched(), series, TODAY))).all()


async def test_a_revised_last_candle_is_taken_over():
    def earlier(page):
        volume = page.batch.fields["volume"]
        changed = {**page.batch.fields, "volume": Decimals(volume.mantissa + 1, volume.scale)}
        return replace(page, batch=replace(page.batch, fields=changed))

    storage = MemoryStorage()
    first = Span(START, START + HOUR)
    await run_backfill(CANDLES, first, Watched(earlier), storage, silent)
    result = await run_backfill(CANDLES, Span(START, START + 2 * HOUR), Watched(), storage, silent)
    assert (result.added, result.revised) == (60, 1)


async def test_the_future_stays_missing():
    now = START + 90 * MINUTE + 30_000_000_000
    storage, venue = MemoryStorage(), Watched(now=now)
    result = await run_backfill(CANDLES, TODAY, venue, storage, silent)
    assert (result.added, result.complete) == (90, False)
    assert await storage.coverage(CANDLES) == Coverage([Span(START, START + 90 * MINUTE)])
    later = await run_backfill(CANDLES, TODAY, Watched(), storage, silent)
    assert later.complete
    assert later.added == 1440 - 206 - 90


def with_negative_volume(page):
    if page.span.start < START + 6 * HOUR:
        return page
    volume = page.batch.fields["volume"].mantissa.copy()
    volume[7] = -1
    fields = {**page.batch.fields, "volume": Decimals(volume, 5)}
    return replace(page, batch=replace(page.batch, fields=fields))


async def test_a_bad_page_is_refused_whole():
    storage = MemoryStorage()
    with pytest.raises(DataError) as caught:
        await run_backfill(CANDLES, TODAY, Watched(with_negative_volume), storage, silent)
    text = str(caught.value)
    assert "volume is negative in row 7: 2024-03-25T08:29:00.000Z" in text
    assert "volume -0.00001" in text
    assert "(synthetic, seed 1)" in text
    assert await storage.coverage(CANDLES) == Coverage([Span(START, START + 6 * HOUR)])
    assert len(await stored(storage, CANDLES)) == 296
    failed = Gap(Span(START + 6 * HOUR, TODAY.end), "fetch_failed")
    assert failed in await storage.gaps(CANDLES)
    result = await run_backfill(CANDLES, TODAY, Watched(), storage, silent)
    assert result.complete
    assert {gap.cause for gap in await storage.gaps(CANDLES)} == {"exchange_down"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda page: replace(page, span=Span(page.span.start + MINUTE, page.span.end)),
        lambda page: replace(page, span=Span(page.span.start, page.span.end + 365 * DAY)),
        lambda page: replace(page, batch=replace(page.batch, series=TRADES)),
        lambda page: replace(page, span=Span(page.span.start, page.span.start)),
    ],
    ids=["hole", "beyond", "other series", "empty"],
)
async def test_pages_that_were_not_due_are_refused(spoil):
    storage = MemoryStorage()
    with pytest.raises(PluginError, match="exchange synthetic broke its contract"):
        await run_backfill(CANDLES, TODAY, Watched(spoil), storage, silent)
    assert not await storage.coverage(CANDLES)
    assert not len(await stored(storage, CANDLES))


async def test_a_failing_venue_leaves_whole_pages():
    def fail(page):
        if page.span.start >= START + 12 * HOUR:
            raise PluginError("the venue is gone")
        return page

    storage = MemoryStorage()
    with pytest.raises(PluginError, match="the venue is gone"):
        await run_backfill(TRADES, TODAY, Watched(fail), storage, silent)
    assert await storage.coverage(TRADES) == Coverage([Span(START, START + 12 * HOUR)])
    failed = Gap(Span(START + 12 * HOUR, TODAY.end), "fetch_failed")
    assert (await storage.gaps(TRADES))[-1] == failed
    result = await run_backfill(TRADES, TODAY, Watched(), storage, silent)
    assert result.complete
    rows = await stored(storage, TRADES)
    assert same_rows(rows, joined(TRADES, await fetch_pages(Watched(), TRADES, TODAY))).all()


async def test_what_the_venue_does_not_have_is_no_failed_fetch():
    storage = MemoryStorage()
    quotes = Series.parse("synthetic:BTC/USDT@quote")
    with pytest.raises(RequestError, match="no quote"):
        await run_backfill(quotes, TODAY, Watched(), storage, silent)
    assert not await storage.gaps(quotes)


async def test_a_cancelled_run_goes_on_from_its_last_page():
    storage, reports = MemoryStorage(), []
    with trio.CancelScope() as scope:

        def stop_at_second(progress):
            reports.append(progress)
            if len(reports) == 2:
                scope.cancel()

        await run_backfill(TRADES, TODAY, Watched(), storage, stop_at_second)
    assert scope.cancelled_caught
    assert await storage.coverage(TRADES) == Coverage([Span(START, START + 12 * HOUR)])
    venue = Watched()
    result = await run_backfill(TRADES, TODAY, venue, storage, silent)
    assert venue.asked == [Span(START + 12 * HOUR, TODAY.end)]
    assert (result.pages, result.complete) == (2, True)


def test_a_result_is_plain_values():
    assert asdict(BackfillResult(1, 2, 3, 4, complete=True)) == {
        "pages": 1,
        "added": 2,
        "unchanged": 3,
        "revised": 4,
        "complete": True,
    }
