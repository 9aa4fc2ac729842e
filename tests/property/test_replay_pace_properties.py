"""Under any row of verbs ticks come when a clock kept by hand says that they are due."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import trio
from hypothesis import given
from hypothesis import strategies as st

from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import MILLISECOND, MINUTE, SECOND, parse_time
from tardisd.testing.engine import run_engine

START = parse_time("2024-03-01T00:00:00Z")
SPAN = Span(START, START + 10 * MINUTE)
TRADES = Series.parse("binance:BTC/USDT@trade")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
LATE_SECS = 0.0011


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
