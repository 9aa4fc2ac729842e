"""OKX's archives: trades and one-minute candles as zips, and the index of them; no market REST.

Days and months are cut at midnight UTC+8. A file comes out a day after its period has ended (T+2).
Before 2022 headers are in English and Chinese, in GBK; from 2026 on trades have a source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING

from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.time import DAY, HOUR, MILLISECOND, SECOND
from tardisd.testing.venues.faults import Change
from tardisd.testing.venues.files import csv_parts, zipped
from tardisd.testing.venues.okx_rows import (
    CANDLE_HEADER,
    LEGACY_TRADE_HEADER,
    TRADE_HEADER,
    Numbers,
    candle_csv,
    trade_csv,
)
from tardisd.testing.venues.periods import Period, periods
from tardisd.testing.venues.server import Answer, Request

if TYPE_CHECKING:
    from tardisd.testing.venues.venue import Venue

FOLDER = "/cdn/okex/traderecords"
MODULES = {"1": "trade", "2": "candle_1m"}
_AHEAD = 8 * HOUR
_KINDS = {"trade": "trades", "agg_trade": "aggtrades", "candle_1m": "candlesticks"}
_LEGACY_UNTIL = date(2022, 1, 1)
_SOURCE_SINCE = date(2026, 1, 1)
_STAMP = re.compile(r"-(\d{4}-\d{2}(?:-\d{2})?)\.zip")
_MOST = 20  # days or months in one answer of the index
_ABSENT = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code><Message>The specified'
    b" key does not exist.</Message></Error>"
)


class OkxArchive:
    """The file host of a venue."""

    def __init__(self, venue: Venue, numbers: Mapping[Series, Numbers]) -> None:
        self._venue = venue
        self._numbers = numbers
        self._stacks = {
            (series.symbol.venue_id(venue.exchange), _KINDS[series.data_type.name]): series
            for series in venue.data
            if series.data_type.name in _KINDS
        }

    async def answer(self, request: Request, change: Change | None) -> Answer:
        """Return a file, or that there is none."""
        found = self._found(request.path)
        if found is None:
            return self.in_own_words(404)
        series, period = found
        batch = self._venue.data[series]
        batch = batch[period.rows(batch)]
        at = request.path
        if change is not None:
            batch = change(batch)
            at += f" changed {len(self._venue.requests)}"
        name = request.path.rpartition("/")[2].removesuffix(".zip") + ".csv"
        make = zipped(name, self._lines(series, batch, period), self._venue.files.level)
        file = await self._venue.files.get(at, make)
        return Answer(file, 200, {
            "Content-Type": "application/zip",
            "ETag": f'"{self._venue.files.checksum(file)[:32].upper()}"',
            "Last-Modified": formatdate(_published(period) / SECOND, usegmt=True),
        })  # fmt: skip

    def in_own_words(self, status: int) -> Answer:
        """Return how the file host words a status."""
        return Answer(
            _ABSENT if status == 404 else b"", status, {"Content-Type": "application/xml"}
        )

    def index(
        self, names: list[str], data_type: str, monthly: bool, begin: int, end: int
    ) -> object:
        """Return `data` of market-data-history: the files of instruments between two times (ns)."""
        details = []
        for name in names:
            series = self._stacks.get((name, _KINDS[data_type]))
            if series is None:
                continue
            files = [
                period
                for period in periods(self._venue.data[series], monthly, _AHEAD)
                if self._is_out(series, period) and begin <= period.span.start <= end
            ][-_MOST:]
            if files:
                details.append(self._detail(series, name, files))
        return [{
            "dateAggrType": "monthly" if monthly else "daily",
            "details": details,
            "totalSizeMB": "0.1",
            "ts": str(self._venue.clock() // MILLISECOND),
        }]  # fmt: skip

    def _detail(self, series: Series, name: str, files: list[Period]) -> dict[str, object]:
        kind = _KINDS[series.data_type.name]
        return {
            "dateRangeStart": str(files[0].span.start // MILLISECOND),
            "dateRangeEnd": str(files[-1].span.start // MILLISECOND),
            "groupDetails": [
                {
                    "dateTs": str(period.span.start // MILLISECOND),
                    "filename": _path(name, kind, period).rpartition("/")[2],
                    "sizeMB": "0.1",
                    "url": self._venue.archive_url + _path(name, kind, period),
                }
                for period in reversed(files)
            ],
            "groupSizeMB": "0.1",
            "instFamily": f"{series.symbol.base}-{series.symbol.quote}",
            "instId": name,
            "instType": series.symbol.kind.upper(),
        }

    def _found(self, path: str) -> tuple[Series, Period] | None:
        match = _STAMP.search(path)
        period = Period.parse(match[1], _AHEAD) if match else None
        if period is None:
            return None
        for (name, kind), series in self._stacks.items():
            if path == _path(name, kind, period):
                return (series, period) if self._is_out(series, period) else None
        return None

    def _is_out(self, series: Series, period: Period) -> bool:
        out = self._venue.clock() >= _published(period)
        return out and period.has_rows(self._venue.data[series])

    def _lines(self, series: Series, batch: Batch, period: Period) -> Iterator[bytes]:
        numbers = self._numbers[series]
        name = series.symbol.venue_id(self._venue.exchange)
        if series.data_type.interval is not None:
            printer = partial(candle_csv, numbers=numbers, name=name)
            return csv_parts(batch, printer, f"{CANDLE_HEADER}\n".encode())
        source = period.day >= _SOURCE_SINCE
        header = f"{TRADE_HEADER}{',source' * source}\n".encode()
        if period.day < _LEGACY_UNTIL:
            header = f"{LEGACY_TRADE_HEADER}\n".encode("gbk")
        return csv_parts(
            batch, partial(trade_csv, numbers=numbers, name=name, source=source), header
        )


def _path(name: str, kind: str, period: Period) -> str:
    folder = "monthly" if period.monthly else "daily"
    digits = period.stamp.replace("-", "")
    return f"{FOLDER}/{kind}/{folder}/{digits}/{name}-{kind}-{period.stamp}.zip"


def _published(period: Period) -> int:
    """Return when (ns) a file comes out."""
    return period.span.end + DAY
