"""Indicators as candles pass: columns in, derived columns out; no row is looked at by itself.

Averages that weigh the past exponentially depend, in their last digits, on where they began. So
that neither the cutting of batches nor a seek can be told from the values, where they begin is not
left to chance: time is divided into *stretches*, of as many intervals as the longest memory asks
for, by the calendar alone. A value is computed from the candles of its own stretch and of the one
before, and nothing else. What lies further back has no weight by then that a float could hold; and
whoever has seen these two stretches, from whatever point on, computes the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from tardisd.market.columns import Batch
from tardisd.market.decimals import DIGITS, POWERS, Decimals, Ints
from tardisd.market.series import DataType, Series
from tardisd.market.time import DAY, Interval
from tardisd.plugins.analyzer import Analysis

from .catalogue import VWAP, Columns, Floats, Indicator, indicator

FIELDS = ("open", "high", "low", "close", "volume")
LEAST_STRETCH = 1000  # candles; the work per batch is that of two stretches at most
_LONGEST_MONTH = 31 * DAY
_LARGEST = 2.0**63


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to compute: indicators of the last candles, the day's `vwap`; values to `decimals`."""

    indicators: tuple[Indicator, ...]
    vwap: bool
    decimals: int

    @classmethod
    def of(cls, names: Sequence[str], decimals: int) -> Recipe:
        """Return the recipe for indicators by name; ValueError says what is wrong with one."""
        twice = [name for at, name in enumerate(names) if name in names[:at]]
        if twice:
            raise ValueError(f"indicators: {twice[0]!r} is there twice; remove one")
        found = [indicator(name) for name in names]
        return cls(tuple(one for one in found if one is not None), VWAP in names, decimals)

    @property
    def outputs(self) -> int:
        """How many values a candle may have."""
        return sum(len(one.outputs) for one in self.indicators) + self.vwap

    @property
    def stretch(self) -> int:
        """How many intervals a stretch has."""
        return max([LEAST_STRETCH, *(one.memory for one in self.indicators)])

    def warmup(self, interval: Interval) -> int:
        """Return the market time (ns) after which values are what they would be anyway."""
        longest = interval.fixed_ns or interval.count * _LONGEST_MONTH
        back = 2 * self.stretch * interval.nominal_ns if self.indicators else 0
        return max(back, DAY if self.vwap else 0) + longest


class IndicatorAnalysis(Analysis):
    """The indicators of one session; what is kept is two stretches of candles per series."""

    def __init__(self, recipe: Recipe, delay: int | None) -> None:
        """Begin; `delay` (ns) is how long after their close candles are released, None: at open."""
        self._recipe = recipe
        self._delay = delay
        self._tracks: dict[str, _Track] = {}

    def update(self, batch: Batch) -> Sequence[Batch]:
        """Return the indicators of a batch of candles, one batch for each that has values."""
        if not len(batch):
            return ()
        track = self._tracks.get(batch.series.text)
        if track is None:
            track = self._tracks[batch.series.text] = _Track(self._recipe, batch.series)
        release = batch.ts_event if self._delay is None else batch.release(self._delay)
        return track.update(batch, release)


@dataclass(slots=True)
class _Vwap:
    """The volume-weighted average price since midnight (UTC): sums that go on from batch to batch.

    They are added up one after another, from the day's first candle: no cut can change them.
    """

    day: int = -1
    sums: Floats = field(default_factory=lambda: np.zeros((2, 1)))

    def update(self, opens: Ints, columns: Floats, length: int) -> Floats:
        _, high, low, close, volume = columns
        typical: Floats = (high + low + close) / 3
        if length >= DAY:
            return np.where(volume > 0, typical, np.nan)
        terms = np.stack([typical * volume, volume])
        days = opens // DAY
        cuts = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), len(opens)]
        parts = []
        for first, last in pairwise(cuts):
            if int(days[first]) != self.day:
                self.day, self.sums = int(days[first]), np.zeros((2, 1))
            sums = np.cumsum(np.concatenate([self.sums, terms[:, first:last]], axis=1), axis=1)
            self.sums = sums[:, -1:]
            parts.append(sums[:, 1:])
        amounts, volumes = np.concatenate(parts, axis=1)
        values: Floats = np.full(len(opens), np.nan)
        np.divide(amounts, volumes, out=values, where=volumes > 0)
        return values


