"""What the test venues print and count, against the plainest way of doing the same."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.time import SECOND
from tardisd.testing.venues.meters import Meter
from tardisd.testing.venues.printing import Rows, decimals, integers, print_rows, product
from tardisd.venue.budget import Limit

SERIES = Series.parse("binance:BTC/USDT@agg_trade")
VALUES = st.decimals(0, 10**9, places=8, allow_nan=False, allow_infinity=False)
COLUMNS = st.lists(VALUES, min_size=1, max_size=30)


def column_of(values):
    return Decimals.of([f"{value:f}" for value in values])


def lines(cell, count):
    return print_rows([cell, b"\n"], count)[0].decode().splitlines()


@given(COLUMNS, st.integers(8, 12))
def test_fixed_decimals_have_all_their_digits(values, digits):
    got = lines(decimals(column_of(values), digits), len(values))
    assert got == [f"{value:.{digits}f}" for value in values]


@given(COLUMNS, st.integers(0, 3))
def test_trimmed_decimals_have_no_zeros_to_spare(values, least):
    got = lines(decimals(column_of(values), 8, least), len(values))
    for text, value in zip(got, values, strict=True):
        assert Decimal(text) == value
        fraction = text.partition(".")[2]
        assert len(fraction) >= least
        assert len(fraction) == least or fraction[-1] != "0"
        assert "." in text or not least
        assert not text.endswith(".")


@given(COLUMNS, st.integers(0, 10))
def test_products_are_cut_not_rounded(values, digits):
    column = column_of(values)
    got = product(column, column[::-1], digits).texts()
    for text, left, right in zip(got, values, reversed(values), strict=True):
        exact = int(left.scaleb(8)) * int(right.scaleb(8))
        assert int(Decimal(text).scaleb(digits)) == exact * 10**digits // 10**16


@given(st.integers(1, 20_000), st.data())
def test_rows_by_number_are_those_rows(count, data):
    numbers = np.arange(count, dtype=np.int64)
    nothing = Decimals(numbers)
    batch = Batch(SERIES, numbers, {"price": nothing, "amount": nothing}, numbers)
    first = data.draw(st.integers(0, count))
    last = data.draw(st.integers(first, count))
    backward = data.draw(st.booleans())
    rows = Rows(batch, lambda part: [integers(part.ids), b","], backward=backward)
    every = range(count - 1, -1, -1) if backward else range(count)
    assert rows.text(first, last) == b"".join(b"%d," % row for row in every[first:last])


@given(
    st.lists(st.tuples(st.integers(0, 3 * SECOND), st.integers(1, 5)), min_size=1, max_size=40),
    st.booleans(),
)
def test_a_meter_counts_what_its_window_holds(charges, aligned):
    meter = Meter(Limit("requests", 10, 2, aligned))
    now, seen, most = 1_700_000_000 * SECOND, [], 0
    for gap, weight in charges:
        now += gap
        seen.append((now, weight))
        start = now - now % (2 * SECOND) if aligned else now - 2 * SECOND + 1
        expected = sum(weight for ts, weight in seen if ts >= start)
        most = max(most, expected)
        assert meter.charge(weight, now) == expected
    assert meter.most == most
    assert meter.free_at(now) > now
