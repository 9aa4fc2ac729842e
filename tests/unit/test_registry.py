"""Every plugin is loaded by itself: a broken one is told of and harms no other."""

from __future__ import annotations

import os
import sys

import pytest
import trio

from tardisd.errors import PluginError, Unavailable
from tardisd.plugins import CONTRACT_VERSION, registry
from tardisd.plugins.registry import Registry

SINK = """
import tardisd

class {cls}(tardisd.Sink):
    name = "{name}"

@tardisd.hookimpl
def tardisd_sinks():
    return [{cls}]
"""
GOOD = SINK.format(cls="Good", name="good")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "plugins.d"
    made.mkdir(mode=0o755)
    return made


def write(path, text):
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)
    return path


def discover(folder):
    registry = Registry.discover([folder])
    ours = [it for it in registry.plugins if it.origin.startswith(str(folder))]
    return registry, {(it.name, it.state): it for it in ours}


def test_a_file_is_loaded(folder):
    write(folder / "mine.py", '__version__ = "1.5"\n' + GOOD)
    registry, found = discover(folder)
    record = found["good", "loaded"]
    assert (record.kind, record.origin, record.version) == ("sink", f"{folder}/mine.py", "1.5")
    assert registry.get("sink", "good") is record.cls
    assert registry.get("sink", "good").__name__ == "Good"


def test_a_folder_is_loaded_with_its_relative_imports(folder):
    write(folder / "pack" / "__init__.py", "from .sinks import tardisd_sinks")
    write(folder / "pack" / "sinks.py", GOOD)
    _, found = discover(folder)
    assert list(found) == [("good", "loaded")]


def test_a_second_discovery_reads_the_files_again(folder):
    write(folder / "pack" / "__init__.py", "from .sinks import tardisd_sinks")
    write(folder / "pack" / "sinks.py", GOOD)
    discover(folder)
    write(folder / "pack" / "sinks.py", SINK.format(cls="Other", name="another_name"))
    _, found = discover(folder)
    assert list(found) == [("another_name", "loaded")]


def test_hidden_and_foreign_files_are_no_plugins(folder):
    for name in ("_helper.py", ".hidden.py", "notes.txt", "data/table.csv"):
        write(folder / name, "raise RuntimeError")
    assert discover(folder)[1] == {}
    assert Registry.discover([folder / "missing"]).plugins == Registry.discover().plugins


