"""The example configuration is what the code would write, and it loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tardisd.config.example import example
from tardisd.config.load import load_config
from tardisd.config.schema import CORE

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = sorted(ROOT.glob("plugins/*/sample.toml"))


def test_the_file_is_up_to_date():
    written = (ROOT / "config.example.toml").read_text()
    assert written == example(), "run `tardisd config example > config.example.toml`"


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load(text):
        Path("config.toml").write_text(text)
        return load_config(None, {"HOME": str(tmp_path)})

    return load


def test_it_loads_as_it_is(load):
    config = load(example())
    assert set(config.sessions) == {"demo"}
    assert config.backfills == {}


def test_it_loads_with_the_backfill_too(load):
    config = load(re.sub(r"^#(?=\S)", "", example(), flags=re.MULTILINE))
    assert [str(it) for it in config.backfills["btc"].series] == ["synthetic:BTC/USDT@candle_1m"]


def test_every_core_option_is_in_it():
    text = example()
    for cls in CORE.values():
        for name in cls.__struct_fields__:
            assert re.search(rf"^#? ?{name} = ", text, re.MULTILINE), name


def test_every_sample_is_in_it():
    assert len(SAMPLES) >= 3
    for sample in SAMPLES:
        assert sample.read_text().strip() in example()


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.parent.name)
def test_every_sample_loads(sample, load):
    text = sample.read_text()
    load(
        text
        if re.search(r"^\[storages\.", text, re.MULTILINE)
        else text + '\n[storages.main]\nplugin = "sqlite"\n'
    )
