"""Every page check finds what it is for, in the row where it stands, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardisd.errors import DataError
from tardisd.market.check import check_batch
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import EARLIEST, LATEST, MINUTE
from tardisd.testing.ticks import random_candles, random_trades

TRADES = Series.parse("binance:BTC/USDT@trade")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
START = EARLIEST + 1000 * MINUTE
COUNT = 12
places = st.integers(0, COUNT - 1)
later_places = st.integers(1, COUNT - 1)


def candles():
    return random_candles(CANDLES, COUNT, START)


def trades():
    return random_trades(TRADES, COUNT, START, mean_gap_ms=1000)


def with_value(batch, name, at, text):
    values = batch.fields[name].texts()
    values[at] = text
    return replace(batch, fields={**batch.fields, name: Decimals.of(values)})


def with_time(batch, at, ts):
    times = batch.ts_event.copy()
    times[at] = ts
    return replace(batch, ts_event=times)


def refused(batch, message, row=None, span=None):
    with pytest.raises(DataError, match=message) as caught:
        check_batch(batch, span)
    if row is not None:
        assert caught.value.row == row
    return caught.value


def test_sane_batches_pass():
    for batch in (candles(), trades(), Batch.empty(TRADES), Batch.empty(CANDLES)):
        check_batch(batch)
        if len(batch):
            check_batch(batch, batch.extent())


@given(places, st.sampled_from([0, EARLIEST - 1, LATEST, 2**62, -1]))
def test_times_outside_the_known_years(at, ts):
    refused(with_time(trades(), at, ts), r"time is outside 2009\.\.2100", at)


@given(later_places)
def test_time_that_goes_backwards(at):
    batch = candles()
    refused(with_time(batch, at, int(batch.ts_event[at - 1]) - 1), "time goes backwards", at)


@given(places)
def test_rows_outside_the_span(at):
    batch = candles()
    opened = int(batch.ts_event[at])
    refused(batch, "outside the page's span", 0, Span(opened + 1, LATEST))
    refused(batch, "outside the page's span", at, Span(START, opened))


@given(places, st.sampled_from(["open", "high", "low", "close", "volume"]))
def test_missing_values(at, name):
    refused(with_value(candles(), name, at, None), "value is missing", at)
    check_batch(with_value(candles(), "trades", at, None))
    fields = {key: column for key, column in candles().fields.items() if key != name}
    refused(replace(candles(), fields=fields), f"column {name} is missing")


@given(places, st.sampled_from(["open", "close", "low"]))
def test_a_high_that_is_none(at, name):
    error = refused(with_value(candles(), name, at, "900000000000.5"), "is (below|above)", at)
    assert error.column in ("high", "low")


@given(places, st.sampled_from(["open", "close", "high"]))
def test_a_low_that_is_none(at, name):
    refused(with_value(candles(), name, at, "0.000000000000000001"), "is (below|above)", at)


@given(
    places, st.sampled_from(["volume", "quote_volume", "trades"]), st.sampled_from(["-1", "-1e-18"])
)
def test_negative_volumes(at, name, text):
    refused(with_value(candles(), name, at, text), f"{name} is negative", at)


@given(places)
def test_negative_amounts(at):
    refused(with_value(trades(), "amount", at, "-0.00001"), "amount is negative", at)


@given(later_places)
def test_two_candles_with_one_open(at):
    batch = candles()
    twice = with_time(batch, at, int(batch.ts_event[at - 1]))
    refused(twice, r"two candles open at 2009-01-01T", at)


@given(places, places, st.booleans())
def test_two_trades_with_one_id(first, second, as_text):
    batch = trades()
    keys = batch.ids.copy()
    keys[second] = keys[first]
    if as_text:
        keys = keys.astype(np.bytes_)
    if first == second:
        check_batch(replace(batch, ids=keys))
    else:
        refused(replace(batch, ids=keys), "two rows have one id", max(first, second))


def test_absent_ids_are_no_ids():
    check_batch(replace(trades(), ids=np.zeros(COUNT, "S1")))
    check_batch(replace(trades(), ids=None))


@given(st.permutations(range(COUNT)))
def test_ids_need_not_rise(order):
    batch = trades()
    check_batch(replace(batch, ids=batch.ids[np.array(order)]))