@pytest.mark.parametrize(
    ("source", "state", "reason"),
    [
        (
            'TARDISD_CONTRACT = "1.999"\n' + GOOD,
            "unavailable",
            f"needs plugin contract 1.999, and this tardisd has {CONTRACT_VERSION};"
            " pip install --upgrade tardisd",
        ),
        ('TARDISD_CONTRACT = "2.0"\n' + GOOD, "unavailable", "needs plugin contract 2.0"),
        (
            'TARDISD_CONTRACT = "1.999"\nfrom tardisd import OfTheFuture',
            "unavailable",
            "needs plugin contract 1.999",
        ),
        ('TARDISD_CONTRACT = "1.999"\ndef f(:', "failed", "SyntaxError"),
        (
            'TARDISD_CONTRACT = "0.7"\nfrom tardisd import OfThePast',
            "failed",
            "was written for plugin contract 0.7, which",
        ),
        ('TARDISD_CONTRACT = "0.7"\n' + GOOD, "failed", "bad.py by a newer version of it"),
        (
            "TARDISD_CONTRACT = 1.0\n" + GOOD,
            "failed",
            "TARDISD_CONTRACT is 1.0; write the contract",
        ),
        ('TARDISD_CONTRACT = "v1"\n' + GOOD, "failed", "TARDISD_CONTRACT is 'v1'; write"),
        ("1 / 0", "failed", "ZeroDivisionError: division by zero (bad.py:1 in <module>)"),
        ("raise SystemExit(3)", "failed", "SystemExit: 3 (bad.py:1 in <module>)"),
        ("def f(:\n  pass", "failed", "SyntaxError: invalid syntax (bad.py, line 1)"),
        (
            "import no_such_package.inner",
            "unavailable",
            "package no_such_package is missing or does not fit; pip install no_such_package",
        ),
        (
            "from tardisd.errors import NoSuchThing",
            "failed",
            "ImportError: cannot import name 'NoSuchThing'",
        ),
        ("import tardisd.no_such", "failed", "ModuleNotFoundError: No module named"),
        (
            "import tardisd\nraise tardisd.Unavailable('libfoo is missing', 'apt install libfoo')",
            "unavailable",
            "libfoo is missing; apt install libfoo",
        ),
        ("x = 1", "failed", "registers nothing; mark a function with @tardisd.hookimpl"),
        (
            GOOD.replace("tardisd_sinks", "tardisd_sink"),
            "failed",
            "there is no hook 'tardisd_sink'; did you mean tardisd_sinks?",
        ),
        (GOOD.replace("[Good]", "Good"), "failed", "tardisd_sinks returned "),
        (GOOD.replace("[Good]", "[int]"), "failed", "return subclasses of Sink"),
        (GOOD.replace("[Good]", "[0 / 0]"), "failed", "division by zero (bad.py:9 in tardisd_sin"),
        (GOOD.replace('"good"', '"Not Good"'), "failed", "Good.name is 'Not Good'"),
        (GOOD.replace("tardisd.Sink", "tardisd.Storage"), "failed", "return subclasses of Sink"),
        (
            GOOD.replace("tardisd.Sink", "tardisd.Storage").replace("_sinks", "_storages"),
            "failed",
            "Good does not implement append, coverage, ",
        ),
        (GOOD.replace("tardisd_sinks()", "tardisd_sinks(wrong)"), "failed", "wrong"),
        (
            GOOD.replace('name = "good"', 'name = "good"\n    Options = dict'),
            "failed",
            "Good.Options is not a subclass of tardisd.Options",
        ),
        (
            "from typing import Annotated\nfrom msgspec import Meta\nimport tardisd\n"
            "class Bounded(tardisd.Options, frozen=True, kw_only=True):\n"
            "    size: Annotated[int | None, Meta(ge=1)] = None\n"
            + GOOD.replace('name = "good"', 'name = "good"\n    Options = Bounded'),
            "failed",
            "Good.Options cannot be read from a config: Can only set `ge` on a numeric type",
        ),
    ],
)
def test_a_broken_plugin_is_told_of_and_harms_no_other(folder, source, state, reason):
    write(folder / "bad.py", source)
    write(folder / "fine.py", SINK.format(cls="Fine", name="fine"))
    registry, found = discover(folder)
    assert registry.get("sink", "fine")
    record = found["bad", state]
    assert reason in record.reason
    assert "\n" not in record.reason
    assert record.cls is None
    assert set(found) == {("bad", state), ("fine", "loaded")}


def test_a_plugin_that_raises_leaves_no_half_module(folder):
    write(folder / "bad.py", "1 / 0")
    discover(folder)
    assert "tardisd_dropin_bad" not in sys.modules


def test_the_authors_own_frames_are_named_not_ours(folder):
    write(folder / "pack" / "__init__.py", "from . import inner")
    write(folder / "pack" / "inner.py", "import json\n\ndef f():\n    json.loads('{')\n\nf()")
    _, found = discover(folder)
    reason = found["pack", "failed"].reason
    frames = "pack/__init__.py:1 in <module> > pack/inner.py:6 in <module> > pack/inner.py:4 in f"
    assert reason.startswith("JSONDecodeError: ")
    assert reason.endswith(f"({frames})")


def test_what_others_may_write_is_refused(folder):
    marker = folder / "ran"
    run = f"open({str(marker)!r}, 'w').close()"
    write(folder / "loose.py", run).chmod(0o666)
    write(folder / "pack" / "__init__.py", run)
    write(folder / "pack" / "table.py", "").chmod(0o664)
    _, found = discover(folder)
    assert "(mode 0666); run `chmod go-w" in found["loose", "failed"].reason
    assert "pack/table.py may be written by others" in found["pack", "failed"].reason
    assert not marker.exists()


