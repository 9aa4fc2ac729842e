"""Batches: rows survive joining and cutting; what a span holds against a plain filter."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardisd.market.check import check_batch, same_rows
from tardisd.market.columns import SCHEMAS, Batch, concat_ids, pack_ids
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import EARLIEST, MINUTE, SECOND
from tardisd.testing.ticks import random_candles, random_trades

TRADES = Series.parse("binance:BTC/USDT@trade")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
MONTHS = Series.parse("binance:BTC/USDT@candle_1M")
START = EARLIEST + 1000 * MINUTE

ids = st.integers(0, 2**63 - 1).map(str) | st.text("abc-019", min_size=1, max_size=8)
texts = st.decimals(0, 10**6, places=4).map(str)


@st.composite
def trades(draw, min_size=0):
    count = draw(st.integers(min_size, 6))
    some = lambda values: draw(st.lists(values, min_size=count, max_size=count))  # noqa: E731
    times = START + np.cumsum(np.array(some(st.integers(0, 3)), np.int64)) * SECOND
    fields = {name: Decimals.of(some(texts)) for name in ("price", "amount")}
    column = pack_ids(some(ids)) if draw(st.booleans()) else None
    sides = np.array(some(st.integers(0, 1)), np.uint8)
    return Batch(TRADES, times, fields, column, sides)


def rows(batch):
    """Return the rows in plain values."""
    count = len(batch)
    names = batch.schema.fields
    columns = [
        batch.fields[name].texts() if name in batch.fields else [None] * count for name in names
    ]
    keys = [b""] * count if batch.ids is None else batch.ids.astype(np.bytes_).tolist()
    sides = [None] * count if batch.sides is None else batch.sides.tolist()
    return list(zip(batch.ts_event.tolist(), keys, sides, *columns, strict=True))


@given(st.lists(trades(), min_size=1, max_size=4))
def test_joining_keeps_every_row(batches):
    joined = Batch.concat(batches)
    assert rows(joined) == [row for batch in batches for row in rows(batch)]
    assert len(joined) == sum(map(len, batches))


@given(trades(), st.lists(st.integers(0, 6), max_size=3))
def test_cutting_and_joining_is_nothing(batch, cuts):
    edges = sorted([0, *(min(cut, len(batch)) for cut in cuts), len(batch)])
    parts = [batch[a:b] for a, b in itertools.pairwise(edges)]
    joined = Batch.concat(parts)
    assert rows(joined) == rows(batch)
    assert same_rows(joined, batch).all()


@given(trades(), st.data())
def test_any_choice_of_rows(batch, data):
    mask = np.array([data.draw(st.booleans()) for _ in range(len(batch))], np.bool_)
    chosen = [row for row, keep in zip(rows(batch), mask, strict=True) if keep]
    assert rows(batch[mask]) == chosen
    assert rows(batch[np.flatnonzero(mask)]) == chosen


@given(trades(min_size=1), st.data())
def test_the_same_rows_are_those_with_the_same_content(batch, data):
    at = data.draw(st.integers(0, len(batch) - 1))
    name = data.draw(st.sampled_from(["price", "amount", "sides", "ids", "ts_event"]))
    if name in batch.fields:
        values = batch.fields[name].texts()
        values[at] = data.draw(texts)
        other = replace(batch, fields={**batch.fields, name: Decimals.of(values)})
    elif name == "ids":
        keys = [key.decode() for _, key, *_ in rows(batch)]
        keys[at] = data.draw(ids)
        other = replace(batch, ids=pack_ids(keys))
    else:
        changed = getattr(batch, name).copy()
        changed[at] = data.draw(st.integers(0, 1))
        other = replace(batch, **{name: changed})
    expected = [left == right for left, right in zip(rows(batch), rows(other), strict=True)]
    assert same_rows(batch, other).tolist() == expected
    assert same_rows(other, batch).tolist() == expected


def test_rows_without_side_or_id_differ_from_those_with():
    batch = random_trades(TRADES, 3, START)
    assert not same_rows(batch, replace(batch, sides=None)).any()
    assert not same_rows(replace(batch, ids=None), batch).any()
    assert same_rows(replace(batch, ids=None), replace(batch, ids=np.zeros(3, "S1"))).all()


def test_half_a_column_of_sides_is_not_joined():
    batch = random_trades(TRADES, 3, START)
    with pytest.raises(ValueError, match=r"some batches of .* have sides"):
        Batch.concat([batch, replace(batch, sides=None)])


@given(st.lists(st.integers(0, 2**63 - 1).map(str), max_size=5))
def test_integer_ids_are_integers(texts):
    assert pack_ids(texts).dtype == "int64"
    assert pack_ids(texts).tolist() == [int(text) for text in texts]


@given(st.lists(st.text(min_size=1, max_size=8).filter(lambda text: not text.endswith("\0"))))
def test_any_id_keeps_its_text(texts):
    column = pack_ids(texts)
    found = [str(i) if column.dtype.kind == "i" else i.decode() for i in column.tolist()]
    assert found == texts


@given(st.lists(st.lists(ids, min_size=1, max_size=3), min_size=1, max_size=3))
def test_ids_of_both_forms_are_joined_as_text(parts):
    joined = concat_ids([pack_ids(part) for part in parts])
    assert joined.astype(np.bytes_).tolist() == [text.encode() for part in parts for text in part]


@pytest.mark.parametrize("kind", sorted(SCHEMAS))
def test_an_empty_batch_has_the_columns_of_its_kind(kind):
    names = {"candle": "candle_1m", "indicator": "indicator_1m_rsi_14"}
    series = Series.of("binance", "BTC/USDT", names.get(kind, kind))
    empty = Batch.empty(series)
    assert len(empty) == 0
    assert set(empty.fields) == set(SCHEMAS[kind].fields) - SCHEMAS[kind].optional
    assert rows(Batch.concat([empty, empty])) == []
    check_batch(empty)


@pytest.mark.parametrize("series", [TRADES, CANDLES])
def test_an_empty_batch_changes_nothing_it_is_joined_with(series):
    make = random_trades if series is TRADES else random_candles
    batch = make(series, 5, START)
    for order in ([Batch.empty(series), batch], [batch, Batch.empty(series)]):
        joined = Batch.concat(order)
        assert rows(joined) == rows(batch)
        assert all(column.present is None for column in joined.fields.values())


offsets = st.integers(-3, 13)


@given(st.sampled_from([CANDLES, MONTHS]), offsets, offsets, st.integers(-1, 1))
def test_candles_within_a_span_open_and_close_in_it(series, first, last, shift):
    batch = random_candles(series, 10, START)
    ends = [*batch.ts_event.tolist(), int(batch.release()[-1])]
    start, end = sorted(ends[min(max(at, 0), 10)] for at in (first, last))
    span = Span(start + shift, max(end, start + shift))
    pairs = zip(batch.ts_event.tolist(), batch.release().tolist(), strict=True)
    inside = [opened for opened, closed in pairs if opened >= span.start and closed <= span.end]
    assert batch.within(span).ts_event.tolist() == inside


@given(trades(), st.integers(-2, 20), st.integers(0, 20))
def test_instants_within_a_span_lie_in_it(batch, first, length):
    span = Span(START + first * SECOND, START + (first + length) * SECOND)
    inside = [ts for ts in batch.ts_event.tolist() if ts in span]
    assert batch.within(span).ts_event.tolist() == inside
    assert batch.release().tolist() == batch.ts_event.tolist()


@given(st.sampled_from([CANDLES, MONTHS, TRADES]), st.integers(1, 20), st.integers(0, 2**31))
def test_random_ticks_are_sane(series, count, seed):
    make = random_trades if series is TRADES else random_candles
    batch = make(series, count, START, seed)
    check_batch(batch, batch.extent())
    assert len(batch) == count
    assert batch.ts_event[0] >= START
    assert same_rows(batch, make(series, count, START, seed)).all()
    assert len(batch.within(batch.extent())) == count


def test_the_extent_reaches_to_the_last_close():
    batch = random_candles(MONTHS, 3, START)
    assert batch.extent().end == batch.release()[-1]
    instants = random_trades(TRADES, 3, START)
    assert instants.extent() == Span(int(instants.ts_event[0]), int(instants.ts_event[-1]) + 1)
