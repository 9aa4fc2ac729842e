"""What a backfill asks for, against sets of instants counted one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tardisd.backfill.plan import missing_spans
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import EARLIEST, SECOND

TRADES = Series.parse("synthetic:BTC/USDT@trade")
CANDLES = Series.parse("synthetic:BTC/USDT@candle_4s")
BASE = EARLIEST + 400 * SECOND

places = st.integers(0, 60)
small_spans = st.builds(
    lambda a, b: Span(BASE + min(a, b) * SECOND, BASE + max(a, b) * SECOND), places, places
)
coverages = st.lists(small_spans, max_size=4).map(Coverage)


def seconds(spans):
    return {ts for span in spans for ts in range(span.start, span.end, SECOND)}


@given(small_spans, coverages)
def test_trades_are_asked_for_where_they_are_missing(span, coverage):
    missing = missing_spans(TRADES, span, coverage)
    assert seconds(missing) == seconds([span]) - seconds(coverage)
    assert list(Coverage(missing)) == missing


@given(small_spans, coverages)
def test_candles_are_asked_for_whole(span, coverage):
    missing = missing_spans(CANDLES, span, coverage)
    assert list(Coverage(missing)) == missing
    step = 4 * SECOND
    assert all(part.start % step == 0 and part.end % step == 0 for part in missing)
    candles = {ts - ts % step for ts in seconds([span])}
    lacking = {ts for ts in candles if seconds([Span(ts, ts + step)]) - seconds(coverage)}
    asked = {ts for ts in seconds(missing) if ts % step == 0}
    assert lacking <= asked
    # Besides them only the newest covered candle, when something follows it.
    newest = max(seconds(coverage), default=None)
    extra = asked - lacking
    assert extra <= ({newest - newest % step} if newest is not None else set())
    if extra:
        assert max(asked) > newest


@given(small_spans, coverages, st.integers(1, 5))
def test_recent_candles_are_asked_for_again(span, coverage, again):
    once = missing_spans(CANDLES, span, coverage)
    more = missing_spans(CANDLES, span, coverage, again=again)
    extra = {ts for ts in seconds(more) - seconds(once) if ts % (4 * SECOND) == 0}
    assert seconds(once) <= seconds(more)
    assert extra <= {ts - ts % (4 * SECOND) for ts in seconds([coverage.hull or span])}
    newest = max(seconds(coverage), default=0) // (4 * SECOND)
    assert all(newest - ts // (4 * SECOND) < again for ts in extra)


@given(small_spans, coverages)
def test_what_was_fetched_is_not_asked_for_again(span, coverage):
    for series in (TRADES, CANDLES):
        for part in missing_spans(series, span, coverage):
            coverage = coverage.union(part)
        assert coverage.covers(span)
        assert missing_spans(series, span, coverage) == []


@given(small_spans)
def test_times_stay_within_the_known_years(span):
    weeks = Series.parse("synthetic:BTC/USDT@candle_1w")
    moved = Span(span.start - 400 * SECOND, span.end - 400 * SECOND)
    assert all(part.start >= EARLIEST for part in missing_spans(weeks, moved, Coverage()))
