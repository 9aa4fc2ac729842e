"""Jumps among long candles made of trades: the same as played, and read but once."""

from __future__ import annotations

import json
from decimal import Decimal

import numpy as np
import pytest
import trio
from small_reads import SmallReads

from tardisd.errors import StorageError
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import DAY, HOUR, MILLISECOND, MINUTE, SECOND, parse_time
from tardisd.replay.folds import Folds
from tardisd.testing.engine import run_engine
from tardisd.testing.exchange import suite_context
from tardisd.testing.memory import MemoryStorage
from tardisd.testing.storage_pages import page_with, read
from tardisd_sqlite.plugin import SqliteOptions, SqliteStorage

START = parse_time("2024-02-20T00:00:00Z")
SPAN = Span(START, START + 70 * DAY)
TRADES = Series.of("binance", "BTC/USDT", "trade")
LONG = tuple(
    Series.of("binance", "BTC/USDT", f"candle_{name}") for name in ("1h", "1d", "1w", "1M")
)


def trades(count=4000):
    """Return trades now and then, many on the bounds of quarter-hours and close to each other."""
    draw = np.random.default_rng(5)
    times = draw.integers(0, 70 * DAY // MILLISECOND, count) * MILLISECOND
    times[::3] -= times[::3] % (15 * MINUTE) - draw.integers(-2, 3, len(times[::3])) * SECOND // 2
    times.sort()
    prices = Decimals(10_000 + draw.integers(-50, 51, count).cumsum(), 2)
    amounts = Decimals(draw.integers(0, 10**6, count), 5)
    fields = {"price": prices, "amount": amounts}
    sides = draw.integers(0, 2, count).astype(np.uint8)
    return Batch(TRADES, START + np.abs(times), fields, np.arange(count), sides)


def plain(text):
    """Return ticks as objects, but for when they were sent."""
    found = json.loads(b"[" + text.strip(b"[]").rstrip(b",") + b"]", parse_float=Decimal)
    return [{k: v for k, v in row.items() if k != "replay_time"} for row in found]


def released(row, delay):
    """Return when a tick came out (ns)."""
    if "close_time" not in row:
        return row["timestamp"] * MILLISECOND
    return row["as_of"] * MILLISECOND if "as_of" in row else row["close_time"] * MILLISECOND + delay


async def seek(engine, to, **options):
    """Return the snapshot and the first 200 ticks of a session that jumps to a time."""
    session = await engine.create(
        options.pop("series", []), SPAN, speed="max", start_paused=True, derive=LONG, **options
    )
    follower = session.subscribe("block")
    session.begin()
    session.seek(to)
    session.resume()
    snapshot, rows = None, []
    while len(rows) < 200:
        item = await follower.receive()
        fields = getattr(item, "fields", None)
        if fields is None:
            rows += plain(bytes(item.encode("batch").bytes()))
        elif item.type == "snapshot":
            snapshot = plain(bytes(fields["data"]))
        elif item.type == "end":
            break
    if not session.has_ended:
        session.stop()
    return snapshot, rows[:200]


@pytest.mark.parametrize("delay", [0, 700 * MILLISECOND, 90 * SECOND])
def test_after_a_jump_long_candles_are_those_of_a_whole_replay(delay):
    async def main(engine):
        hole = Span(START + 30 * DAY, START + 32 * DAY)
        batch = trades()
        keep = (batch.ts_event < hole.start) | (batch.ts_event >= hole.end)
        await engine.store(
            batch[keep], Coverage(Coverage([SPAN]).gaps(hole)).union(SPAN).subtract(hole)
        )
        options = {"forming": True, "publish_delay": delay}
        whole = await engine.play([TRADES], SPAN, speed="max", derive=LONG, **options)
        rows = [
            row for block in whole.blocks for row in plain(bytes(block.encode("batch").bytes()))
        ]
        times = [released(row, delay) for row in rows]
        draw = np.random.default_rng(7)
        near = [t + n for t in draw.choice(times, 12).tolist() for n in (0, 1)]
        for to in [*near, *(START + draw.integers(DAY, 70 * DAY, 8)).tolist()]:
            snapshot, found = await seek(engine, to, series=[TRADES], **options)
            upto = sum(t < to for t in times)
            assert found == rows[upto : upto + 200], to
            state = {(row["channel"], row.get("closed", True)): row for row in rows[:upto]}
            for channel in {channel for channel, closed in state if not closed}:
                forming = state[channel, False]
                if forming["close_time"] * MILLISECOND + delay < to:
                    del state[channel, False]
            key = lambda row: (row["channel"], row.get("closed", True))  # noqa: E731
            assert sorted(snapshot, key=key) == sorted(state.values(), key=key), to

    run_engine(main, storage=SmallReads(500))


def test_what_was_read_for_one_jump_is_not_read_for_the_next():
    storage = SmallReads(500)

    async def main(engine):
        await engine.store(trades(), SPAN)
        counts = []
        for day in (60, 60, 45):
            before = storage.given
            await seek(engine, START + day * DAY + 11 * HOUR)
            counts.append(storage.given - before)
        await storage.delete(TRADES, Span(SPAN.start, SPAN.start + DAY))  # they are others now
        before = storage.given
        await seek(engine, START + 60 * DAY + 11 * HOUR)
        return [*counts, storage.given - before]

    first, second, third, fourth = run_engine(main, storage=storage)
    month = Span(parse_time("2024-03-01T00:00:00Z"), START + 60 * DAY)
    rest = Span(START + 45 * DAY + 10 * HOUR, SPAN.end)
    times = trades().ts_event
    assert first - second >= np.sum((times >= month.start) & (times < month.end)) > 2000
    assert third < np.sum(times >= rest.start) * len(LONG)
    assert fourth == first


def test_memory_is_bounded_and_what_was_used_last_stays():
    async def main(engine):
        batch = trades()
        others = [Series.of("binance", f"{name}/USDT", "trade") for name in ("A", "B", "C")]
        for one in others:
            await engine.store(
                Batch(one, batch.ts_event, batch.fields, batch.ids, batch.sides), SPAN
            )
        folds, limiter = Folds(most=2000), trio.CapacityLimiter(1)
        days = Span(START, START + 20 * DAY)
        reads = []
        for one in (0, 1, 2, 2, 1, 0):
            before = engine.storage.given
            rows = await folds.rows(engine.storage, others[one], days, limiter)
            reads.append(engine.storage.given > before)
            assert int(rows.fields["trades"].mantissa.sum()) == int(
                (batch.ts_event < days.end).sum()
            )
            assert len(rows) < 20 * 96
        return reads

    assert run_engine(main, storage=SmallReads(500)) == [True, True, True, False, False, True]


class Failing(MemoryStorage):
    """Cannot be read."""

    def read(self, series, span):
        raise StorageError("the disk is gone")


def test_what_the_storage_says_comes_through():
    async def main(engine):
        await engine.store(trades(), SPAN)
        span = Span(START, START + 20 * DAY)
        with pytest.raises(StorageError, match="the disk is gone"):
            await Folds().rows(engine.storage, TRADES, span, trio.CapacityLimiter(1))

    run_engine(main, storage=Failing())


async def test_what_the_storage_has_folded_is_not_read(tmp_path):
    batch = trades()
    storage, plain = SqliteStorage(SqliteOptions(), suite_context("m", tmp_path)), MemoryStorage()
    span, limiter = Span(START, START + 60 * DAY), trio.CapacityLimiter(1)
    async with storage.run():
        for at in range(0, len(batch), 500):
            await storage.append(TRADES, page_with(batch[at : at + 500]))
        await storage.delete(TRADES, Span(START + 30 * DAY, START + 30 * DAY + HOUR))  # unknown now
        rows = await read(storage, TRADES, SPAN)
        await plain.append(TRADES, page_with(rows))
        expected = await Folds().rows(plain, TRADES, span, limiter)
        asked = list[Span]()

        def reading(series, part):
            asked.append(part)
            return SqliteStorage.read(storage, series, part)

        storage.read = reading
        found = await Folds().rows(storage, TRADES, span, limiter)
    assert len(found) == len(expected)
    assert same_rows(found, expected).all()
    assert asked == [Span(START + 30 * DAY, START + 31 * DAY)]