@dataclass(slots=True)
class _Track:
    """What is known of one series of candles: columns since the stretch before the last began."""

    recipe: Recipe
    source: Series
    stretch: int = -1
    opens: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    columns: Floats = field(default_factory=lambda: np.empty((len(FIELDS), 0)))
    vwap: _Vwap = field(default_factory=_Vwap)
    names: dict[str, Series] = field(default_factory=dict)

    def update(self, batch: Batch, release: Ints) -> list[Batch]:
        opens = batch.ts_event
        columns = np.stack([_floats(batch.fields[name]) for name in FIELDS])
        found: dict[str, list[tuple[Ints, Floats]]] = {}
        interval = self.source.data_type.interval
        assert interval is not None
        if self.recipe.indicators:
            stretches = opens // (self.recipe.stretch * interval.nominal_ns)
            # Where in the batch one stretch follows another: once in a thousand candles.
            cuts = [0, *(np.flatnonzero(np.diff(stretches)) + 1).tolist(), len(opens)]
            for first, last in pairwise(cuts):
                rows = slice(first, last)
                self._take(int(stretches[first]), opens[rows], columns[:, rows])
                self._compute(release[rows], found)
        if self.recipe.vwap:
            values = self.vwap.update(opens, columns, interval.nominal_ns)
            _add(found, VWAP, release, values)
        return [self._batch(name, parts) for name, parts in found.items()]

    def _take(self, stretch: int, opens: Ints, columns: Floats) -> None:
        """Add candles of one stretch; forget those before the stretch that precedes it."""
        if stretch != self.stretch:
            keep = len(self.opens)
            if keep and stretch == self.stretch + 1:
                interval = self.source.data_type.interval
                assert interval is not None
                begin = self.stretch * self.recipe.stretch * interval.nominal_ns
                keep = int(self.opens.searchsorted(begin, "left"))
            self.opens, self.columns = self.opens[keep:], self.columns[:, keep:]
            self.stretch = stretch
        self.opens = np.concatenate([self.opens, opens])
        self.columns = np.concatenate([self.columns, columns], axis=1)

    def _compute(self, release: Ints, found: dict[str, list[tuple[Ints, Floats]]]) -> None:
        """Add the values of the newest candles, as many as there are release times."""
        # TA-Lib takes what is below 1e-14 for zero, a variance too: prices are brought to thousands
        # first, by a power of two, which changes none of their digits.
        _, exponent = np.frexp(self.columns[3, 0])
        shift = 12 - int(exponent)
        opened, high, low, close = np.ldexp(self.columns[:4], shift)
        columns = Columns(opened, high, low, close, self.columns[4])
        for one in self.recipe.indicators:
            for suffix, output in zip(one.outputs, one.compute(columns), strict=True):
                values = output[-len(release) :].astype(np.float64)
                if one.priced:
                    values = np.ldexp(values, -shift)
                elif one.sparse:
                    values[values == 0] = np.nan
                _add(found, one.name + suffix, release, values)

    def _batch(self, name: str, parts: list[tuple[Ints, Floats]]) -> Batch:
        series = self.names.get(name)
        if series is None:
            source = self.source
            kind = f"indicator_{_spelt(source.data_type.interval)}_{name}"
            series = Series(source.exchange, source.symbol, DataType.parse(kind))
            self.names[name] = series
        times = np.concatenate([times for times, _ in parts])
        values = np.concatenate([values for _, values in parts])
        return Batch(series, times, {"value": quantised(values, self.recipe.decimals)})


def _add(
    found: dict[str, list[tuple[Ints, Floats]]], name: str, release: Ints, values: Floats
) -> None:
    """Add the values that there are. Beyond int64 no exact decimal is left to be had."""
    there = np.isfinite(values) & (np.abs(values) < _LARGEST)
    if there.all():
        found.setdefault(name, []).append((release, values))
    elif there.any():
        found.setdefault(name, []).append((release[there], values[there]))


def quantised(values: Floats, decimals: int) -> Decimals:
    """Return values rounded half to even, exactly so many digits after the point at most."""
    whole = np.trunc(values) if decimals else np.rint(values)
    fraction = np.rint((values - whole) * POWERS[decimals]).astype(np.int64)
    carry = np.sign(fraction) * (np.abs(fraction) == POWERS[decimals])
    units = fraction - carry * POWERS[decimals]
    return Decimals.from_parts(whole.astype(np.int64) + carry, units * POWERS[DIGITS - decimals])


def _floats(column: Decimals) -> Floats:
    """Return floats that depend on nothing but the values, however the column holds them."""
    whole, fraction = column.parts()
    floats: Floats = whole + fraction / float(POWERS[DIGITS])
    return floats


def _spelt(interval: Interval | None) -> str:
    """Return an interval as names of indicators have it: `M`, months, would be read as minutes."""
    assert interval is not None
    return f"{interval.count}mo" if interval.unit == "M" else str(interval)
