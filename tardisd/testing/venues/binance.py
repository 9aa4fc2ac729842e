"""Binance on loopback: the REST interfaces of spot and USD-M futures, and the archives.

Role `rest` is spot (`/api/v3`), `swap` is USD-M (`/fapi/v1`), `archive` the file host and its
listing. Weights, windows, headers and error bodies are the venue's; a ban follows when one goes on
asking after a 429.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from tardisd.market.series import SWAP
from tardisd.market.time import DAY, MILLISECOND, SECOND
from tardisd.testing.venues.binance_archive import BinanceArchive
from tardisd.testing.venues.binance_info import exchange_info, window_name
from tardisd.testing.venues.binance_rows import (
    MICROSECOND_NS,
    Numbers,
    agg_trade_json,
    kline_json,
    trade_json,
)
from tardisd.testing.venues.faults import Change
from tardisd.testing.venues.server import Answer, Request, dumped
from tardisd.testing.venues.shelf import Shelf
from tardisd.testing.venues.venue import ARCHIVE, REST, Plan, Refused, Venue
from tardisd.venue.budget import Limit

SWAP_ROLE = "swap"
INTERVALS = ("1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w",
             "1M")  # fmt: skip
SPOT_INTERVALS = ("1s", *INTERVALS)
_JSON = {"Content-Type": "application/json;charset=UTF-8"}
_HTML_404 = b"<html><body><h2>404 Not found</h2></body></html>"
_SYMBOL = re.compile(r"[\w.-]{1,20}")
_UNTIL_BANNED = 5  # requests that are refused with 429 before the ban
_BAN_SECS = 120
_RECENT = 2 * DAY  # how far USD-M's aggTrades reach back
_PRINTERS = {"candle": kline_json, "agg_trade": agg_trade_json, "trade": trade_json}
_PATHS = {"klines": "candle", "aggTrades": "agg_trade", "historicalTrades": "trade",
          "trades": "trade"}  # fmt: skip
_BAN = (
    "Way too much request weight used; IP banned until {}. Please use WebSocket Streams for live"
    " updates to avoid bans."
)
_GEO_BLOCK = (
    "Service unavailable from a restricted location according to 'b. Eligibility' in"
    " https://www.binance.com/en/terms. Please contact customer service if you believe you"
    " received this message in error."
)
_MESSAGES = {
    -1003: "Too many requests; current limit is {} request weight per 1 MINUTE. Please use"
    " WebSocket Streams for live updates to avoid polling the API.",
    -1023: "Start time is greater than end time.",
    -1100: "Illegal characters found in parameter '{}'; legal range is '{}'.",
    -1102: "Mandatory parameter '{}' was not sent, was empty/null, or malformed.",
    -1120: "Invalid interval.",
    -1121: "Invalid symbol.",
    -1130: "Data sent for parameter '{}' is not valid.",
    -2014: "API-key format invalid.",
    -4166: "Search window is restricted to recent 2 days only.",
}


def error(
    status: int, code: int, *about: object, headers: Mapping[str, str] | None = None
) -> Answer:
    """Return an error as Binance words it."""
    body = {"code": code, "msg": _MESSAGES[code].format(*about)}
    return Answer(dumped(body), status, {**_JSON, **(headers or {})})


@dataclass(frozen=True, slots=True)
class _Side:
    """What differs between spot and USD-M."""

    spot: bool
    prefix: str
    most_rows: int
    intervals: tuple[str, ...]
    weights: Mapping[str, int]


_SIDES = {
    REST: _Side(True, "/api/v3/", 1000, SPOT_INTERVALS, {
        "ping": 1, "time": 1, "exchangeInfo": 20, "klines": 2, "aggTrades": 4, "trades": 25,
        "historicalTrades": 25,
    }),
    SWAP_ROLE: _Side(False, "/fapi/v1/", 1500, INTERVALS, {
        "ping": 1, "time": 1, "exchangeInfo": 1, "klines": 5, "aggTrades": 20, "trades": 5,
        "historicalTrades": 20,
    }),
}  # fmt: skip


class BinanceVenue(Venue):
    """Binance with the given data; `swap_rest_url` is where its USD-M interface is."""

    exchange: ClassVar[str] = "binance"
    roles: ClassVar[tuple[str, ...]] = (REST, SWAP_ROLE, ARCHIVE)

    def __init__(self, data: Mapping[Any, Any], **options: Any) -> None:
        super().__init__(data, **options)
        self._shelves: dict[tuple[bool, str, str, int], Shelf] = {}
        self._numbers = {}
        for series, batch in self.data.items():
            if batch.ids is not None and batch.ids.dtype.kind != "i":
                raise ValueError(f"{series}: Binance's ids are integers")
            known = self.instruments[series.symbol]
            spot = series.symbol.kind != SWAP
            self._numbers[series] = Numbers.of(batch, known.tick_size, known.lot_size, spot)
        self._ids = {(s.kind != SWAP, s.venue_id(self.exchange)): s for s in self.instruments}
        self._archive = BinanceArchive(self, self._numbers)
        self._over = dict.fromkeys(self.roles, 0)
        self._banned_until = dict.fromkeys(self.roles, 0)

    @property
    def swap_rest_url(self) -> str:
        """Where the USD-M interface is, while it serves."""
        return self.urls[SWAP_ROLE]

    def own_limits(self) -> Mapping[str, Limit]:
        """Return weight per minute by the clock; spot also counts requests."""
        return {
            "rest weight": Limit("rest weight", 6000, 60, aligned=True),
            "rest requests": Limit("rest requests", 300_000, 300, aligned=True),
            "swap weight": Limit("swap weight", 2400, 60, aligned=True),
        }

    def plan(self, role: str, request: Request) -> Plan:
        """Return what a request costs and brings."""
        if role == ARCHIVE:
            return Plan({}, partial(self._archive.answer, request))
        side = _SIDES[role]
        name = request.path.removeprefix(side.prefix)
        if name not in side.weights or name == request.path:
            raise Refused(Answer(_HTML_404, 404, {"Content-Type": "text/html"}))
        weight = side.weights[name]
        if name == "klines" and not side.spot and request.params.get("limit", "").isdecimal():
            limit = int(request.params["limit"])
            weight = 1 if limit <= 100 else 2 if limit <= 500 else 5 if limit <= 1000 else 10
        charges = {f"{role} weight": weight, f"{role} requests": 1}

        async def produce(change: Change | None) -> Answer:
            text = self._body(side, name, request, change)
            return Answer(text, 200, _JSON)

        return Plan(charges, produce)

    def refusal(self, plan: Plan, used: Mapping[str, int], now: int) -> Answer | None:
        """Return 429 to one who is over a limit, and 418 to one who goes on."""
        if not plan.charges:
            return None
        role = next(iter(plan.charges)).partition(" ")[0]
        if now < self._banned_until[role]:
            return self._banned(role, now)
        over = [name for name, count in used.items() if count > self.limits[name].weight]
        if not over:
            self._over[role] = 0
            return None
        self._over[role] += 1
        if self._over[role] > _UNTIL_BANNED:
            self._over[role] = 0
            self._banned_until[role] = now + _BAN_SECS * SECOND
            return self._banned(role, now)
        limit = self.limits[over[0]].weight
        wait = max(1, -(-(self.meters[over[0]].free_at(now) - now) // SECOND))
        return error(429, -1003, limit, headers={"Retry-After": str(wait)})

    def in_own_words(self, role: str, status: int) -> Answer:
        """Return how Binance words a status."""
        now = self.now()
        if role == ARCHIVE:
            return self._archive.in_own_words(status)
        if status == 418:
            return self._banned(role, now, now + _BAN_SECS * SECOND)
        if status == 429:
            limit = self.own_limits()[f"{role} weight"].weight
            return error(429, -1003, limit, headers={"Retry-After": "7"})
        if status == 451:
            return Answer(dumped({"code": 0, "msg": _GEO_BLOCK}), 451, _JSON)
        if status == 400:
            return error(400, -1121)
        page = f"<html><head><title>{status}</title></head><body></body></html>"
        return Answer(page.encode(), status, {"Content-Type": "text/html"})

    def usage_headers(self, used: Mapping[str, int]) -> Mapping[str, str]:
        """Return the headers that tell the weight used in the window."""
        headers = {}
        for name, count in used.items():
            if name.endswith("weight"):
                headers[f"x-mbx-used-weight-{window_name(self.limits[name])}"] = str(count)
                if name.startswith(REST):
                    headers["x-mbx-used-weight"] = str(count)
        return headers

    def _banned(self, role: str, now: int, until: int = 0) -> Answer:
        until = max(self._banned_until[role], until)
        text = _BAN.format(until // MILLISECOND)
        headers = {**_JSON, "Retry-After": str(-(-(until - now) // SECOND))}
        return Answer(dumped({"code": -1003, "msg": text}), 418, headers)

    def _body(self, side: _Side, name: str, request: Request, change: Change | None) -> bytes:
        if name == "ping":
            return b"{}"
        if name == "time":
            return b'{"serverTime":%d}' % (self.clock() // MILLISECOND)
        if name == "exchangeInfo":
            return self._exchange_info(side, request)
        if name == "historicalTrades" and not side.spot and "x-mbx-apikey" not in request.headers:
            raise Refused(error(401, -2014))
        return self._rows(side, name, request, change)

    def _rows(self, side: _Side, name: str, request: Request, change: Change | None) -> bytes:
        symbol = self._symbol(side, request.params.get("symbol", ""))
        data_type = _PATHS[name]
        if data_type == "candle":
            interval = request.params.get("interval", "")
            if not interval:
                raise Refused(error(400, -1102, "interval"))
            if interval not in side.intervals:
                raise Refused(error(400, -1120))
            data_type = f"candle_{interval}"
        limit = self._limit(side, request)
        start, end = self._time(request, "startTime"), self._time(request, "endTime")
        if not side.spot and start is not None and end is not None and start >= end + 1:
            raise Refused(error(400, -1023))
        micros = side.spot and request.headers.get("x-mbx-time-unit") == "MICROSECOND"
        shelf = self._shelf(side, symbol, data_type, MICROSECOND_NS if micros else MILLISECOND)
        if shelf is None:
            return b"[]"
        now = self.clock()
        if name in ("klines", "aggTrades"):
            from_id = self._number(request, "fromId") if name == "aggTrades" else None
        else:
            from_id = self._number(request, "fromId") if name == "historicalTrades" else None
            start = end = None
        if from_id is not None:
            first, last = self._after(shelf, from_id, limit, now)
        else:
            first, last = shelf.between(start, end, now)
            first, last = (first, min(last, first + limit)) if start is not None else (
                max(first, last - limit), last)  # fmt: skip
        if name == "aggTrades" and not side.spot:
            asked = [ts for ts in (start, end) if ts is not None]
            if from_id is not None and first < last:
                asked.append(int(shelf.batch.ts_event[first]))
            if any(ts < now - _RECENT for ts in asked):
                raise Refused(error(400, -4166))
        text = shelf.page(first, last, now, change)
        return b"[" + text[:-1] + b"]"

    def _shelf(self, side: _Side, symbol: str, data_type: str, unit: int) -> Shelf | None:
        key = (side.spot, symbol, data_type, unit)
        if key not in self._shelves:
            for series, batch in self.data.items():
                kind = series.symbol.kind != SWAP
                if (kind, series.symbol.venue_id(self.exchange)) == key[:2] and (
                    series.data_type.name == data_type
                ):
                    made = partial(_PRINTERS[series.data_type.kind], numbers=self._numbers[series],
                                   unit=unit)  # fmt: skip
                    self._shelves[key] = Shelf(batch, made)
        return self._shelves.get(key)

    @staticmethod
    def _after(shelf: Shelf, from_id: int, limit: int, now: int) -> tuple[int, int]:
        _, shown = shelf.between(None, None, now)
        assert shelf.batch.ids is not None
        first = min(int(np.searchsorted(shelf.batch.ids, from_id, "left")), shown)
        return first, min(first + limit, shown)

    def _symbol(self, side: _Side, text: str) -> str:
        if not text:
            raise Refused(error(400, -1102, "symbol"))
        if not _SYMBOL.fullmatch(text) or text != text.upper():
            raise Refused(error(400, -1100, "symbol", "^[A-Z0-9-_.]{1,20}$"))
        if (side.spot, text) not in self._ids:
            raise Refused(error(400, -1121))
        return text

    @staticmethod
    def _number(request: Request, name: str) -> int | None:
        text = request.params.get(name)
        if text is None:
            return None
        if not re.fullmatch(r"\d{1,20}", text):
            raise Refused(error(400, -1100, name, "^[0-9]{1,20}$"))
        return int(text)

    def _time(self, request: Request, name: str) -> int | None:
        """Return a bound in ns: of the end, the first instant that is beyond it."""
        value = self._number(request, name)
        if value is None:
            return None
        unit = MICROSECOND_NS if value >= 10**14 else MILLISECOND
        return (value + (name == "endTime")) * unit

    def _limit(self, side: _Side, request: Request) -> int:
        limit = self._number(request, "limit")
        most = side.most_rows if request.path.endswith("klines") else 1000
        if limit is None:
            return 500
        if limit == 0 or (limit > most and not side.spot):
            raise Refused(error(400, -1130, "limit"))
        return min(limit, most)

    def _exchange_info(self, side: _Side, request: Request) -> bytes:
        wanted = None
        if side.spot and "symbol" in request.params:
            wanted = {self._symbol(side, request.params["symbol"])}
        elif side.spot and "symbols" in request.params:
            wanted = {self._symbol(side, text) for text in json.loads(request.params["symbols"])}
        role = REST if side.spot else SWAP_ROLE
        return exchange_info(
            side.spot,
            self.clock(),
            [(name, limit) for name, limit in self.limits.items() if name.startswith(role)],
            [
                known
                for symbol, known in self.instruments.items()
                if (symbol.kind != SWAP) == side.spot
                and (wanted is None or symbol.venue_id(self.exchange) in wanted)
            ],
        )
