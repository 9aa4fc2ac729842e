"""Chunks of the storage `sqlite`: decoding gives back exactly what was encoded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tardisd.errors import StorageCorrupt
from tardisd.market.columns import SCHEMAS, Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.testing.storage_model import Row, batch_of, rows_of
from tardisd_sqlite.codec import Codec
from tardisd_sqlite.merge import CHUNK_ROWS, pieces

TRADES = Series.parse("binance:BTC/USDT@trade")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
INT64 = st.integers(-(2**63), 2**63 - 1)
# Runs of one step, few values, and anything at all: what the packing tells apart.
COLUMNS = st.one_of(
    arrays(np.int64, array_shapes(max_dims=1, max_side=200), elements=INT64),
    arrays(np.int64, array_shapes(max_dims=1, max_side=200), elements=st.integers(0, 3)),
    st.builds(
        lambda start, step, count, noise: np.array(
            [(start + step * at + noise * (at % 7)) % 2**63 for at in range(count)], np.int64
        ),
        INT64,
        st.sampled_from([0, 1, 1000, 10**6, 10**9, 2**40]),
        st.integers(1, 200),
        st.integers(0, 300),
    ),
)
DECIMALS = st.one_of(
    st.none(),
    st.decimals(min_value=-(10**18), max_value=10**18, places=18).map(lambda d: f"{d:f}"),
    st.integers(-(2**63) + 1, 2**63 - 1).map(str),
    st.integers(0, 10**6).map(lambda n: f"{n // 100}.{n % 100:02}"),
)


def back(batch):
    codec = Codec()
    return codec.decode(batch.series, len(batch), codec.encode(batch))


@given(COLUMNS, st.data())
def test_every_int64_comes_back(values, data):
    scale = data.draw(st.integers(0, 18))
    ids = data.draw(st.permutations(values.tolist()).map(lambda it: np.array(it, np.int64)))
    fields = {"price": Decimals(values, scale), "amount": Decimals(values[::-1].copy(), 18 - scale)}
    found = back(Batch(TRADES, values, fields, ids, None))
    assert found.sides is None
    np.testing.assert_array_equal(found.ts_event, values, strict=True)
    np.testing.assert_array_equal(found.ids, ids, strict=True)
    for name, column in fields.items():
        np.testing.assert_array_equal(found.fields[name].mantissa, column.mantissa, strict=True)
        assert found.fields[name].scale == column.scale
        assert found.fields[name].present is None


@given(
    st.lists(
        st.builds(
            Row,
            st.integers(0, 2**62),
            st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\0"))),
            st.integers(0, 1),
            st.tuples(DECIMALS, DECIMALS),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_every_trade_comes_back(rows):
    rows = [row._replace(id=row.id or None) for row in rows]
    batch = batch_of(TRADES, rows)
    assert rows_of(back(batch)) == rows_of(batch)


@given(
    st.lists(
        st.tuples(*[DECIMALS] * len(SCHEMAS["candle"].fields)),
        min_size=1,
        max_size=20,
    )
)
def test_every_candle_comes_back(values):
    batch = batch_of(CANDLES, [Row(at, None, None, one) for at, one in enumerate(values)])
    assert rows_of(back(batch)) == rows_of(batch)


def test_what_cannot_be_decoded_says_so():
    codec = Codec()
    batch = batch_of(TRADES, [Row(at, str(at), 0, ("1", "2")) for at in (1, 5, 7, 100, 8, 3)])
    packed = codec.encode(batch)
    for rows, data in ((6, packed[:-3]), (6, b"nonsense"), (6, b""), (60, packed)):
        with pytest.raises(StorageCorrupt, match="binance:BTC/USDT@trade cannot be decoded"):
            codec.decode(TRADES, rows, data)


@given(st.lists(st.integers(1, 3 * CHUNK_ROWS), min_size=1, max_size=12))
def test_pieces_keep_instants_together(lengths):
    times = np.repeat(np.arange(len(lengths)), lengths)
    cut = list(pieces(times))
    assert cut[0].start == 0
    assert cut[-1].stop == len(times)
    assert all(left.stop == right.start for left, right in itertools.pairwise(cut))
    assert all(0 < piece.stop - piece.start <= CHUNK_ROWS for piece in cut)
    for left, right in itertools.pairwise(cut):
        if times[left.stop - 1] == times[right.start]:  # an instant too long for one piece
            assert times[left.start] == times[right.start]
