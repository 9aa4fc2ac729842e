"""The ledger against a model that looks at every second one by one."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tardisd.backfill.ledger import (
    HoleScanner,
    assign_causes,
    candle_holes,
    covered_gaps,
    merge_gaps,
    uncovered_gaps,
    whole_candles,
)
from tardisd.market.span import COVERED_CAUSES, Coverage, Gap, Span
from tardisd.market.time import SECOND, Interval, parse_time

BASE = parse_time("2024-03-01T00:00:00Z")
TEN = Interval.parse("10s")

seconds = st.integers(0, 200)
opens_lists = st.lists(seconds, unique=True, max_size=25).map(sorted)
spans = st.tuples(seconds, seconds).map(lambda pair: (min(pair), max(pair)))


def at(second: int) -> int:
    return BASE + second * SECOND


def ns(items: list[int]) -> np.ndarray:
    return np.array([at(item) for item in items], dtype=np.int64)


def seconds_of(found: list[Span]) -> set[int]:
    return {
        second
        for span in found
        for second in range((span.start - BASE) // SECOND, (span.end - BASE) // SECOND)
    }


@given(opens_lists, spans)
def test_holes_are_the_seconds_that_no_candle_fills(opens, pair):
    span = Span(at(pair[0]), at(pair[1]))
    whole = whole_candles(span, TEN)
    wanted = seconds_of([whole] if whole else [])
    filled = {second for start in opens for second in range(start, start + 10)}
    holes = candle_holes(ns(opens), TEN, span)
    assert seconds_of(holes) == wanted - filled
    assert holes == sorted(holes)
    assert all(hole for hole in holes)


@given(opens_lists, spans, st.lists(st.integers(0, 25), max_size=4))
def test_batching_does_not_matter(opens, pair, cuts):
    span = Span(at(pair[0]), at(pair[1]))
    scanner = HoleScanner(TEN, span)
    edges = [0, *sorted(min(cut, len(opens)) for cut in cuts), len(opens)]
    found: list[Span] = []
    for first, last in itertools.pairwise(edges):
        found += scanner.feed(ns(opens[first:last]))
    assert found + scanner.finish() == candle_holes(ns(opens), TEN, span)


@given(st.sets(st.integers(0, 47)))
def test_months_go_by_the_calendar(present):
    month = Interval.parse("1M")
    grid = (np.datetime64("2021-01", "M") + np.arange(49)).astype("datetime64[ns]")
    grid = grid.astype(np.int64)
    opens = grid[sorted(present)]
    holes = candle_holes(opens, month, Span(int(grid[0]), int(grid[48])))
    covered = Coverage(Span(int(grid[i]), int(grid[i + 1])) for i in present)
    assert holes == covered.gaps(Span(int(grid[0]), int(grid[48])))


@given(
    st.lists(spans, max_size=5),
    st.lists(st.tuples(spans, st.sampled_from(["no_trades", "exchange_down", "not_listed"]))),
)
def test_causes_are_cut_exactly(pairs, causes):
    # Storages keep recorded gaps disjoint: a later one replaces what it overlaps.
    recorded: list[Gap] = []
    for (first, last), cause in causes:
        new = Span(at(first), at(last))
        recorded = [
            Gap(part, old.cause) for old in recorded for part in Coverage([old.span]).subtract(new)
        ] + ([Gap(new, cause)] if new else [])
    wanted = list(Coverage(Span(at(first), at(last)) for first, last in pairs))
    found = assign_causes(wanted, recorded, COVERED_CAUSES, "unknown")
    assert Coverage(gap.span for gap in found) == Coverage(wanted)
    for gap in found:
        for second in seconds_of([gap.span]):
            known = [old.cause for old in recorded if at(second) in old.span]
            allowed = [cause for cause in known if cause in COVERED_CAUSES]
            assert gap.cause == (allowed[0] if allowed else "unknown")


@given(opens_lists, st.lists(spans, max_size=4), spans)
def test_gaps_are_either_uncovered_or_proven(opens, pairs, pair):
    span = Span(at(pair[0]), at(pair[1]))
    coverage = Coverage(Span(at(first), at(last)) for first, last in pairs)
    uncovered = uncovered_gaps(coverage, [], span)
    hull = coverage.intersect(span).hull
    holes = candle_holes(ns(opens), TEN, hull) if hull else []
    covered = covered_gaps(holes, coverage, [], TEN, span)
    merged = merge_gaps(uncovered, covered)
    assert {gap.cause for gap in covered} <= {"unknown"}
    assert seconds_of([gap.span for gap in uncovered]) == {
        second for second in range(pair[0], pair[1]) if at(second) not in coverage
    }
    assert all(coverage.covers(gap.span) for gap in covered)
    assert sum(gap.span.length for gap in merged) == sum(
        gap.span.length for gap in [*uncovered, *covered]
    )
    for before, after in itertools.pairwise(merged):
        assert before.span.end <= after.span.start
        assert before.span.end < after.span.start or before.cause != after.cause
