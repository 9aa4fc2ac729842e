"""A wall clock that is set forward and back by hours: sessions pace by another, and do not care.

What tells of the wall clock (`replay_time`, `pong`) goes with it; nothing else does.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import trio
from websocket_rig import START, TRADES, running

from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import HOUR, MILLISECOND, MINUTE, SECOND
from tardisd.replay.manager import SessionLimits
from tardisd.replay.timeline import Tuning
from tardisd.testing.engine import run_engine

YEARS_FROM_NOW = 1_900_000_000 * SECOND
JUMPS = [3 * HOUR, -7 * HOUR, -MILLISECOND, 48 * HOUR, -50 * HOUR, 5 * HOUR]
LATE_SECS = 0.0011


class WallClock:
    """The time of day as a test sets it; it stands still in between."""

    def __init__(self):
        self.now = YEARS_FROM_NOW

    def jump(self, by):
        self.now += by


@pytest.fixture
def wall(monkeypatch):
    clock = WallClock()
    monkeypatch.setattr("tardisd.wall.time", SimpleNamespace(time_ns=lambda: clock.now))
    return clock


@pytest.mark.parametrize("speed", [1.0, 60.0])
def test_ticks_come_when_they_are_due_whatever_the_time_of_day(wall, speed):
    """Jumps while it runs, while it is paused, and at a seek; ticks come to the millisecond."""
    times = START + np.arange(0, 600, 5) * SECOND
    ones, sides = Decimals(np.ones(len(times), np.int64)), np.zeros(len(times), np.uint8)
    fields, ids = {"price": ones, "amount": ones}, np.arange(len(times))
    span, series = Span(START, START + 10 * MINUTE), Series.parse("binance:BTC/USDT@trade")

    async def main(engine):
        await engine.store(Batch(series, times, fields, ids, sides), span)
        whole = await engine.play([series], span, speed="max")
        session = await engine.create([series], span, speed=speed)
        listener = engine.listen(session)
        session.begin()
        begun, paused = trio.current_time(), 0.0
        for jump in JUMPS:
            await trio.sleep(30 / speed)
            wall.jump(jump)
            await trio.sleep(30 / speed)
            session.pause()
            before, clock = trio.current_time(), session.market()
            wall.jump(-jump * 2)
            await trio.sleep(17)
            assert session.market() == clock
            session.resume()
            paused += trio.current_time() - before
            for at, release in listener.arrivals()[-12:]:
                due = begun + (release - START) / SECOND / speed
                assert due - 1e-6 <= at <= due + paused + LATE_SECS
        await listener.done.wait()
        took = trio.current_time() - begun - paused
        assert took == pytest.approx(600 / speed, abs=LATE_SECS)
        assert listener.ticks() == whole.ticks()
        assert listener.end == whole.end

    run_engine(main)


async def test_clients_get_all_of_it_in_time_although_the_clock_is_set(wall, tmp_path):
    """Over a real socket: not sooner than the speed allows, and to the end."""
    limits = SessionLimits(tuning=Tuning(slice_ticks=16))
    async with running(tmp_path, limits=limits) as rig, rig.client() as client:
        span = {"series": [TRADES.text], "end_time": (START + MINUTE) // MILLISECOND}
        await client.create(session_id="whole", **span)
        whole = await client.until("end")
        await client.create(session_id="s", speed=40, start_paused=True, **span)
        begun = trio.current_time()
        await client.send("resume", session_id="s")
        jumps, sent, seqs, told = iter(JUMPS), {wall.now // MILLISECOND}, [], set()
        while (message := await client.get())["type"] != "end":
            if message["type"] != "tick":
                continue
            seqs.append(message["seq"])
            told.add(message["data"]["replay_time"])
            if len(seqs) % 60 == 0:
                wall.jump(next(jumps, 0))
                sent.add(wall.now // MILLISECOND)
                assert (await pong(client, seqs, told))["timestamp"] == wall.now // MILLISECOND
        assert trio.current_time() - begun >= 60 / 40
        assert seqs == [one["seq"] for one in whole if one["type"] == "tick"]
        assert (message["ticks"], message["hash"]) == (whole[-1]["ticks"], whole[-1]["hash"])
        assert len(sent) > 1, "the clock was set while it ran"
        assert told <= sent


async def pong(client, seqs, told):
    """Ask the time of day, and return the answer; ticks that come before it are counted."""
    await client.send("ping")
    while (message := await client.get())["type"] != "pong":
        assert message["type"] == "tick"
        seqs.append(message["seq"])
        told.add(message["data"]["replay_time"])
    return message
