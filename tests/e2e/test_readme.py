"""The README, as a newcomer follows it: its configuration, and its commands in their order."""

from __future__ import annotations

import os
import re
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
from daemon_rig import ENVIRON, PROGRAMS, Daemon
from websocket_client import DEADLINE_SECS

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
DECEMBER = 1_733_011_200_000  # 2024-12-01
HOURS = 31 * 24
# What it downloads, from a folder instead of the network.
CURL = """#!/bin/sh
cp "{folder}/$(basename "$2")" .
"""


def section(title: str) -> str:
    """Return the text below a heading."""
    [_, rest] = README.split(f"\n## {title}\n")
    return rest.split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def newcomer(tmp_path):
    """A daemon with the README's own configuration, and a shell in whose PATH everything is."""
    config = "".join(blocks(section("Quick start"), "toml"))
    assert "[sinks.ws]" in config
    places = f'data_dir = "{tmp_path}/data"\ncontrol_socket = "{tmp_path}/control.sock"\n'
    config = config.replace("127.0.0.1:8001", "127.0.0.1:0")
    synthetic = '\n[exchanges.synthetic]\nplugin = "synthetic"\n'
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "curl").write_text(CURL.format(folder=tmp_path / "web"))
    (tools / "curl").chmod(0o755)
    (tmp_path / "web").mkdir()
    rows = [
        f"{DECEMBER + at * 3_600_000},9{at % 10}.5,100,90.25,9{(at * 7) % 10}.75,12.5,"
        f"{DECEMBER + at * 3_600_000 + 3_599_999},1200.5,30,6,600,0"
        for at in range(HOURS)
    ]
    name = "BTCUSDT-1h-2024-12"
    with zipfile.ZipFile(tmp_path / "web" / f"{name}.zip", "w") as archive:
        archive.writestr(f"{name}.csv", "\n".join(rows) + "\n")
    daemon = Daemon(tmp_path, f"[daemon]\n{places}\n{config}{synthetic}")
    path = f"{tools}:{PROGRAMS}:{os.environ['PATH']}"
    environ = {**ENVIRON, "PATH": path, "TARDISD_SOCKET": str(daemon.socket)}

    def shell(line: str, *, code: int | None = 0, secs: float = DEADLINE_SECS) -> str:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environ, capture_output=True, text=True,
            timeout=secs, check=False,
        )  # fmt: skip
        assert code is None or done.returncode == code, (line, done.stdout, done.stderr)
        return done.stdout + done.stderr

    yield shell
    daemon.close()


def test_the_quick_start(newcomer):
    told = {}
    for block in blocks(section("Quick start"), "sh"):
        for line in block.splitlines():
            if line.startswith("tardisd run"):
                continue  # it runs already, in another terminal
            if "session watch" in line:
                told[line] = newcomer(f"timeout 2 {line}", code=None)
                continue
            told[line] = newcomer(line)
            if "session resume" in line:
                give_up = time.monotonic() + DEADLINE_SECS
                while "finished" not in newcomer("tardisctl session show december"):
                    assert time.monotonic() < give_up
    text = "\n".join(f"$ {line}\n{output}" for line, output in told.items())
    assert "744 added" in text
    assert "binance:BTC/USDT@candle_1h" in text
    assert re.search(r"candle_1h open=", text), "watch shows ticks"
    assert "december stepped 24 at" in text
    assert "december sought at 2024-12-15T12:00:00.000Z" in text
    assert re.search(r"december equal: \d+ ticks", text)


def test_fetching_without_a_network(newcomer):
    lines = [
        line
        for block in blocks(section("Fetch from a venue"), "sh")
        for line in block.splitlines()
        if "synthetic" in line
    ]
    assert len(lines) >= 3
    told = [newcomer(line) for line in lines]
    assert "2024-03" in told[1]
    assert "ok" in told[2].lower()
