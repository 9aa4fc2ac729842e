"""Daemons that share a storage fetch a series one after the other, by the storage's leases."""

from __future__ import annotations

from contextlib import asynccontextmanager

import trio
from backfill_rig import CANDLES, TODAY, TRADES, Rig, until

from tardisd.errors import StorageError
from tardisd.market.span import Coverage
from tardisd.testing.memory import MemoryStorage


class SharedStorage(MemoryStorage):
    """Grants one lease per series at a time; with `trouble` it takes them away amid the work."""

    def __init__(self):
        super().__init__()
        self.locks = {}
        self.trouble = None

    @asynccontextmanager
    async def lease(self, series):
        async with self.locks.setdefault(series, trio.Lock()):
            yield
            if self.trouble is not None and series == CANDLES:
                raise self.trouble


async def test_a_second_daemon_waits_and_then_finds_the_data(tmp_path):
    one, two = (Rig(tmp_path / name) for name in ("one", "two"))
    for rig in (one, two):
        rig.folder.mkdir()
    one.storage = two.storage = SharedStorage()
    one.venue.hold()
    async with one.life() as first_book, two.life() as second_book:
        first = one.submit(first_book, CANDLES)
        await until(lambda: one.venue.at_once)
        second = two.submit(second_book, CANDLES, TRADES)
        await until(lambda: second.parts[1].state == "finished")
        assert second.parts[0].message == "another daemon fetches this series"
        assert two.venue.asked == [(TRADES, TODAY)]  # no other series waits for it
        one.venue.let()
        await first.ended.wait()
        await second.ended.wait()
    assert (first.state, second.state) == ("finished", "finished")
    assert two.venue.asked == [(TRADES, TODAY)]
    assert await one.storage.coverage(CANDLES) == Coverage([TODAY])


async def test_a_lost_lease_costs_its_series_alone(tmp_path):
    rig = Rig(tmp_path)
    rig.storage = SharedStorage()
    rig.storage.trouble = StorageError("the lease ran out")
    async with rig.life() as book:
        job = rig.submit(book, CANDLES, TRADES)
        await job.ended.wait()
    assert [part.state for part in job.parts] == ["failed", "finished"]
    assert job.parts[0].message == "the lease ran out"
    assert rig.storage.locks[CANDLES].statistics().owner is None
