"""The storage `postgres` passes the suite on a real server, in steps of usual and of tiny size."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
from postgres_rig import empty, opened, own_schema

from tardisd.testing.storage import StorageSuite
from tardisd.testing.storage_pages import CANDLES, QUOTES, TEXT_IDS, TRADES
from tardisd_postgres import binary, reading

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def schema():
    with own_schema() as name:
        yield name


class Opening:
    @pytest.fixture(autouse=True)
    def _emptied(self, schema):
        """Making the tables takes longer than most tests: they are only emptied in between."""
        self._name = schema
        yield
        empty(schema)

    @asynccontextmanager
    async def storage(self, folder):
        async with opened(self._name, folder) as plugin:
            yield plugin


class TestPostgres(Opening, StorageSuite):
    pass


class TestPostgresInTinySteps(Opening):
    """Few rows a step: every read meets the edges of many."""

    @pytest.fixture(autouse=True)
    def _tiny(self, monkeypatch, request):
        rows = 23 if "model" in request.node.name else 900
        monkeypatch.setattr(reading, "FIRST_ROWS", rows)
        monkeypatch.setattr(reading, "READ_ROWS", rows)
        monkeypatch.setattr(binary, "PIECE_ROWS", rows)

    test_a_read_sees_one_state = StorageSuite.test_a_read_sees_one_state
    test_a_read_may_be_left_early = StorageSuite.test_a_read_may_be_left_early
    test_many_rows_at_one_instant = StorageSuite.test_very_many_rows_at_one_instant
    _one_step = StorageSuite._one_step

    @pytest.mark.parametrize("series", [TRADES, CANDLES, QUOTES, TEXT_IDS], ids=str)
    async def test_like_the_model(self, tmp_path, series):
        await StorageSuite.test_like_the_model(self, tmp_path, series, 7)
