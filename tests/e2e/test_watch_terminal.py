"""`tardisctl session watch` on a terminal: a player that steers the session it shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_rig import ENVIRON, PROGRAMS, Daemon
from terminal_rig import terminal

SERIES = "synthetic:BTC/USDT@candle_1m"
SPAN = ["--from", "2024-03-01", "--to", "2024-03-02"]
CONFIG = """
[daemon]
data_dir = "{folder}/data"
control_socket = "{folder}/control.sock"

[storages.main]
plugin = "sqlite"

[exchanges.synthetic]
plugin = "synthetic"
gaps = false

[sinks.ws]
plugin = "websocket"
listen = "127.0.0.1:0"
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    one = Daemon(tmp_path, CONFIG)
    try:
        one.ctl("backfill", "run", SERIES, *SPAN, "--wait")
        yield one
    finally:
        one.close()


def test_the_keys_of_the_player(daemon: Daemon) -> None:
    daemon.ctl("session", "create", "--series", SERIES, *SPAN, "--id", "s", "--paused")
    command = [PROGRAMS / "tardisctl", "--socket", daemon.socket, "session", "watch", "s"]
    with terminal(command, {**ENVIRON, "TERM": "xterm-256color"}) as screen:
        screen.until("session s", "paused", "2024-03-01 00:00:00", "g go to")
        screen.press("\x1b[C")
        screen.until("00:01:00 UTC", "1 ticks", "candle_1m closes")
        screen.press("\x1b[C\x1b[C")
        screen.until("00:03:00 UTC", "3 ticks")
        screen.press("\x1b[D")
        screen.until("  0 ticks")
        screen.press("g12:30\r")
        screen.until("go to", "12:30:00 UTC")
        screen.press("g")
        screen.until("go to")
        screen.press("2024-03-09\x7f2\r")
        screen.until("2024-03-02 00:00:00 UTC")
        screen.press("g+90")
        screen.until("90▏")
        screen.press("\x1b")
        screen.until("g go to")
        screen.press("g-1h\r")
        screen.until("2024-03-01 23:00:00 UTC")
        screen.press("g2025-01-01\r")
        screen.until("is outside the session")
        screen.press("g-100h\r")
        screen.until("2024-03-01 00:00:00 UTC")
        screen.press("g+23h\r")
        screen.until("2024-03-01 23:00:00 UTC")
        screen.press("-")
        screen.until("60x")
        screen.press(" ")
        screen.until("active")
        screen.press("\x1b[D")  # ten seconds at 60x: ten minutes back
        screen.until("22:5[0-9]:")
        screen.press("q")
        screen.check_end()
    assert daemon.ctl("session", "stop", "s")


def test_the_player_ends_with_the_session_and_names_one_that_is_not_there(daemon: Daemon) -> None:
    daemon.ctl("session", "create", "--series", SERIES, *SPAN, "--id", "s", "--paused")
    command = [PROGRAMS / "tardisctl", "--socket", daemon.socket, "session", "watch"]
    environ = {**ENVIRON, "TERM": "xterm-256color"}
    with terminal([*command, "s"], environ) as screen:
        screen.until("paused")
        daemon.ctl("session", "stop", "s")
        screen.check_end()
    with terminal([*command, "none"], environ) as screen:
        screen.until("there is no session 'none'")
        screen.process.wait(60)
        assert screen.process.returncode == 1
    with terminal([*command, "s", "--lines"], environ) as screen:
        screen.until("-- end")
        assert screen.process.wait(60) == 0
    with terminal([*command, "s"], {**environ, "TERM": "dumb"}) as screen:
        screen.until("-- end")
        assert screen.process.wait(60) == 0


def test_the_player_goes_on_while_a_step_waits_for_somebody(daemon: Daemon) -> None:
    with daemon.websocket() as client:
        span = {"start_time": "2024-03-01T00:00:00Z", "end_time": "2024-03-02T00:00:00Z"}
        paused = {"session_id": "s", "start_paused": True, "lockstep": True}
        client.ask("create_session", exchange="synthetic", symbol="BTC/USDT", **span, **paused)
        command = [PROGRAMS / "tardisctl", "--socket", daemon.socket, "session", "watch", "s"]
        with terminal(command, {**ENVIRON, "TERM": "xterm-256color"}) as screen:
            screen.until("paused", "g go to")
            screen.press("\x1b[C" * 3)  # the second one needs a word from the client
            screen.until("  1 ticks")
            screen.press("g12")
            screen.until("12▏")
            screen.press("\x1b")
            screen.until("g go to")
            barrier = client.until_type("barrier")
            client.send("ack", session_id="s", epoch=1, seq=barrier["seq"])
            screen.until("  2 ticks")
            screen.press(" ")  # ends the step
            screen.until("active")
            screen.press("\t")
            screen.until("candle_1m closes")
            screen.press("q")
            screen.check_end()
