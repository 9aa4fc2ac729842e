"""Notice calls of a storage that do not come back, and say so; it gives none of them up.

A lost server may come back, and what waits for it should wait: whoever asked can be cancelled. But
it must be seen whose fault it is that a session stands still.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from types import TracebackType
from typing import Any

import trio

from tardisd.log import Log
from tardisd.plugins.storage import Storage

log = Log("tardisd.overdue")

OVERDUE_SECS = 30.0
LOOK_SECS = 5.0
_CALLS = ("append", "coverage", "gaps", "record_gaps", "list_series", "last_before", "version",
          "instrument", "put_instrument", "provenance", "delete")  # fmt: skip


class Calls:
    """The calls of one storage that have not come back yet."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open: dict[object, tuple[str, float]] = {}
        self._told = 0.0

    @contextmanager
    def during(self, call: str) -> Iterator[None]:
        """Take note of a call for as long as it lasts."""
        token = object()
        self._open[token] = (call, trio.current_time())
        try:
            yield
        finally:
            del self._open[token]

    def oldest(self) -> tuple[str, float]:
        """Return the oldest call and how many seconds ago it was made; ("", 0.0) for none."""
        if not self._open:
            return "", 0.0
        call, since = next(iter(self._open.values()))
        return call, trio.current_time() - since

    def look(self) -> None:
        """Log the oldest call when it is overdue, and again when it has taken twice as long."""
        call, secs = self.oldest()
        if secs < OVERDUE_SECS:
            if self._told:
                log.info("storage answers again", storage=self._name)
            self._told = 0.0
        elif secs >= 2 * self._told:
            self._told = secs
            log.warning("storage does not answer", storage=self._name, call=call,
                        secs=round(secs), waiting=len(self._open))  # fmt: skip


def watch(storage: Storage[Any], name: str) -> Calls:
    """Have the calls of a storage noted from now on; the storage itself stays what it is."""
    calls = Calls(name)
    for call in _CALLS:
        setattr(storage, call, _noted(calls, call, getattr(storage, call)))
    read = storage.read
    storage.read = lambda *words, **named: _Stream(calls, read(*words, **named))  # type: ignore[method-assign, assignment]
    return calls


def _noted(
    calls: Calls, name: str, method: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    async def call(*words: Any, **named: Any) -> Any:
        with calls.during(name):
            return await method(*words, **named)

    return call


class _Stream:
    """A stream of batches, whose opening, batches and leaving are calls."""

    def __init__(
        self, calls: Calls, inner: AbstractAsyncContextManager[trio.MemoryReceiveChannel[Any]]
    ) -> None:
        self._calls = calls
        self._inner = inner

    async def __aenter__(self) -> _Batches:
        with self._calls.during("read"):
            return _Batches(self._calls, await self._inner.__aenter__())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        with self._calls.during("read"):
            return await self._inner.__aexit__(kind, error, trace)


class _Batches(trio.abc.ReceiveChannel[Any]):
    def __init__(self, calls: Calls, inner: trio.MemoryReceiveChannel[Any]) -> None:
        self._calls = calls
        self._inner = inner

    async def receive(self) -> Any:
        """Return the next batch."""
        with self._calls.during("read"):
            return await self._inner.receive()

    async def aclose(self) -> None:
        """Close the stream."""
        await self._inner.aclose()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
