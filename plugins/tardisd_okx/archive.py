"""OKX's archives: which file holds a time, and when it comes out; fetches and reads nothing.

Days and months are cut at midnight UTC+8, and come out two days later. Of trades the days are
taken, since a month may have gigabytes; of candles the month where most of it is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import DAY, HOUR, SECOND, parse_time

MONTHLY, DAILY = "monthly", "daily"
KINDS = {"trade": "trades", "candle_1m": "candlesticks"}
FOLDER = "/cdn/okex/traderecords"
_UTC8 = 8 * HOUR
SINCE = {
    "trade": parse_time("2021-10-01T00:00:00Z") - _UTC8,
    "candle_1m": parse_time("2023-07-01T00:00:00Z") - _UTC8,
}
_LAG = DAY  # after the end of the day or month


@dataclass(frozen=True, slots=True)
class File:
    """One file: its path at the host, and the time (ns) that it holds."""

    path: str
    span: Span
    period: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.rpartition("/")[2]


def file_at(series: Series, ts: int, period: str) -> File:
    """Return the file of a period that holds the time (ns)."""
    kind = KINDS[series.data_type.name]
    moment = datetime.fromtimestamp((ts + _UTC8) // SECOND, UTC)
    first = moment.replace(hour=0, minute=0, second=0)
    if period == MONTHLY:
        first = first.replace(day=1)
        after = (first + timedelta(days=32)).replace(day=1)
        stamp = f"{first:%Y-%m}"
    else:
        after = first + timedelta(days=1)
        stamp = f"{first:%Y-%m-%d}"
    start, end = (int(edge.timestamp()) * SECOND - _UTC8 for edge in (first, after))
    folder = f"{FOLDER}/{kind}/{period}/{stamp.replace('-', '')}"
    name = f"{series.symbol.venue_id(series.exchange)}-{kind}-{stamp}.zip"
    return File(f"{folder}/{name}", Span(start, end), period)


class Plan:
    """Which files to take for one fetch, given what turned out to be missing.

    `worth` is how much time (ns) a file must bring for it to be taken. REST has nothing before
    `rest_since` (ns): there every file is taken.
    """

    def __init__(self, series: Series, now: int, worth: int, rest_since: int) -> None:
        self._series = series
        self._now = now
        self._worth = worth
        self._rest_since = rest_since
        self._missing: set[str] = set()
        self._monthly = series.data_type.interval is not None

    def missing(self, file: File) -> None:
        """Take note that a file is not there, or of no use."""
        self._missing.add(file.path)

    def at(self, ts: int, end: int) -> File | None:
        """Return the file to take for the time from `ts` on, up to `end` (ns) at most."""
        if self._series.data_type.name not in KINDS:
            return None
        day = file_at(self._series, ts, DAILY)
        month = file_at(self._series, ts, MONTHLY)
        if self._monthly and self._takes(month, ts, end):
            wanted = min(month.span.end, end) - ts
            if wanted >= month.span.length // 2 or not self._takes(day, ts, end):
                return month
        return day if self._takes(day, ts, end) else None

    def next_start(self, ts: int, end: int) -> int:
        """Return the first time after `ts`, up to `end`, at which there may be a file again."""
        if self._series.data_type.name in KINDS:
            while ts < end:
                ts = file_at(self._series, ts, DAILY).span.end
                if ts < end and self.at(ts, end) is not None:
                    return ts
        return end

    def _takes(self, file: File, ts: int, end: int) -> bool:
        if file.path in self._missing or file.span.end + _LAG > self._now:
            return False
        if file.span.start < SINCE[self._series.data_type.name]:
            return False
        return ts < self._rest_since or min(file.span.end, end) - ts >= self._worth
