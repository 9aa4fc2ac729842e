"""The documentation says what the code does: blocks load, links lead somewhere, names are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from tardisd.cli import ctl, render
from tardisd.cli import daemon as daemon_cli
from tardisd.config.load import load_config
from tardisd.config.schema import BackfillTable, DaemonTable, PluginsTable, SessionTable
from tardisd.control.methods import METHODS
from tardisd.errors import ConfigError
from tardisd.plugins.registry import Registry
from tardisd_websocket.decoding import ERROR_CODES
from tardisd_websocket.messages import SUPPORTED

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *ROOT.glob("CO*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PROGRAMS = {"tardisd": daemon_cli.cli, "tardisctl": ctl.cli}


def blocks(language: str) -> list[tuple[str, str]]:
    """Return (page, text) of every fenced block in a language."""
    return [
        (path.name, text)
        for path in PAGES
        for found, text in BLOCK.findall(path.read_text())
        if found == language
    ]


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command below one, with the words that name it."""
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, f"{path} {name}")


EVERY_COMMAND = {
    path: command for name, main in PROGRAMS.items() for path, command in commands(main, name)
}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    missing = [str(page) for page in pages if page.name != "index.md" and f"({page})" not in index]
    assert missing == []


@pytest.mark.parametrize(("page", "text"), blocks("toml"))
def test_configurations_load(page, text, tmp_path):
    path = tmp_path / "config.toml"
    (tmp_path / ".config/tardisd/plugins").mkdir(parents=True)
    storage = "" if "[storages." in text else '[storages.some]\nplugin = "sqlite"\n'
    path.write_text(f"{storage}{text}")
    load_config(path, {"HOME": str(tmp_path), "TARDISD_WS_TOKEN": "secret"})


def test_the_problem_shown_is_the_problem_found(tmp_path):
    text = (ROOT / "docs" / "configuration.md").read_text()
    config = next(block for page, block in blocks("toml") if page == "configuration.md")
    shown = re.search(r"^config\.toml:.*$", text, re.MULTILINE)
    path = tmp_path / "config.toml"
    path.write_text(config.replace("listen =", "lissten ="))
    with pytest.raises(ConfigError) as raised:
        load_config(path, {"HOME": str(tmp_path)})
    assert str(raised.value).replace(f"{tmp_path}/", "") == shown[0]


@pytest.mark.parametrize(("page", "text"), blocks("json"))
def test_messages_are_json(page, text):
    assert isinstance(msgspec.json.decode(text), dict)


def test_the_client_shown_is_the_client_shipped():
    [shown] = [text for page, text in blocks("python") if page == "README.md"]
    assert shown == (ROOT / "examples" / "client.py").read_text()


@pytest.mark.parametrize(("page", "text"), blocks("sh"))
def test_commands_exist(page, text):
    for line in text.replace("\\\n", " ").splitlines():
        words = line.split("#")[0].partition("|")[0].split()
        program = words[0].rpartition("/")[2] if words else ""
        if program in PROGRAMS:
            check_command(program, words[1:])


def check_command(program: str, words: list[str]) -> None:
    """Assert that the words name a command, and options that it or one above it has."""
    path, command = program, PROGRAMS[program]
    known = {name for option in command.params for name in option.opts}
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in {*known, "--help"}, f"{path} has no {word}"
        elif isinstance(command, click.Group) and word in command.commands:
            path, command = f"{path} {word}", command.commands[word]
            known |= {name for option in command.params for name in option.opts}
    assert not isinstance(command, click.Group) or "--help" in words, f"{path} wants a verb"


@pytest.mark.parametrize("path", sorted(EVERY_COMMAND))
def test_every_command_is_documented(path):
    command = EVERY_COMMAND[path]
    if isinstance(command, click.Group):
        return
    assert re.search(rf"`{path}\b", PROTOCOL), path
    missing = [
        option.opts[0]
        for option in command.params
        if isinstance(option, click.Option) and f"{max(option.opts, key=len)}" not in PROTOCOL
    ]
    assert missing == []


def test_every_request_is_documented():
    missing = [name for name in SUPPORTED if f"`{name}`" not in PROTOCOL]
    fields = {
        field.encode_name for kind in SUPPORTED.values() for field in msgspec.structs.fields(kind)
    }
    missing += [name for name in sorted(fields - {"type"}) if f"`{name}`" not in PROTOCOL]
    assert missing == []


def test_every_error_code_is_documented():
    assert [code for code in sorted(ERROR_CODES) if f"| `{code}` |" not in PROTOCOL] == []


def test_every_method_is_documented():
    for method in METHODS.values():
        row = re.search(rf"^\| `{re.escape(method.name)}` \|(.*)$", PROTOCOL, re.MULTILINE)
        assert row, method.name
        names = [field.encode_name for field in msgspec.structs.fields(method.params)]
        assert [name for name in names if f"`{name}`" not in row[1]] == [], method.name


def test_every_exit_code_is_documented():
    codes = ("DONE", "FAILED", "USAGE", "NOT_RUNNING", "NO_PERMISSION", "BAD_CONFIG")
    numbers = [getattr(render, name) for name in codes]
    assert [number for number in numbers if f"| {number} |" not in PROTOCOL] == []


def test_every_option_is_documented():
    text = (ROOT / "docs" / "configuration.md").read_text()
    tables = {
        "[daemon]": DaemonTable,
        "[plugins]": PluginsTable,
        "[sessions.NAME]": SessionTable,
        "[backfills.NAME]": BackfillTable,
    }
    for record in Registry.discover().plugins:
        if record.cls is not None and record.kind != "format":
            tables[f"{record.kind} `{record.name}`"] = record.cls.Options
    missing = [
        f"{title}: {field.encode_name}"
        for title, options in tables.items()
        for field in msgspec.structs.fields(options)
        if f"`{field.encode_name}`" not in text
    ]
    assert missing == []
