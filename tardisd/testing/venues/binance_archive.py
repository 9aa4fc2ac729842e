"""Binance's archives: monthly and daily zips, their checksums, and the listing; no REST.

Spot files have no header, µs from 2025 on and `True`; USD-M files have a header from 2022 on, ms
and `true`. A day's file comes out at nine the next morning, a month's on the first Monday after.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.sax.saxutils import escape

from tardisd.market.columns import Batch
from tardisd.market.series import SWAP, Series
from tardisd.market.time import HOUR, MILLISECOND, SECOND, from_datetime
from tardisd.testing.venues.binance_rows import (
    AGG_TRADE_HEADER,
    KLINE_HEADER,
    MICROSECOND_NS,
    TRADE_HEADER,
    Numbers,
    agg_trade_csv,
    kline_csv,
    trade_csv,
)
from tardisd.testing.venues.faults import Change
from tardisd.testing.venues.files import csv_parts, zipped
from tardisd.testing.venues.periods import Period, periods
from tardisd.testing.venues.printing import Printer
from tardisd.testing.venues.server import Answer, Request

if TYPE_CHECKING:
    from tardisd.testing.venues.venue import Venue

_PUBLISHED_AFTER = 9 * HOUR
_MICROSECONDS_SINCE = date(2025, 1, 1)
_HEADERS_SINCE = date(2022, 1, 1)
_MONTHLY_ONLY = frozenset({"3d", "1w", "1mo"})
_FOLDERS = {"candle": "klines", "agg_trade": "aggTrades", "trade": "trades"}
_PRINTERS = {"candle": kline_csv, "agg_trade": agg_trade_csv, "trade": trade_csv}
_HEADERS = {"candle": KLINE_HEADER, "agg_trade": AGG_TRADE_HEADER, "trade": TRADE_HEADER}
_DATE = re.compile(r"-(\d{4}-\d{2}(?:-\d{2})?)\.zip")
_XML = {"Content-Type": "application/xml"}
_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass(frozen=True, slots=True)
class _Stack:
    """The files of one series: where they lie, and what they are called."""

    series: Series
    batch: Batch
    folder: str
    name: str

    def key(self, period: Period) -> str:
        folder = self.folder.format("monthly" if period.monthly else "daily")
        return f"{folder}{self.name}-{period.stamp}.zip"


class BinanceArchive:
    """The file host of a venue."""

    def __init__(self, venue: Venue, numbers: Mapping[Series, Numbers]) -> None:
        self._venue = venue
        self._numbers = numbers
        self._stacks: dict[str, _Stack] = {}
        for series, batch in venue.data.items():
            stack = _stack(series, batch, venue.exchange)
            for period in ("monthly", "daily"):
                if period == "monthly" or not _MONTHLY_ONLY & set(stack.folder.split("/")):
                    self._stacks[stack.folder.format(period)] = stack

    async def answer(self, request: Request, change: Change | None) -> Answer:
        """Return a file, its checksum, a listing, or that there is no such key."""
        path = request.path.removeprefix("/data.binance.vision")
        if path in ("", "/"):
            return self._listing(request)
        key = path.removeprefix("/")
        wants_sum = key.endswith(".CHECKSUM")
        found = self._found(key.removesuffix(".CHECKSUM"))
        if found is None:
            return _no_such_key(key)
        stack, period = found
        batch = stack.batch[period.rows(stack.batch)]
        if change is not None:
            batch = change(batch)
        name = key.removesuffix(".CHECKSUM").rpartition("/")[2]
        parts = csv_parts(batch, *self._form(stack, period.day))
        at = name if change is None else f"{name} changed {len(self._venue.requests)}"
        make = zipped(name.removesuffix(".zip") + ".csv", parts, self._venue.files.level)
        file = await self._venue.files.get(f"{stack.folder}{at}", make)
        checksum = self._venue.files.checksum(file)
        headers = {
            "ETag": f'"{checksum[:32]}"',
            "Last-Modified": formatdate(_published(period) / SECOND, usegmt=True),
        }
        if wants_sum:
            return Answer(f"{checksum}  {name}\n".encode(), 200, {**headers,
                          "Content-Type": "binary/octet-stream"})  # fmt: skip
        return Answer(file, 200, {**headers, "Content-Type": "application/zip"})

    def in_own_words(self, status: int) -> Answer:
        """Return how S3 and CloudFront word a status."""
        if status == 404:
            return _no_such_key("data/")
        code = "SlowDown" if status == 503 else "AccessDenied" if status == 403 else "InternalError"
        message = "Please reduce your request rate." if status == 503 else code
        body = f"{_HEAD}<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        return Answer(body.encode(), status, _XML)

    def _found(self, key: str) -> tuple[_Stack, Period] | None:
        folder, _, name = key.rpartition("/")
        stack = self._stacks.get(f"{folder}/")
        match = _DATE.search(name)
        period = Period.parse(match[1]) if match else None
        if stack is None or period is None:
            return None
        if stack.key(period) != key or not self._is_out(stack, period):
            return None
        return stack, period

    def _is_out(self, stack: _Stack, period: Period) -> bool:
        return self._venue.clock() >= _published(period) and period.has_rows(stack.batch)

    def _form(self, stack: _Stack, day: date) -> tuple[Printer, bytes]:
        numbers = self._numbers[stack.series]
        kind = stack.series.data_type.kind
        micros = numbers.spot and day >= _MICROSECONDS_SINCE
        printer = partial(
            _PRINTERS[kind], numbers=numbers, unit=MICROSECOND_NS if micros else MILLISECOND
        )
        header = b"" if numbers.spot or day < _HEADERS_SINCE else _HEADERS[kind]
        return printer, header

    def _keys(self) -> Iterator[str]:
        for folder, stack in self._stacks.items():
            for period in periods(stack.batch, "/monthly/" in folder):
                if self._is_out(stack, period):
                    yield stack.key(period)
                    yield stack.key(period) + ".CHECKSUM"

    def _listing(self, request: Request) -> Answer:
        """Return what lies under a prefix, as S3 lists it."""
        prefix = request.params.get("prefix", "")
        delimiter = request.params.get("delimiter", "")
        most = min(int(request.params.get("max-keys", "1000")), 1000)
        second = request.params.get("list-type") == "2"
        after = request.params.get("continuation-token" if second else "marker", "")
        entries = sorted({_entry(key, prefix, delimiter) for key in self._keys()
                          if key.startswith(prefix)})  # fmt: skip
        entries = [entry for entry in entries if entry > after]
        page = entries[:most]
        cut = len(entries) > len(page)
        lines = [f"<Name>data.binance.vision</Name><Prefix>{escape(prefix)}</Prefix>"]
        if second:
            lines.append(f"<KeyCount>{len(page)}</KeyCount>")
        lines.append(f"<MaxKeys>{most}</MaxKeys><Delimiter>{escape(delimiter)}</Delimiter>")
        lines.append(f"<IsTruncated>{str(cut).lower()}</IsTruncated>")
        if cut and second:
            token = escape(page[-1])
            lines.append(f"<NextContinuationToken>{token}</NextContinuationToken>")
        for entry in page:
            if delimiter and entry.endswith(delimiter):
                name = f"<Prefix>{escape(entry)}</Prefix>"
                lines.append(f"<CommonPrefixes>{name}</CommonPrefixes>")
            else:
                lines.append(f"<Contents><Key>{escape(entry)}</Key></Contents>")
        body = f'{_HEAD}<ListBucketResult xmlns="{_NAMESPACE}">{"".join(lines)}</ListBucketResult>'
        return Answer(body.encode(), 200, _XML)


def _stack(series: Series, batch: Batch, exchange: str) -> _Stack:
    market = "futures/um" if series.symbol.kind == SWAP else "spot"
    venue_id = series.symbol.venue_id(exchange)
    interval = series.data_type.interval
    folder = _FOLDERS[series.data_type.kind]
    path, name = f"data/{market}/{{}}/{folder}/{venue_id}/", f"{venue_id}-{folder}"
    if interval is not None:
        text = "1mo" if interval.unit == "M" else str(interval)
        path, name = f"{path}{text}/", f"{venue_id}-{text}"
    return _Stack(series, batch, path, name)


def _published(period: Period) -> int:
    """Return when (ns) a file comes out."""
    end = period.next.day
    if period.monthly:
        end += timedelta(days=-end.weekday() % 7)
    return from_datetime(end) + _PUBLISHED_AFTER


def _entry(key: str, prefix: str, delimiter: str) -> str:
    """Return the key, or the prefix that stands for it under a delimiter."""
    if delimiter:
        head, found, _ = key[len(prefix) :].partition(delimiter)
        if found:
            return prefix + head + delimiter
    return key


def _no_such_key(key: str) -> Answer:
    body = (
        f"{_HEAD}<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message>"
        f"<Key>{escape(quote(key))}</Key><RequestId>0</RequestId><HostId>0</HostId></Error>"
    )
    return Answer(body.encode(), 404, _XML)
