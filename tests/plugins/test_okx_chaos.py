"""A backfill from an OKX that fails at random ends with the truth, and a second asks nothing."""

from __future__ import annotations

import pytest
import trio

import tardisd.testing.venues.faults as faults
from tardisd.backfill.job import run_backfill
from tardisd.errors import DataError, PluginError, RequestError
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import DAY, HOUR, MINUTE, SECOND, parse_time
from tardisd.testing.exchange import suite_context
from tardisd.testing.memory import MemoryStorage
from tardisd.testing.ticks import random_candles, random_trades
from tardisd.testing.venues.faults import Fault, Misreport, Refuse, Reset, Truncate
from tardisd.testing.venues.okx import OkxVenue
from tardisd.venue.budget import Limit
from tardisd.venue.client import Patience
from tardisd_okx.plugin import Okx, OkxOptions
from tardisd_okx.rest import LIMITS

NOON = parse_time("2024-03-20T12:00:00Z")
NOW = NOON + 30 * SECOND
QUICK = Patience(attempts=6, first_wait_secs=0.002, most_wait_secs=0.01)
GENEROUS = {name: Limit(name, 100_000, 2.0) for name in LIMITS}


def candles(name: str, n: int, start: int) -> Batch:
    batch = random_candles(Series.parse(name), n, start)
    fields = {name: column for name, column in batch.fields.items() if name != "trades"}
    return Batch(batch.series, batch.ts_event, fields)


TRUTH = [
    candles("okx:BTC/USDT@candle_1m", 8 * 1440, NOON - 7 * DAY),
    candles("okx:BTC/USDT:USDT@candle_5m", 12 * 300, NOON - 12 * DAY),
    candles("okx:BTC/USDT:USDT@candle_1M", 40, parse_time("2021-01-01T00:00:00Z")),
    random_trades(Series.parse("okx:BTC/USDT@trade"), 14_000, NOON - 5 * DAY, mean_gap_ms=35_000),
    random_trades(Series.parse("okx:BTC/USDT:USDT@trade"), 14_000, NOON - 5 * DAY, 1,
                  mean_gap_ms=35_000),
]  # fmt: skip


def wanted(series: Series) -> Span:
    interval = series.data_type.interval
    if interval is None:
        return Span(NOON - 4 * DAY - HOUR, NOON - MINUTE)
    return Span(interval.ceil(max(NOON - 6 * DAY - 20 * interval.nominal_ns, _first(series))),
                interval.floor(NOON))  # fmt: skip


def _first(series: Series) -> int:
    return next(int(batch.ts_event[0]) for batch in TRUTH if batch.series == series)


def everything_fails_at_times(chance: float) -> list[Fault]:
    often = {"times": None, "chance": chance}
    return [
        Refuse(status=500, **often),
        Refuse(status=429, retry_after="0.01", **often),
        Refuse(status=200, headers={"Retry-After": "0.01"}, match="/api/", **often),
        Refuse(status=503, **often),
        Reset(**often),
        Reset(after_bytes=2000, **often),
        Truncate(after_bytes=500, **often),
        faults.html_page(**often),
        faults.not_a_number(match="/api/", **often),
        Misreport(match="candles", change=faults.missing, **often),
        Misreport(match="(limit=|zip)", change=faults.duplicated, **often),
        Misreport(match="(limit=|zip)", change=faults.unsorted, **often),
        Misreport(match="limit=", change=faults.empty, **often),
    ]


@pytest.mark.parametrize("seed", range(2))
async def test_a_venue_that_fails_at_random(tmp_path, seed):
    venue = OkxVenue(
        {batch.series: batch for batch in TRUTH}, clock=NOW, limits={}, seed=seed,
        faults=everything_fails_at_times(0.02),
    )  # fmt: skip
    storage = MemoryStorage()

    async def fill(plugin: Okx, series: Series) -> None:
        for _ in range(60):
            try:
                result = await run_backfill(series, wanted(series), plugin, storage, lambda _: None)
            # RequestError: of a file that was damaged twice running a gap is left.
            except (PluginError, DataError, RequestError):
                continue
            if result.complete:
                return
        pytest.fail(f"{series} is not complete after 60 attempts")

    async with venue.serve():
        options = OkxOptions(rest_url=venue.rest_url, archive_url=venue.archive_url)
        context = suite_context("okx", tmp_path)
        plugin = Okx(options, context, patience=QUICK, limits=GENEROUS)
        async with plugin.run():
            async with trio.open_nursery() as nursery:
                for batch in TRUTH:
                    nursery.start_soon(fill, plugin, batch.series)
            venue.faults.faults.clear()
            before = len(venue.requests)
            for batch in TRUTH:
                span = wanted(batch.series)
                again = await run_backfill(batch.series, span, plugin, storage, lambda _: None)
                assert (again.pages, again.complete) == (0, True)
            assert len(venue.requests) == before
    assert {seen.fault for seen in venue.requests} >= {"Refuse", "Reset", "Rewrite", "Misreport"}
    assert {seen.role for seen in venue.requests} == {"rest", "archive"}
    for batch in TRUTH:
        async with storage.read(batch.series, wanted(batch.series)) as batches:
            found = Batch.concat([part async for part in batches])
        expected = batch.within(wanted(batch.series))
        assert len(found) == len(expected)
        assert bool(same_rows(found, expected).all())
