"""A real daemon in a folder of its own, for tests of plugins; synchronous, everything has an end.

Used through the fixture `tardisd_daemon`, or by itself.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE_SECS = 120.0
_PAUSE_SECS = 0.01
_DAEMON = '[daemon]\ndata_dir = "{data}"\ncontrol_socket = "{socket}"\nlog_format = "text"\n\n'


class DaemonProcess:
    """One `tardisd run`. `folder` holds its config, data, socket and log.

    The configuration must not have a section [daemon]: it gets one.
    """

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self._socket = folder / "control.sock"
        self._config = folder / "config.toml"
        folder.mkdir(parents=True, exist_ok=True)
        head = _DAEMON.format(data=self.data_dir, socket=self._socket)
        self._config.write_text(head + config)
        number = sum(1 for _ in folder.glob("log.*"))
        self._log = folder / f"log.{number}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    def start(self) -> None:
        """Start the process and wait until it is ready; AssertionError with its log when not."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-m", "tardisd", "run", "-c", self._config],
                stdout=log,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": ""},
            )
        self.wait_for(self._is_ready)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the daemon ended by itself:\n{self.log}"
        return " ready " in self.log

    def wait_for(self, done: Callable[[], Any], secs: float = PATIENCE_SECS) -> Any:
        """Return the first true answer of `done`; AssertionError when there is none in time."""
        pause, give_up = threading.Event(), time.monotonic() + secs
        while not (found := done()):
            assert time.monotonic() < give_up, f"waited {secs:g} s in vain; log:\n{self.log}"
            pause.wait(_PAUSE_SECS)
        return found

    def ctl(self, *words: object) -> str:
        """Run tardisctl and return what it prints; AssertionError when it fails."""
        done = subprocess.run(  # noqa: S603 - ourselves
            [sys.executable, "-c", "from tardisd.cli.ctl import main; main()",
             "--socket", self._socket, *map(str, words)],
            capture_output=True, text=True, timeout=PATIENCE_SECS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stderr}\nlog:\n{self.log}"
        return done.stdout

    def call(self, method: str, **params: object) -> Any:
        """Return the result of a method of the control socket; AssertionError for an error."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(PATIENCE_SECS)
            control.connect(str(self._socket))
            control.sendall(json.dumps(request).encode() + b"\n")
            with control.makefile("rb") as answers:
                answer = json.loads(answers.readline())
        assert "result" in answer, answer
        return answer["result"]

    def stop(self) -> None:
        """Stop it as systemd does, and wait; AssertionError when it did not end well."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(PATIENCE_SECS)
        assert code == 0, f"exit code {code}; log:\n{self.log}"

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
