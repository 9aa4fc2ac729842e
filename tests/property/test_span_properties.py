"""Coverage algebra against sets of integers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardisd.market.span import COVERED_CAUSES, GAP_CAUSES, UNCOVERED_CAUSES, Coverage, Span

END = 40
places = st.integers(0, END)
spans = st.builds(lambda a, b: Span(min(a, b), max(a, b)), places, places)
coverages = st.lists(spans, max_size=6).map(Coverage)


def instants(*spans):
    return {ts for span in spans for ts in range(span.start, span.end)}


@given(st.lists(spans, max_size=6))
def test_a_coverage_is_the_set_of_its_instants(parts):
    coverage = Coverage(parts)
    assert instants(*coverage) == instants(*parts)
    assert coverage.length == len(instants(*parts))
    assert bool(coverage) == bool(instants(*parts))
    assert [ts in coverage for ts in range(-1, END + 1)] == [
        ts in instants(*parts) for ts in range(-1, END + 1)
    ]


@given(coverages)
def test_its_spans_are_sorted_disjoint_and_do_not_touch(coverage):
    found = list(coverage)
    assert len(found) == len(coverage)
    assert all(found)
    assert all(left.end < right.start for left, right in itertools.pairwise(found))
    assert coverage.hull == (Span(found[0].start, found[-1].end) if found else None)


@given(coverages, coverages)
def test_equality_is_equality_of_sets(left, right):
    same = instants(*left) == instants(*right)
    assert (left == right) == same
    assert not same or hash(left) == hash(right)
    assert left != "something else"


@given(coverages, coverages, spans)
def test_set_operations(left, right, span):
    assert instants(*left.union(right)) == instants(*left) | instants(*right)
    assert instants(*left.union(span)) == instants(*left) | instants(span)
    assert instants(*left.subtract(right)) == instants(*left) - instants(*right)
    assert instants(*left.subtract(span)) == instants(*left) - instants(span)
    assert instants(*left.intersect(span)) == instants(*left) & instants(span)


@given(coverages, spans)
def test_gaps_and_covered_parts_make_up_a_span(coverage, span):
    gaps = coverage.gaps(span)
    assert instants(*gaps) == instants(span) - instants(*coverage)
    assert gaps == list(Coverage(gaps))
    assert coverage.covers(span) == (instants(span) <= instants(*coverage))


@given(spans, spans)
def test_spans_are_half_open(left, right):
    common = left.intersect(right)
    assert instants(*([common] if common else [])) == instants(left) & instants(right)
    assert left.length == len(instants(left))
    assert left.end not in left
    assert bool(left) == bool(instants(left))


@given(st.integers(1, 10**18))
def test_a_span_does_not_end_before_it_begins(length):
    with pytest.raises(ValueError, match="ends before it begins"):
        Span(10**18, 10**18 - length)


def test_causes_are_named_once():
    assert set(GAP_CAUSES) == {*UNCOVERED_CAUSES, *COVERED_CAUSES}
    assert len(set(GAP_CAUSES)) == len(GAP_CAUSES)
