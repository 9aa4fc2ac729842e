"""A program on a pseudo-terminal: what it draws is read, what is typed is sent."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from websocket_client import DEADLINE_SECS


class Terminal:
    """A program on a terminal of its own, and what it has drawn so far."""

    def __init__(self, command: Sequence[str | Path], environ: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environ,
            start_new_session=True,
            close_fds=True,
        )
        self._theirs = theirs
        os.set_blocking(self._ours, False)
        self._text = ""

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._ours, keys.encode())

    def until(self, *patterns: str) -> str:
        """Read until all patterns have appeared since the last call; return what was drawn."""
        give_up = time.monotonic() + DEADLINE_SECS
        while not all(re.search(pattern, self._text) for pattern in patterns):
            assert time.monotonic() < give_up, f"no {patterns} in {self._text[-3000:]!r}"
            self._read(0.1)
        seen, self._text = self._text, ""
        return seen

    def _read(self, secs: float) -> None:
        if select.select([self._ours], [], [], secs)[0]:
            try:
                self._text += os.read(self._ours, 65536).decode(errors="replace")
            except (BlockingIOError, OSError):
                return

    def check_end(self) -> None:
        """Wait for an exit with 0; the terminal must be as it was, and no traceback on it."""
        give_up = time.monotonic() + DEADLINE_SECS
        while self.process.poll() is None:
            assert time.monotonic() < give_up, self._text
            self._read(0.1)
        self._read(0.0)
        assert self.process.returncode == 0, self._text
        assert "Traceback" not in self._text
        assert termios.tcgetattr(self._theirs) == self.before
        assert "\x1b[?25h" in self._text  # the cursor is shown again

    def close(self) -> None:
        """End what is left."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(DEADLINE_SECS)
        os.close(self._ours)
        os.close(self._theirs)


@contextmanager
def terminal(command: Sequence[str | Path], environ: dict[str, str]) -> Iterator[Terminal]:
    """Run a program on a terminal, and end it at last."""
    one = Terminal(command, environ)
    try:
        yield one
    finally:
        one.close()
