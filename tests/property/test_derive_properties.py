"""Derived candles are those of a plain model, however the source is cut, and never come late."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from derive_model import FIELDS, Row, derive
from hypothesis import given
from hypothesis import strategies as st
from tick_strategies import batch_of, number_columns

from tardisd.market.columns import closes, floors
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.market.time import DAY, HOUR, MINUTE, SECOND, Interval, parse_time
from tardisd.replay.derive import CandleBuilder

START = parse_time("2024-02-29T22:00:00Z")
PAIRS = [
    ("trade", "candle_1m"),
    ("trade", "candle_15s"),
    ("agg_trade", "candle_1h"),
    ("trade", "candle_1M"),
    ("candle_1m", "candle_5m"),
    ("candle_15s", "candle_1m"),
    ("candle_1h", "candle_1d"),
    ("candle_1d", "candle_1w"),
    ("candle_12h", "candle_1M"),
    ("candle_1M", "candle_3M"),
]
INTERVALS = ["1s", "15s", "1m", "7m", "1h", "4h", "12h", "1d", "3d", "14d", "1w", "2w", "1M", "3M"]


@dataclass
class Case:
    series: Series
    source: Series
    span: Span
    rows: list[dict[str, Any]]
    coverage: Coverage
    causes: list[Gap]

    def batches(self, cuts):
        edges = [0, *sorted(cut % (len(self.rows) + 1) for cut in cuts), len(self.rows)]
        parts = [self.rows[a:b] for a, b in pairwise(edges)]
        return [batch_of(self.source, part) for part in parts if part]

    def builder(self, forming=True):
        return CandleBuilder(
            self.series, self.source, self.span, self.coverage, self.causes, forming
        )


@st.composite
def cases(draw):
    finer, name = draw(st.sampled_from(PAIRS))
    exchange = draw(st.sampled_from(["binance", "okx"]))
    series = Series.of(exchange, "BTC/USDT", name)
    source = Series.of(exchange, "BTC/USDT", finer)
    interval = series.data_type.interval
    # About five intervals, with events on their bounds, on whole seconds and anywhere.
    first = interval.floor(START)
    bounds = [first]
    while len(bounds) < 6:
        bounds.append(interval.close(bounds[-1]))
    step = source.data_type.interval
    unit = interval.nominal_ns // 60
    instants = st.one_of(
        st.sampled_from(bounds),
        st.sampled_from(bounds).map(lambda ts: ts - 1),
        st.integers(0, 5 * 60).map(lambda n: first + n * unit),
        st.integers(0, 5 * interval.nominal_ns // SECOND).map(lambda n: first + n * SECOND),
        st.integers(first, bounds[-1]),
    )
    edges = instants if step is None else instants.map(step.floor) | instants
    if step is None:
        events = sorted(draw(st.lists(instants, max_size=24)))
    else:
        whole, ts = [], first
        while ts < bounds[-1] and len(whole) < 160:
            whole.append(ts)
            ts = step.close(ts)
        gone = draw(st.lists(st.tuples(st.integers(0, 160), st.integers(0, 12)), max_size=3))
        missing = {at + n for at, length in gone for n in range(length)}
        events = [ts for n, ts in enumerate(whole) if n not in missing]
        if step.fixed_ns is not None and draw(st.integers(0, 5)) == 0:
            # After an outage a venue may shift its candles for good.
            since = draw(st.sampled_from(whole))
            shift = draw(st.sampled_from([1, 794, 1_794_788])) * 1_000_000
            if shift < step.fixed_ns:
                events = [ts if ts < since else ts + shift for ts in events]
    rows = [{"ts_event": ts} for ts in events]
    zero = draw(st.sampled_from([0, 0, 1, 2]))
    amount = "amount" if step is None else "volume"
    names = ["price", "amount"] if step is None else ["open", "close", "volume", "trades"]
    names += ["quote_volume"] if step is not None and draw(st.booleans()) else []
    columns = {}
    for column in names:
        columns[column] = draw(number_columns(min(len(rows), 12), column in FIELDS[5:]))
    for number, row in enumerate(rows):
        for column, values in columns.items():
            if (text := values[number % len(values)]) is not None:
                row[column] = text.lstrip("-")
        whole, dot, fraction = row[amount].partition(".")
        row[amount] = "0" if zero and number % 3 < zero else whole[-15:] + dot + fraction
        if step is not None:
            prices = sorted([row["open"], row["close"]], key=float)
            row["low"], row["high"] = prices
        else:
            row["id"], row["side"] = str(number + 1), "buy"
    if draw(st.booleans()):
        coverage = Coverage([Span(first - DAY, bounds[-1] + DAY)])
    else:
        spans = draw(st.lists(st.tuples(edges, edges), min_size=1, max_size=4))
        ends = [ts + 1 if step is None else step.close(ts) for ts in events]
        extents = [Span(ts, end) for ts, end in zip(events, ends, strict=True)]
        coverage = Coverage([*(Span(min(s), max(s)) for s in spans), *extents])
    found = draw(
        st.lists(
            st.tuples(
                edges, edges, st.sampled_from(["no_trades", "exchange_down", "fetch_failed"])
            ),
            max_size=2,
        )
    )
    causes, cursor = [], 0
    for a, b, cause in sorted((min(f[:2]), max(f[:2]), f[2]) for f in found):
        if max(a, cursor) < b:
            causes.append(Gap(Span(max(a, cursor), b), cause))
            cursor = b
    a, b = draw(st.sampled_from([(first, bounds[-1]), sorted((draw(instants), draw(instants)))]))
    span = Span(a, b + 1)
    inside = []
    for row in rows:  # as a session reads them
        end = row["ts_event"] if step is None else step.close(row["ts_event"])
        if span.start <= row["ts_event"] and (end < span.end if step is None else end <= span.end):
            inside.append(row)
    return Case(series, source, span, inside, coverage, causes)


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
    builder = case.builder(forming)
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
    rows = [
        Row(
            row["ts_event"],
            row["ts_event"]
            if case.source.data_type.interval is None
            else case.source.data_type.interval.close(row["ts_event"]),
            row,
        )
        for row in case.rows
    ]
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


@given(cases(), cuttings, cuttings)
def test_cutting_the_source_changes_nothing(case, cuts, others):
    assert result(case, cuts) == result(case, others)


@given(cases(), cuttings)
def test_the_closed_ones_do_not_depend_on_the_forming_ones(case, cuts):
    closed, _, gaps = result(case, cuts)
    assert result(case, cuts, forming=False) == (closed, [], gaps)


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
