"""Decimal text becomes columns of the same values, by Arrow or one by one."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardisd.dumps.exact import decimals_of_texts

plain = st.builds(
    lambda sign, whole, fraction: f"{sign}{whole}" + (f".{fraction}" if fraction else ""),
    st.sampled_from(["", "-"]),
    st.integers(0, 2**62),
    st.text("0123456789", max_size=18),
)


@given(st.lists(plain, max_size=30), st.none() | st.integers(0, 18))
def test_texts_keep_their_values(texts, scale):
    column = decimals_of_texts(texts, scale)
    assert [Decimal(text) for text in column.texts()] == [Decimal(text) for text in texts]


@given(st.lists(plain, max_size=5), st.lists(plain, max_size=5))
@pytest.mark.parametrize("bad", ["NaN", "-Infinity", "", "1,5", "1e-30", "9" * 40, "null"])
def test_what_is_no_number_is_named(bad, before, after):
    with pytest.raises(ValueError, match=bad or "''"):
        decimals_of_texts([*before, bad, *after])
