"""Keep tick and lot sizes with the data that is fetched; fetches no data itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from tardisd.log import Log
from tardisd.market.series import Instrument, Series
from tardisd.plugins.exchange import Exchange
from tardisd.plugins.storage import Storage
from tardisd.supervise import attempt, describe

log = Log("tardisd.backfill")

# Data is as good without its tick size: a venue that does not answer must not hold up a job.
LIST_SECS = 20.0
AGAIN_SECS = 3600.0


class InstrumentKeeper:
    """Stores the instruments of series; each venue is asked for its list once, or hourly."""

    def __init__(self) -> None:
        self._listed: dict[str, Mapping[tuple[str, str], Instrument]] = {}
        self._failed_at: dict[str, float] = {}
        self._asking: dict[str, trio.Lock] = {}

    async def keep(
        self, series: Series, instance: str, exchange: Exchange[Any], storage: Storage[Any]
    ) -> None:
        """Store the series' instrument unless one is stored; a failure is only logged."""
        error = await attempt(self._keep, series, instance, exchange, storage)
        if error is not None:
            log.warning("instrument not stored", series=series, error=describe(error))

    async def _keep(
        self, series: Series, instance: str, exchange: Exchange[Any], storage: Storage[Any]
    ) -> None:
        if await storage.instrument(series) is not None:
            return
        async with self._asking.setdefault(instance, trio.Lock()):
            if instance not in self._listed:
                await self._ask(instance, exchange)
        listed = self._listed.get(instance, {})
        if (found := listed.get((series.exchange, str(series.symbol)))) is not None:
            await storage.put_instrument(found)

    async def _ask(self, instance: str, exchange: Exchange[Any]) -> None:
        clock = trio.current_time()
        if clock < self._failed_at.get(instance, clock - AGAIN_SECS) + AGAIN_SECS:
            return
        self._failed_at[instance] = clock  # until it has answered
        with trio.fail_after(LIST_SECS):
            found = await exchange.instruments()
        self._listed[instance] = {(one.exchange, str(one.symbol)): one for one in found}
