"""The way from tasks to the file: one writing connection, few that read, all of it in threads.

It knows transactions and connections but not what is done with them. SQLite's work cannot be
cancelled: a cancelled task waits for the thread, so what it began is done whole or not at all.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from tardisd.errors import StorageError
from tardisd_sqlite import chunks, database
from tardisd_sqlite.codec import Codec

T = TypeVar("T")
_READERS = 4


@dataclass(frozen=True, slots=True)
class Handle:
    """A connection, and a codec for whoever uses it."""

    connection: sqlite3.Connection
    codec: Codec


class Access:
    """Runs functions against the file at `path`, one writing and at most four reading at a time."""

    def __init__(self, path: Path, durability: str) -> None:
        self.path = path
        self.pins = chunks.Pins()
        self._durability = durability
        self._writer: Handle | None = None
        self._idle: deque[Handle] = deque()
        self._write_thread = trio.CapacityLimiter(1)
        self._read_threads = trio.CapacityLimiter(_READERS)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Own the file, its tables made or migrated, and keep it open. Raises StorageError."""
        stack = ExitStack()
        try:
            await trio.to_thread.run_sync(partial(self._open, stack), limiter=self._write_thread)
            yield
        finally:
            with trio.CancelScope(shield=True):  # ends with the write that is under way
                await trio.to_thread.run_sync(stack.close, limiter=self._write_thread)

    def _open(self, stack: ExitStack) -> None:
        database.check_place(self.path)
        stack.enter_context(database.locked(self.path.resolve()))
        self._writer = Handle(database.open_writer(self.path, self._durability), Codec())
        stack.callback(self._close, self._writer.connection)
        database.run(self.path, self._writer.connection, self._collect)

    def _close(self, writer: sqlite3.Connection) -> None:
        self._writer = None
        while self._idle:
            self._idle.pop().connection.close()
        database.close_writer(self.path, writer)

    def _collect(self) -> tuple[None, bool]:
        assert self._writer is not None
        chunks.collect(self._writer.connection, self.pins)
        return None, True

    async def read(self, look: Callable[[Handle], T]) -> T:
        """Return what `look` finds. Raises StorageError."""

        def work() -> T:
            self._opened_writer()
            with database.failures(self.path):
                try:
                    handle = self._idle.pop()
                except IndexError:
                    handle = Handle(database.open_reader(self.path), Codec())
                try:
                    return look(handle)
                finally:
                    self._idle.append(handle)

        return await trio.to_thread.run_sync(work, limiter=self._read_threads)

    async def write(self, change: Callable[[Handle], tuple[T, bool]]) -> T:
        """Run `change` in a transaction of its own; it tells its result, and whether to commit.

        Raises StorageError; then nothing has changed.
        """

        def work() -> T:
            writer = self._opened_writer()

            def whole() -> tuple[T, bool]:
                chunks.collect(writer.connection, self.pins)
                return change(writer)

            return database.run(self.path, writer.connection, whole)

        return await trio.to_thread.run_sync(work, limiter=self._write_thread)

    def _opened_writer(self) -> Handle:
        if self._writer is None:
            raise StorageError(f"{self.path} is not open; call within run()")
        return self._writer
