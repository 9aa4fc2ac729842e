"""`tardisd demo`, as a pipe and in a terminal; it leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_rig import ENVIRON, PROGRAMS
from terminal_rig import terminal
from websocket_client import DEADLINE_SECS

from tardisd.cli.keyboard import pressed

LINE = re.compile(r"2024-03-01 1\d:\d\d:\d\dZ  60x .*BTC/USDT [\d,.]+  ETH/USDT [\d,.]+")


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Give the demo a folder for its temporary files; in the end nothing may be in it."""
    yield {**ENVIRON, "TMPDIR": str(tmp_path), "TERM": "xterm-256color"}
    assert list(tmp_path.iterdir()) == []
    assert daemons_in(tmp_path) == []


def daemons_in(folder: Path) -> list[str]:
    """Return the command lines of processes that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):
            continue
        if str(folder) in words:
            found.append(words)
    return found


def test_keys_that_come_together() -> None:
    assert pressed("") == []
    assert pressed(" \x1b[A\x1bOBq\x1b[1;5Ä") == [
        "space", "up", "down", "q", "escape", "[", "1", ";", "5", "Ä",
    ]  # fmt: skip
    assert pressed("\x1b[1;5A\x1b[3~é") == ["up", "\x1b[3~", "é"]
    assert pressed("\x1b") == ["escape"]


def test_without_a_terminal(environ: dict[str, str]) -> None:
    with socket.socket() as taken:  # its usual port; somebody else may have it already: as good
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8001))
            taken.listen()
        except OSError:
            pass
        done = subprocess.run(
            [PROGRAMS / "tardisd", "demo", "--for", "3"],
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECS,
            check=False,
            env=environ,
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines
    assert all(LINE.match(line) for line in lines), lines
    assert lines == sorted(lines)
    assert "session watch demo" in done.stderr
    assert "keys:" not in done.stderr
    url = re.search(r"ws://127\.0\.0\.1:(\d+)/", done.stderr)
    assert url is not None
    assert url[1] != "8001"
    assert "Traceback" not in done.stderr


def test_keys_in_a_terminal(environ: dict[str, str]) -> None:
    with terminal([PROGRAMS / "tardisd", "demo"], environ) as screen:
        screen.until("BTC/USDT", "active", "keys: space pause/resume")
        screen.press(" ")
        screen.until("paused")
        screen.until("paused")  # still, when drawn anew
        screen.press(" ")
        screen.until("active")
        screen.press("\x1b[A")
        screen.until("100x")
        screen.press("-")
        screen.until("60x")
        screen.press("  \x1b[A\x1bOA")  # more than one at a time, and as some terminals send them
        screen.until("300x")
        screen.press("q")
        screen.check_end()


@pytest.mark.parametrize("how", ["ctrl-c", "SIGTERM", "at once"])
def test_interrupted(environ: dict[str, str], how: str) -> None:
    with terminal([PROGRAMS / "tardisd", "demo"], environ) as screen:
        if how == "at once":  # while the daemon is still starting
            screen.until("making")
        else:
            screen.until("active")
        if how == "SIGTERM":
            screen.process.send_signal(signal.SIGTERM)
        else:
            os.killpg(screen.process.pid, signal.SIGINT)  # as a terminal does
        if how == "at once":
            screen.process.wait(DEADLINE_SECS)
            assert screen.process.returncode == 0
        else:
            screen.check_end()
