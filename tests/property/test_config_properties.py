"""Whatever stands in a config file, loading it ends in a Config or in problems with places."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC
from pathlib import Path

import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from tardisd.config.check import check
from tardisd.config.load import read_document
from tardisd.config.model import Config
from tardisd.config.schema import CORE
from tardisd.errors import ConfigError
from tardisd.plugins.registry import Registry

REGISTRY = Registry.discover()
OPTIONS = sorted({name for cls in CORE.values() for name in cls.__struct_fields__} | {"listen"})
KEYS = st.sampled_from([*OPTIONS, "plugin", "main", "odd key", "env", "file"])
WORDS = st.sampled_from(
    [
        "sqlite",
        "websocket",
        "main",
        "-30d",
        "now",
        "2024-03-01",
        "max",
        "mark",
        "1h",
        "~",
        "\0",
        "binance:BTC/USDT@trade",
        "BTC/USDT",
        "candle_1m",
        "trade",
        "/tmp/x",
        "~nobody-here/x",
        "é",
    ]
)
SCALARS = st.one_of(
    WORDS,
    st.text(max_size=5),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.datetimes(),
    st.datetimes(timezones=st.just(UTC)),
    st.dates(),
    st.times(),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=6)
NAMED = st.dictionaries(st.sampled_from(["main", "ws", "bad name"]), TABLES | VALUES, max_size=2)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "daemon": TABLES | VALUES,
        "plugins": TABLES,
        "exchanges": NAMED,
        "storages": NAMED | st.just({"main": {"plugin": "sqlite"}}),
        "sinks": NAMED,
        "analyzers": NAMED,
        "sessions": NAMED,
        "backfills": NAMED,
        "sesions": NAMED,
    },
)


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS, st.none() | DOCUMENTS)
def test_nothing_else_can_happen(document, drop_in):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(tomli_w.dumps(document))
        if drop_in is not None:
            (path.parent / "conf.d").mkdir()
            (path.parent / "conf.d" / "more.toml").write_text(tomli_w.dumps(drop_in))
        found = outcome(path)
        if isinstance(found, Config):
            assert tomli_w.dumps(without_nulls(found.shown()))
            assert os.path.isabs(found.daemon.data_dir)
            return
        assert found == list(dict.fromkeys(found))
        for problem in found:
            assert 1 <= problem.line <= Path(problem.file).read_text().count("\n") + 1
            assert problem.key
            assert "\n" not in str(problem)


def outcome(path):
    """Return the configuration in a file, or the problems with it."""
    try:
        data, findings, files = read_document(path)
        return check(data, findings, files, {"HOME": str(path.parent)}, lambda dirs: REGISTRY)
    except ConfigError as error:
        return error.problems


def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value
