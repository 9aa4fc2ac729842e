"""Bybit's archives: trades as gzip files, under HTML indexes; no REST, no checksums.

Derivatives lie by the day in `trading/`, spot by the day and by the month in `spot/`. A file comes
out at ten past one the next morning. From May 2025 on there is one more column, RPI.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING

from tardisd.market.columns import Batch
from tardisd.market.series import SWAP, Series
from tardisd.market.time import MINUTE, SECOND
from tardisd.testing.venues.bybit_rows import (
    LINEAR_HEADER,
    SPOT_HEADER,
    Numbers,
    linear_csv,
    spot_csv,
)
from tardisd.testing.venues.faults import Change
from tardisd.testing.venues.files import CHUNK_ROWS, csv_parts, gzipped
from tardisd.testing.venues.periods import Period, periods
from tardisd.testing.venues.printing import print_rows
from tardisd.testing.venues.server import Answer, Request

if TYPE_CHECKING:
    from tardisd.testing.venues.venue import Venue

_PUBLISHED_AFTER = 70 * MINUTE
_RPI_SINCE = date(2025, 5, 1)
_HTML = {"Content-Type": "text/html"}
_FILE = re.compile(r"/(trading|spot)/(\w+)/(\w+?)([_-]?)(\d{4}-\d{2}(?:-\d{2})?)\.csv\.gz")


class BybitArchive:
    """The file host of a venue."""

    def __init__(self, venue: Venue, numbers: Mapping[Series, Numbers]) -> None:
        self._venue = venue
        self._numbers = numbers
        self._stacks: dict[tuple[str, str], Series] = {}
        for series in venue.data:
            if series.data_type.name == "trade":
                folder = "trading" if series.symbol.kind == SWAP else "spot"
                self._stacks[folder, series.symbol.venue_id(venue.exchange)] = series

    async def answer(self, request: Request, change: Change | None) -> Answer:
        """Return a file, an index, or that there is none."""
        if request.path.endswith("/"):
            return self._index(request.path)
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
        make = gzipped(self._lines(series, batch, period), self._venue.files.level)
        file = await self._venue.files.get(at, make)
        return Answer(file, 200, {
            "Content-Type": "application/gzip",
            "ETag": f'"{self._venue.files.checksum(file)[:32]}"',
            "Last-Modified": formatdate(_published(period) / SECOND, usegmt=True),
        })  # fmt: skip

    def in_own_words(self, status: int) -> Answer:
        """Return how the file host words a status."""
        title = {404: "404 Not Found", 403: "403 Forbidden"}.get(status, str(status))
        page = f"<html>\n<head><title>{title}</title></head>\n<body>\n<h1>{title}</h1>\n</body>\n"
        return Answer(f"{page}</html>\n".encode(), status, _HTML)

    def _found(self, path: str) -> tuple[Series, Period] | None:
        match = _FILE.fullmatch(path)
        if match is None or match[2] != match[3]:
            return None
        series = self._stacks.get((match[1], match[2]))
        period = Period.parse(match[5])
        if series is None or period is None or _file(match[1], match[2], period) is None:
            return None
        if path.rpartition("/")[2] != _file(match[1], match[2], period):
            return None
        return (series, period) if self._is_out(series, period) else None

    def _is_out(self, series: Series, period: Period) -> bool:
        out = self._venue.clock() >= _published(period)
        return out and period.has_rows(self._venue.data[series])

    def _lines(self, series: Series, batch: Batch, period: Period) -> Iterator[bytes]:
        numbers = self._numbers[series]
        rpi = period.day >= _RPI_SINCE
        if series.symbol.kind == SWAP:
            symbol = series.symbol.venue_id(self._venue.exchange)
            printer = partial(linear_csv, numbers=numbers, symbol=symbol, rpi=rpi)
            yield from csv_parts(batch, printer, LINEAR_HEADER.format(",RPI" * rpi).encode())
            return
        yield SPOT_HEADER.format(",rpi" * rpi).encode()
        for first in range(0, len(batch), CHUNK_ROWS):
            part = batch[first : first + CHUNK_ROWS]
            yield print_rows(spot_csv(part, numbers, first + 1, rpi), len(part))[0]

    def _index(self, path: str) -> Answer:
        """Return the page of links of a folder."""
        names: list[str] = []
        folder, _, symbol = path.strip("/").partition("/")
        if not folder:
            names = ["spot/", "trading/"]
        elif not symbol:
            names = sorted(f"{known}/" for kind, known in self._stacks if kind == folder)
        elif (folder, symbol) in self._stacks:
            names = list(self._names(folder, symbol))
        if not names:
            return self.in_own_words(404)
        links = "".join(f'<li><a href="{name}">{name}</a></li>\n' for name in names)
        title = f"Index of {path}"
        page = f"<html>\n<head><title>{title}</title></head>\n<body>\n<h1>{title}</h1>\n"
        return Answer(f"{page}<ul>\n{links}</ul>\n</body>\n</html>\n".encode(), 200, _HTML)

    def _names(self, folder: str, symbol: str) -> Iterator[str]:
        series = self._stacks[folder, symbol]
        for monthly in (False, True):
            for period in periods(self._venue.data[series], monthly):
                name = _file(folder, symbol, period)
                if name is not None and self._is_out(series, period):
                    yield name


def _file(folder: str, symbol: str, period: Period) -> str | None:
    """Return the name of a period's file, or None where there is none of that kind."""
    if folder == "trading":
        return None if period.monthly else f"{symbol}{period.stamp}.csv.gz"
    return f"{symbol}{'-' if period.monthly else '_'}{period.stamp}.csv.gz"


def _published(period: Period) -> int:
    """Return when (ns) a file comes out."""
    return period.span.end + _PUBLISHED_AFTER
