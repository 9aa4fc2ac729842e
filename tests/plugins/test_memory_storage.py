"""The storage in memory, which is shipped for tests, passes the suite that real ones do."""

from __future__ import annotations

from contextlib import asynccontextmanager

from tardisd.testing.memory import MemoryStorage
from tardisd.testing.storage import StorageSuite


class TestMemoryStorage(StorageSuite):
    @asynccontextmanager
    async def storage(self, folder):
        self._opened = getattr(self, "_opened", {})
        plugin = self._opened.setdefault(folder, MemoryStorage())
        async with plugin.run():
            yield plugin
