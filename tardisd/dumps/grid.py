"""Tell whether a file's candles have the interval that they are imported as; stores nothing.

Venues have odd rows (a candle cut short by an outage, opens off by seconds after one), so a few
contradict nothing; a file in which one row in ten does is of another interval.
"""

from __future__ import annotations

import numpy as np

from tardisd.market.columns import closes
from tardisd.market.decimals import Bools, Ints
from tardisd.market.time import DAY, HOUR, MILLISECOND, MINUTE, SECOND, Interval

# Venues write the last instant within a candle (…59.999, …59.999999, …59) or its end.
_CLOSE_SLACK = SECOND
_TOLERATED = 10
_UNITS = ((DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (SECOND, "s"), (MILLISECOND, "ms"), (1, "ns"))


class Grid:
    """Looks at the candles of one file, block by block."""

    def __init__(self, interval: Interval) -> None:
        self.interval = interval
        self.first_bad: int | None = None
        self._column = "time"
        self._found = 0
        self._seen = 0
        self._bad = 0
        self._steps = 0
        self._shortest = 0
        self._shortest_count = 0
        self._common = 0
        self._has_closes = False

    def look(self, opens: Ints, close_times: Ints | None, rows: Ints) -> bool:
        """Take in rows sorted by open; tell whether the first bad one of the file is among them."""
        if close_times is not None:
            self._has_closes = True
            late = closes(opens, self.interval) - close_times
            bad = (late < 0) | (late > _CLOSE_SLACK)
            at = 0
        else:
            bad = self._look_at_steps(opens)
            at = 1
        self._seen += len(bad)
        found = int(np.count_nonzero(bad))
        self._bad += found
        if not found or self.first_bad is not None:
            return False
        worst = int(np.argmax(bad))
        self.first_bad = int(rows[worst + at])
        if close_times is not None:
            self._column = "close_time"
            self._found = int(close_times[worst] - opens[worst])
        else:
            self._found = int(opens[worst + 1] - opens[worst])
        return True

    def verdict(self) -> tuple[str, str | None] | None:
        """Return what contradicts the interval and the column that shows it, or None."""
        if self._bad * _TOLERATED > self._seen:
            what = "closes" if self._column == "close_time" else "opens"
            after = "its open" if self._column == "close_time" else "the one before"
            return (
                f"candle {what} {_length(self._found)} after {after}, which is not"
                f" {self.interval}; import the file with the interval it has",
                self._column,
            )
        length = self.interval.fixed_ns
        if self._has_closes or length is None or self._shortest <= length:
            return None
        regular = self._common == self._shortest and self._shortest_count * 2 >= self._steps
        if self._steps >= 20 or (self._steps >= 3 and regular):
            return (
                f"no two candles are {self.interval} apart, the nearest are"
                f" {_length(self._shortest)}; import the file with the interval it has",
                None,
            )
        return None

    def _look_at_steps(self, opens: Ints) -> Bools:
        steps = np.diff(opens)
        if not len(steps):
            return np.zeros(0, np.bool_)
        length = self.interval.fixed_ns
        if length is None:
            astray: Bools = opens[1:] != _months_on(opens, self.interval)
            return astray
        shortest = int(steps.min())
        if not self._steps or shortest < self._shortest:
            self._shortest, self._shortest_count = shortest, 0
        self._shortest_count += int(np.count_nonzero(steps == self._shortest))
        self._steps += len(steps)
        if self._shortest > length:
            self._common = int(np.gcd(self._common, np.gcd.reduce(steps)))
        bad: Bools = steps % length != 0
        return bad


def _months_on(opens: Ints, interval: Interval) -> Ints:
    """Return when each next candle would open if it stood whole calendar intervals later."""
    moments = opens.astype("datetime64[ns]")
    months = moments.astype("datetime64[M]")
    within = moments - months.astype("datetime64[ns]")
    steps = months[1:].astype(np.int64) - months[:-1].astype(np.int64)
    steps -= steps % interval.count
    later = (months[:-1] + steps).astype("datetime64[ns]") + within[:-1]
    aligned: Ints = np.where(steps > 0, later.astype(np.int64), opens[:-1])
    return aligned


def _length(ns: int) -> str:
    for unit, name in _UNITS:
        if ns % unit == 0:
            return f"{ns // unit} {name}"
    return f"{ns} ns"
