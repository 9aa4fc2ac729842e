"""Binance's REST interfaces of spot and USD-M: endpoints, weights, one request each; pages nothing.

Spot and USD-M have the same endpoints and rows, with other paths, page sizes and prices in weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import msgspec
import numpy as np

from tardisd.dumps.order import Conflict, settle
from tardisd.errors import PluginError
from tardisd.market.columns import Batch
from tardisd.market.series import SPOT, SWAP, Instrument, Series, Symbol
from tardisd.market.time import MILLISECOND
from tardisd.venue.budget import Limit
from tardisd.venue.client import Unreadable, VenueClient

from . import rows

T = TypeVar("T")
Params = Mapping[str, str | int]

_FAR_AWAY = 4_000_000_000_000  # ms: delivery dates of perpetuals lie beyond
_PERPETUAL = ("PERPETUAL", "TRADIFI_PERPETUAL")
_MINUTE_LIMIT = ("REQUEST_WEIGHT", "MINUTE", 1)


@dataclass(frozen=True, slots=True)
class Rules:
    """What differs between spot and USD-M. `kline_rows` is the cheapest page by weight."""

    kind: str
    prefix: str
    limit: Limit
    kline_rows: int
    kline_weight: int
    trade_rows: int
    weights: Mapping[str, int]


RULES = {
    SPOT: Rules(
        SPOT,
        "/api/v3/",
        Limit("spot weight", 6000, 60.0, aligned=True),
        1000,
        2,
        1000,
        {"aggTrades": 4, "historicalTrades": 25, "trades": 25, "exchangeInfo": 20, "time": 1},
    ),
    SWAP: Rules(
        SWAP,
        "/fapi/v1/",
        Limit("swap weight", 2400, 60.0, aligned=True),
        500,
        2,
        1000,
        {"aggTrades": 20, "exchangeInfo": 1, "time": 1},
    ),
}


class Rest:
    """One REST interface."""

    def __init__(self, client: VenueClient, rules: Rules) -> None:
        self.client = client
        self.rules = rules

    async def server_time(self) -> int:
        """Return the venue's clock (ns)."""
        decoder = msgspec.json.Decoder(rows.ServerTime)
        found = await self._ask("time", {}, partial(rows.decode, decoder=decoder))
        return found.server_time * MILLISECOND

    async def klines(
        self, series: Series, start: int, end: int | None = None, limit: int | None = None
    ) -> Batch:
        """Return the first candles that open in `start <= ts < end` (ns), sorted.

        The one in progress may be among them.
        """
        interval = series.data_type.interval
        assert interval is not None
        rules = self.rules
        params: Params = {
            "symbol": series.symbol.venue_id(series.exchange),
            "interval": str(interval),
            "startTime": ceil_ms(start),
            **({} if end is None else {"endTime": ceil_ms(end) - 1}),
            "limit": limit or rules.kline_rows,
        }
        cheap = rules.kind == SWAP and limit is not None and limit <= 100
        weight = 1 if cheap else rules.kline_weight
        return await self._page("klines", params, series, weight, start, end)

    async def agg_trades(
        self,
        series: Series,
        *,
        start: int | None = None,
        from_id: int | None = None,
        limit: int = 0,
    ) -> Batch:
        """Return aggregate trades from a time (ns) or an id on, sorted."""
        params = self._from(series, start, from_id, limit)
        return await self._page("aggTrades", params, series, 0, start, None)

    async def first_trade_id(self, series: Series, start: int) -> int | None:
        """Return the id of the first trade in the first aggregate at or after a time, if any."""
        params = self._from(series, start, None, 1)
        found = await self._ask("aggTrades", params, rows.first_trade_ids)
        return found[0] if found else None

    async def historical_trades(self, series: Series, from_id: int, limit: int = 0) -> Batch:
        """Return raw trades from an id on, sorted."""
        params = self._from(series, None, from_id, limit)
        return await self._page("historicalTrades", params, series, 0, None, None)

    async def newest_trade(self, series: Series) -> Batch:
        """Return the newest raw trade."""
        params: Params = {"symbol": series.symbol.venue_id(series.exchange), "limit": 1}
        return await self._page("trades", params, series, 0, None, None)

    async def instruments(self, exchange: str) -> list[Instrument]:
        """Return what is listed, perpetuals only of USD-M; takes note of the venue's limits."""
        decoder = msgspec.json.Decoder(rows.ExchangeInfo)
        info = await self._ask("exchangeInfo", {}, partial(rows.decode, decoder=decoder))
        for told in info.rate_limits:
            if (told.rate_limit_type, told.interval, told.interval_num) == _MINUTE_LIMIT:
                self.client.budget.revise(self.rules.limit.name, told.limit)
        found = [_instrument(exchange, self.rules.kind, listed) for listed in info.symbols]
        return [instrument for instrument in found if instrument is not None]

    def _from(self, series: Series, start: int | None, from_id: int | None, limit: int) -> Params:
        params: dict[str, str | int] = {"symbol": series.symbol.venue_id(series.exchange)}
        if start is not None:
            params["startTime"] = ceil_ms(start)
        if from_id is not None:
            params["fromId"] = from_id
        params["limit"] = limit or self.rules.trade_rows
        return params

    async def _page(
        self,
        name: str,
        params: Params,
        series: Series,
        weight: int,
        start: int | None,
        end: int | None,
    ) -> Batch:
        def read(body: bytes) -> Batch:
            batch = rows.READERS[series.data_type.kind](body, series)
            ends = batch.ts_event[[0, -1]] if len(batch) else ()
            # Venues have ignored a bound before; such rows must not pass for an answer.
            if any((start is not None and ts < start) or (end is not None and ts >= end)
                   for ts in ends):  # fmt: skip
                raise Unreadable("rows came from outside the span asked for")
            return batch

        return await self._ask(name, params, read, weight)

    async def _ask(
        self,
        name: str,
        params: Params,
        read: Callable[[bytes], T],
        weight: int = 0,
    ) -> T:
        return await self.client.read(
            self.rules.prefix + name,
            params,
            read,
            weight=weight or self.rules.weights[name],
            limits=[self.rules.limit.name],
        )


