"""A storage in memory that gives few rows at a time, as a large one does; it can be held up."""

from __future__ import annotations

from contextlib import asynccontextmanager

import trio

from tardisd.testing.memory import MemoryStorage


class SmallReads(MemoryStorage):
    """Gives `rows` at a time, only when they are asked for, and counts what it has given.

    While it is held it gives nothing: who reads waits, before the first rows or between others.
    """

    def __init__(self, rows=3):
        super().__init__()
        self.rows = rows
        self.given = 0
        self._let = None

    def hold(self):
        """Give nothing from now on."""
        if self._let is None:
            self._let = trio.Event()

    def let(self):
        """Give rows again."""
        if self._let is not None:
            self._let.set()
        self._let = None

    @property
    def is_held(self):
        """Whether it gives nothing."""
        return self._let is not None

    async def _wait(self):
        while self._let is not None:
            await self._let.wait()

    @asynccontextmanager
    async def read(self, series, span):
        await self._wait()
        async with super().read(series, span) as batches:
            whole = [batch async for batch in batches]
        given, taken = trio.open_memory_channel(0)

        async def give():
            async with given:
                for batch in whole:
                    for at in range(0, len(batch), self.rows):
                        await self._wait()
                        part = batch[at : at + self.rows]
                        self.given += len(part)
                        try:
                            await given.send(part)
                        except trio.BrokenResourceError:
                            return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give)
            with taken:
                yield taken
            nursery.cancel_scope.cancel()

    async def last_before(self, series, ts):
        await self._wait()
        return await super().last_before(series, ts)
