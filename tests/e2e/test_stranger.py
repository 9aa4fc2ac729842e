"""A stranger's plugin in ten minutes: made from the template, installed, tested, and used.

The fresh environment is a real one, which looks into ours for what tardisd itself needs: nothing is
downloaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from daemon_rig import ENVIRON

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["sink", "exchange", "storage", "analyzer", "format"]
PIP = ["-m", "pip", "--disable-pip-version-check", "-q"]
OFFLINE = ["--no-index", "--no-deps", "--no-build-isolation"]


def run(*words, cwd=None, code=0):
    done = subprocess.run(
        list(map(str, words)),
        cwd=cwd,
        env={**ENVIRON, "PYTHONPATH": "", "PIP_CONFIG_FILE": os.devnull},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout if code == 0 else done.stderr


def tardisd(*words, **more):
    return run(sys.executable, "-m", "tardisd", *words, **more)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Return the python of a new environment with a package of every kind installed, and them."""
    folder = tmp_path_factory.mktemp("stranger")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    inside = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    ours = sysconfig.get_path("purelib")
    Path(inside, "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    packages = {}
    for kind in KINDS:
        made = tardisd("plugin", "new", f"acme-{kind}", "--kind", kind, "--into", folder)
        assert f"tardisd-acme-{kind} made; next: cd " in made
        packages[kind] = folder / f"tardisd-acme-{kind}"
    # The package tool of our environment, acting on the new one.
    run(sys.executable, *PIP, "--python", python, "install", *OFFLINE, *packages.values())
    return python, packages


def test_it_is_found_and_says_what_it_is(fresh):
    python, _ = fresh
    found = json.loads(run(python, "-m", "tardisd", "plugins", "--json"))
    ours = {it["name"]: it for it in found if it["name"].startswith("acme-")}
    assert set(ours) == {f"acme-{kind}" for kind in KINDS}
    for kind in KINDS:
        one = ours[f"acme-{kind}"]
        assert (one["state"], one["kind"], one["version"]) == ("loaded", kind, "0.1.0"), one
        assert one["origin"] == f"tardisd-acme-{kind}"
        where = run(python, "-c", f"import tardisd_acme_{kind} as it; print(it.__file__)")
        assert str(python.parents[1]) in where, "it runs from the environment, not from its source"


@pytest.mark.parametrize("kind", KINDS)
def test_its_tests_pass(fresh, kind):
    """They contain the suite of the kind, and use the plugin in a real daemon."""
    python, packages = fresh
    options = ["-q", "-p", "no:cacheprovider", "-W", "error"]
    told = run(python, "-m", "pytest", *options, cwd=packages[kind])
    assert " passed" in told
    assert "failed" not in told


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_made_is_clean(fresh, kind):
    """No placeholder is left, ruff's usual rules hold, and no licence is chosen for the author."""
    _, packages = fresh
    folder = packages[kind]
    files = [path for path in folder.rglob("*") if path.is_file() and "build" not in path.parts]
    for path in files:
        if "__pycache__" not in path.parts:
            text = path.read_text()
            assert "${" not in text, path
            assert "PACKAGE" not in text, path
            assert "licen" not in text.lower(), path
    rules = ["--isolated", "--line-length", "100", "--select", "E,F,W,B,I"]
    run(sys.executable, "-m", "ruff", "check", *rules, cwd=folder)


def test_the_configuration_shown_is_the_sample_and_loads(fresh, tmp_path):
    python, packages = fresh
    config = '[storages.main]\nplugin = "sqlite"\n'
    for kind in KINDS[:-1]:
        if kind == "storage":
            continue
        [sample] = packages[kind].glob("*/sample.toml")
        text = sample.read_text()
        assert f"```toml\n{text}```" in (packages[kind] / "README.md").read_text()
        config += text
        config += text.replace("# ", "").split("\n", 1)[0].replace("acme-", "acme2-")
        config += f'\nplugin = "acme-{kind}"\n'
    path = tmp_path / "config.toml"
    path.write_text(config)
    assert run(python, "-m", "tardisd", "check", "-c", path) == f"{path}: ok\n"
    shown = json.loads(run(python, "-m", "tardisd", "config", "show", "-c", path, "--json"))
    assert shown["exchanges"]["acme-exchange"]["budget_share"] == 0.85


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Acme", "'Acme' is no name for a plugin; use up to 40 lower-case letters"),
        ("9lives", "no name for a plugin"),
        ("a--b", "no name for a plugin"),
        ("../evil", "no name for a plugin"),
        ("a.b", "no name for a plugin"),
        ("x" * 41, "no name for a plugin"),
        ("tardisd-foo", "leave the 'tardisd-' of 'tardisd-foo' out"),
        ("file", "'file' is a plugin of tardisd, which is installed; two of one name"),
    ],
)
def test_bad_names_are_refused(tmp_path, name, says):
    told = tardisd("plugin", "new", name, "--kind", "sink", cwd=tmp_path, code=1)
    assert says in told
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    there = tmp_path / "tardisd-my-sink"
    there.mkdir()
    (there / "mine.txt").write_text("mine")
    told = tardisd("plugin", "new", "my_sink", "--kind", "sink", "--into", tmp_path, code=1)
    assert "tardisd-my-sink is there already; choose another name, or another --into" in told
    assert [path.name for path in tmp_path.rglob("*")] == ["tardisd-my-sink", "mine.txt"]
    (tmp_path / "file").write_text("")
    told = tardisd("plugin", "new", "x", "--kind", "sink", "--into", tmp_path / "file", code=2)
    assert "is a file" in told


def test_the_wheel_has_the_templates_and_the_entry_points(tmp_path):
    run(sys.executable, *PIP, "wheel", *OFFLINE, "-w", tmp_path, ROOT)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [points] = [name for name in names if name.endswith("entry_points.txt")]
        assert "[pytest11]\ntardisd = tardisd.testing.pytest_plugin" in archive.read(
            points
        ).decode().replace("\r", "")
    templates = ROOT / "tardisd" / "templates"
    missing = [
        str(path)
        for path in templates.rglob("*")
        if path.is_file() and f"tardisd/{path.relative_to(ROOT / 'tardisd')}" not in names
    ]
    assert missing == []
