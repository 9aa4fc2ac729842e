"""Ticks go out when the clock reaches them: not before, at most a millisecond after, for hours."""

from __future__ import annotations

import numpy as np
import pytest
import trio

from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import HOUR, MILLISECOND, MINUTE, SECOND, parse_time
from tardisd.replay.manager import SessionLimits
from tardisd.replay.timeline import Timeline, Tuning
from tardisd.testing.engine import run_engine
from tardisd.testing.ticks import random_candles, random_trades

START = parse_time("2024-03-01T00:00:00Z")
TRADES = Series.parse("binance:BTC/USDT@trade")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
DAY = Span(START, START + 24 * HOUR)
LATE = 0.001 + 1e-6  # seconds: coalescing, and what floats of virtual time do


def trades_at(times, series=TRADES):
    count = len(times)
    ones = Decimals(np.ones(count, np.int64))
    ids, sides = np.arange(count), np.zeros(count, np.uint8)
    fields = {"price": ones, "amount": ones}
    return Batch(series, np.array(times, np.int64), fields, ids, sides)


@pytest.mark.parametrize("speed", [0.5, 1.0, 10.0, 100.0, 1000.0])
def test_every_tick_comes_when_it_is_due(speed):
    hours = HOUR * max(1, int(speed / 400))
    span = Span(START, START + hours)
    trades = random_trades(TRADES, 3000, START, mean_gap_ms=hours // MILLISECOND // 3200)
    candles = random_candles(CANDLES, hours // MINUTE, START)

    async def main(engine):
        await engine.store(trades, span)
        await engine.store(candles)
        begun = trio.current_time()
        heard = await engine.play([TRADES, CANDLES], span, speed=speed)
        inside = trades.within(span)
        assert len(heard.ticks()) == len(inside) + len(candles)
        for at, release in heard.arrivals():
            due = begun + (release - START) / SECOND / speed
            assert -1e-6 <= at - due <= LATE
        assert trio.current_time() - begun == pytest.approx(hours / SECOND / speed, abs=LATE)
        assert heard.end["reason"] == "finished"

    run_engine(main)


def test_what_is_due_soon_goes_out_together():
    """Ticks a microsecond apart do not each wake the session."""
    batch = trades_at([START + n * 1000 for n in range(5000)])

    async def main(engine):
        await engine.store(batch, DAY)
        heard = await engine.play([TRADES], Span(START, START + SECOND), speed=1.0)
        assert len(heard.ticks()) == 5000
        assert len(heard.blocks) <= 10
        for at, release in heard.arrivals():
            assert -1e-9 <= at - (release - START) / SECOND <= LATE

    run_engine(main)


def test_at_full_speed_nothing_is_waited_for():
    async def main(engine):
        await engine.store(random_trades(TRADES, 20_000, START), DAY)
        heard = await engine.play([TRADES], Span(START, START + HOUR), speed="max")
        assert len(heard.ticks()) == 20_000
        assert trio.current_time() == 0
        assert all(len(block) <= 8192 for block in heard.blocks)

    run_engine(main)


def test_changes_of_speed_hold_from_where_they_were_made():
    times = [START + n * SECOND for n in range(600)]

    async def main(engine):
        await engine.store(trades_at(times), DAY)
        session = await engine.create([TRADES], Span(START, START + 600 * SECOND), speed=1.0)
        listener = engine.listen(session)
        session.begin()
        await trio.sleep(100.5)
        session.change_speed(10.0)
        await trio.sleep(10)
        session.change_speed(0.5)
        await trio.sleep(20)
        session.change_speed(100.0)
        await listener.done.wait()

        def due(second):
            if second <= 100.5:
                return second
            if second <= 200.5:
                return 100.5 + (second - 100.5) / 10
            if second <= 210.5:
                return 110.5 + (second - 200.5) / 0.5
            return 130.5 + (second - 210.5) / 100

        assert len(listener.ticks()) == 600
        for at, release in listener.arrivals():
            assert -1e-6 <= at - due((release - START) / SECOND) <= LATE
        clocks = [notice.fields["clock"] for notice in listener.notices("speed_changed")]
        begin = START // MILLISECOND
        assert [clock - begin for clock in clocks] == [100_500, 200_500, 210_500]
        assert trio.current_time() == pytest.approx(due(600), abs=LATE)

    run_engine(main)


def test_a_pause_stops_time_itself():
    times = [START + n * SECOND for n in range(10)]

    async def main(engine):
        await engine.store(trades_at(times), DAY)
        session = await engine.create([TRADES], Span(START, START + 10 * SECOND), speed=1.0)
        listener = engine.listen(session)
        session.begin()
        await trio.sleep(3.25)
        notice = session.pause()
        assert notice.type == "paused"
        assert session.status()["status"] == "paused"
        await trio.sleep(1000)
        assert len(listener.ticks()) == 4
        assert session.status()["clock"] == START // MILLISECOND + 3250
        session.pause()  # again: it stays as it is
        await trio.sleep(1)
        session.resume()
        session.resume()
        await listener.done.wait()
        assert [round(at, 3) for at, _ in listener.arrivals()] == [
            *(0, 1, 2, 3),
            *(n + 1001 for n in range(4, 10)),
        ]
        kinds = [notice.type for notice in listener.notices()]
        assert kinds == ["paused", "paused", "resumed", "resumed", "end"]

    run_engine(main)


def test_paused_from_the_start_it_waits():
    async def main(engine):
        await engine.store(trades_at([START, START + SECOND]), DAY)
        session = await engine.create(
            [TRADES], Span(START, START + 2 * SECOND), speed="max", start_paused=True
        )
        assert session.created().fields["status"] == "paused"
        listener = engine.listen(session)
        session.begin()
        await trio.sleep(100)
        assert listener.heard == []
        session.resume()
        await listener.done.wait()
        assert [release - START for _, release in listener.arrivals()] == [0, SECOND]

    run_engine(main)


def test_nothing_happens_before_it_begins():
    async def main(engine):
        await engine.store(trades_at([START]), DAY)
        session = await engine.create([TRADES], Span(START, START + SECOND), speed="max")
        listener = engine.listen(session)
        session.pause()
        session.resume()
        await trio.sleep(50)
        assert [notice.type for notice in listener.notices()] == ["paused", "resumed"]
        assert listener.blocks == []
        session.begin()
        session.begin()
        await listener.done.wait()
        assert listener.end["ticks"] == 1

    run_engine(main)


def test_to_full_speed_and_back():
    times = [START + n * SECOND for n in range(100)]

    async def main(engine):
        await engine.store(trades_at(times), DAY)
        session = await engine.create([TRADES], Span(START, START + 100 * SECOND), speed=1.0)
        listener = engine.listen(session)
        session.begin()
        await trio.sleep(10.5)
        session.change_speed("max")
        session.pause()
        await trio.sleep(1)
        assert len(listener.ticks()) == 11
        session.change_speed(2.0)
        session.resume()
        await trio.sleep(10)
        assert len(listener.ticks()) == 31
        session.change_speed("max")
        await listener.done.wait()
        assert trio.current_time() == pytest.approx(21.5)
        assert listener.seqs() == list(range(1, 101))
        assert session.status()["clock"] == START // MILLISECOND + 100_000

    run_engine(main)


class Stalls:
    """A follower that reads only when it is told to."""

    def __init__(self, session, name="slow"):
        self.follower = session.subscribe("block", (), name)
        self.got = []

    async def read(self, items):
        for _ in range(items):
            item = await self.follower.receive()
            self.got += item.release.tolist() if hasattr(item, "release") else []


def test_a_slow_consumer_slows_time_down_for_everyone():
    times = [START + n * MILLISECOND for n in range(20_000)]
    limits = SessionLimits(tuning=Tuning(slice_ticks=100))

    async def main(engine):
        await engine.store(trades_at(times), DAY)
        session = await engine.create([TRADES], Span(START, START + 20 * SECOND), speed=1.0)
        other = engine.listen(session)
        slow = Stalls(session)
        session.begin()
        for _ in range(7):
            await trio.sleep(7)
            status = session.status()
            delivered = [release for _, release in other.arrivals()]
            next_release = delivered[-1] + MILLISECOND
            assert status["clock"] * MILLISECOND <= next_release
            assert len(delivered) - len(slow.got) <= 4096 + 100
            assert status["waiting_for"] == ["slow"]
            before = len(slow.got)
            while len(slow.got) < before + 2000:
                await slow.read(1)
        while len(slow.got) < 20_000:
            await slow.read(1)
        await other.done.wait()
        assert [release for _, release in other.arrivals()] == times == slow.got
        for at, release in other.arrivals():
            assert at >= (release - START) / SECOND - 1e-9, "never ahead of its time"
        # Seven times seven seconds were lost, less what fits into the queue; none was made up for.
        assert trio.current_time() > 20 + 49 - 7 * 4.2 - 0.3 * 7

    run_engine(main, limits=limits)


def test_a_consumer_that_keeps_up_loses_nothing_to_one_that_left():
    async def main(engine):
        await engine.store(random_trades(TRADES, 50_000, START, mean_gap_ms=10), DAY)
        session = await engine.create([TRADES], Span(START, START + HOUR), speed="max")
        other = engine.listen(session)
        slow = Stalls(session)
        session.begin()
        await trio.sleep(1)
        assert not other.done.is_set()
        slow.follower.close()
        slow.follower.close()
        await other.done.wait()
        assert other.seqs() == list(range(1, 50_001))
        assert trio.current_time() < 2

    run_engine(main)


def test_it_says_how_fast_it_goes():
    async def main(engine):
        await engine.store(trades_at([START + n * SECOND for n in range(1000)]), DAY)
        session = await engine.create([TRADES], Span(START, START + 1000 * SECOND), speed=10.0)
        engine.listen(session)
        assert session.status()["achieved_speed"] is None
        session.begin()
        await trio.sleep(20.05)
        status = session.status()
        assert status["achieved_speed"] == pytest.approx(10.0, rel=0.01)
        assert status["lag_ms"] == 0
        assert status["ticks"] == status["seq"] == 201
        assert (status["subscribers"], status["waiting_for"]) == (1, [])
        session.pause()
        assert session.status()["achieved_speed"] == pytest.approx(10.0, rel=0.01), "its last"
        session.resume()
        await trio.sleep(10.05)
        assert session.status()["achieved_speed"] == pytest.approx(10.0, rel=0.01)
        session.stop()
        assert session.status()["achieved_speed"] == pytest.approx(10.0, rel=0.01), "its last"

    run_engine(main)


async def test_no_speed_and_no_limit_of_idle_time_sets_time_back(autojump_clock):
    """At such speeds the next moment a float can tell is farther away than the limit."""
    autojump_clock.jump(1000)
    time = Timeline(START, 1e300, Tuning())
    time.run()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(time.until, START + HOUR, None, 1e-14)
        for _ in range(5):
            await trio.lowlevel.checkpoint()
            assert time.market() >= START
    assert time.market() == START + HOUR
