"""OKX's v5 REST interface: endpoints, bounds and limits, one request each; pages nothing.

Bounds of the venue are exclusive and in milliseconds: `after` is older than, `before` newer than.
"""

from __future__ import annotations

from decimal import Decimal
from functools import partial

from tardisd.errors import PluginError, RequestError
from tardisd.market.columns import Batch
from tardisd.market.series import SPOT, SWAP, Instrument, Series, Symbol
from tardisd.market.span import Span
from tardisd.market.time import MILLISECOND, Interval
from tardisd.venue.budget import Limit
from tardisd.venue.client import Params, Unreadable, VenueClient

from . import rows

CANDLES, HISTORY = "market/candles", "market/history-candles"
TRADES, INSTRUMENTS, TIME = "market/history-trades", "public/instruments", "public/time"
LIMITS = {
    name: Limit(name, count, 2.0)
    for name, count in
    {CANDLES: 40, HISTORY: 20, TRADES: 20, INSTRUMENTS: 20, TIME: 10}.items()
}  # fmt: skip
CANDLE_ROWS = 300
TRADE_ROWS = 100
BELIEVED_AFTER = 3  # answers that say again that something is not there
# Without `utc` the longer ones would open at UTC+8. Those of two and three days are left out: it is
# not documented from which day they are counted.
BARS = {
    "1s": "1s", "1m": "1m", "3m": "3m", "5m": "5m", "15m": "15m", "30m": "30m", "1h": "1H",
    "2h": "2H", "4h": "4H", "6h": "6Hutc", "12h": "12Hutc", "1d": "1Dutc", "1w": "1Wutc",
    "1M": "1Mutc", "3M": "3Mutc",
}  # fmt: skip


