"""Any order of verbs, followers and waits ends with the same replay; nothing comes too early."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import MILLISECOND, MINUTE, SECOND, parse_time
from tardisd.plugins.sessions import Evicted, Notice
from tardisd.replay.fanout import QueueLimits
from tardisd.replay.manager import SessionLimits
from tardisd.replay.timeline import Tuning
from tardisd.testing.engine import run_engine

START = parse_time("2024-03-01T00:00:00Z")
SPAN = Span(START, START + 10 * MINUTE)
TRADES = Series.parse("binance:BTC/USDT@trade")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
LATE_SECS = 0.0011
# Small queues, so that a follower that does not read is soon felt.
LIMITS = SessionLimits(
    tuning=Tuning(slice_ticks=8, limits=QueueLimits(blocking_ticks=16, lagging_ticks=40))
)


def batches():
    """Return trades in bursts on whole seconds and between them, and candles with a hole."""
    times = START + np.sort(
        np.concatenate([np.arange(0, 600, 3) * SECOND, np.arange(0, 600, 7) * SECOND + 1,
                        np.full(20, 120 * SECOND), 300 * SECOND + np.arange(60) * MILLISECOND])
    )  # fmt: skip
    ones = Decimals(np.ones(len(times), np.int64))
    fields = {"price": ones, "amount": ones}
    ids, sides = np.arange(len(times)), np.zeros(len(times), np.uint8)
    opens = START + np.array([0, 1, 2, 5, 6, 7, 8, 9]) * MINUTE
    flat = Decimals(np.ones(len(opens), np.int64))
    candle = dict.fromkeys(("open", "high", "low", "close", "volume"), flat)
    return [Batch(TRADES, times, fields, ids, sides), Batch(CANDLES, opens, candle)]


async def fill(engine):
    trades, candles = batches()
    holes = [Span(SPAN.start, START + 4 * MINUTE), Span(START + 4 * MINUTE + 30 * SECOND, SPAN.end)]
    await engine.store(trades, Coverage(holes))
    await engine.store(candles, SPAN)


async def reference(engine):
    await fill(engine)
    return await engine.play([TRADES, CANDLES], SPAN, speed="max")


UNINTERRUPTED = run_engine(reference)

speeds = st.sampled_from(["max", 0.5, 1.0, 10.0, 60.0, 100.0, 1000.0, 33.3])
actions = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.001, 0.0405, 0.5, 1.0, 7.0, 59.0])),
    st.tuples(st.just("wait"), st.floats(0, 5)),
    st.tuples(st.just("pause")),
    st.tuples(st.just("resume")),
    st.tuples(st.just("speed"), speeds),
    st.tuples(st.just("subscribe"), st.sampled_from(["block", "disconnect", "drop_oldest"])),
    st.tuples(st.just("stuck"), st.sampled_from(["block", "drop_oldest", "conflate"])),
    st.tuples(st.just("leave")),
    st.tuples(st.just("read"), st.integers(1, 30)),
)


class Play:
    """One session under the verbs of a test, watched at every step."""

    def __init__(self, engine, session):
        self.engine = engine
        self.session = session
        self.witness = engine.listen(session)
        self.followers = []
        self.stuck = []
        self.clock = START

    def look(self):
        """Check what must hold at any moment."""
        market = self.session.market()
        assert market >= self.clock, "time went backwards"
        self.clock = market
        heard = [item for item in self.witness.heard if not isinstance(item.item, Notice)]
        if heard:
            assert heard[-1].item.last_release <= market
            assert self.session.status()["seq"] >= heard[-1].item.first_seq

    async def act(self, action, *arguments):
        session = self.session
        verbs = {
            "pause": session.pause,
            "resume": session.resume,
            "speed": session.change_speed,
        }
        if action in verbs and session.has_ended:
            with pytest.raises(RequestError, match="it has finished"):
                verbs[action](*arguments)
        elif action in verbs:
            verbs[action](*arguments)
        elif action == "wait":
            await trio.sleep(*arguments)
        elif action == "subscribe":
            seq = session.status()["seq"]
            self.followers.append((seq, self.engine.listen(session, *arguments)))
        elif action == "stuck":
            self.stuck.append(session.subscribe(*arguments))
        elif action == "leave" and self.stuck:
            self.stuck.pop().close()
        elif action == "read":
            await self.read(*arguments)

    async def read(self, items):
        """Read a little of what the oldest stuck follower has waiting."""
        if not self.stuck:
            return
        for _ in range(items):
            if not self.stuck[0]._queue:
                return
            try:
                await self.stuck[0].receive()
            except (Evicted, trio.EndOfChannel):
                return


@settings(max_examples=150)
@given(
    st.lists(actions, max_size=25),
    speeds,
    st.booleans(),
    st.sampled_from(["mark", "skip"]),
)
def test_any_order_of_verbs_ends_with_the_same(steps, speed, paused, on_gap):
    async def main(engine):
        await fill(engine)
        session = await engine.create(
            [TRADES, CANDLES], SPAN, speed=speed, start_paused=paused, on_gap=on_gap
        )
        play = Play(engine, session)
        session.begin()
        for step in steps:
            await play.act(*step)
            play.look()
        for follower in play.stuck:
            follower.close()
        if not session.has_ended:
            session.change_speed("max")
            session.resume()
        await play.witness.done.wait()
        check_witness(play.witness)
        for seq, follower in play.followers:
            await follower.done.wait()
            assert follower.evicted is None
            assert follower.seqs() == list(range(seq + 1, len(UNINTERRUPTED.seqs()) + 1))
            assert follower.end == UNINTERRUPTED.end

    run_engine(main, limits=LIMITS)


def check_witness(witness):
    assert witness.ticks() == UNINTERRUPTED.ticks()
    assert witness.seqs() == UNINTERRUPTED.seqs()
    assert witness.end == UNINTERRUPTED.end
    assert witness.notices("gap") == UNINTERRUPTED.notices("gap")
    paused, clock = False, 0
    for heard in witness.heard:
        item = heard.item
        if not isinstance(item, Notice):
            assert not paused, "a tick while it was paused"
            assert int(item.release[0]) // MILLISECOND >= clock, "a tick from before a verb"
        elif item.type == "gap":
            assert not paused
        elif item.type != "end":
            paused = item.type == "paused" or (paused and item.type != "resumed")
            assert item.fields["clock"] >= clock
            clock = item.fields["clock"]


paced = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.floats(0.01, 30)),
        st.tuples(st.just("pause"), st.floats(0, 30)),
        st.tuples(st.just("speed"), st.sampled_from([0.5, 1.0, 10.0, 60.0, 33.3])),
    ),
    max_size=15,
)


@given(paced)
def test_ticks_come_exactly_when_a_model_of_the_clock_says(steps):
    """A second clock, kept by hand from the same verbs, tells when each tick is due."""

    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES, CANDLES], SPAN, speed=10.0)
        witness = engine.listen(session)
        session.begin()
        lines, wall, market, speed = [], trio.current_time(), 0.0, 10.0
        for action, value in steps:
            if session.has_ended:
                break
            if action == "run":
                await trio.sleep(value)
                if session.has_ended:
                    break
                lines.append((wall, market, speed))
                market += (trio.current_time() - wall) * speed
            elif action == "pause":
                session.pause()
                await trio.sleep(value)
                session.resume()
            else:
                session.change_speed(value)
                speed = value
            wall = trio.current_time()
        lines.append((wall, market, speed))
        await witness.done.wait()
        for at, release in witness.arrivals():
            second = (release - START) / SECOND
            # At a border between two paces the tick may fall on either side of it.
            dues = [
                begun + (second - base) / pace
                for (begun, base, pace), (_, until, _) in pairwise([*lines, (0, 1e9, 0)])
                if base - 1e-6 <= second <= until + 1e-6
            ]
            assert any(-1e-6 <= at - due <= LATE_SECS for due in dues), (at, dues)

    run_engine(main)


def test_the_reference_is_what_it_should_be():
    ticks = UNINTERRUPTED.ticks()
    assert len(ticks) == sum(len(batch) for batch in batches())
    assert [tick[0] for tick in ticks] == sorted(tick[0] for tick in ticks)
    assert [notice.fields["series"] for notice in UNINTERRUPTED.notices("gap")] == [
        CANDLES.text,
        TRADES.text,
    ]
    assert UNINTERRUPTED.end["ticks"] == len(ticks)
    assert UNINTERRUPTED.seqs() == list(range(1, len(ticks) + 3))
