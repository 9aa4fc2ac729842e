"""Derived candles are those of a plain model, however the source is cut, and never come late."""

from __future__ import annotations

import numpy as np
from derive_cases import START, cases
from derive_model import FIELDS, derive
from hypothesis import given, settings
from hypothesis import strategies as st

from tardisd.market.columns import closes, floors
from tardisd.market.time import DAY, HOUR, MINUTE, Interval
from tardisd.replay.derive import CandleBuilder

FEWER = settings(max_examples=60)
INTERVALS = ["1s", "15s", "1m", "7m", "1h", "4h", "12h", "1d", "3d", "14d", "1w", "2w", "1M", "3M"]


cuttings = st.lists(st.integers(0, 1000), max_size=6)


def table(batch, more=None):
    """Return rows of (open, …, the seven fields as text)."""
    columns = [
        batch.fields[name].texts() if name in batch.fields else [None] * len(batch)
        for name in FIELDS
    ]
    keys = [batch.ts_event.tolist(), *([] if more is None else [more.tolist()])]
    return [
        (key if more is not None else key[0], values)
        for key, values in zip(zip(*keys, strict=True), zip(*columns, strict=True), strict=True)
    ]


def run(case, cuts, forming=True):
    """Return everything built: closed candles, forming ones and gaps, in the order told."""
    builder = CandleBuilder(
        case.series, case.source, case.span, case.coverage, case.causes, forming
    )
    gaps = [(gap.span.start, gap) for gap in builder.uncovered]
    closed, unfinished = [], []
    interval = case.series.data_type.interval
    for part in [*case.batches(cuts), None]:
        built = builder.finish() if part is None else builder.feed(part)
        bound = 0 if part is None else int(part.release()[0])
        times = [at for at, _ in built.gaps]
        times += closes(built.closed.ts_event, interval).tolist() + built.updates.tolist()
        yield bound, times
        gaps += built.gaps
        closed += table(built.closed)
        unfinished += table(built.forming, built.updates)
    yield closed, unfinished, gaps


def result(case, cuts, forming=True):
    *_, last = run(case, cuts, forming)
    return last


@given(cases(), cuttings)
def test_candles_are_those_of_the_model(case, cuts):
    rows = case.model_rows()
    expected = derive(case.series, case.source, case.span, rows, case.coverage, case.causes)
    closed, unfinished, gaps = result(case, cuts)
    assert dict(closed) == expected.closed
    assert len(closed) == len(expected.closed)
    assert dict(unfinished) == expected.forming
    assert len(unfinished) == len(expected.forming)
    interval = case.series.data_type.interval
    told = {}
    for at, gap in sorted(gaps, key=lambda item: item[1].span):
        opens = interval.ceil(gap.span.start)
        assert gap.span.start <= at < gap.span.end or at == interval.close(gap.span.start)
        while opens < gap.span.end:
            told.setdefault(opens, gap.cause)
            opens = interval.close(opens)
    assert told.keys() == expected.causes.keys()
    for opens, cause in told.items():
        assert expected.causes[opens] in ({"any"}, expected.causes[opens] | {cause})


@FEWER
@given(cases(), cuttings, cuttings)
def test_cutting_the_source_changes_nothing(case, cuts, others):
    assert result(case, cuts) == result(case, others)


@FEWER
@given(cases(), cuttings)
def test_the_closed_ones_do_not_depend_on_the_forming_ones(case, cuts):
    closed, _, gaps = result(case, cuts)
    assert result(case, cuts, forming=False) == (closed, [], gaps)


@FEWER
@given(cases(), cuttings)
def test_nothing_comes_before_what_was_known_already(case, cuts):
    """The merge has let everything pass that is released before the last row of the batch."""
    passed = 0
    parts = [int(part.release()[-1]) for part in case.batches(cuts)]
    *feeds, _ = run(case, cuts)
    for (_, times), last in zip(feeds, [*parts, 0], strict=True):
        assert all(at >= passed for at in times)
        passed = max(passed, last)


@given(
    st.sampled_from(INTERVALS).map(Interval.parse),
    st.lists(st.integers(START - 3000 * DAY, START + 3000 * DAY), min_size=1),
)
def test_floors_are_those_of_the_calendar(interval, times):
    assert floors(np.array(times, np.int64), interval).tolist() == [
        interval.floor(ts) for ts in times
    ]


@given(
    st.sampled_from(INTERVALS).map(Interval.parse),
    st.sampled_from(INTERVALS).map(Interval.parse),
    st.lists(st.integers(0, 100_000), min_size=1, max_size=50),
)
def test_an_interval_holds_another_when_its_bounds_are_bounds_of_it(outer, inner, hours):
    bounds = [outer.floor(START + n * HOUR + n * MINUTE) for n in [*hours, *range(0, 2000, 24)]]
    if outer.holds(inner):
        assert all(inner.floor(ts) == ts for ts in bounds)
        assert outer.nominal_ns >= inner.nominal_ns
    else:
        moments = [outer.floor(START)]
        for _ in range(200):
            moments.append(outer.close(moments[-1]))
        assert any(inner.floor(ts) != ts for ts in moments)
