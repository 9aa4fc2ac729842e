"""Candles over REST, in windows of what one answer can hold; stores nothing.

The windows are known beforehand, so several are asked for at once. Bybit has a candle for every
interval since a symbol was listed: where one is missing, it is asked for three times more before
that is believed, and near the venue's clock it is taken for late, not for missing. The years before
the first candle need no questions: the candles of months tell in which month it is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import trio

from tardisd.dumps.order import Conflict, settle
from tardisd.errors import PluginError, RequestError
from tardisd.market.columns import Batch, closes
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import MINUTE, SECOND, Interval
from tardisd.plugins.exchange import Page
from tardisd.venue.lead import Lead

from .rest import BELIEVED_AFTER, KLINE_ROWS, Rest

SOURCE = "REST kline"
AT_ONCE = 8
# A candle may still change in the moment after its close, and may take longer to appear.
SETTLE_NS = 2 * SECOND
LATE_NS = 10 * MINUTE
_MOST_HOLES = 20  # asked for again per window


@dataclass(slots=True)
class _Window:
    """One question, and what came of it."""

    span: Span
    batch: Batch | None = None
    now: int = 0
    error: RequestError | PluginError | None = None


@trio.as_safe_channel
async def candle_pages(rest: Rest, series: Series, span: Span) -> AsyncGenerator[Page, None]:
    """Yield the closed candles of `span`, page by page; ends where the venue's clock does."""
    interval = series.data_type.interval
    assert interval is not None
    cursor, closed = span.start, None
    month = await rest.first_month(series)
    begin = span.start - 1 if month is None else min(interval.floor(month), span.end)
    lead = Lead(series)
    if begin == cursor:
        lead.begins()
    elif begin > cursor:
        yield lead.before(Span(cursor, begin), "before the first month")
        cursor = begin
    while cursor < span.end:
        # The first answer tells the venue's clock: what lies ahead of it is not asked for.
        group = _plan(interval, Span(cursor, min(span.end, closed or span.end)),
                      1 if closed is None else AT_ONCE)  # fmt: skip
        if not group:
            return
        async with trio.open_nursery() as nursery:
            for window in group:
                nursery.start_soon(_fill, rest, series, interval, window)
        found: list[Batch] = []
        end = cursor
        for window in group:
            if window.batch is None:
                break
            closed = interval.floor(window.now - SETTLE_NS)
            reach = _reach(window, interval, min(closed, window.span.end))
            opens = window.batch.ts_event
            kept = (opens < reach) & (closes(opens, interval) <= closed)
            found.append(window.batch[kept])
            end = reach
            if end < window.span.end:
                break
        if end > cursor:
            yield lead.mark(Page(Batch.concat(found), Span(cursor, end), source=SOURCE))
        failure = next((window.error for window in group if window.error is not None), None)
        if failure is not None:
            raise failure
        if end < group[-1].span.end:
            return
        cursor = end


def _plan(interval: Interval, span: Span, count: int) -> list[_Window]:
    """Return the next windows of `span`, at most `count`."""
    edges = [span.start]
    opened = interval.ceil(span.start)
    while len(edges) <= count and edges[-1] < span.end:
        if interval.fixed_ns is not None:
            opened += KLINE_ROWS * interval.fixed_ns
        else:
            for _ in range(KLINE_ROWS):
                if opened < span.end:
                    opened = interval.close(opened)
        edges.append(min(opened, span.end))
    return [_Window(Span(start, end)) for start, end in pairwise(edges)]


def _reach(window: _Window, interval: Interval, end: int) -> int:
    """Return up to where (ns) a window's answer is the whole truth."""
    assert window.batch is not None
    last = window.span.start
    if len(window.batch):
        last = int(closes(window.batch.ts_event[-1:], interval)[0])
    sure = interval.floor(window.now - max(LATE_NS, interval.nominal_ns))
    return max(min(end, max(last, sure)), window.span.start)


async def _fill(rest: Rest, series: Series, interval: Interval, window: _Window) -> None:
    try:
        answer = await rest.klines(series, window.span)
        batch = answer.batch
        closed = interval.floor(answer.now - SETTLE_NS)
        asked = Span(window.span.start, max(min(window.span.end, closed), window.span.start))
        for _ in range(BELIEVED_AFTER):
            holes = _holes(batch, interval, asked)
            if not holes:
                break
            hidden = [(await rest.klines(series, hole)).batch for hole in holes]
            batch = await trio.to_thread.run_sync(_merged, series, [batch, *hidden])
        window.batch, window.now = batch, answer.now
    except (RequestError, PluginError) as error:
        window.error = error


def _holes(batch: Batch, interval: Interval, span: Span) -> list[Span]:
    """Return the first stretches of `span` in which no candle opens though one could."""
    opens = batch.ts_event
    starts = np.concatenate([[span.start], closes(opens, interval)])
    ends = np.concatenate([np.minimum(opens, span.end), [span.end]])
    np.maximum.accumulate(starts, out=starts)
    at = np.flatnonzero(ends > starts)[:_MOST_HOLES]
    holes = [Span(start, end) for start, end in np.stack([starts, ends])[:, at].T.tolist()]
    return [hole for hole in holes if interval.ceil(hole.start) < hole.end]


def _merged(series: Series, batches: list[Batch]) -> Batch:
    joined = Batch.concat(batches)
    try:
        return settle(joined, np.arange(len(joined)))[0]
    except Conflict as conflict:
        raise PluginError(
            f"two answers on {series} contradict each other: {conflict.message}; try again"
        ) from None
