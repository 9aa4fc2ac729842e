"""Rows with text ids: order and repeats against a plain model, however a file is cut up."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardisd.dumps import order, source
from tardisd.dumps.order import is_settled, settle
from tardisd.errors import DataError
from tardisd.market.check import check_batch
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.testing.memory import MemoryStorage
from tardisd.transfer.importing import import_files
from tardisd_csv import tardisd_formats

SERIES = Series.parse("bybit:BTC/USDT:USDT@trade")
START = 1_709_251_200 * 10**9
ids = st.sampled_from(["", "a", "b", "c", "aaaaaaaab", "baaaaaaab", "x" * 40, "x" * 39 + "y"])
tables = st.lists(st.tuples(st.integers(0, 3), ids), max_size=30)


def batch_of(table: list[tuple[int, str]]) -> Batch:
    ones = Decimals(np.ones(len(table), np.int64))
    return Batch(
        SERIES,
        np.array([START + at for at, _ in table], np.int64),
        {"price": ones, "amount": ones},
        np.array([text.encode() for _, text in table] or [b""], "S40")[: len(table)],
        np.zeros(len(table), np.uint8),
    )


def model(table: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return the rows by time, in file order within each, the later of two equal keys dropped."""
    kept, seen = [], set()
    for row in sorted(table, key=lambda row: row[0]):
        if not row[1] or row not in seen:
            kept.append(row)
        seen.add(row)
    return kept


@given(tables, st.integers(1, 5))
def test_repeats_drop_and_order_stays(table, beside):
    batch = batch_of(table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "_MOST_BESIDE", beside)
        found, rows = settle(batch, np.arange(len(batch)))
        assert is_settled(batch) <= (model(table) == table)
    rest = [(int(ts) - START, text.decode()) for ts, text in
            zip(found.ts_event, found.ids, strict=True)]  # fmt: skip
    assert rest == model(table)
    assert [table[row] for row in rows.tolist()] == rest


@given(st.lists(ids, max_size=12))
def test_two_rows_of_one_id_are_found(texts):
    table = list(enumerate(texts))
    named = [text for text in texts if text]
    if len(set(named)) == len(named):
        check_batch(batch_of(table))
    else:
        with pytest.raises(DataError, match="two rows have one id"):
            check_batch(batch_of(table))


@pytest.mark.parametrize("instants", [1, 2, 400])
@pytest.mark.parametrize("block_bytes", [64, 200, 100_000])
async def test_repeats_are_found_across_blocks(tmp_path, monkeypatch, instants, block_bytes):
    monkeypatch.setattr(source, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(source, "SAMPLE_BYTES", 256)
    table = [(n * instants // 400, f"id-{n}") for n in range(400)]
    table[250] = table[249]  # beside each other
    if instants == 1:
        table[390] = table[3]  # far apart, within one instant
    text = "timestamp,id,price,amount,side\n" + "".join(
        f"{START + at},{name},1,1,buy\n" for at, name in table
    )
    storage = MemoryStorage()
    result = await import_files(
        [("x.csv", io.BytesIO(text.encode()))], SERIES, storage,
        [format_() for format_ in tardisd_formats()],
        covers=None, spool_dir=tmp_path, progress=lambda _: None,
    )  # fmt: skip
    async with storage.read(SERIES, Span(0, 2**62)) as batches:
        stored = Batch.concat([batch async for batch in batches])
    assert [text.decode() for text in stored.ids.tolist()] == [name for _, name in model(table)]
    assert result.added == len(model(table))
