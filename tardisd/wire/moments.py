"""Write times as milliseconds and as ISO text into fixed-width rows; knows no JSON.

Both forms come from one division of the nanoseconds, and from tables: the text of each second of a
day, and of each millisecond of a second.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tardisd.market.decimals import Ints
from tardisd.market.time import MILLISECOND, SECOND
from tardisd.wire.digits import BLANK, Grid, extent, shared_digits

_DAY_SECONDS = 86_400
_FAR_APART_DAYS = 400


class Moments:
    """A column of times (ns), within 2009..2100, taken apart for writing.

    `digits` is 3, 6 or 9: the fraction digits that the times need. What a text method returns is
    the same in all rows, with blanks for the rest; the put method of that name writes the rest.
    """

    __slots__ = ("_ends", "_first", "_fraction", "_last", "_milliseconds", "_seconds", "_times",
                 "digits")  # fmt: skip

    def __init__(self, times: Ints) -> None:
        milliseconds = times // MILLISECOND
        self.digits = 3
        if (milliseconds * MILLISECOND != times).any():
            self.digits = 9 if (times % 1000).any() else 6
        self._times = times
        self._milliseconds = milliseconds
        self._seconds = milliseconds // 1000
        self._fraction = milliseconds - self._seconds * 1000
        self._ends = first, last = extent(milliseconds)
        self._first, self._last = first // 1000, last // 1000

    def milliseconds_text(self) -> bytes:
        """Return 13 digits."""
        return shared_digits(*self._ends).ljust(13)

    def put_milliseconds(self, grid: Grid, offset: int) -> None:
        """Write 13 digits."""
        grid.put_varying(offset, self._milliseconds, *self._ends)

    def datetime_text(self, end: bytes = b'"') -> bytes:
        """Return `2024-03-01T00:00:00.123Z` and `end`, of one byte."""
        day = self._first // _DAY_SECONDS
        date = _day(day) if day == self._last // _DAY_SECONDS else b" " * 11
        return date + b" " * 8 + b"." + b" " * self.digits + b"Z" + end

    def put_datetime(self, grid: Grid, offset: int, end: bytes = b'"') -> None:
        """Write `2024-03-01T00:00:00.123Z` and `end`, in blanks where a row needs fewer digits."""
        day = self._first // _DAY_SECONDS
        if day == self._last // _DAY_SECONDS:
            clock = self._seconds - day * _DAY_SECONDS
        else:
            days = self._seconds // _DAY_SECONDS
            grid.words(offset, "S11")[...] = _days(days)
            clock = self._seconds - days * _DAY_SECONDS
        grid.words(offset + 11, "<u8")[...] = _clock_table().take(clock)
        if self.digits == 3:
            grid.words(offset + 19, "<u4")[...] = _point_and_thousandths().take(self._fraction)
            return
        fraction = self._times - self._seconds * SECOND
        at = offset + 20
        grid.put_fixed(at, fraction // 10 ** (9 - self.digits), self.digits)
        for fewer in (6, 3):
            if self.digits > fewer:
                rows = np.flatnonzero(fraction % 10 ** (9 - fewer) == 0)
                grid.buffer[rows, at + fewer : at + self.digits + 2] = BLANK
                grid.buffer[rows, at + fewer] = ord("Z")
                grid.buffer[rows, at + fewer + 1] = end[0]


def make_tables() -> None:
    """Make the lookup tables now, not when the first tick waits for them."""
    for table in (_clock_table, _point_and_thousandths):
        table()


def _day(day: int) -> bytes:
    return f"{np.datetime64(day, 'D')}T".encode()


def _days(days: Ints) -> NDArray[np.bytes_]:
    first, last = extent(days)
    if last - first > _FAR_APART_DAYS:  # list the days that occur
        present, at = np.unique(days, return_inverse=True)
        return np.array([_day(day) for day in present.tolist()], "S11")[at]
    return np.array([_day(day) for day in range(first, last + 1)], "S11")[days - first]


@cache
def _clock_table() -> NDArray[np.uint64]:
    text = "".join(f"{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}" for s in range(_DAY_SECONDS))
    return np.frombuffer(text.encode(), "<u8")


@cache
def _point_and_thousandths() -> NDArray[Any]:
    return np.frombuffer("".join(f".{n:03d}" for n in range(1000)).encode(), "<u4")
