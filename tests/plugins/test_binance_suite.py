"""The Binance exchange passes the suite of exchanges, from archives and over REST."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
from binance_rig import SPOT, SWAP, candles, plugin_at, trades, venue_of

from tardisd.testing.exchange import Case, ExchangeSuite

DAY = ("2024-03-18T00:00:00Z", "2024-03-19T00:00:00Z")
LATE = ("2024-03-20T10:00:00Z", "2024-03-20T11:30:00Z")


class _Suite(ExchangeSuite):
    archives = "prefer"

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path

    @asynccontextmanager
    async def exchange(self):
        async with (
            self.venue.serve(),
            plugin_at(self.venue, self.folder, archives=self.archives) as plugin,
        ):
            yield plugin


class TestOverRest(_Suite):
    archives = "never"
    cases: ClassVar = [
        Case(f"{SPOT}@candle_1m", *DAY),
        Case(f"{SPOT}@agg_trade", *LATE),
        Case(f"{SPOT}@trade", *LATE),
        Case(f"{SWAP}@candle_1m", *DAY),
        Case(f"{SWAP}@agg_trade", *LATE),
    ]
    venue = venue_of(
        candles(f"{SPOT}@candle_1m", "03-17", "03-21"),
        trades(f"{SPOT}@agg_trade", "03-20T09:00", 6000, 2000),
        trades(f"{SPOT}@trade", "03-20T09:00", 6000, 2000),
        candles(f"{SWAP}@candle_1m", "03-17", "03-21"),
        trades(f"{SWAP}@agg_trade", "03-20T09:00", 6000, 2000),
        limits={},
    )


class TestFromArchives(_Suite):
    cases: ClassVar = [
        Case(f"{SPOT}@candle_1s", *DAY),
        Case(f"{SPOT}@trade", "2024-03-18T12:00:00Z", "2024-03-20T01:00:00Z"),
        Case(f"{SWAP}@agg_trade", "2024-03-18T12:00:00Z", "2024-03-20T01:00:00Z"),
        Case(f"{SWAP}@candle_1m", "2024-02-20T00:00:00Z", "2024-03-02T00:00:00Z"),
    ]
    venue = venue_of(
        candles(f"{SPOT}@candle_1s", "03-18", "03-20"),
        trades(f"{SPOT}@trade", "03-18T09:00", 20000, 10_000),
        trades(f"{SWAP}@agg_trade", "03-18T09:00", 20000, 10_000),
        candles(f"{SWAP}@candle_1m", "02-01", "03-21"),
        limits={},
    )
