"""Indicators are the same however candles are cut, wherever one begins, and what TA-Lib says."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from itertools import pairwise
from pathlib import Path

import numpy as np
import talib
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.time import parse_time
from tardisd.plugins.base import Context
from tardisd.plugins.sessions import SessionRequest
from tardisd.testing.ticks import random_candles
from tardisd_indicators.analysis import quantised
from tardisd_indicators.catalogue import KNOWN
from tardisd_indicators.plugin import Indicators, IndicatorsOptions

START = parse_time("2024-02-28T21:00:00Z")
CANDLES = random_candles(Series.parse("binance:BTC/USDT@candle_1m"), 3300, START, 7)
REQUEST = SessionRequest(series=(CANDLES.series,), start=START, end=START + 10**18)
PLUGIN = Indicators(
    IndicatorsOptions(indicators=("sma_5", "ema_9", "rsi_7", "macd_3_6_4", "bollinger_20_2",
                                  "stochastic_5_3_3", "vwap", "doji", "harami")),
    Context("ind", Path(), None),
)  # fmt: skip


def run(batches, plugin=PLUGIN):
    analysis = plugin.start(REQUEST)
    found = {}
    for batch in batches:
        for one in analysis.update(batch):
            name = one.series.data_type.name.removeprefix("indicator_1m_")
            texts = one.fields["value"].texts()
            found.setdefault(name, []).extend(zip(one.ts_event.tolist(), texts, strict=True))
    return found


def pieces(candles, cuts):
    ends = [0, *sorted(cuts), len(candles)]
    return [candles[a:b] for a, b in pairwise(ends)]


WHOLE = run([CANDLES])


@given(st.sets(st.integers(0, len(CANDLES)), max_size=60), st.integers(1, len(CANDLES)))
@settings(max_examples=25, deadline=None)
def test_cuts_and_ends_change_nothing(cuts, last):
    found = run(pieces(CANDLES[:last], {cut for cut in cuts if cut < last}))
    until = int(CANDLES.release()[last - 1])
    expected = {name: [it for it in some if it[0] <= until] for name, some in WHOLE.items()}
    assert found == {name: some for name, some in expected.items() if some}


@given(st.integers(2010, len(CANDLES) - 1), st.integers(0, 300))
@settings(max_examples=25, deadline=None)
def test_who_has_seen_the_warmup_has_seen_enough(place, more):
    to = int(CANDLES.release()[place])
    begin = to - PLUGIN.warmup_for(REQUEST)
    first = max(0, int(CANDLES.release().searchsorted(begin, "left")) - more)
    found = run(pieces(CANDLES[first:], {place - first}))
    for name, some in WHOLE.items():
        assert [it for it in found[name] if it[0] >= to] == [it for it in some if it[0] >= to]


@given(
    st.lists(
        st.floats(-1e18, 1e18) | st.floats(-10, 10) | st.sampled_from([0.5, -1.5, 2.0**62]),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 12),
)
@example([0.99999999999999, -0.99999999999999, 1.0], 3)
@settings(max_examples=200)
def test_values_are_rounded_to_decimals(values, decimals):
    found = quantised(np.array(values), decimals)
    step = Decimal(1).scaleb(-decimals)
    for value, text in zip(values, found.texts(), strict=True):
        assert len(text.partition(".")[2]) <= decimals
        # The product with a power of ten is rounded to a float first: half a step and a whisker.
        assert abs(Decimal(text) - Decimal(value)) <= step * (Decimal("0.5") + Decimal("1e-3"))
        if decimals == 0 and abs(value) < 1e15:
            assert Decimal(text) == Decimal(value).to_integral_value(ROUND_HALF_EVEN)


def test_they_are_what_the_library_says_of_all_candles_at_once():
    """Although no value is computed from more than two stretches: what is older has no weight."""
    plugin = Indicators(IndicatorsOptions(indicators=KNOWN), Context("ind", Path(), None))
    found = run([CANDLES], plugin)
    columns = {name: column.floats() for name, column in CANDLES.fields.items()}
    o, h, l, c, v = (columns[name] for name in ("open", "high", "low", "close", "volume"))  # noqa: E741
    # The bands of TA-Lib before 0.8 are wrong from the fourth digit after the point on.
    windows = np.lib.stride_tricks.sliding_window_view(c - c[0], 20)
    unknown = np.full(19, np.nan)
    middle = np.concatenate([unknown, windows.mean(axis=1) + c[0]])
    width = np.concatenate([unknown, 2 * windows.std(axis=1)])
    line, signal, histogram = talib.MACD(c, 12, 26, 9)
    k, d = talib.STOCH(h, l, c, fastk_period=14, slowk_period=3, slowd_period=3)
    expected = {
        "sma_20": talib.SMA(c, 20), "ema_50": talib.EMA(c, 50), "wma_20": talib.WMA(c, 20),
        "rsi_14": talib.RSI(c, 14), "atr_14": talib.ATR(h, l, c, 14),
        "adx_14": talib.ADX(h, l, c, 14), "roc_10": talib.ROC(c, 10),
        "cci_20": talib.CCI(h, l, c, 20), "mfi_14": talib.MFI(h, l, c, v, 14),
        "bollinger_20_2_upper": middle + width, "bollinger_20_2_middle": middle,
        "bollinger_20_2_lower": middle - width, "macd_12_26_9_line": line,
        "macd_12_26_9_signal": signal, "macd_12_26_9_histogram": histogram,
        "stochastic_14_3_3_k": k, "stochastic_14_3_3_d": d,
    }  # fmt: skip
    for name, values in expected.items():
        there = np.isfinite(values)
        assert [at for at, _ in found[name]] == CANDLES.release()[there].tolist(), name
        ours = np.array([float(text) for _, text in found[name]])
        assert np.abs(ours - values[there]).max() < (1e-6 if name == "cci_20" else 2e-8), name
    for name in ("doji", "engulfing", "hammer"):
        values = getattr(talib, f"CDL{name.upper()}")(o, h, l, c)
        rows = zip(CANDLES.release().tolist(), values.tolist(), strict=True)
        assert found[name] == [(at, str(value)) for at, value in rows if value], name


def test_vwap_begins_anew_at_midnight():
    exact = {
        name: [Decimal(it) for it in column.texts()] for name, column in CANDLES.fields.items()
    }
    rows = zip(CANDLES.ts_event.tolist(), CANDLES.release().tolist(), exact["high"], exact["low"],
               exact["close"], exact["volume"], strict=True)  # fmt: skip
    day, expected = None, []
    for opened, closed, high, low, close, volume in rows:
        if opened // (86_400 * 10**9) != day:
            day, amount, total = opened // (86_400 * 10**9), Decimal(0), Decimal(0)
        amount += (high + low + close) / 3 * volume
        total += volume
        expected.append((closed, amount / total))
    assert [at for at, _ in WHOLE["vwap"]] == [at for at, _ in expected]
    for (_, text), (_, value) in zip(WHOLE["vwap"], expected, strict=True):
        assert abs(Decimal(text) - value) < Decimal("2e-8")


def test_the_smallest_prices_have_bands():
    """A variance below 1e-14 is nothing to TA-Lib; a coin at 0.00001 has no larger one."""
    small = random_candles(
        CANDLES.series, 100, START, 3, base_price="0.00001", tick_size="0.00000000001"
    )
    large = random_candles(CANDLES.series, 100, START, 3, base_price="100000", tick_size="0.1")
    options = IndicatorsOptions(indicators=("bollinger_20_2",), decimals=12)
    plugin = Indicators(options, Context("ind", Path(), None))
    ours, scaled = run([small], plugin), run([large], plugin)
    for name, some in ours.items():
        for (_, text), (_, larger) in zip(some, scaled[name], strict=True):
            assert abs(Decimal(text) * 10**10 - Decimal(larger)) < Decimal("0.02")
    upper = [text for _, text in ours["bollinger_20_2_upper"]]
    assert upper != [text for _, text in ours["bollinger_20_2_lower"]]


def test_how_a_column_holds_its_values_makes_no_difference():
    wide = {}
    for name, column in CANDLES.fields.items():
        whole, fraction = column.parts()
        wide[name] = Decimals(whole, 0, fraction)
    assert run([Batch(CANDLES.series, CANDLES.ts_event, wide)]) == WHOLE
