"""What is missing from a series, and why; fetches nothing and changes nothing.

Uncovered time is a gap, and for candles so is covered time in which the venue has no row. Candles
may be misaligned (venues shift them after an outage): a hole is where the next open lies after
every earlier close, never where a grid would want a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tardisd.market.columns import closes
from tardisd.market.decimals import Ints
from tardisd.market.series import Series
from tardisd.market.span import COVERED_CAUSES, UNCOVERED_CAUSES, Coverage, Gap, Span
from tardisd.market.time import Interval
from tardisd.plugins.storage import Storage


def whole_candles(span: Span, interval: Interval) -> Span | None:
    """Return the part of `span` that whole candles can fill, or None when none fits."""
    start, end = interval.ceil(span.start), interval.floor(span.end)
    return Span(start, end) if start < end else None


class HoleScanner:
    """Finds the holes in candles that come batch by batch, in order."""

    def __init__(self, interval: Interval, span: Span) -> None:
        self._interval = interval
        self._span = whole_candles(span, interval) or Span(span.start, span.start)
        self._cursor = self._span.start

    def feed(self, opens: Ints) -> list[Span]:
        """Return the holes before the last of `opens` (ns, ascending) that were not yet told."""
        if len(opens) == 0:
            return []
        ends = np.empty(len(opens) + 1, np.int64)
        ends[0] = self._cursor
        ends[1:] = closes(opens, self._interval)
        # Overlapping candles may close out of order: what counts is the latest close so far.
        np.maximum.accumulate(ends, out=ends)
        self._cursor = int(ends[-1])
        upto = np.minimum(opens, self._span.end)
        at = np.flatnonzero(upto > ends[:-1])
        return [Span(int(ends[i]), int(upto[i])) for i in at]

    def finish(self) -> list[Span]:
        """Return the hole after the last candle, if there is one."""
        if self._cursor >= self._span.end:
            return []
        return [Span(self._cursor, self._span.end)]


def candle_holes(opens: Ints, interval: Interval, span: Span) -> list[Span]:
    """Return the parts of `span` without a candle, in order.

    `opens` (ns, ascending) may reach beyond `span`. Time at its edges too short for a whole candle
    is no hole.
    """
    scanner = HoleScanner(interval, span)
    return scanner.feed(opens) + scanner.finish()


def assign_causes(
    spans: Iterable[Span], recorded: Sequence[Gap], allowed: Sequence[str], default: str
) -> list[Gap]:
    """Return `spans` (ascending) cut by the recorded gaps whose cause is allowed, in order.

    What no such gap explains gets the `default` cause.
    """
    known = sorted((gap for gap in recorded if gap.cause in allowed), key=lambda gap: gap.span)
    result: list[Gap] = []
    first = 0
    for span in spans:
        while first < len(known) and known[first].span.end <= span.start:
            first += 1
        cursor = span.start
        for gap in known[first:]:
            if gap.span.start >= span.end:
                break
            part = gap.span.intersect(Span(cursor, span.end))
            if part is None:
                continue
            if part.start > cursor:
                result.append(Gap(Span(cursor, part.start), default))
            result.append(Gap(part, gap.cause))
            cursor = part.end
        if cursor < span.end:
            result.append(Gap(Span(cursor, span.end), default))
    return result


def uncovered_gaps(coverage: Coverage, recorded: Sequence[Gap], span: Span) -> list[Gap]:
    """Return the parts of `span` that are not covered: recorded causes, else `not_fetched`."""
    return assign_causes(coverage.gaps(span), recorded, UNCOVERED_CAUSES, "not_fetched")


def covered_gaps(
    holes: Iterable[Span],
    coverage: Coverage,
    recorded: Sequence[Gap],
    interval: Interval,
    span: Span,
) -> list[Gap]:
    """Return the part of `holes` in covered time: recorded causes, else `unknown`.

    A covered span proves the absence only of candles that lie wholly in it.
    """
    proven = Coverage(
        whole
        for part in coverage.intersect(span)
        if (whole := whole_candles(part, interval)) is not None
    )
    parts = (part for hole in holes for part in proven.intersect(hole))
    return assign_causes(parts, recorded, COVERED_CAUSES, "unknown")


def merge_gaps(*lists: Iterable[Gap]) -> list[Gap]:
    """Return the gaps of all lists in order, touching ones of one cause joined."""
    merged: list[Gap] = []
    for gap in sorted((gap for gaps in lists for gap in gaps), key=lambda gap: gap.span):
        if merged and merged[-1].cause == gap.cause and merged[-1].span.end == gap.span.start:
            merged[-1] = Gap(Span(merged[-1].span.start, gap.span.end), gap.cause)
        else:
            merged.append(gap)
    return merged


async def find_gaps(storage: Storage[Any], series: Series, span: Span | None = None) -> list[Gap]:
    """Return every gap of the series in `span` (default: from first to last covered instant).

    Reads all candles of the span, batch by batch.
    """
    coverage = await storage.coverage(series)
    span = span or coverage.hull
    if not span:
        return []
    recorded = await storage.gaps(series)
    uncovered = uncovered_gaps(coverage, recorded, span)
    interval = series.data_type.interval
    covered = coverage.intersect(span).hull
    if interval is None or covered is None:
        return merge_gaps(uncovered)
    scanner = HoleScanner(interval, covered)
    holes: list[Span] = []
    before = await storage.last_before(series, covered.start)
    if before is not None:  # misaligned, it may reach into the span
        scanner.feed(before.ts_event)
    async with storage.read(series, covered) as batches:
        async for batch in batches:
            holes += scanner.feed(batch.ts_event)
    holes += scanner.finish()
    return merge_gaps(uncovered, covered_gaps(holes, coverage, recorded, interval, span))
