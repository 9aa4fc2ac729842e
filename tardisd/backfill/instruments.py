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


class InstrumentKeeper:
    """Stores the instruments of series; each venue is asked for its list once."""

    def __init__(self) -> None:
        self._listed: dict[str, Mapping[tuple[str, str], Instrument]] = {}
        self._asking: dict[str, trio.Lock] = {}

    async def keep(
        self, series: Series, instance: str, exchange: Exchange[Any], storage: Storage[Any]
    ) -> None:
        """Store the series' instrument unless one is stored; a failure is only logged.

        Data is as good without it, and the next fetch tries again.
        """
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
                listed = await exchange.instruments()
                self._listed[instance] = {(it.exchange, str(it.symbol)): it for it in listed}
        found = self._listed[instance].get((series.exchange, str(series.symbol)))
        if found is not None:
            await storage.put_instrument(found)
