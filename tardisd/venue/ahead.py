"""Have what is wanted next come while one thing is read: from afar, waiting is most of the time.

It knows neither files nor hosts. Whatever goes wrong ahead is told to who asks for the outcome.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Generic, TypeVar

import trio

from tardisd.errors import DataError, PluginError, RequestError
from tardisd.market.span import Span

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

    @property
    def ended(self) -> bool:
        """Whether the outcome is there."""
        return self._done.is_set()

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


class Sliding(Generic[T]):
    """Questions about stretches of time, asked side by side; their answers are taken in order.

    How many are under way at once is left to what `ask` goes through, such as a venue's client.
    """

    def __init__(self, nursery: trio.Nursery, ask: Callable[[Span], Awaitable[T]]) -> None:
        self._nursery = nursery
        self._ask = ask
        self._coming: deque[tuple[Span, Coming[T]]] = deque()

    def __len__(self) -> int:
        return len(self._coming)

    @property
    def first(self) -> Span | None:
        """What the next answer is about; None when there is none."""
        return self._coming[0][0] if self._coming else None

    @property
    def end(self) -> int | None:
        """Up to where (ns) has been asked; None when nothing is held."""
        return self._coming[-1][0].end if self._coming else None

    @property
    def ready(self) -> bool:
        """Whether the next answer, or what came instead, is there."""
        return bool(self._coming) and self._coming[0][1].ended

    def ask(self, span: Span) -> None:
        """Begin to ask about one more stretch."""
        coming = Coming(partial(self._ask, span))
        self._coming.append((span, coming))
        self._nursery.start_soon(coming.run)

    async def look(self) -> T:
        """Return the next answer, which stays the next; raises what came instead."""
        return await self._coming[0][1].outcome()

    def drop(self) -> None:
        """Let the next answer, which has come, go."""
        self._coming.popleft()

    async def stop(self) -> None:
        """Ask no more, and hold nothing."""
        for _, coming in self._coming:
            await coming.stop()
        self._coming.clear()
