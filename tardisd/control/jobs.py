"""The long actions that calls wait for, and how all end when the daemon stops.

A storage must not be closed under an import: the daemon ends the jobs first. It starts none itself,
and backfills, which outlive the calls that ask for them, are not among them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tardisd.errors import RequestError

MAX_JOBS = 8  # each holds threads of a pool that others need too


class Jobs:
    """Imports, exports and checks that clients of this daemon have asked for."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self._one_ended = trio.Event()
        self._room = trio.Semaphore(MAX_JOBS)
        self._closed = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold one job, waiting while there are too many.

        Raises RequestError when the daemon stops before or while it runs.
        """
        if self._closed:
            raise RequestError("wrong_state", "the daemon is stopping; ask again later")
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                async with self._room:
                    yield
            finally:
                self._scopes.discard(scope)
                self._one_ended.set()
                self._one_ended = trio.Event()
        if scope.cancelled_caught:
            text = "the daemon is stopping; what is done stays, ask again for the rest"
            raise RequestError("wrong_state", text)

    @property
    def busy(self) -> bool:
        """Whether any job runs or waits."""
        return bool(self._scopes)

    async def over(self) -> None:
        """Return when all jobs that there are now have ended."""
        mine = set(self._scopes)
        while mine & self._scopes:
            await self._one_ended.wait()

    async def end_all(self) -> None:
        """Cancel all jobs, take no more, and return when none is left."""
        self._closed = True
        for scope in self._scopes:
            scope.cancel()
        await self.over()
