"""Gaps of sessions: told at their start, counted by seq, skipped or fatal when asked for."""

from __future__ import annotations

import numpy as np
import pytest
import trio

from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.market.time import HOUR, MILLISECOND, MINUTE, SECOND, parse_time
from tardisd.testing.engine import run_engine

START = parse_time("2024-03-01T00:00:00Z")
TRADES = Series.parse("binance:BTC/USDT@trade")
OTHERS = Series.parse("bybit:BTC/USDT@trade")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
HOURS = Series.parse("binance:BTC/USDT@candle_1h")


def minutes(first, last):
    return Span(START + first * MINUTE, START + last * MINUTE)


def trades_at(times, series=TRADES):
    ones = Decimals(np.ones(len(times), np.int64))
    ids, sides = np.arange(len(times)), np.zeros(len(times), np.uint8)
    fields = {"price": ones, "amount": ones}
    return Batch(series, np.array(times, np.int64), fields, ids, sides)


def candles_at(opens, series=CANDLES):
    ones = Decimals(np.ones(len(opens), np.int64))
    fields = dict.fromkeys(("open", "high", "low", "close", "volume"), ones)
    return Batch(series, np.array(opens, np.int64), fields)


def told(listener):
    """Return (seq, series, from, to, cause) of the gaps heard, in minutes from the start."""
    return [
        (
            notice.fields["seq"],
            notice.fields["series"],
            (notice.fields["from"] * MILLISECOND - START) / MINUTE,
            (notice.fields["to"] * MILLISECOND - START) / MINUTE,
            notice.fields["cause"],
        )
        for notice in listener.notices("gap")
    ]


def test_uncovered_time_is_told_at_its_start():
    """Before, between and after what is stored; recorded causes where there are any."""
    times = [START + n * MINUTE for n in (2, 3, 6)]
    covered = Coverage([minutes(1, 4), minutes(6, 8)])

    async def main(engine):
        await engine.store(trades_at(times), covered)
        await engine.storage.record_gaps(TRADES, [Gap(minutes(8, 9), "delisted")])
        heard = await engine.play([TRADES], minutes(0, 10), speed=60.0)
        assert told(heard) == [
            (1, TRADES.text, 0, 1, "not_fetched"),
            (4, TRADES.text, 4, 6, "not_fetched"),
            (6, TRADES.text, 8, 9, "delisted"),
            (7, TRADES.text, 9, 10, "not_fetched"),
        ]
        assert heard.seqs() == list(range(1, 8))
        marks = [item.at for item in heard.heard if getattr(item.item, "type", "") == "gap"]
        assert marks == pytest.approx([0, 4, 8, 9], abs=0.002)
        assert heard.end["ticks"] == 3
        assert trio.current_time() == pytest.approx(10, abs=0.002), "time ran on"

    run_engine(main)


def test_holes_between_candles_are_gaps_and_a_zero_volume_candle_is_none():
    opens = [START + n * MINUTE for n in (0, 1, 4, 7)]

    async def main(engine):
        await engine.store(candles_at(opens), minutes(0, 10))
        await engine.storage.record_gaps(CANDLES, [Gap(minutes(5, 7), "exchange_down")])
        heard = await engine.play([CANDLES], minutes(0, 10), speed="max")
        assert told(heard) == [
            (3, CANDLES.text, 2, 4, "unknown"),
            (5, CANDLES.text, 5, 7, "exchange_down"),
            (7, CANDLES.text, 8, 10, "unknown"),
        ]
        assert heard.seqs() == list(range(1, 8))

    run_engine(main)


def test_an_empty_series_among_others_is_one_gap():
    async def main(engine):
        await engine.store(trades_at([START + MINUTE]), minutes(0, 10))
        heard = await engine.play([TRADES, OTHERS, HOURS], minutes(0, 10), speed="max")
        assert told(heard) == [(1, OTHERS.text, 0, 10, "not_fetched")]
        assert heard.end["ticks"] == 1

    run_engine(main)


def test_bounds_that_cut_candles_are_no_gaps():
    opens = [START + n * MINUTE for n in range(10)]

    async def main(engine):
        await engine.store(candles_at(opens), minutes(0, 10))
        span = Span(START + 30 * SECOND, START + 5 * MINUTE + 30 * SECOND)
        heard = await engine.play([CANDLES], span, speed="max")
        assert told(heard) == []
        assert [event for _, _, event in heard.ticks()] == opens[1:5]

    run_engine(main)


