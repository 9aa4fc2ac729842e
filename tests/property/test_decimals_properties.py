"""Columns of exact decimals against decimal.Decimal."""

from __future__ import annotations

from contextlib import suppress
from decimal import Context, Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardisd.market.decimals import Decimals, check_decimal

MOST = 2**63 - 1
EXACT = Context(prec=120)
whole_parts = st.integers(-MOST, MOST) | st.integers(-1000, 1000)
fractions = st.text("0123456789", max_size=18)
texts = st.builds(
    lambda whole, digits, sign: f"{sign}{abs(whole)}" + (f".{digits}" if digits else ""),
    whole_parts,
    fractions,
    st.sampled_from(["", "-"]),
)
optional = st.none() | texts
columns = st.lists(optional, max_size=6)


def exact(text):
    return None if text is None else Decimal(text)


@given(columns)
def test_text_comes_back_with_the_same_value(values):
    column = Decimals.of(values)
    assert [exact(text) for text in column.texts()] == [exact(text) for text in values]
    assert column.presence().tolist() == [value is not None for value in values]


@given(columns)
def test_text_is_plain_and_without_insignificant_zeros(values):
    for text in Decimals.of(values).texts():
        if text is None:
            continue
        assert "e" not in text.lower()
        assert text != "-0"
        assert "." not in text or text[-1] not in "0."


@given(columns)
def test_the_column_is_as_narrow_as_it_can_be(values):
    column = Decimals.of(values)
    present = [Decimal(value) for value in values if value is not None]
    digits = [-int(value.normalize(EXACT).as_tuple().exponent) for value in present]
    scale = max([0, *digits])
    assert column.needed_scale == scale
    if column.fraction is None:
        assert column.scale == scale
    else:
        assert any(abs(value.scaleb(scale, EXACT)) > MOST // 2 for value in present)


@given(columns)
def test_parts_carry_the_sign_and_make_the_value(values):
    column = Decimals.of(values)
    for scale in {column.needed_scale, 18}:
        whole, fraction = column.parts(scale)
        for text, left, right in zip(values, whole.tolist(), fraction.tolist(), strict=True):
            value = Decimal(text or 0)
            assert EXACT.add(left, Decimal(right).scaleb(-scale, EXACT)) == value
            assert left == 0 or right == 0 or (left < 0) == (right < 0)
    again = Decimals.from_parts(*column.parts(), column.present)
    assert again.texts() == column.texts()


@given(st.lists(st.tuples(optional, optional), min_size=1, max_size=6))
def test_comparisons(pairs):
    left, right = (Decimals.of(side) for side in zip(*pairs, strict=True))
    assert left.equals(right).tolist() == [exact(a) == exact(b) for a, b in pairs]
    assert left.less_than(right).tolist() == [Decimal(a or 0) < Decimal(b or 0) for a, b in pairs]


@given(columns, st.data())
def test_any_choice_of_rows(values, data):
    column = Decimals.of(values)
    start, end = (data.draw(st.integers(0, len(values))) for _ in range(2))
    assert column[start:end].texts() == column.texts()[start:end]
    mask = np.array([data.draw(st.booleans()) for _ in values], np.bool_)
    kept = [text for text, keep in zip(column.texts(), mask, strict=True) if keep]
    assert column[mask].texts() == kept


@given(st.lists(columns, min_size=1, max_size=4))
def test_concatenation(parts):
    joined = Decimals.concat([Decimals.of(part) for part in parts])
    values = [exact(value) for part in parts for value in part]
    assert [exact(text) for text in joined.texts()] == values
    assert (joined.present is None) == (None not in values)


@given(st.lists(st.none() | st.integers(-(2**53), 2**53), max_size=6), st.integers(0, 18))
def test_floats_are_the_nearest(mantissas, scale):
    numbers = np.array([mantissa or 0 for mantissa in mantissas], np.int64)
    present = np.array([mantissa is not None for mantissa in mantissas], np.bool_)
    column = Decimals(numbers, scale, None, present)
    for value, mantissa in zip(column.floats().tolist(), mantissas, strict=True):
        if mantissa is None:
            assert np.isnan(value)
        else:
            assert value == float(Decimal(mantissa).scaleb(-scale, EXACT))


@given(columns)
def test_floats_of_any_column_are_near(values):
    for value, text in zip(Decimals.of(values).floats().tolist(), values, strict=True):
        if text is not None:
            assert value == pytest.approx(float(Decimal(text)), rel=1e-15, abs=1e-18)


@given(texts, st.integers(0, 40))
def test_trailing_zeros_are_no_digits(text, zeros):
    longer = text + ("" if "." in text else ".") + "0" * zeros if zeros else text
    assert Decimals.of([longer]).texts() == Decimals.of([text]).texts()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a number"),
        ("abc", "not a number"),
        ("1,5", "not a number"),
        ("nan", "not a finite number"),
        ("-Infinity", "not a finite number"),
        ("1e999999", "too large"),
        ("9223372036854775808", "too large"),
        ("-9223372036854775808.5", "too large"),
        ("1e-19", "fraction digits"),
        ("1e-999999", "fraction digits"),
        ("0.1234567890123456789", "fraction digits"),
    ],
)
def test_what_cannot_be_kept_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        check_decimal(text)
    with pytest.raises(ValueError, match=reason):
        Decimals.of(["1", text])


@pytest.mark.parametrize("text", ["0e999999", "0e-999999", "1e18", "1E-18", "+5", "99e-18"])
def test_scientific_notation_is_exact(text):
    assert Decimal(Decimals.of([text]).texts()[0]) == Decimal(text)


@given(st.text(max_size=30))
def test_any_text_is_a_decimal_or_a_value_error(text):
    with suppress(ValueError):
        assert check_decimal(text).is_finite()


@given(
    columns,
    st.decimals(0, 10**6, allow_nan=False, allow_infinity=False)
    | st.sampled_from([Decimal("0.01"), Decimal("1e3"), Decimal("1e30"), Decimal("1e-18")]),
)
def test_products_are_exact_or_refused(values, factor):
    expected = [None if v is None else EXACT.multiply(Decimal(v), factor) for v in values]
    try:
        for product in expected:
            check_decimal("0" if product is None else str(product))
    except ValueError:
        with pytest.raises(ValueError, match=r"exact|digits|factor"):
            Decimals.of(values).times(factor)
        return
    product = Decimals.of(values).times(factor)
    assert [exact(text) for text in product.texts()] == expected


@pytest.mark.parametrize("factor", ["-1", "nan", "inf"])
def test_only_plain_factors_multiply(factor):
    with pytest.raises(ValueError, match="not a factor"):
        Decimals.of(["1"]).times(Decimal(factor))