def ceil_ms(ts: int) -> int:
    """Return the first whole millisecond at or after a time (ns)."""
    return -(-ts // MILLISECOND)


def merged(batches: list[Batch]) -> Batch:
    """Return the rows of several answers, sorted and without repeats."""
    joined = Batch.concat(batches)
    try:
        return settle(joined, np.arange(len(joined)))[0]
    except Conflict as conflict:
        raise PluginError(f"two answers contradict each other: {conflict.message}") from None


def _instrument(exchange: str, kind: str, listed: rows.Listed) -> Instrument | None:
    settle_asset = None
    if kind == SWAP:
        if listed.contract_type not in _PERPETUAL or listed.margin_asset != listed.quote_asset:
            return None
        settle_asset = listed.quote_asset
    symbol = Symbol(listed.base_asset, listed.quote_asset, settle_asset)
    if symbol.venue_id(exchange) != listed.symbol:  # such as BTCSTUSDT, once called otherwise
        return None
    sizes = {f.filter_type: f.tick_size or f.step_size for f in listed.filters}
    delisted = listed.delivery_date
    gone = delisted is not None and 0 < delisted < _FAR_AWAY
    instrument = Instrument(
        exchange,
        symbol,
        _plain(sizes.get("PRICE_FILTER")),
        _plain(sizes.get("LOT_SIZE")),
        listed.onboard_date * MILLISECOND if listed.onboard_date else None,
        delisted * MILLISECOND if gone and delisted is not None else None,
    )
    extra = {"venue_id": listed.symbol, "status": listed.status}
    return replace(instrument, extra=extra)


def _plain(size: str | None) -> str | None:
    """Return a size as the venue prints it; None for 0, which means that there is none."""
    return None if size is None or not size.strip("0.") else size