def test_a_folder_that_others_may_write_is_refused(folder):
    write(folder / "mine.py", GOOD)
    folder.chmod(0o777)
    _, found = discover(folder)
    assert "may be written by others (mode 0777)" in found["mine", "failed"].reason


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_file_is_refused(folder):
    os.chown(write(folder / "mine.py", GOOD), 12345, 12345)
    _, found = discover(folder)
    assert "belongs to another user (uid 12345)" in found["mine", "failed"].reason


def test_two_claims_to_one_name_are_both_refused(folder):
    write(folder / "one.py", GOOD)
    write(folder / "two.py", GOOD)
    write(folder / "three.py", GOOD.replace("Sink", "Exchange"))  # abstract: fails for itself
    registry = Registry.discover([folder])
    claims = [it for it in registry.plugins if (it.kind, it.name) == ("sink", "good")]
    assert [it.state for it in claims] == ["failed", "failed"]
    for record in claims:
        assert f"{folder}/one.py" in record.reason
        assert f"{folder}/two.py" in record.reason
        assert record.cls is None
    with pytest.raises(PluginError, match=r"sink 'good' is claimed by .* and by "):
        registry.get("sink", "good")


def test_the_same_class_registered_twice_is_one(folder, installed):
    installed("one", {"one_mod": GOOD}, {"one": "one_mod"})
    write(folder / "two.py", "from one_mod import tardisd_sinks")
    registry = Registry.discover([folder])
    assert [it.state for it in registry.plugins if it.name == "good"] == ["loaded"]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return a function that installs a distribution: real files on a real import path."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    before = set(sys.modules)

    def install(dist, modules, points, requires=()):
        for name, source in modules.items():
            (site / f"{name}.py").write_text(source)
        info = site / f"{dist}-3.1.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {dist}", "Version: 3.1"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        entries = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[tardisd]\n{entries}")

    yield install
    for name in set(sys.modules) - before:
        if name.endswith("_mod"):
            del sys.modules[name]


def test_installed_plugins_are_loaded_one_by_one(installed):
    points = {"a_bad": "bad_mod", "b_good": "good_mod", "c_gone": "gone_mod"}
    installed("tardisd-foo", {"bad_mod": "1 / 0", "good_mod": GOOD}, points)
    registry = Registry.discover()
    ours = {it.name: it for it in registry.plugins if it.origin == "tardisd-foo"}
    assert {name: it.state for name, it in ours.items()} == {
        "good": "loaded",
        "a_bad": "failed",
        "c_gone": "failed",
    }
    assert ours["good"].version == "3.1"
    assert "ZeroDivisionError" in ours["a_bad"].reason
    assert "bad_mod.py:1" in ours["a_bad"].reason
    assert "No module named 'gone_mod'" in ours["c_gone"].reason


def test_an_optional_package_is_had_by_its_extra(installed):
    installed(
        "tardisd-foo",
        {"needy_mod": "import no_such_package"},
        {"needy": "needy_mod"},
        ["no-such-package>=2; extra == 'all'", "no-such-package>=2; extra == 'fast'"],
    )
    registry = Registry.discover()
    record = next(it for it in registry.plugins if it.name == "needy")
    assert record.state == "unavailable"
    assert record.reason.endswith("; pip install 'tardisd-foo[fast]'")
    with pytest.raises(Unavailable, match="sink plugin 'needy' is unavailable") as caught:
        registry.get("sink", "needy")
    assert caught.value.hint == "pip install 'tardisd-foo[fast]'"


def test_get_says_what_was_meant(folder):
    write(folder / "mine.py", GOOD)
    registry, _ = discover(folder)
    with pytest.raises(PluginError, match="no sink plugin is named 'goood'; did you mean 'good'"):
        registry.get("sink", "goood")
    with pytest.raises(PluginError, match="plugin 'good' is of kind sink, not storage"):
        registry.get("storage", "good")
    with pytest.raises(PluginError, match=r"no sink plugin is named 'xyzzy'; known: .*good"):
        registry.get("sink", "xyzzy")


