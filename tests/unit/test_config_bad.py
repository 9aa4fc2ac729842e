"""Every `config/*.bad.toml` gets exactly the problems that stand beside it in `.expected`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tardisd.config.load import load_config
from tardisd.errors import ConfigError

FOLDER = Path(__file__).with_name("config")
BAD = sorted(path.name.removesuffix(".bad.toml") for path in FOLDER.glob("*.bad.toml"))


@pytest.mark.parametrize("name", BAD)
def test_every_problem_is_told_with_its_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plugins.d").mkdir(mode=0o755)
    shutil.copyfile(FOLDER / "probe.py", "plugins.d/probe.py")
    Path("plugins.d/probe.py").chmod(0o644)
    shutil.copyfile(FOLDER / f"{name}.bad.toml", "config.toml")
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"HOME": str(tmp_path)})
    found = str(caught.value).replace(str(tmp_path), "/here") + "\n"
    assert found == (FOLDER / f"{name}.expected").read_text()


def test_there_are_bad_configurations():
    assert len(BAD) >= 9
