"""An engine that a state machine drives call by call; between two calls its world stands still.

Hypothesis calls the rules of a state machine one by one, without a loop, and trio runs from
beginning to end. So trio runs as a guest: a call hands it an async function, and runs what trio
wants to have run until that is done. No time passes but what `advance` lets pass, so a verb comes
at an exact moment, when all that was due before has been dealt with.
"""

from __future__ import annotations

from queue import SimpleQueue

import outcome
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tardisd.testing.engine import engine_running, plainly

PUMP_SECS = 300.0


class DrivenEngine:
    """The engine of `engine_running`, to be called from code that is not async."""

    def __init__(self, **options):
        self._options = options
        self._callbacks = SimpleQueue()
        self._clock = MockClock()
        self._result = None
        self.engine = None
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._callbacks.put,
            done_callback=self._done,
            clock=self._clock,
        )
        self._pump(lambda: self.engine is not None)

    async def _main(self):
        async with engine_running(**self._options) as engine:
            self._send, jobs = trio.open_memory_channel(1)
            self.engine = engine
            async for job, results in jobs:
                result = await outcome.acapture(job)
                if isinstance(result, outcome.Error) and isinstance(result.error, trio.Cancelled):
                    result.unwrap()  # a task has broken; `_done` tells of it
                results.append(result)

    def _done(self, result):
        self._result = result

    def _pump(self, enough):
        while not enough():
            if self._result is not None:
                self._result.unwrap()
                raise AssertionError("the engine has stopped")
            self._callbacks.get(timeout=PUMP_SECS)()

    def call(self, function):
        """Return what an async function returns. A task that broke meanwhile raises here."""
        results = []
        self._send.send_nowait((function, results))
        try:
            self._pump(lambda: results)
        except BaseExceptionGroup as group:
            raise plainly(group) from None
        return results[0].unwrap()

    def close(self):
        """Stop the engine; what has broken it was raised before."""
        if self._result is None:
            self._send.close()
        while self._result is None:
            self._callbacks.get(timeout=PUMP_SECS)()

    async def settle(self):
        """Return when everything waits, threads included; no time passes."""
        limiters = [
            self.engine.sessions.limiter,
            trio.to_thread.current_default_thread_limiter(),
        ]
        await wait_all_tasks_blocked()
        while any(limiter.borrowed_tokens for limiter in limiters):
            await wait_all_tasks_blocked(0.0005)

    async def advance(self, secs):
        """Let so much time pass, from deadline to deadline."""
        until = trio.current_time() + secs
        await self.settle()
        while (now := trio.current_time()) < until:
            ahead = trio.lowlevel.current_statistics().seconds_to_next_deadline
            self._clock.jump(min(until - now, max(ahead, 1e-9)))
            await self.settle()
