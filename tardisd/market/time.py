"""Parse and print instants, durations and candle intervals; reads no clock of its own.

Time is an int: nanoseconds since the Unix epoch, UTC. Spans are half-open.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
WEEK = 7 * DAY

EARLIEST = int(datetime(2009, 1, 1, tzinfo=UTC).timestamp()) * SECOND
LATEST = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp()) * SECOND

_UNITS = {"s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": WEEK}
_ISO = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}(?::\d{2})?)(?:[.,](\d{1,9}))?\s*(Z|z|[+-]\d{2}:?\d{2})?"
)
_DATE = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})")
_DURATION = re.compile(r"([+-]?)(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_INTERVAL = re.compile(r"([1-9]\d{0,3})([smhdwM])")
_MONDAY = 4 * DAY  # 1970-01-05, the first Monday after the epoch


def check_instant(ts: int, what: str = "time") -> int:
    """Return `ts` (ns), or raise ValueError when it lies outside 2009..2100."""
    if not EARLIEST <= ts <= LATEST:
        raise ValueError(f"{what} is outside 2009..2100")
    return ts


def parse_time(value: int | str, *, now: int | None = None) -> int:
    """Return ns for integer milliseconds or ISO-8601 text with a zone.

    With `now` (ns) given, the forms of config files and command lines are taken too: a bare date
    (midnight UTC), `now`, and offsets from it such as `-30d`. Raises ValueError saying why not.
    """
    if isinstance(value, bool):
        raise ValueError("expected a time, got a boolean")
    if isinstance(value, int):
        return check_instant(value * MILLISECOND)
    text = value.strip()
    if match := _ISO.fullmatch(text):
        day, clock, fraction, zone = match.groups()
        if zone is None:
            raise ValueError(f"{text!r} has no time zone; write it with a trailing 'Z' for UTC")
        try:
            moment = datetime.fromisoformat(f"{day}T{clock}{zone.upper()}")
        except ValueError as error:
            raise ValueError(f"{text!r} is not a time: {error}") from None
        return check_instant(_datetime_ns(moment) + int((fraction or "0").ljust(9, "0")))
    if now is not None:
        if text == "now":
            return now
        if match := _DATE.fullmatch(text):
            try:
                start = datetime(int(match[1]), int(match[2]), int(match[3]), tzinfo=UTC)
            except ValueError as error:
                raise ValueError(f"{text!r} is not a date: {error}") from None
            return check_instant(_datetime_ns(start))
        if re.fullmatch(r"\d{11,14}", text):
            return check_instant(int(text) * MILLISECOND)
        if text[:1] in "+-" and _DURATION.fullmatch(text):
            return check_instant(now + parse_duration(text))
    forms = "integer milliseconds or ISO-8601 with zone, such as 2024-03-01T00:00:00Z"
    if now is not None:
        forms += ", 2024-03-01, -30d or now"
    raise ValueError(f"{text[:60]!r} is not a time; use {forms}")


def _datetime_ns(moment: datetime) -> int:
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * SECOND + delta.microseconds * 1000


def from_datetime(moment: datetime | date) -> int:
    """Return ns for an aware datetime, or midnight UTC of a date; ValueError for a naive one."""
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone; add 'Z' for UTC")
    return check_instant(_datetime_ns(moment.astimezone(UTC)))


def parse_range(text: str, *, now: int) -> tuple[int, int]:
    """Return (start, end) in ns for `A..B` or `20240101-20240201`; ValueError when it is neither.

    Both ends are instants; a bare date is its midnight, so `2024-03-01..2024-03-02` is one day.
    """
    if ".." in text:
        left, _, right = text.partition("..")
    elif re.fullmatch(r"\d{8}-\d{8}", text):
        left, _, right = text.partition("-")
    else:
        raise ValueError(f"{text!r} is not a range; write it as 2024-03-01..2024-03-02")
    start, end = parse_time(left, now=now), parse_time(right, now=now)
    if end <= start:
        raise ValueError(f"range {text!r} ends before it begins")
    return start, end


def parse_duration(text: str) -> int:
    """Return ns for `90s`, `1.5h`, `-30d`, …; ValueError when it is not a duration."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write it as 500ms, 30s, 5m, 1h, 7d or 2w")
    sign, amount, unit = match.groups()
    scale = MILLISECOND if unit == "ms" else _UNITS[unit]
    whole, _, fraction = amount.partition(".")
    length = int(whole) * scale + int((fraction or "0").ljust(9, "0")[:9]) * scale // SECOND
    return -length if sign == "-" else length


