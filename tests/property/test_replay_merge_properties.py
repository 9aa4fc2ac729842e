"""The merge puts ticks and gap marks into the total order, however they are cut into batches."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tardisd.backfill.ledger import candle_holes, covered_gaps, uncovered_gaps, whole_candles
from tardisd.market.check import same_rows
from tardisd.market.columns import SCHEMAS, Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import MINUTE, parse_time
from tardisd.replay.merge import Mark
from tardisd.testing.blocks import make_stream

START = parse_time("2024-02-29T23:30:00Z")
POOL = [
    Series.parse(text)
    for text in (
        "binance:BTC/USDT@candle_1m",
        "binance:BTC/USDT@candle_5m",
        "bybit:BTC/USDT@candle_1m",
        "okx:BTC/USDT:USDT@funding",
        "binance:BTC/USDT@quote",
        "binance:BTC/USDT@trade",
        "binance:BTC/USDT:USDT@trade",
        "binance:BTC/USDT@agg_trade",
        "bybit:ADA/USDT@trade",
    )
]
# Mostly whole minutes, so that ticks of many series share their instants.
instants = st.integers(0, 20).map(lambda n: START + n * MINUTE) | st.integers(
    START, START + 20 * MINUTE
)


@dataclass
class Case:
    span: Span
    rows: dict[Series, list[int]]
    cuts: dict[Series, list[int]]
    coverage: dict[Series, Coverage]
    delay: int
    lookahead: bool
    slice_ticks: int

    def batches(self):
        found = []
        for series, times in self.rows.items():
            whole = batch_of(series, times)
            edges = [0, *self.cuts[series], len(times)]
            found += [whole[a:b] for a, b in itertools.pairwise(edges)]
            found.append(whole[:0])
        return found

    def stream(self, **other):
        options = {
            "span": self.span,
            "coverage": self.coverage,
            "slice_ticks": self.slice_ticks,
            "publish_delay": self.delay,
            "lookahead": self.lookahead,
        }
        return make_stream(self.batches(), **(options | other))


def batch_of(series, times):
    """Return rows whose first field numbers them."""
    schema = SCHEMAS[series.data_type.kind]
    numbers = np.arange(len(times), dtype=np.int64)
    return Batch(
        series,
        np.array(times, np.int64),
        {name: Decimals(numbers * 10 + at, 1) for at, name in enumerate(schema.fields)},
        numbers + 7 if schema.has_id else None,
        (numbers % 2).astype(np.uint8) if schema.has_side else None,
    )


@st.composite
def cases(draw):
    series = draw(st.lists(st.sampled_from(POOL), min_size=1, max_size=6, unique=True))
    rows, cuts, coverage = {}, {}, {}
    for one in series:
        times = sorted(draw(st.lists(instants, max_size=12)))
        interval = one.data_type.interval
        if interval is not None:
            times = sorted({interval.floor(ts) for ts in times})
        rows[one] = times
        cuts[one] = sorted(draw(st.lists(st.integers(0, len(times)), max_size=4)))
        edges = draw(st.lists(st.tuples(instants, instants), max_size=3))
        spans = [Span(min(edge), max(edge)) for edge in edges]
        extents = [Span(ts, ts + 1 if interval is None else interval.close(ts)) for ts in times]
        coverage[one] = Coverage([*spans, *extents])
    a, b = sorted((draw(instants), draw(instants)))
    return Case(
        Span(a, b + 1),
        rows,
        cuts,
        coverage,
        draw(st.sampled_from([0, 0, 1, MINUTE])),
        draw(st.booleans()),
        draw(st.sampled_from([1, 2, 5, 2048])),
    )


def expected(case):
    """Return every tick and mark in total order, by sorting tuples."""
    found = []
    for series, times in case.rows.items():
        interval = series.data_type.interval
        delay = case.delay if interval is not None else 0
        opens = []
        for number, ts in enumerate(times):
            if interval is None:
                release, inside = ts, case.span.start <= ts < case.span.end
            else:
                close = interval.close(ts)
                release = ts if case.lookahead else close + delay
                inside = case.span.start <= ts and close <= case.span.end
            if inside:
                opens.append(ts)
                found.append((release, series.order, number, "tick", series, ts))
        within = case.span if interval is None else whole_candles(case.span, interval)
        gaps = [] if within is None else uncovered_gaps(case.coverage[series], (), within)
        if interval is not None:
            holes = candle_holes(np.array(opens, np.int64), interval, case.span)
            gaps = [*gaps, *covered_gaps(holes, case.coverage[series], (), interval, case.span)]
        for gap in gaps:
            place = (2, *series.order[1:])
            found.append((gap.span.start + delay, place, 0, "mark", series, gap))
    found.sort(key=lambda item: (*item[:2], item[2]))
    return [(item[0], item[3], item[4], item[2], item[5]) for item in found]


def flat(stream):
    """Return what `expected` does, read from a stream, and check its sequence numbers."""
    found, seq = [], 1
    for item in stream:
        if isinstance(item, Mark):
            found.append((item.ts_release, "mark", item.series, 0, item.gap))
            seq += 1
            continue
        assert item.first_seq == seq
        rows = [None] * len(item)
        for batch, seqs in item.batches():
            first = batch.fields[batch.schema.fields[0]]
            numbers = [int(text) for text in first.texts()]
            for at, number, ts in zip(seqs, numbers, batch.ts_event.tolist(), strict=True):
                row = at - seq
                rows[row] = (int(item.release[row]), "tick", batch.series, number, ts)
        assert None not in rows
        found += rows
        assert item.last_release == rows[-1][0]
        seq += len(item)
    return found


def final_hash(stream):
    digests = [
        item._whole.hash_upto(item._last).hexdigest()
        for item in stream
        if not isinstance(item, Mark)
    ]
    return digests[-1] if digests else None


@given(cases())
def test_the_order_is_that_of_sorted_tuples(case):
    assert flat(case.stream()) == expected(case)


@given(cases(), st.data())
def test_cutting_changes_nothing(case, data):
    stream = case.stream()
    for series, times in case.rows.items():
        case.cuts[series] = sorted(data.draw(st.lists(st.integers(0, len(times)), max_size=6)))
    other = case.stream(
        slice_ticks=data.draw(st.integers(1, 30)),
        window_ticks=data.draw(st.sampled_from([1, 3, 10, 1000])),
    )
    assert flat(other) == flat(stream)
    assert final_hash(other) == final_hash(stream)


def test_what_would_be_too_long_a_window_is_cut():
    trades = [series for series in POOL if series.data_type.kind == "trade"]
    times = np.sort(np.random.default_rng(3).integers(START, START + MINUTE, 30_000) // 1000 * 1000)
    whole = [batch_of(series, times) for series in trades]
    cut = [batch[at : at + 999] for batch in whole for at in range(0, len(batch), 999)]
    assert final_hash(make_stream(whole)) == final_hash(make_stream(cut))
    at_once = [batch_of(series, np.full(30_000, START)) for series in trades]
    cut = [batch[at : at + 999] for batch in at_once for at in range(0, len(batch), 999)]
    assert final_hash(make_stream(at_once)) == final_hash(make_stream(cut))


def test_windows_too_long_for_packed_sorting_have_the_same_order():
    times = [START, START + 1, START + 2**62, START + 2**62]
    pair = POOL[-2:]
    span = Span(START, times[-1] + 1)
    coverage = {one: Coverage([span]) for one in pair}
    rows, cuts = dict.fromkeys(pair, times), {one: [] for one in pair}
    case = Case(span, rows, cuts, coverage, 0, False, 9)
    assert flat(case.stream()) == expected(case)


@given(cases())
def test_a_candle_never_comes_before_its_close(case):
    case.lookahead = False
    for item in case.stream():
        if isinstance(item, Mark):
            continue
        for batch, seqs in item.batches():
            interval = batch.series.data_type.interval
            if interval is not None:
                release = item.release[np.array(seqs) - item.first_seq].tolist()
                closes = [interval.close(ts) + case.delay for ts in batch.ts_event.tolist()]
                assert release == closes


@given(cases())
def test_blocks_tell_the_same_of_their_rows_in_every_way(case):
    """`batches`, `series_rows`, `newest_rows` and `cut` agree, and no column is changed."""
    for item in case.stream():
        if isinstance(item, Mark):
            continue
        by_series = {batch.series: (batch, seqs) for batch, seqs in item.batches()}
        rows = dict(item.series_rows())
        assert set(rows) == set(by_series)
        assert sum(map(len, rows.values())) == len(item)
        for series, (batch, seqs) in by_series.items():
            assert (rows[series] + item.first_seq).tolist() == list(seqs)
            numbers = [int(text) for text in batch.fields[batch.schema.fields[0]].texts()]
            again = batch_of(series, case.rows[series])[np.array(numbers)]
            assert same_rows(batch, again).all()
            assert (batch.ids is None) == (again.ids is None)
        newest = sorted((int(places[-1]), series.text) for series, places in rows.items())
        assert [(row, series.text) for row, series in item.newest_rows()] == newest
        for row in range(len(item)):
            part = item.cut(row, row + 1)
            assert (part.first_seq, len(part)) == (item.first_seq + row, 1)
            [(series, places)] = part.series_rows()
            assert row in rows[series].tolist()
            assert places.tolist() == [0]
            assert part.release.tolist() == [item.release[row]]


@given(cases())
def test_at_one_instant_candles_come_first_then_marks_then_the_rest(case):
    case.lookahead = False
    ranks = [
        (at, 2 if what == "mark" else series.data_type.order[0])
        for at, what, series, _, _ in flat(case.stream())
    ]
    assert ranks == sorted(ranks)


def test_a_trade_at_a_candles_close_comes_after_it_and_its_gap():
    """The boundary of semantics §4, spelled out."""
    candles, trades = POOL[0], POOL[5]
    close = START + MINUTE
    stream = make_stream(
        [batch_of(candles, [START]), batch_of(trades, [START, close, close + 1])],
        span=Span(START, START + 3 * MINUTE),
        coverage={
            candles: Coverage([Span(START, close)]),
            trades: Coverage([Span(START, START + 3 * MINUTE)]),
        },
    )
    names = [(at - START, what, series.data_type.name) for at, what, series, _, _ in flat(stream)]
    assert names == [
        (0, "tick", "trade"),
        (MINUTE, "tick", "candle_1m"),
        (MINUTE, "mark", "candle_1m"),
        (MINUTE, "tick", "trade"),
        (MINUTE + 1, "tick", "trade"),
    ]
