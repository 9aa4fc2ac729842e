"""`tardisd demo`: a whole tardisd at work in a temporary folder, without network or config.

It is a user like any other: it writes a config, starts `tardisd run`, and asks for everything over
the control socket.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from tardisd.cli import render
from tardisd.cli.live import over, play, watch
from tardisd.cli.player import Picture
from tardisd.control.client import ControlClient
from tardisd.errors import ControlError, NotRunning

SESSION = "demo"
SYMBOLS = ("BTC/USDT", "ETH/USDT")
START, END = "2024-03-01T12:00:00Z", "2024-03-01T18:00:00Z"
SPEED = 60
PORT = 8001
SEED, TRADES_PER_SECOND = 7, 3.0
TITLE = "tardisd: synthetic market history, replayed as if live"
STARTUP_SECS, STOP_SECS = 30.0, 10.0


def main(duration: float | None = None) -> int:
    """Show the demo for `duration` seconds, or until it is over or interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="tardisd-demo-") as name, _daemon(Path(name)) as up:
            path, url = up
            _fill(path)
            return _show(path, url, duration)
    except KeyboardInterrupt:
        render.warn("stopped")
        return 0


@contextmanager
def _daemon(folder: Path) -> Iterator[tuple[Path, str]]:
    """Run a daemon with a config of its own; give its control socket and WebSocket address."""
    path, port = folder / "control.sock", _free_port()
    config = {
        "daemon": {"data_dir": str(folder / "data"), "control_socket": str(path)},
        "storages": {"main": {"plugin": "sqlite"}},
        "exchanges": {
            "synthetic": {
                "plugin": "synthetic",
                "seed": SEED,
                "trades_per_second": TRADES_PER_SECOND,
                "gaps": False,
            }
        },
        "sinks": {"ws": {"plugin": "websocket", "listen": f"127.0.0.1:{port}"}},
    }
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    log = folder / "daemon.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "tardisd", "run", "-c", str(folder / "config.toml")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for us; we tell it in our own time
        )
    try:
        _await_start(process, path, log)
        yield path, f"ws://127.0.0.1:{port}/"
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    """Return the usual port when it is free, else any other."""
    for port in (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ControlError("start_failed", "no TCP port is free on 127.0.0.1")


def _await_start(process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    give_up = time.monotonic() + STARTUP_SECS
    while time.monotonic() < give_up:
        if process.poll() is not None:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise ControlError("start_failed", f"the daemon did not start: {' '.join(last)}")
        try:
            with ControlClient(path) as client:
                states = [one["state"] for one in client.call("instance.list")]
            if states and all(state == "running" for state in states):
                return
        except NotRunning:
            pass
        time.sleep(0.05)
    raise ControlError("start_failed", f"the daemon was not ready within {STARTUP_SECS:g} s")


def _fill(path: Path) -> None:
    """Have the synthetic exchange's history fetched into the store."""
    from tardisd.cli.ctl_progress import shown_progress

    series = [f"synthetic:{symbol}@{kind}" for symbol in SYMBOLS for kind in ("candle_1m", "trade")]
    render.warn(f"making {START[:13]}:00 to {END[11:16]} of {' and '.join(SYMBOLS)} (synthetic)")
    with ControlClient(path) as client, shown_progress("storing") as show:
        params = {"series": series, "from": START, "to": END, "wait": True}
        client.call("backfill.run", params, on_notification=show)
        client.call(
            "session.create",
            {
                "session_id": SESSION,
                "series": series,
                "start_time": START,
                "end_time": END,
                "speed": SPEED,
                "start_paused": True,
            },
        )


def _show(path: Path, url: str, duration: float | None) -> int:
    folder = Path(sys.executable).parent
    example = Path(__file__).parents[2] / "examples" / "follow.py"
    lines = [
        f"WebSocket  {url}  session {SESSION}; from another terminal:",
        f"  {_short(folder / 'tardisctl')} --socket {path} session watch {SESSION}",
    ]
    if example.exists():  # not in an installed wheel
        lines.append(f"  {_short(Path(sys.executable))} {_short(example)} {url} {SESSION}")
    footer = "\n".join(lines)
    until = None if duration is None else time.monotonic() + duration
    with ControlClient(path) as client:
        client.call("session.resume", {"session_id": SESSION})
        if sys.stdout.isatty():
            play(path, SESSION, TITLE, f"\n{footer}", until)
        else:
            render.warn(footer)
            picture = Picture()
            threading.Thread(target=watch, args=(path, SESSION, picture), daemon=True).start()
            _print_lines(client, picture, until)
    return 0


def _short(path: Path) -> str:
    """Return a path as it is typed here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _print_lines(client: ControlClient, picture: Picture, until: float | None) -> None:
    while not over(picture, until):
        time.sleep(min(1.0, max(0.05, (until or 1e18) - time.monotonic())))
        picture.status = client.call("session.show", {"session_id": SESSION})
        print(picture.line(), flush=True)