def format_time(ts: int) -> str:
    """Return ISO-8601 text ending in `Z`, with 3, 6 or 9 fraction digits as `ts` (ns) needs."""
    seconds, fraction = divmod(ts, SECOND)
    head = (datetime(1970, 1, 1) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f"{fraction:09d}"
    if digits.endswith("000000"):
        return f"{head}.{digits[:3]}Z"
    return f"{head}.{digits[:6]}Z" if digits.endswith("000") else f"{head}.{digits}Z"


@dataclass(frozen=True, slots=True)
class Interval:
    """A candle interval: `count` of s, m, h, d, w or M (calendar month)."""

    count: int
    unit: str

    @classmethod
    def parse(cls, text: str) -> Interval:
        """Return the interval for `1m`, `4h`, `1w`, `1M`, …; ValueError when it is none."""
        match = _INTERVAL.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text!r} is not an interval; use a number and s, m, h, d, w or M (month)"
            )
        return cls(int(match[1]), match[2])

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"

    @property
    def fixed_ns(self) -> int | None:
        """Length in ns, or None for months, whose length the calendar decides."""
        return None if self.unit == "M" else self.count * _UNITS[self.unit]

    @property
    def nominal_ns(self) -> int:
        """Length in ns for ordering; a month counts as 30 days."""
        return self.fixed_ns or self.count * 30 * DAY

    def close(self, open_ts: int) -> int:
        """Return the close (ns) of the candle that opens at `open_ts`."""
        if self.fixed_ns is not None:
            return open_ts + self.fixed_ns
        moment = datetime(1970, 1, 1) + timedelta(seconds=open_ts // SECOND)
        months = moment.year * 12 + moment.month - 1 + self.count
        try:
            later = moment.replace(year=months // 12, month=months % 12 + 1)
        except ValueError:  # the 31st of a month that has no 31st: a misaligned open
            later = moment.replace(year=months // 12, month=months % 12 + 1, day=28)
        return open_ts + int((later - moment).total_seconds()) * SECOND

    def floor(self, ts: int) -> int:
        """Return the open (ns) of the interval that holds `ts`: weeks open on Monday, UTC."""
        if self.unit == "M":
            moment = datetime(1970, 1, 1) + timedelta(seconds=ts // SECOND)
            months = (moment.year - 1970) * 12 + moment.month - 1
            months -= months % self.count
            start = datetime(1970 + months // 12, months % 12 + 1, 1, tzinfo=UTC)
            return _datetime_ns(start)
        length = self.count * _UNITS[self.unit]
        anchor = _MONDAY if self.unit == "w" else 0
        return ts - (ts - anchor) % length

    def ceil(self, ts: int) -> int:
        """Return the first open (ns) at or after `ts`."""
        floor = self.floor(ts)
        return floor if floor == ts else self.close(floor)

    def holds(self, finer: Interval) -> bool:
        """Tell whether this interval is always made of whole ones of another, by the calendar."""
        if finer.unit == "M":
            return self.unit == "M" and self.count % finer.count == 0
        length = finer.count * _UNITS[finer.unit]
        if self.unit == "M":  # months begin at a midnight, on any day of the week
            return DAY % length == 0
        shift = _MONDAY if (self.unit == "w") != (finer.unit == "w") else 0
        return self.count * _UNITS[self.unit] % length == 0 and shift % length == 0
