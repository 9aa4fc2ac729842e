"""Run somebody's synchronous code for so long at most; catches nothing that it raises.

In the main thread an alarm interrupts it, wherever in Python it is. In any other thread that cannot
be done: there it runs in a thread of its own, which is left to itself when its time is over. Code
that never comes back to Python, or swallows every exception in a loop, cannot be stopped from
within its process by any means.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TypeVar

import outcome

T = TypeVar("T")
_RING_AGAIN_SECS = 1.0


class TookTooLong(BaseException):
    """Raised in code whose time is over; no Exception, so that the code does not catch it."""


def within(secs: float, action: Callable[[], T]) -> T:
    """Return what `action` returns, or raise what it raises; TookTooLong after `secs`."""
    if threading.current_thread() is threading.main_thread():
        return _with_alarm(secs, action)
    return _in_thread(secs, action)


def _with_alarm(secs: float, action: Callable[[], T]) -> T:
    def ring(_: int, __: FrameType | None) -> NoReturn:
        raise TookTooLong(f"took longer than {secs:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, secs, _RING_AGAIN_SECS)
        try:
            return action()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)


def _in_thread(secs: float, action: Callable[[], T]) -> T:
    results: list[outcome.Outcome[T]] = []
    thread = threading.Thread(target=lambda: results.append(outcome.capture(action)), daemon=True)
    thread.start()
    thread.join(secs)
    if not results:
        raise TookTooLong(f"took longer than {secs:g} s")
    return results[0].unwrap()
