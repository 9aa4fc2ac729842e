"""Folding candles: products and sums are exact or absent, and a group may be folded in parts."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from derive_model import text_of
from hypothesis import given
from hypothesis import strategies as st
from tick_strategies import batch_of, number_columns

from tardisd.errors import DataError
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.fold import as_candles, fold, product, running
from tardisd.market.series import Series
from tardisd.market.time import parse_time

START = parse_time("2024-03-01T00:00:00Z")
HOURS = Series.parse("binance:BTC/USDT@candle_1h")
TRADES = Series.parse("binance:BTC/USDT@trade")


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(*[number_columns(n, False)] * 2)))
def test_products_are_exact_or_absent(columns):
    found = product(*(Decimals.of(column) for column in columns)).texts()
    rows = zip(*columns, strict=True)
    assert found == [text_of(Fraction(left) * Fraction(right)) for left, right in rows]


@st.composite
def trades(draw, most=24):
    """Draw trades of one hour, some of nothing."""
    rows = draw(st.integers(1, most))
    prices, amounts = draw(number_columns(rows, False)), draw(number_columns(rows, False))
    silent = draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    amounts = [
        "0" if none else text.lstrip("-").partition(".")[0][-15:]
        for text, none in zip(amounts, silent, strict=True)
    ]
    cells = zip(prices, amounts, strict=True)
    return batch_of(TRADES, [{"ts_event": START, "price": p, "amount": a} for p, a in cells])


@given(trades(), st.data())
def test_a_group_may_be_folded_in_parts(batch, data):
    rows = as_candles(batch, HOURS)
    whole = fold(rows, np.array([0]))
    cuts = data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=5))
    parts = fold(rows, np.array(sorted({0, *cuts})))
    again = fold(parts, np.array([0]))
    assert again.fields.keys() == whole.fields.keys()
    # A sum that is too large in part is too large as a whole, unless prices of both signs meet.
    if rows.fields["open"].less_than(Decimals(np.zeros(len(rows), np.int64))).any():
        again, whole = (_without(one, "quote_volume") for one in (again, whole))
    assert same_rows(again, whole).all()


@given(trades(), st.data())
def test_running_is_folding_up_to_each_row(batch, data):
    rows = as_candles(batch, HOURS)
    starts = np.array(sorted({0, *data.draw(st.sets(st.integers(0, len(rows) - 1)))}))
    found = running(rows, starts)
    for row in range(len(rows)):
        first = int(starts[starts <= row][-1])
        one = fold(rows[first : row + 1], np.array([0]))
        assert same_rows(found[row : row + 1], one).all()


def _without(batch: Batch, name: str) -> Batch:
    fields = {key: column for key, column in batch.fields.items() if key != name}
    return Batch(batch.series, batch.ts_event, fields)


def test_a_volume_that_cannot_be_kept_is_refused():
    rows = [{"ts_event": START, "price": "1", "amount": str(2**63 - 1)}] * 2
    with pytest.raises(DataError, match="too large to be kept exactly"):
        fold(as_candles(batch_of(TRADES, rows), HOURS), np.array([0]))