class Rest:
    """The REST interface, of spot and of linear swaps."""

    def __init__(self, client: VenueClient) -> None:
        self.client = client
        self._listed: dict[str, Instrument] = {}
        self._begins: dict[str, Span] = {}

    async def server_time(self) -> int:
        """Return the venue's clock (ns)."""
        return await self.client.read(f"/api/v5/{TIME}", {}, rows.server_time, limits=(TIME,))

    async def candles(self, series: Series, span: Span, *, newest: bool = False) -> rows.Candles:
        """Return the candles that open in `span`, at most `CANDLE_ROWS`: ask for no more.

        `newest` takes the endpoint that has the latest 1440, without delay.
        """

        def read(body: bytes) -> rows.Candles:
            found = rows.candles(body, series)
            # A bound that is ignored must not pass for an answer.
            opens = found.batch.ts_event
            if len(opens) and not span.start <= opens[0] <= opens[-1] < span.end:
                raise Unreadable("rows came from outside the span asked for")
            return found

        params: Params = {
            **_names(series),
            "after": -(-span.end // MILLISECOND),
            "before": -(-span.start // MILLISECOND) - 1,
            "limit": CANDLE_ROWS,
        }
        endpoint = CANDLES if newest else HISTORY
        return await self.client.read(f"/api/v5/{endpoint}", params, read, limits=(endpoint,))

    async def candles_before(
        self, series: Series, ts: int, limit: int = 1, endpoint: str = HISTORY
    ) -> Batch:
        """Return the newest candles that open before `ts` (ns), at most `limit`."""
        params: Params = {**_names(series), "after": -(-ts // MILLISECOND), "limit": limit}

        def read(body: bytes) -> Batch:
            batch = rows.candles(body, series).batch
            if len(batch) and int(batch.ts_event[-1]) >= ts:
                raise Unreadable("rows came from outside the span asked for")
            return batch

        return await self.client.read(f"/api/v5/{endpoint}", params, read, limits=(endpoint,))

    async def first_month(self, series: Series, now: int) -> Span | None:
        """Return the month in which the symbol was first traded; None when OKX does not tell."""
        name = series.symbol.venue_id(series.exchange)
        if name not in self._begins:
            months = Series.of(series.exchange, str(series.symbol), "candle_1M")
            first, doubts = now, 0
            while (
                doubts < BELIEVED_AFTER
            ):  # what is before the first one must be said to be nothing
                # This endpoint has the month in progress too, which may be the first.
                found = await self.candles_before(months, first, CANDLE_ROWS, CANDLES)
                doubts = 0 if len(found) else doubts + 1
                first = int(found.ts_event[0]) if len(found) else first
            if first == now:
                return None
            self._begins[name] = Span(first, Interval(1, "M").close(first))
        return self._begins[name]

    async def trades(
        self, series: Series, size: Decimal | None, *, before_ts: int = 0, before_id: int = 0
    ) -> Batch:
        """Return the newest trades before a time (ns) or an id, at most `TRADE_ROWS`.

        `size` is that of a contract, where contracts are counted.
        """

        def read(body: bytes) -> Batch:
            found = rows.trades(body, series, size)
            if found.ids is not None and before_id and bool((found.ids >= before_id).any()):
                raise Unreadable("trades came from outside what was asked for")
            return found

        params: Params = {
            "instId": series.symbol.venue_id(series.exchange),
            "type": 1 if before_id else 2,
            "after": before_id or -(-before_ts // MILLISECOND),
            "limit": TRADE_ROWS,
        }
        return await self.client.read(f"/api/v5/{TRADES}", params, read, limits=(TRADES,))

    async def instruments(self, exchange: str, kind: str) -> list[Instrument]:
        """Return what is listed: of swaps, linear ones settled in their quote asset."""
        found = await self._ask({"instType": kind.upper()})
        kept = map(partial(_instrument, exchange, kind), found)
        return [instrument for instrument in kept if instrument is not None]

    async def instrument(self, series: Series) -> Instrument:
        """Return one instrument, asked for once. Raises RequestError when it is not listed."""
        name, kind = series.symbol.venue_id(series.exchange), series.symbol.kind
        if name not in self._listed:
            found = await self._ask({"instType": kind.upper(), "instId": name})
            known = [_instrument(series.exchange, kind, listed) for listed in found]
            match = [it for it in known if it is not None and it.symbol == series.symbol]
            if not match:
                raise RequestError(
                    "bad_request", f"okx lists no linear instrument {name}; is it spelt right?"
                )
            self._listed[name] = match[0]
        return self._listed[name]

    async def contract_size(self, series: Series) -> Decimal | None:
        """Return how much of the base asset a contract is; None for spot."""
        if series.symbol.kind == SPOT:
            return None
        known = await self.instrument(series)
        try:
            return Decimal(known.extra["contract_size"])
        except KeyError:
            raise PluginError(
                f"okx does not tell how much of {series.symbol.base} a contract of {series.symbol}"
                " is; nothing is stored that may be wrong"
            ) from None

    async def _ask(self, params: Params) -> list[rows.Listed]:
        path = f"/api/v5/{INSTRUMENTS}"
        return await self.client.read(path, params, rows.instruments, limits=(INSTRUMENTS,))


def _names(series: Series) -> dict[str, str]:
    bar = BARS[str(series.data_type.interval)]
    return {"instId": series.symbol.venue_id(series.exchange), "bar": bar}


def _instrument(exchange: str, kind: str, listed: rows.Listed) -> Instrument | None:
    base, _, rest = listed.inst_id.partition("-")
    quote = rest.partition("-")[0]
    swap = kind == SWAP
    if swap and (listed.ct_type != "linear" or listed.settle_ccy != quote):
        return None
    symbol = Symbol(base, quote, quote if swap else None)
    if symbol.venue_id(exchange) != listed.inst_id:
        return None
    extra = {"venue_id": listed.inst_id, "status": listed.state}
    lot = listed.lot_sz or None
    size = listed.contract_size if swap and listed.ct_val_ccy in ("", base) else None
    if size is not None:
        extra["contract_size"] = f"{size.normalize():f}"
        lot = f"{(Decimal(lot) * size).normalize():f}" if lot else None
    listed_at, expires_at = _moment(listed.list_time), _moment(listed.exp_time)
    return Instrument(exchange, symbol, listed.tick_sz or None, lot, listed_at, expires_at, extra)


def _moment(text: str) -> int | None:
    """Return ns for a time in ms; "" and 0 mean that there is none."""
    return int(text) * MILLISECOND if text.isdecimal() and int(text) else None
