"""Whole sessions at the edges of time: weeks, months, leap days and seconds, one nanosecond.

What is due when is written out here with `datetime`, not with the engine's own calendar.
"""

from __future__ import annotations

import datetime
from itertools import pairwise

import numpy as np
import pytest
import trio
from hash_reference import content_hash

from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import MILLISECOND, MINUTE, SECOND, parse_time
from tardisd.plugins.sessions import Resume
from tardisd.replay.fanout import QueueLimits
from tardisd.replay.manager import SessionLimits
from tardisd.replay.timeline import Tuning
from tardisd.testing.engine import run_engine
from tardisd.testing.ticks import random_candles

DAY_SECS = 86_400
LATE_SECS = 0.0011
FIELDS = ("open", "high", "low", "close", "volume")
SMALL = SessionLimits(
    tuning=Tuning(slice_ticks=7, limits=QueueLimits(blocking_ticks=16, lagging_ticks=64))
)


def ns(year, month, day=1):
    """Return midnight UTC, counted in days of 86,400 seconds since 1970."""
    days = datetime.date(year, month, day).toordinal() - datetime.date(1970, 1, 1).toordinal()
    return days * DAY_SECS * SECOND


def candles(series, opens):
    flat = Decimals(np.ones(len(opens), np.int64))
    return Batch(series, np.array(opens, np.int64), dict.fromkeys(FIELDS, flat))


def trades(series, times):
    ones, sides = Decimals(np.ones(len(times), np.int64)), np.zeros(len(times), np.uint8)
    fields = {"price": ones, "amount": ones}
    return Batch(series, np.array(times, np.int64), fields, np.arange(len(times)), sides)


