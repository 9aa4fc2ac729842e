"""Waking up on time: a timer of the kernel, where trio's own would round to whole milliseconds.

One timer serves all sessions. It knows nothing of market time. Where there is no such timer, and in
tests that run in virtual time, sessions wait with trio's.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

import trio

_MONOTONIC = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_NANOSECONDS = 1_000_000_000


class Bell:
    """What rings at a moment (trio time), unless it was silenced before."""

    __slots__ = ("moment", "number", "ring")

    def __init__(self, moment: float, number: int, ring: Callable[[], None]) -> None:
        self.moment, self.number = moment, number
        self.ring: Callable[[], None] | None = ring

    def silence(self) -> None:
        """Do not ring."""
        self.ring = None

    def __lt__(self, other: Bell) -> bool:
        return (self.moment, self.number) < (other.moment, other.number)


class Alarm:
    """Rings bells, a few hundredths of a millisecond after their moments; works while `run` runs.

    Raises OSError when the system has no timerfd (it is Linux's), or no descriptor left.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        if not hasattr(library, "timerfd_create"):
            raise OSError("this system has no timerfd")
        self._set_time = library.timerfd_settime
        self._descriptor = library.timerfd_create(_MONOTONIC, _FLAGS)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "cannot make a timer")
        self._bells: list[Bell] = []
        self._numbers = count()

    def at(self, moment: float, ring: Callable[[], None]) -> Bell:
        """Have `ring` called at a moment (trio time)."""
        bell = Bell(moment, next(self._numbers), ring)
        heappush(self._bells, bell)
        if self._bells[0] is bell:
            self._set()
        return bell

    async def run(self) -> None:
        """Ring bells until cancelled; then the timer is gone."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._descriptor)
                try:
                    os.read(self._descriptor, 8)
                except BlockingIOError:  # it was set anew in between
                    continue
                self._ring()
        finally:
            trio.lowlevel.notify_closing(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _ring(self) -> None:
        bells, now = self._bells, trio.current_time()
        while bells and (bells[0].ring is None or bells[0].moment <= now):
            ring = heappop(bells).ring
            if ring is not None:
                ring()
        self._set()

    def _set(self) -> None:
        """Set the timer to the first bell."""
        if not self._bells or self._descriptor < 0:
            return
        left = max(1, int((self._bells[0].moment - trio.current_time()) * _NANOSECONDS))
        # struct itimerspec: the interval (none), then the time left, each as seconds and ns.
        timer = (ctypes.c_long * 4)(0, 0, left // _NANOSECONDS, left % _NANOSECONDS)
        self._set_time(self._descriptor, 0, timer, None)


def make_alarm() -> Alarm | None:
    """Return an alarm, or None where there can be none."""
    try:
        return Alarm()
    except OSError:
        return None
