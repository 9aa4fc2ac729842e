"""The trades of one symbol in any minutes, from nothing but the seed; builds no candles.

The price is a sum of smooth noises over time scales from two years to three seconds, so that it is
one continuous path at whatever place one looks; trades scatter around it by a spread. Draws belong
to a trade's id or to its minute, hence pages cut anywhere have the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from tardisd.market.span import Span
from tardisd.market.time import MILLISECOND, MINUTE

from .activity import MINUTE_MS, MINUTES, ORIGIN, Activity, Week, minute_start
from .market import Market
from .noise import NOISE_BITS, Ints, Seeds, bits, draw, smooth_noise

_HOUR_MS = 60 * MINUTE_MS
_DAY_MS = 24 * _HOUR_MS
# (period in ms, swing in millionths of the price). All of them together stay below one half.
_SLOW = (
    (730 * _DAY_MS, 240_000),
    (120 * _DAY_MS, 110_000),
    (20 * _DAY_MS, 55_000),
    (4 * _DAY_MS, 25_000),
    (_DAY_MS, 12_000),
    (6 * _HOUR_MS, 6_000),
    (90 * MINUTE_MS, 3_000),
    (20 * MINUTE_MS, 1_500),
    (5 * MINUTE_MS, 800),
)
_FAST = ((MINUTE_MS, 400), (15_000, 200), (3_000, 80))
_ONE = 30  # bits of the fixed-point number one
# Trade sizes with a heavy tail (exponent 4/3) as quantiles, in 256ths: the largest is 861.
_SIZES = np.array(
    [
        isqrt(tail) * isqrt(isqrt(tail) << 20) >> 32
        for tail in ((8192 << 40) // (8191 - 2 * k) for k in range(4096))
    ],
    np.int64,
)
# How far a trade strays from the middle price, in quarters of the spread, before its side.
_STRAY = np.array([0] * 176 + [1] * 32 + [-1] * 32 + [3] * 7 + [-3] * 7 + [8, -8], np.int64)


@dataclass(frozen=True, slots=True)
class Trades:
    """Some trades in order: times (ns), prices in ticks, amounts in lots."""

    times: Ints
    ticks: Ints
    lots: Ints
    ids: Ints
    sides: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, at: slice) -> Trades:
        return Trades(self.times[at], self.ticks[at], self.lots[at], self.ids[at], self.sides[at])

    @classmethod
    def concat(cls, parts: Sequence[Trades]) -> Trades:
        """Return the trades one part after another."""
        columns = ("times", "ticks", "lots", "ids", "sides")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))

    def within(self, span: Span) -> Trades:
        """Return the trades in `span`."""
        first, last = np.searchsorted(self.times, [span.start, span.end])
        return self[int(first) : int(last)]


class Tape:
    """All trades of one symbol, to be read from anywhere. Not for use by two threads at once."""

    def __init__(self, seeds: Seeds, market: Market, rate: float, gaps: bool) -> None:
        self.market = market
        self.activity = Activity(seeds, rate, gaps)
        self._slow, self._fast = (
            [(seeds.of_pair(f"path {period}"), period, swing) for period, swing in octaves]
            for octaves in (_SLOW, _FAST)
        )
        self._swing_key = seeds.of_pair("volatility")
        self._burst_key = seeds.of_symbol("bursts")
        self._time_key = seeds.of_symbol("times")
        self._trade_key = seeds.of_symbol("trades")
        self._week: Week | None = None

    def stream(
        self, span: Span, rows: int, minutes: int = MINUTES
    ) -> Iterator[tuple[Span, Trades]]:
        """Yield the trades of `span` in steps, each with the span that it completes.

        A step has about `rows` trades and at most `minutes` minutes, but never less than one
        minute.
        """
        cursor = span.start
        while cursor < span.end:
            minute = (cursor - ORIGIN) // MINUTE
            week = self._week_of(minute)
            first = minute - week.first_minute
            full = int(np.searchsorted(week.before, week.before[first] + rows, "right")) - 1
            last = max(min(full, first + minutes, MINUTES), first + 1)
            upto = min(minute_start(week.first_minute + last), span.end)
            last = -((ORIGIN - upto) // MINUTE) - week.first_minute
            step = Span(cursor, upto)
            yield step, self._minutes(week, first, last).within(step)
            cursor = upto

    def last_ticks(self, before: int) -> int:
        """Return the price (ticks) of the last trade before an instant (ns)."""
        minute = (before - 1 - ORIGIN) // MINUTE
        while True:
            week = self._week_of(minute)
            at = minute - week.first_minute
            # The latest minute up to this one that has a trade: where the count last grew.
            at = int(np.searchsorted(week.before, week.before[at + 1], "left")) - 1
            if at >= 0:
                trades = self._minutes(week, at, at + 1)
                last = int(np.searchsorted(trades.times, before)) - 1
                if last >= 0:
                    return int(trades.ticks[last])
            minute = week.first_minute + max(at, 0) - 1

    def _week_of(self, minute: int) -> Week:
        number = minute // MINUTES
        if self._week is None or self._week.number != number:
            self._week = self.activity.week(number)
        return self._week

    def _minutes(self, week: Week, first: int, last: int) -> Trades:
        """Return the trades of a week's minutes `first <= minute < last`."""
        before = week.before[first : last + 1]
        counts = np.diff(before)
        ids = np.arange(week.first_id + int(before[0]), week.first_id + int(before[-1]))
        if len(ids) == 0:
            return Trades(ids, ids, ids, ids, ids.astype(np.uint8))
        minutes = week.first_minute + np.arange(first, last + 1)
        owner = np.repeat(np.arange(last - first), counts)
        times = self._times(minutes[:-1], owner, ids)
        middle, drift = self._middle(minutes, owner, times)
        words = draw(self._trade_key, ids)
        # Buyers prevail in minutes that rise, though never alone.
        sides = (bits(words, 0, 8) >= (128 + np.clip(drift >> 12, -48, 48))[owner]).astype(np.uint8)
        spread = max(self.market.base_ticks // 50_000, 1)
        ticks = self.market.base_ticks * middle >> _ONE
        stray = _STRAY[bits(words, 8, 8)] + 2 - 4 * sides.astype(np.int64)
        ticks += stray * spread >> 2
        np.maximum(ticks, 1, out=ticks)
        lots = _SIZES[bits(words, 16, 12)] * (1 + bits(words, 28, 12))
        lots *= self.market.typical_lots
        lots >>= 8 + 12
        np.maximum(lots, 1, out=lots)
        return Trades(ORIGIN + times * MILLISECOND, ticks, lots, ids, sides)

    def _times(self, minutes: Ints, owner: Ints, ids: Ints) -> Ints:
        """Return ascending times (ms since ORIGIN): half of each minute's trades come in bursts."""
        words = draw(self._time_key, ids)
        starts = np.arange(len(minutes)) * MINUTE_MS
        words_of_minute = draw(self._burst_key, minutes)
        bursts = np.stack([bits(words_of_minute, 16 * n, 16) for n in range(4)], axis=1)
        chosen = bursts.ravel()[owner * 4 + bits(words, 1, 2)]
        chosen *= MINUTE_MS
        chosen >>= 16
        after = bits(words, 3, 10)
        chosen += after * after >> 10  # dense at first: some share a millisecond
        np.minimum(chosen, MINUTE_MS - 1, out=chosen)
        even = bits(words, 16, 16) * MINUTE_MS >> 16
        times = starts[owner] + np.where(bits(words, 0, 1) == 1, chosen, even)
        # No trade leaves its minute, and so sorting all of them sorts each minute.
        times.sort()
        return times + int(minutes[0]) * MINUTE_MS

    def _middle(self, minutes: Ints, owner: Ints, times: Ints) -> tuple[Ints, Ints]:
        """Return the middle price per trade over the base price, and each minute's drift (Q30)."""
        grid = minutes * MINUTE_MS
        level = np.full(len(grid), 1 << _ONE, np.int64)
        for key, period, swing in self._slow:
            level += smooth_noise(key, grid, period) * _fixed(swing) >> NOISE_BITS
        volatility = 256 + (smooth_noise(self._swing_key, grid, 2 * _HOUR_MS) * 192 >> NOISE_BITS)
        weight = times - grid[owner]
        drift = np.diff(level)
        middle = level[owner] + drift[owner] * weight // MINUTE_MS
        calm = volatility[owner] + np.diff(volatility)[owner] * weight // MINUTE_MS
        fast = np.zeros(len(times), np.int64)
        for key, period, swing in self._fast:
            fast += smooth_noise(key, times, period) * _fixed(swing) >> NOISE_BITS
        fast *= calm
        fast >>= 8
        middle += fast
        return middle, drift


def _fixed(millionths: int) -> int:
    return (millionths << _ONE) // 1_000_000