MONTHS = [(2023 + at // 12, at % 12 + 1) for at in range(16)]  # 28 days, 29 (leap), 30 and 31
MONDAYS = range(ns(2023, 1, 2), ns(2024, 4), 7 * DAY_SECS * SECOND)
YEARS = Span(ns(2023, 1), ns(2024, 4))


def long_candles():
    """Return months and weeks, trades at the very ends of months, and the whole of them."""
    month, week, trade = (
        Series.parse(f"binance:BTC/USDT@{name}") for name in ("candle_1M", "candle_1w", "trade")
    )
    firsts = [ns(*one) for one in MONTHS]
    ends = [one - 1 for one in firsts[1:-1]] + firsts[1:-1]
    batches = [candles(month, firsts[:-1]), candles(week, MONDAYS), trades(trade, sorted(ends))]
    whole = [(close, 31, month.text, begin) for begin, close in pairwise(firsts)]
    whole += [(one + 7 * DAY_SECS * SECOND, 7, week.text, one) for one in MONDAYS]
    whole += [(one, 99, trade.text, one) for one in ends]  # behind a candle that closes then
    return batches, [(one[0], *one[2:]) for one in sorted(whole)]


@pytest.mark.parametrize("speed", ["max", 1_000_000.0, 86_400.0])
def test_weeks_and_months_close_by_the_calendar(speed):
    batches, whole = long_candles()

    async def main(engine):
        for batch in batches:
            await engine.store(batch, YEARS)
        begun = trio.current_time()
        listener = await engine.play([batch.series for batch in batches], YEARS, speed=speed)
        assert listener.ticks() == whole
        assert listener.notices("gap") == []
        assert listener.end["ticks"] == len(whole)
        if speed != "max":
            for at, release in listener.arrivals():
                due = begun + (release - YEARS.start) / SECOND / speed
                assert -1e-5 <= at - due <= LATE_SECS

    run_engine(main)


@pytest.mark.parametrize("to", [(2023, 3, 1), (2023, 2, 28), (2024, 2, 29), (2024, 3, 1)])
def test_seeks_among_months_begin_with_the_last_that_closed(to):
    batches, whole = long_candles()

    async def main(engine):
        for batch in batches:
            await engine.store(batch, YEARS)
        series = [batch.series for batch in batches]
        session = await engine.create(series, YEARS, speed="max", start_paused=True)
        session.begin()
        listener = engine.listen(session)
        session.seek(ns(*to))
        session.resume()
        await listener.done.wait()
        assert listener.ticks() == [tick for tick in whole if tick[0] >= ns(*to)]
        [snapshot] = listener.notices("snapshot")
        newest = {}
        for release, name, event in whole:
            if release < ns(*to):
                newest[name] = event // MILLISECOND
        assert bytes(snapshot.fields["data"]).count(b'"timestamp"') == len(newest)
        for event in newest.values():
            assert f'"timestamp":{event},'.encode() in bytes(snapshot.fields["data"])

    run_engine(main)


@pytest.mark.parametrize("speed", ["max", 1.0, 0.01])
@pytest.mark.parametrize("start", [ns(2024, 3), ns(2024, 3) + 1, ns(2024, 3) + 123_456_789])
def test_a_span_of_one_nanosecond(speed, start):
    series = Series.parse("binance:BTC/USDT@trade")
    times = [start - 1, start, start, start + 1]

    async def main(engine):
        await engine.store(trades(series, times), Span(start - 10, start + 10))
        listener = await engine.play([series], Span(start, start + 1), speed=speed)
        assert listener.ticks() == [(start, series.text, start)] * 2
        assert (listener.seqs(), listener.end["reason"]) == ([1, 2], "finished")
        row = {"series": series.text, "ts_event": start, "ts_release": start, "price": "1",
               "amount": "1", "side": "buy"}  # fmt: skip
        wanted = content_hash([{**row, "id": "1"}, {**row, "id": "2"}])
        assert listener.end["hash"] == wanted

    run_engine(main)


def test_a_day_with_a_leap_second_has_as_many_seconds_as_any():
    """23:59:60 is no time here, and nothing waits for it."""
    series = Series.parse("binance:BTC/USDT@candle_1m")
    span = Span(ns(2016, 12, 31), ns(2017, 1, 2))
    with pytest.raises(ValueError, match="23:59:60"):
        parse_time("2016-12-31T23:59:60Z")
    last = parse_time("2016-12-31T23:59:59.999999999Z")
    assert last + 1 == parse_time("2017-01-01T00:00:00Z") == ns(2017, 1)

    async def main(engine):
        await engine.store(random_candles(series, 2 * 1440, span.start), span)
        begun = trio.current_time()
        listener = await engine.play([series], span, speed=1.0)
        releases = [tick[0] for tick in listener.ticks()]
        assert releases == [span.start + MINUTE * (at + 1) for at in range(2 * 1440)]
        assert trio.current_time() - begun == pytest.approx(2 * DAY_SECS, abs=LATE_SECS)
        assert listener.notices("gap") == []

    run_engine(main)


# ---- hundreds of series, and one time

NOW = ns(2024, 3) + 60 * MINUTE
SPAN = Span(ns(2024, 3), NOW + MINUTE)


def crowd():
    """Return 360 series whose ticks are all released at one time, and them in total order."""
    batches, whole = [], []
    for at in range(60):
        symbol = f"{chr(65 + at * 7 % 26)}{chr(90 - at * 11 % 26)}{at}/USDT" + ":USDT" * (at % 2)
        for venue in ("okx", "binance", "bybit"):
            trade = Series.parse(f"{venue}:{symbol}@trade")
            length = (1, 5, 60)[at % 3]
            name = {1: "candle_1m", 5: "candle_5m", 60: "candle_1h"}[length]
            candle = Series.parse(f"{venue}:{symbol}@{name}")
            batches += [trades(trade, [NOW] * 3), candles(candle, [NOW - length * MINUTE])]
            whole += [(5, 0, "trade", venue, symbol, row, trade.text, NOW) for row in range(3)]
            whole.append((1, length, name, venue, symbol, 0, candle.text, NOW - length * MINUTE))
    return batches, [(NOW, *one[6:]) for one in sorted(whole)]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_hundreds_of_series_at_one_time(seed):
    """The order asked for or stored in is none; nor is where a step or a client stops in it."""
    batches, whole = crowd()
    dice = np.random.default_rng(seed)

    async def main(engine):
        for at in dice.permutation(len(batches)):
            await engine.store(batches[at], SPAN)
        series = [batches[at].series for at in dice.permutation(len(batches))]
        listener = await engine.play(series, SPAN, speed="max")
        assert listener.ticks() == whole
        session = await engine.create(series, SPAN, speed=60.0, start_paused=True)
        session.begin()
        stepped = engine.listen(session)
        session.seek(NOW)
        at = 0
        for count in dice.integers(1, 200, 12).tolist():
            await session.step(count).wait()
            at += count
            back = engine.listen_from(session, Resume(2, max(0, at - 30)))
            await trio.sleep(1)
            assert back.ticks() == whole[max(0, at - 30) : at]
            back.follower.close()
            if at > 100:
                steps = await session.step(-50).wait()
                assert steps.fields["count"] == -50
                at -= 50
                await session.step(50).wait()
                at += 50
                break
        session.resume()
        await stepped.done.wait()
        last = [tick for block in stepped.blocks if block.epoch == 3 for tick in ticks_in(block)]
        assert last == whole[at - 50 :]
        assert stepped.end["ticks"] == len(last)

    run_engine(main, limits=SMALL)


def ticks_in(block):
    rows = [()] * len(block)
    for batch, seqs in block.batches():
        for seq, event in zip(seqs, batch.ts_event.tolist(), strict=True):
            rows[seq - block.first_seq] = (NOW, batch.series.text, event)
    return rows
