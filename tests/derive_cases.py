"""Sources of derived candles for hypothesis: rows on bounds and anywhere, holes, shifts, causes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from derive_model import FIELDS, Row
from hypothesis import strategies as st
from tick_strategies import batch_of, number_columns

from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.market.time import DAY, SECOND, parse_time

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


@dataclass
class Case:
    """A series to derive, and what there is of its source in a session's span."""

    series: Series
    source: Series
    span: Span
    rows: list[dict[str, Any]]
    coverage: Coverage
    causes: list[Gap]

    def batches(self, cuts: list[int]) -> list[Batch]:
        """Return the rows in batches."""
        edges = [0, *sorted(cut % (len(self.rows) + 1) for cut in cuts), len(self.rows)]
        parts = [self.rows[a:b] for a, b in pairwise(edges)]
        return [batch_of(self.source, part) for part in parts if part]

    def model_rows(self) -> list[Row]:
        """Return the rows as the model takes them."""
        finer = self.source.data_type.interval
        times = [row["ts_event"] for row in self.rows]
        ends = times if finer is None else [finer.close(ts) for ts in times]
        return [Row(ts, end, row) for ts, end, row in zip(times, ends, self.rows, strict=True)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw some five intervals of a source."""
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
