"""Random ticks for hypothesis, as plain rows and as the columns made of them; knows no engine."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tardisd.market.columns import SCHEMAS, Batch, pack_ids
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.time import DAY, MILLISECOND, parse_time

START = parse_time("2024-02-28T00:00:00Z")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
MONTHS = Series.parse("bybit:ETH/USDT:USDT@candle_1M")
TRADES = Series.parse("binance:BTC/USDT@trade")
SWAPS = Series.parse("okx:DOGE/USDT:USDT@trade")
AGGREGATES = Series.parse("bybit:1INCH/USDT@agg_trade")
HASHED = [CANDLES, MONTHS, TRADES, SWAPS, AGGREGATES]
OTHERS = [
    Series.parse(f"binance:BTC/USDT:USDT@{kind}")
    for kind in ("funding", "quote", "open_interest", "liquidation", "book_delta")
]

_LARGEST = 2**63 - 1


def _text(whole: int, fraction: int, negative: bool) -> str:
    digits = f"{fraction:018d}".rstrip("0")
    value = f"{whole}.{digits}" if digits else str(whole)
    return f"-{value}" if negative and (whole or fraction) else value


@st.composite
def number_columns(draw: st.DrawFn, rows: int, optional: bool) -> list[str | None]:
    """Draw a column of decimal text: narrow like a venue's or wide, with holes if it may."""
    wide = draw(st.integers(0, 5)) == 0
    negative = st.booleans() if draw(st.integers(0, 3)) == 0 else st.just(False)
    if wide:
        wholes, fractions = st.integers(0, _LARGEST), st.integers(0, 10**18 - 1)
    else:
        scale = draw(st.integers(0, 9))
        wholes = st.integers(0, draw(st.sampled_from([9, 99_999, 10**9])))
        fractions = st.integers(0, 10**scale - 1).map(lambda n: n * 10 ** (18 - scale))
    values: st.SearchStrategy[str | None] = st.builds(_text, wholes, fractions, negative)
    if optional:
        values = draw(st.sampled_from([values, st.none() | values, st.none()]))
    return draw(st.lists(values, min_size=rows, max_size=rows))


@st.composite
def id_columns(draw: st.DrawFn, rows: int) -> list[str]:
    """Draw a column of ids: integers, text with anything in it, or both, with some absent."""
    integers = st.integers(0, draw(st.sampled_from([9, 10**6, 10**10, _LARGEST]))).map(str)
    alphabet = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    texts = st.text(alphabet, min_size=1, max_size=12)
    anything = st.one_of(integers, texts, st.just(""), st.just("007"), st.just(str(2**63)))
    kind = draw(st.sampled_from([integers, integers, anything]))
    return draw(st.lists(kind, min_size=rows, max_size=rows))


@st.composite
def times(draw: st.DrawFn, rows: int) -> list[int]:
    """Draw ascending times (ns): of one unit, close together or days apart."""
    unit = draw(st.sampled_from([MILLISECOND, 1000, 1]))
    reach = draw(st.sampled_from([1000 * MILLISECOND, DAY, 1000 * DAY]))
    steps = st.integers(0, reach // unit)
    return [START + n * unit for n in sorted(draw(st.lists(steps, min_size=rows, max_size=rows)))]


@st.composite
def rows_of(draw: st.DrawFn, series: Series, min_size: int = 1) -> list[dict[str, Any]]:
    """Draw rows of a series as dictionaries, in the form of the hash's test vectors."""
    schema = SCHEMAS[series.data_type.kind]
    interval = series.data_type.interval
    count = draw(st.integers(min_size, 9))
    events = draw(times(count))
    if interval is not None:
        events = sorted({interval.floor(ts) for ts in events})
        count = len(events)
    rows: list[dict[str, Any]] = [
        {
            "series": series.text,
            "ts_event": ts,
            "ts_release": ts if interval is None else interval.close(ts),
        }
        for ts in events
    ]
    if schema.has_id:
        for row, text in zip(rows, draw(id_columns(count)), strict=True):
            row.update({"id": text} if text else {})
    for name in schema.fields:
        column = draw(number_columns(count, name in schema.optional))
        for row, value in zip(rows, column, strict=True):
            row.update({} if value is None else {name: value})
    if schema.has_side and draw(st.integers(0, 4)):
        for row in rows:
            row["side"] = draw(st.sampled_from(["buy", "sell"]))
    return rows


def batch_of(series: Series, rows: list[dict[str, Any]]) -> Batch:
    """Return the rows as columns."""
    schema = SCHEMAS[series.data_type.kind]
    fields = {name: Decimals.of([row.get(name) for row in rows]) for name in schema.fields}
    ids = None
    if schema.has_id:
        texts = [row.get("id", "") for row in rows]
        ids = pack_ids(texts) if all(texts) else np.array([t.encode() for t in texts], np.bytes_)
    sides = None
    if schema.has_side and "side" in rows[0]:
        sides = np.array([row["side"] == "sell" for row in rows], np.uint8)
    return Batch(
        series,
        np.array([row["ts_event"] for row in rows], np.int64),
        {
            name: column
            for name, column in fields.items()
            if name not in schema.optional or column.presence().any()
        },
        ids,
        sides,
    )


@st.composite
def tables(
    draw: st.DrawFn, pool: list[Series], most: int = 4
) -> tuple[list[dict[str, Any]], list[Batch]]:
    """Draw the rows of several series in total order, and batches of them, cut anywhere."""
    chosen = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=most, unique=True))
    everything: list[tuple[Any, dict[str, Any]]] = []
    batches: list[Batch] = []
    for series in chosen:
        rows = draw(rows_of(series))
        everything += [((r["ts_release"], series.order, n), r) for n, r in enumerate(rows)]
        cut = draw(st.integers(0, len(rows)))
        batches += [batch_of(series, part) for part in (rows[:cut], rows[cut:]) if part]
    everything.sort(key=lambda item: item[0])
    return [row for _, row in everything], batches
