"""Coverage day by day, a line per month, as one sees it at a glance; prints nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tardisd.market.decimals import Ints
from tardisd.market.span import Coverage, Span
from tardisd.market.time import DAY, Interval, format_time

FULL, PARTIAL, NONE, OUTSIDE = "#", "+", ".", " "

_MONTH = Interval(1, "M")


@dataclass(frozen=True, slots=True)
class Month:
    """One month (`2024-03`) and a character for each of its days."""

    name: str
    days: str


def coverage_strip(coverage: Coverage, span: Span) -> list[Month]:
    """Return the months that `span` touches; of its first and last day only its part counts."""
    if not span:
        return []
    first, last = _MONTH.floor(span.start), _MONTH.ceil(span.end)
    edges = np.arange(first, last + 1, DAY, dtype=np.int64)
    within = np.clip(edges, span.start, span.end)
    wanted, covered = np.diff(within), np.diff(_covered_before(coverage, within))
    cells = np.full(len(wanted), PARTIAL)
    cells[covered == wanted] = FULL
    cells[covered == 0] = NONE
    cells[wanted == 0] = OUTSIDE
    months = []
    while first < last:
        begin, end = (first - int(edges[0])) // DAY, (_MONTH.close(first) - int(edges[0])) // DAY
        months.append(Month(format_time(first)[:7], "".join(cells[begin:end].tolist())))
        first = _MONTH.close(first)
    return months


def _covered_before(coverage: Coverage, instants: Ints) -> Ints:
    """Return how much time (ns) is covered before each instant."""
    starts = np.array([span.start for span in coverage], np.int64)
    lengths = np.array([span.length for span in coverage], np.int64)
    total = np.concatenate([[0], np.cumsum(lengths)])
    begun = np.searchsorted(starts, instants, "right")
    if not len(starts):
        return np.zeros(len(instants), np.int64)
    newest = np.maximum(begun - 1, 0)
    part = np.clip(instants - starts[newest], 0, lengths[newest])
    covered: Ints = total[newest] + part
    return covered
