"""Half-open spans of time and sets of them; pure set arithmetic on integer nanoseconds."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tardisd.market.time import format_time


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The instants `start <= ts < end`, in ns."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError(f"span ends before it begins: {self}")

    def __str__(self) -> str:
        return f"{format_time(self.start)}..{format_time(self.end)}"

    def __bool__(self) -> bool:
        return self.end > self.start

    @property
    def length(self) -> int:
        """Length in ns."""
        return self.end - self.start

    def __contains__(self, ts: int) -> bool:
        return self.start <= ts < self.end

    def intersect(self, other: Span) -> Span | None:
        """Return the common part, or None when there is none."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return Span(start, end) if start < end else None


@dataclass(frozen=True, slots=True)
class Gap:
    """A span without data, and why; `cause` is one of `GAP_CAUSES`."""

    span: Span
    cause: str


UNCOVERED_CAUSES = ("not_fetched", "fetch_failed", "not_listed", "delisted", "unknown")
COVERED_CAUSES = ("exchange_down", "no_trades", "unknown")
GAP_CAUSES = tuple(dict.fromkeys(UNCOVERED_CAUSES + COVERED_CAUSES))


class Coverage:
    """An immutable set of instants, kept as sorted, disjoint, non-touching spans."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        starts: list[int] = []
        ends: list[int] = []
        for span in sorted(span for span in spans if span):
            if ends and span.start <= ends[-1]:
                ends[-1] = max(ends[-1], span.end)
            else:
                starts.append(span.start)
                ends.append(span.end)
        self._starts, self._ends = starts, ends

    def __iter__(self) -> Iterator[Span]:
        return (Span(start, end) for start, end in zip(self._starts, self._ends, strict=True))

    def __len__(self) -> int:
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Coverage):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    def __hash__(self) -> int:
        return hash((tuple(self._starts), tuple(self._ends)))

    def __repr__(self) -> str:
        return f"Coverage({', '.join(map(str, self))})"

    def __contains__(self, ts: int) -> bool:
        at = bisect_right(self._starts, ts) - 1
        return at >= 0 and ts < self._ends[at]

    @property
    def length(self) -> int:
        """Total length in ns."""
        return sum(self._ends) - sum(self._starts)

    @property
    def hull(self) -> Span | None:
        """The span from the first instant to the last, or None when empty."""
        return Span(self._starts[0], self._ends[-1]) if self._starts else None

    def covers(self, span: Span) -> bool:
        """Tell whether every instant of `span` is in the set."""
        at = bisect_right(self._starts, span.start) - 1
        return not span or (at >= 0 and span.end <= self._ends[at])

    def intersect(self, span: Span) -> Coverage:
        """Return the part within `span`."""
        first = bisect_right(self._ends, span.start)
        last = bisect_left(self._starts, span.end)
        parts = (
            Span(max(start, span.start), min(end, span.end))
            for start, end in zip(self._starts[first:last], self._ends[first:last], strict=True)
        )
        return Coverage(parts)

    def union(self, other: Coverage | Span) -> Coverage:
        """Return the set of instants in either."""
        return Coverage([*self, *([other] if isinstance(other, Span) else other)])

    def gaps(self, span: Span) -> list[Span]:
        """Return the parts of `span` that are not in the set, in order."""
        gaps, cursor = [], span.start
        for part in self.intersect(span):
            if part.start > cursor:
                gaps.append(Span(cursor, part.start))
            cursor = part.end
        if cursor < span.end:
            gaps.append(Span(cursor, span.end))
        return gaps

    def subtract(self, other: Coverage | Span) -> Coverage:
        """Return the instants of this set that are not in `other`."""
        taken = Coverage([other]) if isinstance(other, Span) else other
        return Coverage(gap for span in self for gap in taken.gaps(span))