def test_a_mark_is_cut_at_the_end_of_the_session():
    async def main(engine):
        await engine.store(trades_at([START]), minutes(0, 1))
        await engine.store(trades_at([START + HOUR]), Span(START + HOUR, START + 2 * HOUR))
        heard = await engine.play([TRADES], minutes(0, 30), speed="max")
        assert told(heard) == [(2, TRADES.text, 1, 30, "not_fetched")]

    run_engine(main)


def test_skipping_jumps_only_where_all_series_have_gaps():
    async def main(engine):
        await engine.store(trades_at([START, START + 40 * MINUTE]), Coverage(
            [minutes(0, 1), minutes(40, 60)]))  # fmt: skip
        await engine.store(trades_at([START, START + 10 * MINUTE], OTHERS), Coverage(
            [minutes(0, 11)]))  # fmt: skip
        heard = await engine.play([TRADES, OTHERS], minutes(0, 60), speed=60.0, on_gap="skip")
        assert told(heard) == [
            (3, TRADES.text, 1, 40, "not_fetched"),
            (5, OTHERS.text, 11, 60, "not_fetched"),
        ]
        # 11 minutes of the one, then a jump to where the other goes on, for 20 minutes.
        assert [round(at, 2) for at, _ in heard.arrivals()] == [0, 0, 10, 11]
        assert trio.current_time() == pytest.approx(31, abs=0.01)

    run_engine(main)


def test_a_gap_at_the_end_is_skipped_too():
    async def main(engine):
        await engine.store(trades_at([START]), minutes(0, 1))
        heard = await engine.play([TRADES], minutes(0, 600), speed=1.0, on_gap="skip")
        assert heard.end["reason"] == "finished"
        assert trio.current_time() == pytest.approx(60, abs=0.01)

    run_engine(main)


def test_skipping_and_marking_give_the_same_ticks_and_hash():
    times = [START + n * MINUTE for n in (2, 3, 30, 31)]
    covered = Coverage([minutes(2, 4), minutes(30, 32)])

    async def main(engine):
        await engine.store(trades_at(times), covered)
        runs = [
            await engine.play([TRADES], minutes(0, 40), speed=600.0, on_gap=on_gap)
            for on_gap in ("mark", "skip")
        ]
        assert runs[0].ticks() == runs[1].ticks()
        assert runs[0].seqs() == runs[1].seqs()
        assert runs[0].end == runs[1].end

    run_engine(main)


def test_failing_at_a_gap_says_where():
    async def main(engine):
        await engine.store(trades_at([START, START + MINUTE]), minutes(0, 2))
        heard = await engine.play([TRADES], minutes(0, 10), speed=60.0, on_gap="fail")
        assert told(heard) == [(3, TRADES.text, 2, 10, "not_fetched")]
        end = heard.end
        assert (end["reason"], end["ticks"]) == ("failed", 2)
        assert end["message"] == (
            f"{TRADES} has no data from 2024-03-01T00:02:00.000Z to 2024-03-01T00:10:00.000Z"
            " (not_fetched), and on_gap is 'fail'"
        )

    run_engine(main)


def test_gaps_of_candles_come_after_the_candle_before_them():
    """With a publish delay too: nothing of the future is told by a gap."""

    async def main(engine):
        await engine.store(candles_at([START]), minutes(0, 1))
        heard = await engine.play([CANDLES], minutes(0, 5), speed=60.0, publish_delay=30 * SECOND)
        assert [round(at, 2) for at, _ in heard.arrivals()] == [1.5]
        assert told(heard) == [(2, CANDLES.text, 1, 5, "not_fetched")]

    run_engine(main)


def test_no_series_with_data_is_refused_and_told_what_there_is():
    async def main(engine):
        with pytest.raises(RequestError) as caught:
            await engine.create([TRADES], minutes(0, 1))
        assert caught.value.code == "no_data"
        assert caught.value.message == (
            f"no data for {TRADES}: it is not stored; stored: nothing at all"
        )
        await engine.store(trades_at([START], OTHERS), minutes(0, 1))
        await engine.store(candles_at([START]), minutes(0, 1))
        with pytest.raises(RequestError, match=f"it is not stored; stored: {CANDLES}, {OTHERS}"):
            await engine.create([TRADES], minutes(0, 1))
        with pytest.raises(RequestError) as caught:
            await engine.create([OTHERS, CANDLES], minutes(5, 9))
        assert f"stored: {CANDLES} 2024-03-01T00:00:00.000Z..2024-03-01T00:01:00.000Z" in (
            caught.value.message
        )
        # A candle that does not fit into the session is no data either.
        with pytest.raises(RequestError, match="no data for"):
            await engine.create([CANDLES], Span(START, START + 30 * SECOND))

    run_engine(main)
