"""Have the next file come while one is read: from far away, waiting is most of the time.

It knows neither files nor hosts. Whatever goes wrong ahead is told to who asks for the outcome.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

from tardisd.errors import DataError, PluginError, RequestError

T = TypeVar("T")


@asynccontextmanager
async def helpers() -> AsyncIterator[trio.Nursery]:
    """Open a nursery for work beside a block, which ends with it.

    What the block raises comes out as it is, not in a group.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:
                failure = error
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if failure is not None and group.exceptions == (failure,):
            raise failure from None
        raise


class Coming(Generic[T]):
    """What is fetched ahead: its value, or why there is none."""

    def __init__(self, fetch: Callable[[], Awaitable[T]]) -> None:
        self._fetch = fetch
        self._done = trio.Event()
        self._scope = trio.CancelScope()
        self._value: T | None = None
        self._error: DataError | PluginError | RequestError | None = None

    async def run(self) -> None:
        """Fetch it."""
        try:
            with self._scope:
                self._value = await self._fetch()
        except (DataError, PluginError, RequestError) as error:
            self._error = error
        finally:
            self._done.set()

    async def stop(self) -> None:
        """Fetch it no further; return when nothing is under way."""
        self._scope.cancel()
        await self._done.wait()

    async def outcome(self) -> T:
        """Return the value as soon as it has come, or raise what came instead."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        assert self._value is not None
        return self._value
