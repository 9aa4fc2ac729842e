"""OKX on loopback: the v5 market and public interfaces and the archives.

Lists are newest first, bounds exclusive: `after` asks for what is older, `before` for what is
newer. Each endpoint has a limit of its own over two seconds; who is over it gets 429 and 50011.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np

from tardisd.market.columns import Batch
from tardisd.market.series import SWAP
from tardisd.market.time import DAY, HOUR, MILLISECOND, MINUTE, Interval
from tardisd.testing.venues.faults import Change
from tardisd.testing.venues.okx_archive import MODULES, OkxArchive
from tardisd.testing.venues.okx_info import listed
from tardisd.testing.venues.okx_rows import Numbers, candle_json, trade_json
from tardisd.testing.venues.server import Answer, Request, dumped
from tardisd.testing.venues.shelf import Shelf
from tardisd.testing.venues.venue import ARCHIVE, REST, Plan, Refused, Venue
from tardisd.venue.budget import Limit

_UTC8_BARS = {
    "6H": "6h", "12H": "12h", "1D": "1d", "2D": "2d", "3D": "3d", "1W": "1w", "1M": "1M",
    "3M": "3M",
}  # fmt: skip
BARS = {
    **{bar: bar.lower() for bar in ("1s", "1m", "3m", "5m", "15m", "30m", "1H", "2H", "4H")},
    **{f"{bar}utc": name for bar, name in _UTC8_BARS.items()},
}
_ENDPOINTS = {
    "market/candles": 40, "market/history-candles": 20, "market/trades": 100,
    "market/history-trades": 20, "public/instruments": 20, "public/time": 10,
    "public/market-data-history": 5,
}  # fmt: skip
_PREFIX = "/api/v5/"
_JSON = {"Content-Type": "application/json"}
_NEWEST_BARS = 1440
_HISTORY_LAG = MINUTE
_TRADES_DEPTH = 90 * DAY
_SECONDS_DEPTH = 90 * DAY
_UNKNOWN = "Instrument ID, Instrument ID code, or Spread ID doesn't exist."
_STATUSES = {
    200: ("50011", "Too Many Requests"),
    429: ("50011", "Too Many Requests"),
    503: ("50001", "Service temporarily unavailable. Please try again later."),
    500: ("50026", "System error. Please try again later."),
    403: ("50121", "You can't access our services through the IP address."),
}


class OkxVenue(Venue):
    """OKX with the given data; an instrument's `extra["ctVal"]` is the value of a contract."""

    exchange: ClassVar[str] = "okx"

    def __init__(self, data: Mapping[Any, Any], **options: Any) -> None:
        super().__init__(data, **options)
        self._numbers = {}
        for series, batch in self.data.items():
            if batch.ids is not None and batch.ids.dtype.kind != "i":
                raise ValueError(f"{series}: OKX's ids are integers")
            self._numbers[series] = Numbers.of(batch, self.instruments[series.symbol])
        self._names = {symbol.venue_id(self.exchange) for symbol in self.instruments}
        self._shelves: dict[tuple[str, str, bool], Shelf] = {}
        self._archive = OkxArchive(self, self._numbers)
        self._answers: dict[str, Callable[[Mapping[str, str], Change | None], bytes]] = {
            "market/candles": partial(self._candles, False),
            "market/history-candles": partial(self._candles, True),
            "market/trades": self._trades,
            "market/history-trades": self._history_trades,
            "public/instruments": self._instruments,
            "public/time": self._time,
            "public/market-data-history": self._files,
        }

    def own_limits(self) -> Mapping[str, Limit]:
        """Return the limit of each endpoint over two seconds."""
        return {name: Limit(name, count, 2) for name, count in _ENDPOINTS.items()}

    def plan(self, role: str, request: Request) -> Plan:
        """Return what a request costs and brings."""
        if role == ARCHIVE:
            return Plan({}, partial(self._archive.answer, request))
        name = request.path.removeprefix(_PREFIX)
        if name not in self._answers or name == request.path:
            raise Refused(_error(404, "404", "Invalid path"))

        async def produce(change: Change | None) -> Answer:
            return Answer(self._answers[name](request.params, change), 200, _JSON)

        return Plan({name: 1}, produce)

    def refusal(self, plan: Plan, used: Mapping[str, int], now: int) -> Answer | None:
        """Return 429 to one who is over the limit of an endpoint."""
        over = any(count > self.limits[name].weight for name, count in used.items())
        return self.in_own_words(REST, 429) if over else None

    def in_own_words(self, role: str, status: int) -> Answer:
        """Return how OKX words a status; 200 is 50011 as it also comes."""
        if role == ARCHIVE:
            return self._archive.in_own_words(status)
        code, text = _STATUSES.get(status, ("50000", "Body for POST request cannot be empty."))
        return _error(status, code, text)

    def _candles(self, history: bool, params: Mapping[str, str], change: Change | None) -> bytes:
        bar = params.get("bar", "1m")
        name = self._name(params)
        shifted = bar in _UTC8_BARS
        interval = _UTC8_BARS[bar] if shifted else BARS.get(bar)
        if interval is None or (interval == "1s" and not history):
            raise Refused(_error(400, "51000", "Parameter bar error"))
        after, before = _number(params, "after"), _number(params, "before")
        limit = _limit(params, 300)
        shelf = self._shelf(name, f"candle_{interval}", shifted)
        if shelf is None:
            return _data(b"")
        now = self.clock()
        start = None if before is None else (before + 1) * MILLISECOND
        end = None if after is None else after * MILLISECOND
        oldest, shown = shelf.between(None, None, now)
        if history:
            length = Interval.parse(interval)
            while shown and length.close(int(shelf.batch.ts_event[shown - 1])) > now - _HISTORY_LAG:
                shown -= 1
            if interval == "1s":
                oldest, _ = shelf.between(now - _SECONDS_DEPTH, None, now)
        else:
            oldest = max(0, shown - _NEWEST_BARS)
        first, last = shelf.between(start, end, now)
        last = min(last, shown)
        first = max(first, oldest, last - limit)
        return _data(shelf.page(min(first, last), last, now, change))

    def _trades(self, params: Mapping[str, str], change: Change | None) -> bytes:
        shelf = self._shelf(self._name(params), "trade")
        limit = _limit(params, 500)
        if shelf is None:
            return _data(b"")
        now = self.clock()
        _, last = shelf.between(None, None, now)
        return _data(shelf.page(max(0, last - limit), last, now, change))

    def _history_trades(self, params: Mapping[str, str], change: Change | None) -> bytes:
        shelf = self._shelf(self._name(params), "trade")
        after, before = _number(params, "after"), _number(params, "before")
        kind = params.get("type", "1")
        limit = _limit(params, 100)
        if kind not in ("1", "2"):
            raise Refused(_error(400, "51000", "Parameter type error"))
        if kind == "2" and before is not None:
            text = "The before parameter is not available for implementing timestamp pagination"
            raise Refused(_error(200, "50039", text))
        if shelf is None:
            return _data(b"")
        now = self.clock()
        oldest, last = shelf.between(now - _TRADES_DEPTH, None, now)
        first = oldest
        if kind == "2" and after is not None:
            _, last = shelf.between(None, after * MILLISECOND, now)
        elif kind == "1":
            ids = shelf.batch.ids
            assert ids is not None
            if after is not None:
                last = min(last, int(np.searchsorted(ids, after, "left")))
            if before is not None:
                first = max(first, int(np.searchsorted(ids, before, "right")))
        first = max(first, last - limit)
        return _data(shelf.page(min(first, last), last, now, change))

    def _instruments(self, params: Mapping[str, str], change: Change | None) -> bytes:
        kind = params.get("instType", "")
        if not kind:
            raise Refused(_error(400, "50014", "Parameter instType can not be empty."))
        if kind not in ("SPOT", "SWAP", "MARGIN", "FUTURES", "OPTION"):
            raise Refused(_error(400, "51000", "Parameter instType error"))
        wanted = params.get("instId")
        if wanted is not None and wanted not in self._names:
            raise Refused(_error(200, "51001", _UNKNOWN))
        found = [
            listed(known)
            for symbol, known in self.instruments.items()
            if ("SWAP" if symbol.kind == SWAP else "SPOT") == kind
            and wanted in (None, symbol.venue_id(self.exchange))
        ]
        return dumped({"code": "0", "data": found, "msg": ""})

    def _time(self, params: Mapping[str, str], change: Change | None) -> bytes:
        found = [{"ts": str(self.clock() // MILLISECOND)}]
        return dumped({"code": "0", "data": found, "msg": ""})

    def _files(self, params: Mapping[str, str], change: Change | None) -> bytes:
        module, kind = params.get("module", ""), params.get("instType", "")
        listed_by = "instIdList" if kind == "SPOT" else "instFamilyList"
        asked = [text for text in params.get(listed_by, "").split(",") if text]
        for name, value in (("module", module), ("instType", kind), (listed_by, asked)):
            if not value:
                raise Refused(_error(400, "50014", f"Parameter {name} can not be empty."))
        if module not in MODULES or kind not in ("SPOT", "SWAP") or len(asked) > 10:
            raise Refused(_error(400, "51000", "Parameter module error"))
        monthly = params.get("dateAggrType", "daily") == "monthly"
        begin, end = _number(params, "begin"), _number(params, "end")
        if begin is None or end is None:
            raise Refused(_error(400, "50014", "Parameter begin can not be empty."))
        if not monthly and (end - begin) * MILLISECOND > 20 * DAY:
            raise Refused(_error(400, "50076", "The time window is too long."))
        names = [text if kind == "SPOT" else f"{text}-SWAP" for text in asked]
        found = self._archive.index(
            names, MODULES[module], monthly, begin * MILLISECOND, end * MILLISECOND
        )
        return dumped({"code": "0", "data": found, "msg": ""})

    def _name(self, params: Mapping[str, str]) -> str:
        name = params.get("instId", "")
        if not name:
            raise Refused(_error(400, "50014", "Parameter instId can not be empty."))
        if name not in self._names:
            raise Refused(_error(200, "51001", _UNKNOWN))
        return name

    def _shelf(self, name: str, data_type: str, shifted: bool = False) -> Shelf | None:
        """Return the rows of a series; `shifted` ones stand for the bars that open at UTC+8."""
        key = name, data_type, shifted
        if key not in self._shelves:
            for series, batch in self.data.items():
                if (series.symbol.venue_id(self.exchange), series.data_type.name) == key[:2]:
                    self._shelves[key] = self._shelved(name, batch, shifted)
        return self._shelves.get(key)

    def _shelved(self, name: str, batch: Batch, shifted: bool) -> Shelf:
        numbers = self._numbers[batch.series]
        if batch.series.data_type.interval is None:
            return Shelf(batch, partial(trade_json, numbers=numbers, name=name), backward=True)
        if shifted:
            batch = Batch(batch.series, batch.ts_event - 8 * HOUR, batch.fields)
        printer = partial(candle_json, numbers=numbers)
        return Shelf(batch, printer, backward=True, live=printer)


def _error(status: int, code: str, text: str) -> Answer:
    return Answer(dumped({"code": code, "data": [], "msg": text}), status, _JSON)


def _data(rows: bytes) -> bytes:
    return b'{"code":"0","msg":"","data":[' + rows[:-1] + b"]}"


def _number(params: Mapping[str, str], name: str) -> int | None:
    text = params.get(name)
    if not text:
        return None
    if not re.fullmatch(r"\d{1,19}", text):
        raise Refused(_error(400, "51000", f"Parameter {name} error"))
    return int(text)


def _limit(params: Mapping[str, str], most: int) -> int:
    limit = _number(params, "limit")
    return 100 if limit is None else max(1, min(limit, most))
