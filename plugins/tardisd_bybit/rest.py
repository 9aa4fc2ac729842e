"""Bybit's v5 REST interface: endpoints and parameters, one request each; pages nothing."""

from __future__ import annotations

from functools import partial

from tardisd.errors import PluginError
from tardisd.market.series import SWAP, Instrument, Series, Symbol
from tardisd.market.span import Span
from tardisd.market.time import MILLISECOND, parse_time
from tardisd.venue.budget import Limit
from tardisd.venue.client import Params, Unreadable, VenueClient

from . import rows

LIMIT = Limit("rest requests", 600, 5.0)
KLINE_ROWS = 1000
BELIEVED_AFTER = 3  # answers that say again that something is not there
_ALL_MONTHS = Span(parse_time("2018-01-01T00:00:00Z"), parse_time("2099-01-01T00:00:00Z"))
INTERVALS = {
    "1m": "1", "3m": "3", "5m": "5", "15m": "15", "30m": "30", "1h": "60", "2h": "120",
    "4h": "240", "6h": "360", "12h": "720", "1d": "D", "1w": "W", "1M": "M",
}  # fmt: skip
_INSTRUMENT_ROWS = 1000
_MOST_PAGES = 100
_PREFIX = "/v5/market/"


class Rest:
    """The REST interface, of spot and of linear swaps."""

    def __init__(self, client: VenueClient) -> None:
        self.client = client
        self._begins: dict[tuple[str, str], int] = {}

    async def server_time(self) -> int:
        """Return the venue's clock (ns)."""
        return await self.client.read(f"{_PREFIX}time", {}, rows.server_time)

    async def klines(self, series: Series, span: Span) -> rows.Klines:
        """Return the candles that open in `span`, at most `KLINE_ROWS`, sorted.

        Which ones come where there are more is not told, so ask for no more.
        """
        category = category_of(series.symbol)

        def read(body: bytes) -> rows.Klines:
            found = rows.klines(body, series, category)
            # Bybit has ignored a bound before; such rows must not pass for an answer.
            opens = found.batch.ts_event
            if len(opens) and not span.start <= opens[0] <= opens[-1] < span.end:
                raise Unreadable("rows came from outside the span asked for")
            return found

        params: Params = {
            "category": category,
            "symbol": series.symbol.venue_id(series.exchange),
            "interval": INTERVALS[str(series.data_type.interval)],
            "start": -(-span.start // MILLISECOND),
            "end": -(-span.end // MILLISECOND) - 1,
            "limit": KLINE_ROWS,
        }
        return await self.client.read(f"{_PREFIX}kline", params, read)

    async def first_month(self, series: Series) -> int | None:
        """Return the month (ns) in which the symbol was first traded; None when none is told."""
        key = (category_of(series.symbol), series.symbol.venue_id(series.exchange))
        if key not in self._begins:
            months = Series.of(series.exchange, str(series.symbol), "candle_1M")
            for _ in range(BELIEVED_AFTER):
                found = (await self.klines(months, _ALL_MONTHS)).batch
                if len(found):
                    self._begins[key] = int(found.ts_event[0])
                    break
        return self._begins.get(key)

    async def instruments(self, exchange: str, category: str) -> list[Instrument]:
        """Return what is listed: of swaps, perpetuals settled in their quote asset."""
        found: list[rows.Listed] = []
        cursor = ""
        for _ in range(_MOST_PAGES):
            params: Params = {"category": category, "limit": _INSTRUMENT_ROWS}
            if cursor:
                params = {**params, "cursor": cursor}
            page, cursor = await self.client.read(
                f"{_PREFIX}instruments-info", params, rows.instruments
            )
            found += page
            if not cursor:
                kept = map(partial(_instrument, exchange, category), found)
                return [instrument for instrument in kept if instrument is not None]
        raise PluginError(f"bybit's list of {category} instruments does not end")


def category_of(symbol: Symbol) -> str:
    """Return what Bybit calls the market of a symbol."""
    return "linear" if symbol.kind == SWAP else "spot"


def _instrument(exchange: str, category: str, listed: rows.Listed) -> Instrument | None:
    swap = category == "linear"
    if swap and (
        listed.contract_type != "LinearPerpetual" or listed.settle_coin != listed.quote_coin
    ):
        return None
    symbol = Symbol(listed.base_coin, listed.quote_coin, listed.quote_coin if swap else None)
    if symbol.venue_id(exchange) != listed.symbol:  # such as BTCPERP, which is BTC/USDC:USDC
        return None
    lot = listed.lot_size_filter
    return Instrument(
        exchange,
        symbol,
        listed.price_filter.tick_size,
        lot.qty_step or lot.base_precision,
        _moment(listed.launch_time),
        _moment(listed.delivery_time),
        {"venue_id": listed.symbol, "status": listed.status},
    )


def _moment(text: str) -> int | None:
    """Return ns for a time in ms; 0 means that there is none."""
    return int(text) * MILLISECOND if text.isdecimal() and int(text) else None
