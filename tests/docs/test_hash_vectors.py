"""The hash vectors, the example client and the engine agree on every byte."""

from __future__ import annotations

import importlib.util
import json
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from tardisd.market.columns import BUY, SCHEMAS, SELL, Batch, pack_ids
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.ticks import Ticks
from tardisd.market.time import parse_time
from tardisd.replay.digest import new_digest, records

ROOT = Path(__file__).resolve().parents[2]
VECTORS = json.loads((ROOT / "docs/hash-vectors.json").read_text(), parse_float=Decimal)
each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])


@pytest.fixture(scope="module")
def client():
    """The example that needs nothing of tardisd."""
    spec = importlib.util.spec_from_file_location("example", ROOT / "examples/verify_hash.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_batch(tick):
    """Return one tick of the vectors as the columns that storages give."""
    data = tick["data"]
    series = Series.of(data["exchange"], data["symbol"], tick["channel"])
    schema = SCHEMAS[series.data_type.kind]
    fields = {name: Decimals.of([str(data[name])]) for name in schema.fields if name in data}
    sides = np.array([SELL if data.get("side") == "sell" else BUY], np.uint8)
    return Batch(
        series,
        np.array([parse_time(data["datetime"])]),
        fields,
        pack_ids([data["id"]]) if "id" in data else None,
        sides if schema.has_side else None,
    )


@each_vector
def test_the_example_client(vector, client):
    made = [client.record(tick["channel"], tick["data"]) for tick in vector["ticks"]]
    assert [record.hex() for record in made] == vector["records"]
    assert blake2b(b"".join(made), digest_size=32).hexdigest() == vector["hash"]


@each_vector
def test_the_engine(vector):
    digest = new_digest()
    for tick, expected in zip(vector["ticks"], vector["records"], strict=True):
        made = records(Ticks.of(as_batch(tick))).tobytes()
        assert made.hex() == expected
        digest.update(made)
    assert digest.hexdigest() == vector["hash"]
