"""Keys as they are pressed on a terminal; draws nothing."""

from __future__ import annotations

import os
import re
import select
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_KEYS = {
    "\x1bA": "up", "\x1bB": "down", "\x1bC": "right", "\x1bD": "left",
    " ": "space", "\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace",
    "\x1b": "escape",
}  # fmt: skip


@contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """Give a function that waits up to some seconds for a key and returns it, or an empty text."""
    if not sys.stdin.isatty():
        yield lambda secs: (select.select([], [], [], secs), "")[1]
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    waiting: deque[str] = deque()  # somebody quick, or a slow terminal: several keys at once

    def wait(secs: float) -> str:
        if not waiting:
            ready, _, _ = select.select([descriptor], [], [], secs)
            if ready:
                waiting.extend(pressed(os.read(descriptor, 64).decode(errors="replace")))
        return waiting.popleft() if waiting else ""

    try:
        tty.setcbreak(descriptor)
        yield wait
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def pressed(text: str) -> list[str]:
    """Return the keys that a terminal sent: `space`, `up`, `enter`, …, or the character."""
    found = re.findall(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", text, re.DOTALL)
    return [_KEYS.get(key[:1] + key[-1] if len(key) > 1 else key, key) for key in found]
