"""The `tardisd` command as a process: what it prints and the code it exits with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tardisd import __version__

PROGRAM = Path(sys.executable).with_name("tardisd")
PROBE = Path(__file__).with_name("config") / "probe.py"
GOOD = (
    '[plugins]\ndirs = ["plugins.d"]\n[storages.main]\nplugin = "memory"\n'
    '[sinks.ws]\nplugin = "probe"\ntoken = "sesame"\n'
)


@pytest.fixture
def tardisd(tmp_path):
    """Return a function that runs tardisd in a folder with a plugin and a configuration."""
    (tmp_path / "plugins.d").mkdir(mode=0o755)
    shutil.copyfile(PROBE, tmp_path / "plugins.d" / "probe.py")
    (tmp_path / "plugins.d" / "probe.py").chmod(0o644)
    (tmp_path / "config.toml").write_text(GOOD)
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def run(*args, **more):
        return subprocess.run(
            [PROGRAM, *args],
            cwd=tmp_path,
            env=environ | more,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    run.folder = tmp_path
    return run


def test_version(tardisd):
    assert tardisd("--version").stdout == f"tardisd {__version__}\n"


@pytest.mark.parametrize(
    "args", [["--nope"], ["run", "--nope"], ["nope"], ["check", "x"], ["demo", "--for", "-1"], []]
)
def test_wrong_usage_exits_2(tardisd, args):
    done = tardisd(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Usage: tardisd" in done.stderr


def test_check_of_a_good_configuration(tardisd):
    done = tardisd("check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "config.toml: ok\n", "")


@pytest.mark.parametrize("command", [["check"], ["run"], ["config", "show"]])
def test_an_invalid_configuration_exits_78(tardisd, command):
    (tardisd.folder / "bad.toml").write_text(GOOD + "[daemon]\nlog_level = 1\nx = 2\n")
    done = tardisd(*command, "-c", "bad.toml")
    assert done.returncode == 78
    assert done.stdout == ""
    assert (
        done.stderr.splitlines()[0]
        == "bad.toml:9: daemon.log_level: expected string, got integer (1)"
    )
    assert done.stderr.splitlines()[1].startswith("bad.toml:10: daemon.x: unknown key; ")


def test_a_missing_configuration_exits_78(tardisd):
    done = tardisd("check", "-c", "missing.toml")
    assert done.returncode == 78
    assert done.stderr.startswith("missing.toml:1: config: no such file")


def test_config_show_hides_secrets(tardisd):
    shown = tardisd("config", "show")
    assert tomllib.loads(shown.stdout)["sinks"]["ws"]["token"] == "***"
    as_json = json.loads(tardisd("config", "show", "--json").stdout)
    assert as_json["sinks"]["ws"]["max_clients"] == 10
    assert as_json["daemon"]["data_dir"] == str(tardisd.folder / ".local/share/tardisd")
    assert "sesame" not in shown.stdout


def test_config_example_is_toml(tardisd):
    text = tardisd("config", "example").stdout
    assert tomllib.loads(text) == json.loads(tardisd("config", "example", "--json").stdout)


def test_config_schema_knows_every_plugin(tardisd):
    schema = json.loads(tardisd("config", "schema").stdout)
    sinks = schema["properties"]["sinks"]["additionalProperties"]["anyOf"]
    probe = next(it for it in sinks if it["properties"]["plugin"] == {"const": "probe"})
    assert probe["properties"]["max_clients"]["minimum"] == 1
    assert probe["properties"]["mode"]["enum"] == ["full", "normal"]
    hook = next(it for it in sinks if it["properties"]["plugin"] == {"const": "hook"})
    assert hook["required"] == ["plugin", "url"]
    assert schema["additionalProperties"] is False


def test_plugins_are_listed_with_what_became_of_them(tardisd):
    (tardisd.folder / "plugins.d" / "broken.py").write_text("import no_such_package")
    (tardisd.folder / "plugins.d" / "broken.py").chmod(0o644)
    found = {it["name"]: it for it in json.loads(tardisd("plugins", "--json").stdout)}
    assert found["probe"]["state"] == "loaded"
    assert found["probe"]["kind"] == "sink"
    assert found["broken"]["state"] == "unavailable"
    lines = tardisd("plugins").stdout.splitlines()
    assert lines[0].split() == ["NAME", "KIND", "ORIGIN", "VERSION", "STATE", "REASON"]
    line = next(line for line in lines if line.startswith("broken"))
    assert line.index("unavailable") == lines[0].index("STATE")
    assert line.endswith("; pip install no_such_package")


def test_plugins_are_listed_without_a_configuration(tardisd):
    (tardisd.folder / "config.toml").unlink()
    done = tardisd("plugins", "--json")
    assert done.returncode == 0
    assert "sqlite" in {it["name"] for it in json.loads(done.stdout)}


def bug(**environ):
    code = (
        "import click, tardisd.cli.render as r\n"
        "@click.command()\n"
        "def f():\n"
        "    raise KeyError('lost')\n"
        "r.run_command(f)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": os.environ["PATH"]} | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_bug_is_told_in_one_line_and_traced_on_demand():
    done = bug()
    assert done.returncode == 1
    assert done.stderr.startswith("error: unexpected KeyError: 'lost'\nhint: ")
    assert "Traceback" not in done.stderr
    done = bug(TARDISD_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_help_imports_nothing_heavy():
    code = (
        "import sys, tardisd.cli.daemon as d\n"
        "d.cli.main(['--help'], standalone_mode=False)\n"
        "heavy = {'numpy', 'msgspec', 'trio', 'rich', 'pluggy', 'httpx', 'pyarrow'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_output_into_a_closed_pipe_is_no_bug(tardisd):
    with subprocess.Popen(
        [PROGRAM, "config", "schema"],
        cwd=tardisd.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