def test_formats_are_made_once_per_class(folder):
    source = """
import tardisd

class Table(tardisd.FileFormat):
    name = "table"
    kinds = frozenset({"candle"})
    header = {"when": "time"}

@tardisd.hookimpl
def tardisd_formats():
    return [Table]
"""
    write(folder / "mine.py", source)
    registry, found = discover(folder)
    assert found["table", "loaded"].kind == "format"
    assert [it for it in registry.formats() if it.name == "table"]
    write(folder / "mine.py", source.replace("kinds", "sorts"))
    assert "kinds" in discover(folder)[1]["mine", "failed"].reason


def test_first_party_plugins_are_found_as_any_other():
    origins = {it.module: it.origin for it in Registry.discover().plugins}
    assert origins["tardisd_sqlite"] == "tardisd"
    assert origins["tardisd_websocket"] == "tardisd"


def test_reading_again_gives_the_same_class_until_a_file_changes(folder):
    write(folder / "pack" / "__init__.py", "from .sinks import tardisd_sinks")
    write(folder / "pack" / "sinks.py", GOOD)
    first = discover(folder)[1]["good", "loaded"].cls
    assert discover(folder)[1]["good", "loaded"].cls is first
    write(folder / "pack" / "sinks.py", GOOD + "\n# changed\n")
    second = discover(folder)[1]["good", "loaded"].cls
    assert second is not first
    write(folder / "pack" / "sinks.py", "raise ValueError")
    assert ("pack", "failed") in discover(folder)[1]
    write(folder / "pack" / "sinks.py", GOOD)
    assert ("good", "loaded") in discover(folder)[1]


def test_a_plugin_that_needs_what_there_is_is_loaded(folder):
    major = CONTRACT_VERSION.partition(".")[0]
    write(folder / "mine.py", f'TARDISD_CONTRACT = "{major}.0"\n' + GOOD)
    assert ("good", "loaded") in discover(folder)[1]


HANGING = {
    "sleeps": "import time\ntime.sleep(3600)",
    "spins": "while True:\n    pass",
    "catches": "import time\nwhile True:\n    try:\n        time.sleep(3600)\n"
    "    except Exception:\n        pass",
    "hook": "import tardisd, threading\n@tardisd.hookimpl\ndef tardisd_sinks():\n"
    "    threading.Event().wait()",
}


@pytest.mark.parametrize("how", HANGING)
def test_one_that_hangs_is_given_up_and_named(folder, monkeypatch, how):
    monkeypatch.setattr(registry, "LOAD_SECS", 0.5)
    write(folder / "bad.py", HANGING[how])
    write(folder / "mine.py", GOOD)
    _, found = discover(folder)
    assert ("good", "loaded") in found
    reason = found["bad", "failed"].reason
    assert reason.startswith("TookTooLong: took longer than 0.5 s (bad.py:")
    assert reason.endswith("; nothing that takes long belongs into an import")


@pytest.mark.parametrize("how", ["sleeps", "hook"])
async def test_one_that_hangs_in_a_thread_is_given_up_too(folder, monkeypatch, how):
    """As a reload finds it: the daemon's main thread goes on meanwhile."""
    monkeypatch.setattr(registry, "LOAD_SECS", 0.5)
    write(folder / "bad.py", HANGING[how].replace("3600", "2").replace(".wait()", ".wait(2)"))
    write(folder / "mine.py", GOOD)
    _, found = await trio.to_thread.run_sync(discover, folder)
    assert ("good", "loaded") in found
    assert "took longer than 0.5 s" in found["bad", "failed"].reason


def test_a_format_needs_a_header_or_a_match(folder):
    text = 'import tardisd\n\nclass F(tardisd.FileFormat):\n    name, kinds = "f", frozenset("t")\n'
    write(folder / "bad.py", text + "tardisd_formats = tardisd.hookimpl(lambda: [F])")
    reason = discover(folder)[1]["bad", "failed"].reason
    assert reason == "F has neither a header nor a match() of its own"
