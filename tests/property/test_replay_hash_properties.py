"""The content hash is that of the recipe in plain Python, whatever the columns are like."""

from __future__ import annotations

import hash_reference
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tick_strategies import HASHED, tables

from tardisd.market.columns import pack_ids
from tardisd.replay.digest import id_numbers, text_hash
from tardisd.testing.blocks import make_blocks


@given(tables(HASHED), st.sampled_from([1, 3, 2048]))
def test_the_hash_is_the_recipes(table, slice_ticks):
    rows, batches = table
    blocks = make_blocks(batches, "s", slice_ticks=slice_ticks)
    assert sum(map(len, blocks)) == len(rows)
    done = 0
    for block in blocks:
        done += len(block)
        whole = block._whole
        assert whole.hash_upto(block._last).hexdigest() == hash_reference.content_hash(rows[:done])
        assert whole.hash_upto(block._first).hexdigest() == hash_reference.content_hash(
            rows[: done - len(block)]
        )


def test_ids_count_as_their_text_says_whatever_the_form_of_their_column():
    """A column of integers becomes one of text when it meets text: the hash must not tell."""
    values = [-(2**63), -7, 0, 7, 2**63 - 1]
    numbers, present = id_numbers(np.array(values))
    texts, _ = id_numbers(np.array([str(value).encode() for value in values]))
    assert present is None
    assert numbers.tolist() == texts.tolist()
    assert numbers.tolist() == [hash_reference.venue_id(str(value)) for value in values]


def test_an_id_may_be_thousands_of_digits():
    [number], _ = id_numbers(pack_ids(["1" * 5000]))
    assert number == hash_reference.short_hash("1" * 5000)


@given(tables(HASHED), st.data())
def test_any_change_of_any_tick_changes_it(table, data):
    rows, batches = table
    place = data.draw(st.integers(0, len(rows) - 1))
    name = data.draw(st.sampled_from(sorted(set(rows[place]) - {"series", "side", "ts_release"})))
    changed = [dict(row) for row in rows]
    if name == "ts_event":
        changed[place][name] += 1
    elif name == "id":
        changed[place][name] += "0"
    elif changed[place][name] == "0":
        del changed[place][name]
    else:
        changed[place][name] = "0"
    last = make_blocks(batches, "s")[-1]
    made = last._whole.hash_upto(last._last).hexdigest()
    assert made == hash_reference.content_hash(rows) != hash_reference.content_hash(changed)


@pytest.mark.parametrize("text", ["", "a", "binance:BTC/USDT@trade", "\u4e2d"])
def test_short_hashes(text):
    assert text_hash(text.encode()) == hash_reference.short_hash(text)
