"""Look at the event loop from outside: say whose code holds it up, and end what does not end.

A plugin runs in the daemon's own event loop. One that computes for minutes, or waits without
awaiting, stops everything, and no time-out reaches it: time-outs are kept by that loop. The same
holds for one that shields itself from cancellation when the daemon stops. So a thread looks from
outside. It cannot interrupt the code; it names it, and when the daemon has been told to stop and
its time is over, it ends the process. What is stored is safe then, as after a kill.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import trio

from tardisd.log import Log

log = Log("tardisd.watch")

BEAT_SECS = 1.0
# The loop has stood still when it has not come round for so long.
STILL_SECS = 5.0
# After the time for stopping in order is over, so much more for what was cancelled.
GRACE_SECS = 5.0
EXIT_FORCED = 1


class LoopWatch:
    """Watches the loop of the main thread. `plugins` are plugin names by top-level import name."""

    def __init__(
        self,
        plugins: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], NoReturn] = os._exit,
    ) -> None:
        self._plugins = plugins
        self._clock = clock
        self._leave = leave
        self._last_beat = clock()
        self._told_secs = 0.0
        self._end_at: float | None = None
        self._unfinished: Callable[[], Sequence[str]] = list
        self._done = threading.Event()

    async def beat(self) -> None:
        """Tell the thread again and again that the loop comes round."""
        try:
            while True:
                self._last_beat = self._clock()
                await trio.sleep(BEAT_SECS)
        finally:
            self._last_beat = math.inf  # from now on it says nothing

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look on from a thread while this is held."""
        thread = threading.Thread(target=self._run, name="tardisd-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def end_within(self, secs: float, unfinished: Callable[[], Sequence[str]] = list) -> None:
        """Have the process end at the latest in `secs` and a little; the first call counts.

        `unfinished` returns the names of what has not stopped.
        """
        self._unfinished = unfinished
        if self._end_at is None:
            self._end_at = self._clock() + secs + GRACE_SECS

    @contextmanager
    def hearing(
        self, signals: Sequence[signal.Signals], secs: Callable[[], float]
    ) -> Iterator[None]:
        """Let these signals end the process in time even when the loop never gets to see them.

        Enter it when their handlers are set: those are called, too.
        """
        before = {number: signal.getsignal(number) for number in signals}

        def handle(number: int, frame: FrameType | None) -> None:
            self.end_within(secs(), self._unfinished)
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)

        for number in signals:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self) -> None:
        while not self._done.wait(BEAT_SECS):
            self.look()

    def look(self) -> None:
        """Look once: complain about a loop that stands still, longer each time; end what must."""
        now = self._clock()
        still = now - self._last_beat
        if still < STILL_SECS:
            if self._told_secs:
                log.warning("event loop runs again")
            self._told_secs = 0.0
        elif still >= max(STILL_SECS, 2 * self._told_secs):
            self._told_secs = still
            log.error("event loop stands still", secs=round(still), **self._culprit())
        if self._end_at is not None and now >= self._end_at:
            held = self._culprit() if still >= STILL_SECS else {}
            left = ", ".join(self._unfinished()) or "unknown"
            log.error("stopping takes too long; ending the process", unfinished=left, **held)
            self._leave(EXIT_FORCED)

    def _culprit(self) -> dict[str, str]:
        """Return whose code the main thread is in: the innermost frame of a plugin, if any."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001
        innermost = frame
        while frame is not None:
            name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
            if name in self._plugins:
                return {"plugin": self._plugins[name], "at": _place(frame)}
            frame = frame.f_back
        return {} if innermost is None else {"at": _place(innermost)}


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
