"""Pages for storage tests, and a plain model of what a storage must then hold; slow on purpose."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from tardisd.market.columns import SCHEMAS, Batch, Ids, pack_ids
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import COVERED_CAUSES, UNCOVERED_CAUSES, Coverage, Gap, Span
from tardisd.market.time import MILLISECOND, MINUTE, parse_time
from tardisd.plugins.exchange import Page
from tardisd.plugins.storage import Appended

START = parse_time("2024-03-01T00:00:00Z")


class Row(NamedTuple):
    """One tick in plain words: what must come back exactly."""

    ts_event: int
    id: str | None
    side: int | None
    values: tuple[str | None, ...]


def batch_of(series: Series, rows: Sequence[Row]) -> Batch:
    """Return the rows as a batch, in the order given."""
    schema = SCHEMAS[series.data_type.kind]
    columns = zip(*(row.values for row in rows), strict=True)
    fields = {
        name: Decimals.of(column)
        for name, column in zip(schema.fields, columns, strict=True)
        if any(text is not None for text in column) or name not in schema.optional
    }
    ids: Ids | None = None
    if any(row.id is not None for row in rows):
        ids = pack_ids([row.id or "" for row in rows])
    sides = np.array([row.side for row in rows], np.uint8) if schema.has_side else None
    times = np.array([row.ts_event for row in rows], np.int64)
    return Batch(series, times, fields, ids, sides)


def rows_of(batch: Batch) -> list[Row]:
    """Return the ticks of a batch; every number as exact text."""
    nothing: list[str | None] = [None] * len(batch)
    fields = [
        batch.fields[name].texts() if name in batch.fields else nothing
        for name in batch.schema.fields
    ]
    ids = nothing
    if batch.ids is not None:
        ids = [
            (text.decode() if isinstance(text, bytes) else str(text)) or None
            for text in batch.ids.tolist()
        ]
    sides = [None] * len(batch) if batch.sides is None else batch.sides.tolist()
    values = zip(*fields, strict=True)
    return [Row(*row) for row in zip(batch.ts_event.tolist(), ids, sides, values, strict=True)]


def page_of(
    series: Series,
    rows: Sequence[Row],
    span: Span | None = None,
    gaps: Sequence[Gap] = (),
    source: str = "suite",
) -> Page:
    """Return a page of the rows; without a span, it covers just them."""
    batch = batch_of(series, rows) if rows else Batch.empty(series)
    return Page(batch, batch.extent() if span is None else span, tuple(gaps), source)


def joined(gaps: Iterable[Gap]) -> list[Gap]:
    """Return the gaps with neighbours of one cause made one: how they are cut says nothing."""
    result: list[Gap] = []
    for gap in gaps:
        last = result[-1] if result else None
        if last and last.cause == gap.cause and last.span.end == gap.span.start:
            result[-1] = Gap(Span(last.span.start, gap.span.end), gap.cause)
        else:
            result.append(gap)
    return result


@dataclass
class Model:
    """What a storage should hold of one series, kept in a dict and rebuilt at every turn."""

    series: Series
    rows: dict[tuple[object, ...], Row] = field(default_factory=dict)
    coverage: Coverage = field(default_factory=Coverage)
    gaps: list[Gap] = field(default_factory=list)

    def append(self, page: Page) -> Appended:
        """Store a page; return what that changes."""
        added = unchanged = revised = 0
        seen: dict[Row, int] = {}
        for row in rows_of(page.batch):
            seen[row] = seen.get(row, 0) + 1
            key: tuple[object, ...] = (row.ts_event, row.id)
            if self.series.data_type.kind == "candle":
                key = (row.ts_event,)
            elif row.id is None:
                key = (row, seen[row])
            if key not in self.rows:
                added += 1
            elif self.rows[key] == row:
                unchanged += 1
            else:
                revised += 1
            self.rows[key] = row
        self.coverage = self.coverage.union(page.covered)
        only_uncovered = set(UNCOVERED_CAUSES) - set(COVERED_CAUSES)
        self._cut(page.covered, lambda gap: gap.cause in only_uncovered)
        self.record_gaps(page.gaps)
        return Appended(added, unchanged, revised)

    def record_gaps(self, gaps: Sequence[Gap]) -> None:
        """Keep gaps; a later one replaces what it overlaps."""
        for gap in filter(lambda gap: gap.span, gaps):
            self._cut(Coverage([gap.span]), lambda _: True)
            self.gaps.append(gap)
        self.gaps = joined(sorted(self.gaps, key=lambda gap: gap.span))

    def delete(self, span: Span) -> int:
        """Remove a span; return how many rows went."""
        kept = {key: row for key, row in self.rows.items() if row.ts_event not in span}
        gone = len(self.rows) - len(kept)
        self.rows, self.coverage = kept, self.coverage.subtract(span)
        self._cut(Coverage([span]), lambda _: True)
        return gone

    def _cut(self, taken: Coverage, which: Callable[[Gap], bool]) -> None:
        self.gaps = [
            Gap(rest, gap.cause)
            for gap in self.gaps
            for rest in (taken.gaps(gap.span) if which(gap) else [gap.span])
        ]

    def read(self, span: Span) -> list[Row]:
        """Return the rows in the span, in storage order."""
        rows = [row for row in self.rows.values() if row.ts_event in span]
        if all((row.id or "0").isdecimal() for row in rows):
            return sorted(rows, key=lambda row: (row.ts_event, int(row.id or 0)))
        return sorted(rows, key=lambda row: row.ts_event)


@dataclass
class Draw:
    """Random pages that collide a lot: few instants, few keys, few values."""

    series: Series
    random: random.Random
    instants: int = 40

    @property
    def step(self) -> int:
        """Time between instants (ns)."""
        return MINUTE if self.series.data_type.kind == "candle" else MILLISECOND

    def span(self) -> Span:
        """Return a span among the instants; it may be empty."""
        first = self.random.randrange(self.instants)
        length = self.random.choice([0, 1, 1, 2, 3, 5, 8, 20])
        return Span(START + first * self.step, START + (first + length) * self.step)

    def page(self) -> Page:
        """Return a page with rows in a span, and at times a gap."""
        span = self.span()
        rows = []
        density = self.random.choice([0.2, 0.5, 1.0])
        for ts in range(span.start, span.end, self.step):
            if self.random.random() < density:
                rows += self._instant(ts)
        gaps = []
        if span and self.random.random() < 0.2:
            gaps = [Gap(span, self.random.choice(COVERED_CAUSES))]
        holes = (self.span(), self.span()) if self.random.random() < 0.2 else ()
        return replace(page_of(self.series, rows, span, gaps), holes=holes)

    def gap(self) -> Gap:
        """Return a gap of any cause."""
        return Gap(self.span(), self.random.choice(UNCOVERED_CAUSES + COVERED_CAUSES))

    def _instant(self, ts: int) -> list[Row]:
        chance = self.random
        if self.series.data_type.kind == "candle":
            price, volume = str(chance.randint(1, 3)), str(chance.randint(0, 2))
            prices = (price,) * 4
            row = Row(ts, None, None, (*prices, volume, chance.choice([None, volume]), None))
            return [row]
        count = chance.choice([1, 1, 2, 5])
        schema = SCHEMAS[self.series.data_type.kind]
        # An id stands for one instant: venues do not use one twice.
        names = chance.sample(range(8), count)
        return [
            Row(
                ts,
                self._id(ts, name) if schema.has_id else None,
                chance.randint(0, 1) if schema.has_side else None,
                tuple(chance.choice(["1", "2.5"]) for _ in schema.fields),
            )
            for name in sorted(names)
        ]

    def _id(self, ts: int, name: int) -> str:
        place = (ts - START) // self.step
        number = f"{place * 8 + name}"
        return f"t-{number}" if self.series.data_type.kind == "liquidation" else number
