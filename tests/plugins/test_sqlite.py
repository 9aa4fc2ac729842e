"""The storage `sqlite` passes the suite, with chunks of usual and of tiny size."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from tardisd.testing.exchange import suite_context
from tardisd.testing.storage import StorageSuite
from tardisd_sqlite import changes, merge
from tardisd_sqlite.plugin import SqliteOptions, SqliteStorage


class TestSqlite(StorageSuite):
    @asynccontextmanager
    async def storage(self, folder):
        plugin = SqliteStorage(SqliteOptions(), suite_context("sqlite", folder))
        async with plugin.run():
            yield plugin


class TestSqliteWithTinyChunks(TestSqlite):
    """Few rows a chunk: every page meets the edges of several."""

    @pytest.fixture(autouse=True)
    def _tiny(self, monkeypatch, request):
        rows, small = 300, 1
        if "model" in request.node.name:
            rows, small = ((3, 1), (20, 4))[request.node.callspec.params["seed"] % 2]
        monkeypatch.setattr(merge, "CHUNK_ROWS", rows)
        monkeypatch.setattr(changes, "CHUNK_ROWS", rows)
        monkeypatch.setattr(changes, "_SMALL_ROWS", small)
