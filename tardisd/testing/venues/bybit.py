"""Bybit on loopback: the v5 market interface and the archives.

An answer of HTTP 200 with a `retCode` is an error. Lists are newest first; a kline request whose
window holds more than `limit` keeps the newest, unless it names no end. Who asks more than 600
times in five seconds is shut out with 403 for ten minutes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from tardisd.market.series import SWAP, Instrument, Symbol
from tardisd.market.time import MILLISECOND, SECOND
from tardisd.testing.venues.bybit_archive import BybitArchive
from tardisd.testing.venues.bybit_rows import Numbers, kline_json, trade_json
from tardisd.testing.venues.faults import Change
from tardisd.testing.venues.server import Answer, Request, dumped
from tardisd.testing.venues.shelf import Shelf
from tardisd.testing.venues.venue import ARCHIVE, REST, Plan, Refused, Venue
from tardisd.venue.budget import Limit

INTERVALS = {
    "1": "1m", "3": "3m", "5": "5m", "15": "15m", "30": "30m", "60": "1h", "120": "2h",
    "240": "4h", "360": "6h", "720": "12h", "D": "1d", "W": "1w", "M": "1M",
}  # fmt: skip
GEO_PAGE = (
    b"<html><head><title>403 ERROR</title></head><body><h1>The request could not be satisfied."
    b"</h1>The Amazon CloudFront distribution is configured to block access from your country."
    b"</body></html>"
)
_JSON = {"Content-Type": "application/json; charset=utf-8"}
_PREFIX = "/v5/market/"
_ENDPOINTS = ("time", "kline", "recent-trade", "instruments-info")
_BAN_SECS = 600
_LIMIT = "rest requests"
_TOO_MANY = "Too many visits. Exceeded the API Rate Limit."


class BybitVenue(Venue):
    """Bybit with the given data: categories spot and linear.

    With `keeps_oldest`, a kline window that is too large keeps its oldest rows instead.
    """

    exchange: ClassVar[str] = "bybit"

    def __init__(
        self, data: Mapping[Any, Any], *, keeps_oldest: bool = False, **options: Any
    ) -> None:
        super().__init__(data, **options)
        self._keeps_oldest = keeps_oldest
        self._numbers = {
            series: Numbers.of(batch, self.instruments[series.symbol].tick_size)
            for series, batch in self.data.items()
        }
        self._shelves = {}
        for series, batch in self.data.items():
            venue_id = series.symbol.venue_id(self.exchange)
            numbers = self._numbers[series]
            if series.data_type.interval is not None:
                printer: Any = partial(kline_json, numbers=numbers)
            else:
                printer = partial(trade_json, numbers=numbers, symbol=venue_id)
            key = (_category(series.symbol), venue_id, series.data_type.name)
            self._shelves[key] = Shelf(batch, printer, backward=True)
        self._archive = BybitArchive(self, self._numbers)
        self._banned_until = 0

    def own_limits(self) -> Mapping[str, Limit]:
        """Return the limit that holds for every request from one address."""
        return {_LIMIT: Limit(_LIMIT, 600, 5)}

    def plan(self, role: str, request: Request) -> Plan:
        """Return what a request costs and brings."""
        if role == ARCHIVE:
            return Plan({}, partial(self._archive.answer, request))

        async def produce(change: Change | None) -> Answer:
            name = request.path.removeprefix(_PREFIX)
            if name not in _ENDPOINTS or name == request.path:
                raise Refused(Answer(b"", 404, _JSON))
            return Answer(self._body(name, request.params, change), 200, _JSON)

        return Plan({_LIMIT: 1}, produce)

    def refusal(self, plan: Plan, used: Mapping[str, int], now: int) -> Answer | None:
        """Return 403 to one who asks too much, and for ten minutes after."""
        if not plan.charges:
            return None
        if _LIMIT in used and used[_LIMIT] > self.limits[_LIMIT].weight:
            self._banned_until = now + _BAN_SECS * SECOND
        return self.in_own_words(REST, 403) if now < self._banned_until else None

    def in_own_words(self, role: str, status: int) -> Answer:
        """Return how Bybit words a status; 200 is its own rate limit, retCode 10006."""
        if role == ARCHIVE:
            return self._archive.in_own_words(status)
        if status == 200:
            reset = str((self.clock() + SECOND) // MILLISECOND)
            return Answer(self._error(10006, _TOO_MANY), 200, {
                **_JSON, "X-Bapi-Limit": "120", "X-Bapi-Limit-Status": "0",
                "X-Bapi-Limit-Reset-Timestamp": reset,
            })  # fmt: skip
        if status == 403:
            return Answer(b"access too frequent", 403, {"Content-Type": "text/plain"})
        if status == 429:
            text = "System level frequency protection"
            return Answer(self._error(10429, text), 429, _JSON)
        page = f"<html><head><title>{status}</title></head><body></body></html>"
        return Answer(page.encode(), status, {"Content-Type": "text/html"})

    def _error(self, code: int, text: str) -> bytes:
        return dumped(self._envelope({}, code, text))

    def _envelope(self, result: object, code: int = 0, text: str = "OK") -> dict[str, object]:
        time = self.clock() // MILLISECOND
        return {"retCode": code, "retMsg": text, "result": result, "retExtInfo": {}, "time": time}

    def _refuse(self, code: int, text: str) -> Refused:
        return Refused(Answer(self._error(code, text), 200, _JSON))

    def _body(self, name: str, params: Mapping[str, str], change: Change | None) -> bytes:
        now = self.clock()
        if name == "time":
            times = {"timeSecond": str(now // SECOND), "timeNano": str(now)}
            return dumped(self._envelope(times))
        category = params.get("category", "linear" if name == "kline" else "")
        if category not in ("spot", "linear"):
            raise self._refuse(10001, "params error: Category is invalid")
        if name == "instruments-info":
            return self._instruments(category, params)
        symbol = params.get("symbol", "")
        if symbol not in self._listed(category):
            raise self._refuse(10001, "Not supported symbols")
        if name == "kline":
            rows = self._klines(category, symbol, params, change)
            head = {"symbol": symbol, "category": category}
        else:
            rows = self._recent(category, symbol, params, change)
            head = {"category": category}
        # The rows are printed already; they take the place of an empty list.
        body = dumped(self._envelope({**head, "list": []}))
        return body.replace(b'"list":[]', b'"list":[' + rows[:-1] + b"]", 1)

    def _klines(
        self, category: str, symbol: str, params: Mapping[str, str], change: Change | None
    ) -> bytes:
        interval = INTERVALS.get(params.get("interval", ""))
        if interval is None:
            raise self._refuse(10001, "Invalid period!")
        start, end = self._number(params, "start"), self._number(params, "end")
        if start is not None and end is not None and start > end:
            raise self._refuse(10001, "invalid request, start time bigger than end time")
        shelf = self._shelves.get((category, symbol, f"candle_{interval}"))
        limit = self._limit(params, 200, 1000)
        if shelf is None:
            return b""
        now = self.clock()
        first, last = shelf.between(
            None if start is None else start * MILLISECOND,
            None if end is None else (end + 1) * MILLISECOND,
            now,
        )
        if start is not None and (end is None or self._keeps_oldest):
            last = min(last, first + limit)
        return shelf.page(max(first, last - limit), last, now, change)

    def _recent(
        self, category: str, symbol: str, params: Mapping[str, str], change: Change | None
    ) -> bytes:
        shelf = self._shelves.get((category, symbol, "trade"))
        limit = (
            self._limit(params, 60, 60) if category == "spot" else self._limit(params, 500, 1000)
        )
        if shelf is None:
            return b""
        now = self.clock()
        _, last = shelf.between(None, None, now)
        return shelf.page(max(0, last - limit), last, now, change)

    def _number(self, params: Mapping[str, str], name: str) -> int | None:
        text = params.get(name)
        if text is None:
            return None
        if not re.fullmatch(r"\d{1,19}", text):
            raise self._refuse(10001, f"params error: {name} invalid")
        return int(text)

    def _limit(self, params: Mapping[str, str], usual: int, most: int) -> int:
        return min(max(self._number(params, "limit") or usual, 1), most)

    def _listed(self, category: str) -> dict[str, Instrument]:
        return {
            symbol.venue_id(self.exchange): known
            for symbol, known in self.instruments.items()
            if _category(symbol) == category
        }

    def _instruments(self, category: str, params: Mapping[str, str]) -> bytes:
        found = sorted(self._listed(category).items())
        if "symbol" in params:
            found = [(name, known) for name, known in found if name == params["symbol"]]
        if category == "spot":
            spot = [_spot(name, known) for name, known in found]
            return dumped(self._envelope({"category": category, "list": spot}))
        limit = self._limit(params, 500, 1000)
        after = params.get("cursor", "").rpartition("%3D")[2]
        found = [(name, known) for name, known in found if name > after]
        page = found[:limit]
        more = len(found) > len(page)
        cursor = f"first%3D{page[0][0]}%26last%3D{page[-1][0]}" if more else ""
        linear = [_linear(name, known) for name, known in page]
        result = {"category": category, "list": linear, "nextPageCursor": cursor}
        return dumped(self._envelope(result))


def _category(symbol: Symbol) -> str:
    return "linear" if symbol.kind == SWAP else "spot"


def _spot(name: str, known: Instrument) -> dict[str, object]:
    return {
        "symbol": name,
        "baseCoin": known.symbol.base,
        "quoteCoin": known.symbol.quote,
        "innovation": "0",
        "status": "Trading",
        "marginTrading": "utaOnly",
        "stTag": "0",
        "lotSizeFilter": {
            "basePrecision": known.lot_size,
            "quotePrecision": "0.00000001",
            "minOrderQty": known.lot_size,
            "maxOrderQty": "71.73956243",
            "minOrderAmt": "1",
            "maxOrderAmt": "2000000",
        },
        "priceFilter": {"tickSize": known.tick_size},
    }


def _linear(name: str, known: Instrument) -> dict[str, object]:
    tick = known.tick_size or ""
    return {
        "symbol": name,
        "contractType": "LinearPerpetual",
        "status": "Trading",
        "baseCoin": known.symbol.base,
        "quoteCoin": known.symbol.quote,
        "launchTime": str((known.listed_at or 0) // MILLISECOND),
        "deliveryTime": "0",
        "deliveryFeeRate": "",
        "priceScale": str(len(tick.partition(".")[2])),
        "priceFilter": {"minPrice": tick, "maxPrice": "1999999.80", "tickSize": tick},
        "lotSizeFilter": {"minOrderQty": known.lot_size, "qtyStep": known.lot_size},
        "unifiedMarginTrade": True,
        "fundingInterval": 480,
        "settleCoin": known.symbol.settle,
        "copyTrading": "both",
    }
