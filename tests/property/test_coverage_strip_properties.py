"""The coverage strip, against days looked at one by one."""

from __future__ import annotations

import datetime

from hypothesis import given
from hypothesis import strategies as st

from tardisd.backfill.strip import coverage_strip
from tardisd.market.span import Coverage, Span
from tardisd.market.time import DAY, HOUR, parse_time

BASE = parse_time("2024-01-20T00:00:00Z")
places = st.integers(0, 90 * 4)
spans = st.builds(
    lambda a, b: Span(BASE + min(a, b) * 6 * HOUR, BASE + max(a, b) * 6 * HOUR), places, places
)


@given(st.lists(spans, max_size=6).map(Coverage), spans)
def test_every_day_is_told(coverage, span):
    months = coverage_strip(coverage, span)
    told = "".join(month.days for month in months)
    if not span:
        assert told == ""
        return
    first = datetime.date.fromisoformat(f"{months[0].name}-01")
    for at, cell in enumerate(told):
        start = (first - datetime.date(1970, 1, 1)).days * DAY + at * DAY
        day = Span(start, start + DAY).intersect(span)
        if day is None:
            assert cell == " "
        elif coverage.covers(day):
            assert cell == "#"
        else:
            assert cell == ("+" if coverage.intersect(day) else ".")


@given(spans)
def test_months_follow_each_other_with_all_their_days(span):
    months = coverage_strip(Coverage(), span)
    for month in months:
        first = datetime.date.fromisoformat(f"{month.name}-01")
        after = (first + datetime.timedelta(31)).replace(day=1)
        assert len(month.days) == (after - first).days
    names = [month.name for month in months]
    assert names == sorted(set(names))
