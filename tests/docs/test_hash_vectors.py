"""The test vectors of the content hash: up to date, and what engine and client example compute."""

from __future__ import annotations

import importlib.util
import json
from decimal import Decimal
from pathlib import Path

import hash_reference
import numpy as np
import pytest

from tardisd.market.columns import SCHEMAS, Batch, pack_ids
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.time import format_time
from tardisd.testing.blocks import make_blocks

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "verify_hash.py"
VECTORS = json.loads(hash_reference.VECTORS.read_text())["vectors"]
each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])


def test_the_file_is_up_to_date():
    assert hash_reference.VECTORS.read_text() == hash_reference.text()


def batches_of(ticks):
    """Return the ticks as one batch per series."""
    found = {}
    for tick in ticks:
        found.setdefault(tick["series"], []).append(tick)
    return [batch_of(Series.parse(series), rows) for series, rows in found.items()]


def batch_of(series, rows):
    schema = SCHEMAS[series.data_type.kind]
    fields = {name: Decimals.of([row.get(name) for row in rows]) for name in schema.fields}
    if schema.has_id:
        ids = [row.get("id", "") for row in rows]
        packed = pack_ids(ids) if all(ids) else np.array([i.encode() for i in ids], np.bytes_)
    return Batch(
        series,
        np.array([row["ts_event"] for row in rows], np.int64),
        {name: column for name, column in fields.items() if column.presence().any()},
        packed if schema.has_id else None,
        np.array([row["side"] == "sell" for row in rows], np.uint8) if schema.has_side else None,
    )


@each_vector
def test_the_engine_computes_them(vector):
    blocks = make_blocks(batches_of(vector["ticks"]), "s") if vector["ticks"] else []
    records = [bytes(row) for block in blocks for row in rows_of(block)]
    assert [row.hex() for row in records] == vector["records"]
    if blocks:
        last = blocks[-1]
        assert last._whole.hash_upto(last._last).hexdigest() == vector["hash"]


def rows_of(block):
    records = block._whole.records()
    return (records.bytes(row, row + 1) for row in range(block._first, block._last))


@each_vector
def test_the_client_example_computes_them(vector):
    spec = importlib.util.spec_from_file_location("verify_hash", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    blocks = make_blocks(batches_of(vector["ticks"]), "s") if vector["ticks"] else []
    messages = [
        json.loads(bytes(piece)[header(piece) :], parse_float=Decimal)
        for block in blocks
        for row in range(len(block))
        for piece in [block.encode("tick").bytes(row, row + 1)]
    ]
    assert [m["data"]["datetime"] for m in messages] == [
        format_time(tick["ts_event"]) for tick in vector["ticks"]
    ]
    made = [example.record(message["channel"], message["data"]).hex() for message in messages]
    assert made == vector["records"]


def header(frame):
    """Return the length of a WebSocket frame's header."""
    return {126: 4, 127: 10}.get(frame[1], 2)


def test_the_reference_can_differ():
    [tick] = VECTORS[1]["ticks"]
    other = tick | {"amount": "0.00013"}
    assert hash_reference.content_hash([other]) != VECTORS[1]["hash"]
