"""Indicators in sessions: names, times, gaps, seeks, options that are refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import MINUTE, parse_time
from tardisd.plugins.base import Context
from tardisd.plugins.sessions import SessionRequest
from tardisd.replay.manager import SessionLimits
from tardisd.replay.timeline import Tuning
from tardisd.testing.engine import run_engine, ticks_of
from tardisd.testing.ticks import random_candles, random_trades
from tardisd_indicators.plugin import Indicators, IndicatorsOptions

START = parse_time("2024-03-01T00:00:00Z")
MINUTES = Series.parse("binance:BTC/USDT@candle_1m")
FIVES = Series.parse("binance:BTC/USDT@candle_5m")
TRADES = Series.parse("binance:BTC/USDT@trade")
COUNT = 2600
SPAN = Span(START, START + COUNT * MINUTE)
REQUEST = SessionRequest(series=(), start=START, end=SPAN.end)
LIMITS = SessionLimits(tuning=Tuning(slice_ticks=50))


def make(*names, **more):
    options = IndicatorsOptions(indicators=names, **more) if names else IndicatorsOptions()
    return Indicators(options, Context("ind", Path(), None))


def values(blocks):
    """Return (series, event time, value) of everything derived."""
    return [
        (batch.series.text, at, text)
        for block in blocks
        for batch, _ in block.batches()
        if batch.series.data_type.kind == "indicator"
        for at, text in zip(batch.ts_event.tolist(), batch.fields["value"].texts(), strict=True)
    ]


async def fill(engine):
    await engine.store(random_candles(MINUTES, COUNT, START, 1), SPAN)
    await engine.store(random_trades(TRADES, 500, START, 2, mean_gap_ms=200_000), SPAN)


def play(plugin, series=(MINUTES, TRADES), span=SPAN, **options):
    async def main(engine):
        await fill(engine)
        return await engine.play(series, span, analyzers=("ind",), **{"speed": "max", **options})

    return run_engine(main, analyzers={"ind": plugin}, limits=LIMITS)


def test_values_come_at_the_close_and_no_sooner_than_there_are_candles_enough():
    plugin = make("sma_20", "rsi_14", "macd_12_26_9", "vwap")
    listener = play(plugin, span=Span(START, START + 60 * MINUTE))
    first = {}
    for name, at, _ in values(listener.blocks):
        first.setdefault(name.removeprefix("binance:BTC/USDT@indicator_1m_"), at)
    assert first == {
        "sma_20": START + 20 * MINUTE,
        "rsi_14": START + 15 * MINUTE,
        "macd_12_26_9_line": START + 34 * MINUTE,
        "macd_12_26_9_signal": START + 34 * MINUTE,
        "macd_12_26_9_histogram": START + 34 * MINUTE,
        "vwap": START + MINUTE,
    }


def test_every_series_of_candles_has_its_own_the_built_ones_too():
    listener = play(make("sma_3"), span=Span(START, START + 60 * MINUTE), derive=(FIVES,))
    names = [name for name, _, _ in values(listener.blocks)]
    assert names.count("binance:BTC/USDT@indicator_1m_sma_3") == 58
    assert names.count("binance:BTC/USDT@indicator_5m_sma_3") == 10
    months = Series.parse("okx:BTC/USDT@candle_1M")
    [one] = make("sma_2").start(REQUEST).update(random_candles(months, 2, START))
    assert one.series.text == "okx:BTC/USDT@indicator_1mo_sma_2"


@pytest.mark.parametrize("more", [{"publish_delay": 1_500_000_000}, {"release": "open-lookahead"}])
def test_candles_that_are_released_later_or_at_their_open(more):
    plain = values(play(make("ema_5", "doji")).blocks)
    shift = more.get("publish_delay", -MINUTE)
    moved = play(make("ema_5", "doji"), **more)
    last = SPAN.end  # a candle that is published after the end is not part of the session
    expected = [(name, at + shift, text) for name, at, text in plain if at + shift < last]
    found = values(moved.blocks)
    assert sorted(it for it in found if it[1] < last) == sorted(expected)
    assert moved.end["reason"] == "finished"


@pytest.mark.parametrize("place", [1999, 2400])
def test_a_seek_changes_no_value(place):
    plugin = make("ema_9", "rsi_7", "macd_3_6_4", "bollinger_20_2", "vwap", "doji")
    to = START + place * MINUTE

    async def main(engine):
        await fill(engine)
        whole = await engine.play([MINUTES, TRADES], SPAN, speed="max", analyzers=("ind",))
        session = await engine.create(
            [MINUTES, TRADES], SPAN, speed="max", start_paused=True, analyzers=("ind",)
        )
        listener = engine.listen(session)
        session.begin()
        session.seek(to)
        session.resume()
        await listener.done.wait()
        blocks = [block for block in listener.blocks if block.epoch == 2]
        expected = [it for it in values(whole.blocks) if it[1] >= to]
        assert sorted(values(blocks)) == sorted(expected)
        everything = [tick for block in blocks for tick in ticks_of(block)]
        assert everything == [tick for tick in whole.ticks() if tick[0] >= to]
        assert (await session.verify())["equal"]

    run_engine(main, analyzers={"ind": plugin}, limits=LIMITS)


def test_steps_forth_and_back_count_what_is_derived():
    plugin = make("ema_9", "vwap", "doji")
    span = Span(START, START + 60 * MINUTE)

    async def main(engine):
        await fill(engine)
        whole = (await engine.play([MINUTES], span, speed="max", analyzers=("ind",))).ticks()
        session = await engine.create(
            [MINUTES], span, speed="max", start_paused=True, analyzers=("ind",)
        )
        listener = engine.listen(session)
        session.begin()
        for count in (100, -31, 7):
            assert (await session.step(count).wait()).fields["count"] == count
        session.resume()
        await listener.done.wait()
        rest = [t for block in listener.blocks if block.epoch == 2 for t in ticks_of(block)]
        assert rest == whole[100 - 31 :]

    run_engine(main, analyzers={"ind": plugin}, limits=LIMITS)


def test_speed_changes_nothing():
    ends = [
        play(make(), span=Span(START, START + 90 * MINUTE), speed=speed).end
        for speed in ("max", 60.0, 6000.0)
    ]
    assert len({end["hash"] for end in ends}) == 1
    assert len({end["ticks"] for end in ends}) == 1


def test_candles_that_lack_are_not_made_up():
    """A short hole is passed over; after one longer than a stretch all begins anew."""
    candles = random_candles(MINUTES, 6000, START, 1)
    [whole] = make("sma_10").start(REQUEST).update(candles)
    for hole, fresh in ((30, 0), (2200, 9)):
        keep = np.ones(6000, np.bool_)
        keep[1500 : 1500 + hole] = False
        [one] = make("sma_10").start(REQUEST).update(candles[keep])
        assert len(one) == len(whole) - hole - fresh
        assert one.ts_event[-1] == whole.ts_event[-1]
        after = int(candles.ts_event[1500 + hole])
        assert int(one.ts_event[one.ts_event > after][0]) == after + (1 + fresh) * MINUTE
        texts, those = one.fields["value"].texts(), whole.fields["value"].texts()
        assert texts[-1000:] == those[-1000:]


def test_what_a_session_needs_of_the_past():
    def needs(plugin, *names, **more):
        series = tuple(Series.parse(f"binance:BTC/USDT@{name}") for name in names)
        request = replace(REQUEST, series=series, **more)
        return plugin.warmup_for(request) // MINUTE

    assert needs(make(), "trade") == 0
    assert needs(make("sma_20"), "candle_1m", "trade") == 2001
    assert needs(make("rsi_50"), "candle_1m") == 2 * 38 * 50 + 1
    assert needs(make("sma_20"), "candle_1m", derive=(FIVES,)) == 5 * 2001
    assert needs(make("vwap"), "candle_1m") == 24 * 60 + 1
    assert needs(make("sma_20"), "candle_1m", publish_delay=MINUTE) == 2002


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["rsi14"], "'rsi14' is not an indicator; did you mean 'rsi_14'? known: sma_20, ema_50"),
        (["ichimoku"], "'ichimoku' is not an indicator; known: sma_20"),
        (["dojo"], "did you mean 'doji'"),
        (["ema"], "'ema' is not an indicator; write it as 'ema_50'"),
        (["macd_12_26"], "write it as 'macd_12_26_9'"),
        (["ema_0"], "write it as 'ema_50'"),
        (["ema_501"], "'ema_501': 501 is not within 2..500; write it as 'ema_50'"),
        (["macd_26_12_9"], "the first number is the faster one, below 12"),
        (["vwap", "vwap"], "'vwap' is there twice; remove one"),
        ([f"sma_{n}" for n in range(2, 67)], "65 values for each candle, 64 are allowed"),
    ],
)
def test_what_is_wrong_with_a_name_is_said(names, told):
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"indicators": names}, IndicatorsOptions)
    assert told in str(caught.value)


def test_without_the_library_it_says_how_to_get_it(tmp_path):
    (tmp_path / "talib.py").write_text("raise ImportError('no talib', name='talib')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from tardisd.plugins.registry import Registry\n"
        "[it] = [it for it in Registry.discover([]).plugins if it.module == 'tardisd_indicators']\n"
        "print(it.state, it.reason, sep='|')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    reason = "package TA-Lib is missing or does not fit; pip install 'tardisd[indicators]'"
    assert done.stdout == f"unavailable|{reason}\n"
