"""When the made-up venue is busy: trades per minute of any week, and its outages; makes no prices.

Every week has the same number of trades, spread over its minutes by weights (hour of day, weekend,
bursts; none in an outage). So the ids of a week follow from its number alone, and they are
consecutive from 2009 on, although no week needs the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tardisd.market.span import Span
from tardisd.market.time import DAY, EARLIEST, MILLISECOND

from .noise import NOISE_BITS, Ints, Seeds, bits, draw, smooth_noise

MINUTES = 7 * 24 * 60  # of a week
MINUTE_MS = 60_000
ORIGIN = EARLIEST - 3 * DAY  # Monday, 2008-12-29: minute and millisecond 0 of the venue

_HOURS = (
    *(70, 65, 60, 55, 50, 50, 55, 65, 85, 95, 100, 100),
    *(105, 125, 160, 165, 150, 130, 115, 105, 95, 90, 85, 78),
)
_WEEKEND = (100, 100, 100, 100, 100, 65, 60)
_PATTERN = np.repeat(
    np.array([hour * day // 100 for day in _WEEKEND for hour in _HOURS], np.int64), 60
)
# Three minutes of four are alike, one of sixty-four has four times the trades.
_SPIKES = np.array([8] * 192 + [12] * 40 + [18] * 20 + [32] * 4, np.int64)


@dataclass(frozen=True, slots=True)
class Week:
    """One week: how many of its trades come before each of its minutes, and before its end.

    `first_id` is the id of the week's first trade.
    """

    number: int
    first_id: int
    before: Ints

    @property
    def first_minute(self) -> int:
        """The week's first minute, counted from ORIGIN."""
        return self.number * MINUTES


class Activity:
    """The trades per minute of one symbol."""

    def __init__(self, seeds: Seeds, rate: float, gaps: bool) -> None:
        self._market_key = seeds.of_pair("activity")
        self._minute_key = seeds.of_symbol("minutes")
        self._outage_key = seeds.of_venue("outages") if gaps else None
        self.per_week = max(round(Fraction(str(rate)) * MINUTES * 60), 1)

    def week(self, number: int) -> Week:
        """Return the week of that number, counted from ORIGIN."""
        first = number * MINUTES
        minutes = np.arange(first, first + MINUTES)
        weights = 64 + (smooth_noise(self._market_key, minutes, 30) * 48 >> NOISE_BITS)
        weights *= _PATTERN
        weights *= _SPIKES[bits(draw(self._minute_key, minutes), 0, 8)]
        outage = self._outage(number)
        if outage is not None:
            weights[outage[0] : outage[1]] = 0
        before = np.zeros(MINUTES + 1, np.int64)
        np.cumsum(weights, out=before[1:])
        # Bounded: weights stay below 2**33 a week, and trades below 2**30.
        before = before * self.per_week // int(before[-1])
        return Week(number, number * self.per_week + 1, before)

    def outages(self, span: Span) -> list[Span]:
        """Return the times within `span` when the venue was down, in order."""
        length = MINUTES * MINUTE_MS * MILLISECOND
        found = []
        for number in range((span.start - ORIGIN) // length, (span.end - ORIGIN) // length + 1):
            outage = self._outage(number)
            if outage is None:
                continue
            first, last = (minute_start(number * MINUTES + minute) for minute in outage)
            part = Span(first, last).intersect(span)
            if part is not None:
                found.append(part)
        return found

    def _outage(self, number: int) -> tuple[int, int] | None:
        """Return the week's outage as minutes of it: every fourth week has one, up to 4 hours."""
        if self._outage_key is None:
            return None
        words = draw(self._outage_key, np.array([number]))
        if int(bits(words, 0, 2)[0]):
            return None
        length = 5 + (int(bits(words, 8, 8)[0]) ** 2 * 235 >> 16)
        start = int(bits(words, 16, 32)[0]) % (MINUTES - length)
        return start, start + length


def minute_start(minute: int) -> int:
    """Return the instant (ns) at which a minute, counted from ORIGIN, begins."""
    return ORIGIN + minute * MINUTE_MS * MILLISECOND
