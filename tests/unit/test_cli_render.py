"""Tables and errors, on a terminal and elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from tardisd.cli import render
from tardisd.errors import ConfigError, ControlError, NotRunning, Problem

ROWS = [["short", "loaded", 1], ["a longer name " * 12, "failed", None]]


def test_a_table_elsewhere_is_aligned_and_never_cut(capsys):
    render.table(("name", "state", "count"), ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "COUNT"]
    assert [line.find("loaded") for line in lines][1] == lines[0].find("STATE")
    assert lines[2].startswith("a longer name " * 12)
    assert lines[2].endswith("failed")


def test_an_empty_table_still_has_its_head(capsys):
    render.table(("name", "state"), [])
    assert capsys.readouterr().out == "NAME  STATE\n"


def on_terminal(code):
    """Return what python code writes when stdout is a terminal of 60 columns."""
    ours, theirs = pty.openpty()
    environ = {"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": "60"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=theirs, env=environ, timeout=120, check=True
    )
    os.close(theirs)
    assert done.returncode == 0
    text = b""
    try:
        while part := os.read(ours, 65536):
            text += part
    except OSError:  # how a terminal says that nobody is left on the other side
        pass
    os.close(ours)
    return text.decode()


def test_a_table_on_a_terminal_has_colours_and_whole_rows():
    text = on_terminal(
        "from tardisd.cli import render\n"
        "render.table(('name', 'state'), [['[red]x[/red]' + 'y' * 90, 'loaded']])"
    )
    assert "\x1b[32mloaded" in text
    assert "[red]" in text  # what is shown is never taken for markup
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert any("y" * 90 in line and "loaded" in line for line in plain.split("\r\n"))


def test_json_is_indented_on_a_terminal_only(capsys):
    code = "from tardisd.cli import render; render.print_json({'a': ['é']})"
    assert on_terminal(code) == '{\r\n  "a": [\r\n    "é"\r\n  ]\r\n}\r\n'
    render.print_json({"a": ["é"]})
    assert capsys.readouterr().out == '{"a": ["é"]}\n'


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (NotRunning("no daemon listens"), 3, "error: no daemon listens\nhint: start it with"),
        (ControlError("no_data", "nothing stored"), 1, "error: nothing stored\n"),
        (PermissionError(13, "no", "/run/x"), 77, "error: no permission: /run/x\n"),
        (KeyboardInterrupt(), 1, "error: interrupted\n"),
        (ConfigError([Problem("f", 3, "a.b", "wrong")]), 78, "f:3: a.b: wrong\n"),
    ],
)
def test_exit_codes(error, code, text, capsys, monkeypatch):
    import click

    @click.command()
    def command():
        raise error

    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards
    with pytest.raises(SystemExit) as caught:
        render.run_command(command)
    assert caught.value.code == code
    assert capsys.readouterr().err.lstrip("\n").startswith(text)


MONTHS = [("2024-01", " " * 29 + "#+"), ("2024-02", "##.")]


def test_a_strip_elsewhere_has_plain_characters(capsys):
    render.strip(MONTHS)
    assert capsys.readouterr().out.splitlines() == [
        "        1   5    10   15   20   25   30",
        "2024-01                              #+",
        "2024-02 ##.",
        "        # full  + partial  . none",
        "",
    ]
    render.strip([])
    assert capsys.readouterr().out == ""


def test_a_strip_on_a_terminal_has_colored_blocks():
    told = on_terminal(f"from tardisd.cli import render; render.strip({MONTHS!r})")
    assert "\x1b[32m█\x1b[0m" in told
    assert "\x1b[33m▒\x1b[0m" in told
    assert "#" not in told


def test_progress_in_words():
    from tardisd.cli.ctl_progress import remark, told

    params = {
        "done": 3_600 * 10**9,
        "total": 7_200 * 10**9,
        "unit": "ns",
        "rate": 36 * 10**9,
        "message": "1,234 rows",
        "rows_per_sec": 12.3,
        "eta_secs": 100.0,
        "limit_used": 0.834,
        "waiting_for": "too many requests until noon",
    }
    assert told(params) == "1h of 2h"
    assert remark(params) == (
        "1,234 rows, 12/s, 1m 40s to go, limit 83% used, too many requests until noon"
    )
    plain = {"done": 50, "total": 100, "unit": "rows", "rate": 5.0, "message": "m"}
    assert remark(plain) == "m, 10s to go"
    assert remark({"done": 5, "total": 0, "unit": "rows", "rate": 5.0}) == ""
