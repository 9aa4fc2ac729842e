"""What `sqlite` keeps of trades folded into quarter-hours: always true, or not there."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager

import numpy as np
import pytest
import trio

from tardisd.errors import DataError
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.span import Coverage, Span
from tardisd.market.time import DAY, HOUR, MILLISECOND
from tardisd.replay.folds import Folds
from tardisd.testing.exchange import suite_context
from tardisd.testing.storage_model import START
from tardisd.testing.storage_pages import ALL_TIME, TRADES, check_quarters, page_with
from tardisd.testing.ticks import random_trades
from tardisd_sqlite.plugin import SqliteOptions, SqliteStorage


@asynccontextmanager
async def opened(folder):
    plugin = SqliteStorage(SqliteOptions(), suite_context("main", folder))
    async with plugin.run():
        yield plugin


def connect(folder):
    return sqlite3.connect(folder / "tardisd.sqlite", isolation_level=None)


async def test_days_stored_by_an_older_version_are_not_known_in_quarters(tmp_path):
    batch = random_trades(TRADES, 3000, START, mean_gap_ms=60_000)
    async with opened(tmp_path) as storage:
        await storage.append(TRADES, page_with(batch[:1000]))
    old = connect(tmp_path)
    old.execute("DROP TABLE quarters")
    old.execute("PRAGMA user_version = 2")
    old.close()
    async with opened(tmp_path) as storage:
        await storage.append(TRADES, page_with(batch[1000:]))
        fresh = Span(START // DAY * DAY + DAY, batch.extent().end // DAY * DAY + DAY)
        assert await check_quarters(storage, TRADES, ALL_TIME) == Coverage([fresh])


@pytest.mark.parametrize("rows", [1, 7, 1000])
async def test_trades_that_come_in_order_are_known_in_quarters(tmp_path, rows):
    """Also where pages part trades of one instant, or repeat the last ones."""
    batch = random_trades(TRADES, 40 * rows + 100, START, mean_gap_ms=3_600_000 // rows)
    whole = Span(batch.extent().start // DAY * DAY, batch.extent().end // DAY * DAY + DAY)
    async with opened(tmp_path) as storage:
        for at in range(0, len(batch), rows):
            await storage.append(TRADES, page_with(batch[max(0, at - at % 3) : at + rows]))
        assert await check_quarters(storage, TRADES, ALL_TIME) == Coverage([whole])
        await storage.append(TRADES, page_with(batch))  # changes nothing
        assert await check_quarters(storage, TRADES, ALL_TIME) == Coverage([whole])


async def test_what_damages_or_ends_a_record_of_quarters(tmp_path):
    batch = random_trades(TRADES, 6000, START, mean_gap_ms=60_000)
    first = START // DAY * DAY
    async with opened(tmp_path) as storage:
        await storage.append(TRADES, page_with(batch))
        days = [Span(first + at * DAY, first + (at + 1) * DAY) for at in range(4)]
        await storage.delete(TRADES, Span(days[1].start + HOUR, days[1].start + 2 * HOUR))
        revised = batch.within(days[2])[:1]
        price = {"price": Decimals(np.array([1]), 0), "amount": revised.fields["amount"]}
        changed = Batch(TRADES, revised.ts_event, price, revised.ids, revised.sides)
        assert (await storage.append(TRADES, page_with(changed))).revised == 1
        known = await check_quarters(storage, TRADES, ALL_TIME)
        assert [day in list(known) or known.covers(day) for day in days] == [
            True,
            False,
            False,
            True,
        ]
        storage._access._writer.connection.execute(
            "UPDATE quarters SET data = zeroblob(length(data)) WHERE day_ts = ?", (days[3].start,)
        )
        known = await check_quarters(storage, TRADES, ALL_TIME)
        assert [known.covers(day) for day in days] == [True, False, False, False]


async def test_volumes_beyond_a_candle_are_told_by_who_asks_for_it(tmp_path):
    most = Decimals(np.full(3, 2**63 - 1), 0)
    prices = Decimals(np.ones(3, np.int64), 0)
    times = np.arange(3) * MILLISECOND + START
    batch = Batch(
        TRADES, times, {"price": prices, "amount": most}, np.arange(3), np.zeros(3, np.uint8)
    )
    async with opened(tmp_path) as storage:
        for at in range(3):
            await storage.append(TRADES, page_with(batch[at : at + 1]))
        assert not await check_quarters(storage, TRADES, ALL_TIME)
        with pytest.raises(DataError, match="too large"):
            await Folds().rows(storage, TRADES, Span(START, START + HOUR), trio.CapacityLimiter(1))
