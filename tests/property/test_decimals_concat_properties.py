from __future__ import annotations

from decimal import Decimal

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tardisd.market.decimals import Decimals

texts = st.one_of(
    st.integers(-(2**63) + 1, 2**63 - 1).map(str),
    st.builds(
        lambda whole, digits: f"{whole}.{digits}",
        st.integers(-(10**15), 10**15),
        st.text("0123456789", min_size=1, max_size=18),
    ),
)
columns = st.lists(st.one_of(st.none(), texts), min_size=1, max_size=5)


def values(column: Decimals) -> list[Decimal | None]:
    return [None if text is None else Decimal(text) for text in column.texts()]


@given(st.lists(columns, min_size=1, max_size=4))
def test_concatenation_keeps_every_value(parts: list[list[str | None]]) -> None:
    joined = Decimals.concat([Decimals.of(part) for part in parts])
    expected = [None if text is None else Decimal(text) for part in parts for text in part]
    assert values(joined) == expected


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=70), st.integers(0, 18))
def test_reduction_keeps_every_value_at_the_smallest_scale(numbers: list[int], scale: int) -> None:
    column = Decimals(np.array(numbers, dtype=np.int64), scale)
    reduced = column.reduced()
    assert values(reduced) == values(column)
    assert reduced.scale == 0 or any(int(m) % 10 for m in reduced.mantissa)
