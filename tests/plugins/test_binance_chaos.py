"""A backfill from a Binance that fails at random ends with the truth, and a second asks nothing."""

from __future__ import annotations

import pytest
import trio
from binance_rig import SPOT, SWAP, candles, plugin_at, span, trades, venue_of

import tardisd.testing.venues.faults as faults
from tardisd.backfill.job import run_backfill
from tardisd.errors import DataError, PluginError, RequestError
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.testing.memory import MemoryStorage
from tardisd.testing.venues.faults import Fault, Misreport, Refuse, Reset, Truncate
from tardisd.venue.budget import Limit

TRUTH = [
    candles(f"{SPOT}@candle_1m", "01-25", "03-21"),
    candles(f"{SWAP}@candle_5m", "01-25", "03-21"),
    trades(f"{SPOT}@agg_trade", "03-15T09:00", 14_000, 30_000),
    trades(f"{SWAP}@agg_trade", "03-15T09:00", 14_000, 30_000),
    trades(f"{SPOT}@trade", "03-15T09:00", 14_000, 30_000),
]
WANTED = {
    "candle": span("01-28", "03-20T10:00"),
    "agg_trade": span("03-16T05:00", "03-20T10:00"),
    "trade": span("03-16T05:00", "03-20T10:00"),
}


def everything_fails_at_times(chance: float) -> list[Fault]:
    often = {"times": None, "chance": chance}
    return [
        Refuse(status=500, **often),
        Refuse(status=429, retry_after="0.01", **often),
        Refuse(status=418, retry_after="0.01", body=b'{"code":-1003,"msg":"banned"}', **often),
        Reset(**often),
        Reset(after_bytes=2000, **often),
        Truncate(after_bytes=500, **often),
        faults.html_page(match="/f?api/", **often),
        faults.not_a_number(match="/f?api/", **often),
        faults.wrong_checksum(**often),
        Misreport(match="(api/.*limit=|zip)", change=faults.missing, **often),
        Misreport(match="(api/.*limit=|zip)", change=faults.duplicated, **often),
        Misreport(match="(api/.*limit=|zip)", change=faults.unsorted, **often),
        Misreport(match="api/.*limit=", change=faults.empty, **often),
    ]


@pytest.mark.parametrize("seed", range(2))
async def test_a_venue_that_fails_at_random(tmp_path, seed):
    limits = {"rest weight": Limit("rest weight", 6000, 60.0, aligned=True),
              "swap weight": Limit("swap weight", 2400, 60.0, aligned=True)}  # fmt: skip
    venue = venue_of(*TRUTH, faults=everything_fails_at_times(0.02), seed=seed, limits=limits)
    storage = MemoryStorage()

    async def fill(plugin, series: Series) -> None:
        wanted = WANTED[series.data_type.kind]
        for _ in range(60):
            try:
                result = await run_backfill(series, wanted, plugin, storage, lambda _: None)
            # RequestError: of a file that was damaged twice running a gap is left.
            except (PluginError, DataError, RequestError):
                continue
            if result.complete:
                return
        pytest.fail(f"{series} is not complete after 60 attempts")

    async with venue.serve(), plugin_at(venue, tmp_path) as plugin:
        async with trio.open_nursery() as nursery:
            for batch in TRUTH:
                nursery.start_soon(fill, plugin, batch.series)
        venue.faults.faults.clear()
        before = len(venue.requests)
        for batch in TRUTH:
            wanted = WANTED[batch.series.data_type.kind]
            again = await run_backfill(batch.series, wanted, plugin, storage, lambda _: None)
            assert (again.pages, again.complete) == (0, True)
        assert len(venue.requests) == before
    assert {seen.fault for seen in venue.requests} >= {"Refuse", "Reset", "Rewrite", "Misreport"}
    assert max(venue.most_used().values()) <= 0.85
    for batch in TRUTH:
        found = await stored(storage, batch)
        times, wanted = batch.ts_event, WANTED[batch.series.data_type.kind]
        expected = batch[(times >= wanted.start) & (times < wanted.end)]
        assert len(found) == len(expected)
        assert bool(same_rows(found, expected).all())


async def stored(storage: MemoryStorage, batch: Batch) -> Batch:
    wanted = WANTED[batch.series.data_type.kind]
    async with storage.read(batch.series, wanted) as batches:
        return Batch.concat([part async for part in batches])
