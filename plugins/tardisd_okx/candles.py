"""Candles over REST, in windows of what one answer can hold; stores nothing.

The windows are known beforehand, so several are asked for at once. A candle counts as closed when
OKX confirms it and its clock is past its close. OKX has a candle for every interval since a symbol
was listed: where one is missing it is asked for again before that is believed, and near OKX's clock
it is taken for late, not for missing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import trio

from tardisd.errors import PluginError, RequestError
from tardisd.market.columns import Batch, closes
from tardisd.market.series import Series
from tardisd.market.span import Gap, Span
from tardisd.market.time import MINUTE, Interval, format_time
from tardisd.plugins.exchange import Page
from tardisd.venue.client import Unreadable
from tardisd.venue.lead import Lead

from .rest import BELIEVED_AFTER, CANDLE_ROWS, Rest
from .rows import merged

SOURCE = "REST candles"
AT_ONCE = 4
LATE_NS = 10 * MINUTE  # a candle may take so long to appear
_MOST_HOLES = 20  # asked for again per window
_NEWEST_ROWS = 1400  # of the 1440 that the endpoint of the newest has


@dataclass(slots=True)
class _Window:
    """One question, and what came of it: all that `batch` lacks up to `reach` (ns) is not there."""

    span: Span
    newest: bool
    batch: Batch | None = None
    reach: int = 0
    error: RequestError | PluginError | None = None


@trio.as_safe_channel
async def candle_pages(
    rest: Rest, series: Series, span: Span, closed_by: int
) -> AsyncGenerator[Page, None]:
    """Yield the candles of `span` that have closed by a time (ns) of OKX's clock, page by page."""
    interval = series.data_type.interval
    assert interval is not None
    cursor, count, lead = span.start, 1, Lead(series)
    while cursor < span.end:
        group = _plan(interval, Span(cursor, span.end), count, closed_by)
        async with trio.open_nursery() as nursery:
            for window in group:
                nursery.start_soon(_fill, rest, series, window, closed_by)
        first = group[0]
        if count == 1 and first.batch is not None and not len(first.batch):
            sure = interval.floor(closed_by - max(LATE_NS, interval.nominal_ns))
            begin = min(await _begin(rest, series, span), sure)
            if begin > cursor:  # years without a candle need no questions
                page = await _lead(rest, series, Span(cursor, begin), closed_by)
                if not page.holes:
                    lead.begins()
                yield page
                cursor = begin
                continue
        count = AT_ONCE
        found: list[Batch] = []
        end = cursor
        for window in group:
            if window.batch is None:
                break
            found.append(window.batch)
            end = window.reach
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


async def fill_holes(rest: Rest, series: Series, batch: Batch, span: Span, closed_by: int) -> Batch:
    """Return the candles of `span` with what REST has where `batch` has none."""
    interval = series.data_type.interval
    assert interval is not None
    for _ in range(BELIEVED_AFTER):
        found = []
        for hole in _holes(batch, interval, span):
            for window in _plan(interval, hole, 1 + hole.length // interval.nominal_ns, closed_by):
                found.append((await rest.candles(series, window.span)).batch)
        if any(map(len, found)):
            batch = _joined(series, [batch, *found])
        elif not found:
            break
    return batch


def _plan(interval: Interval, span: Span, count: int, closed_by: int) -> list[_Window]:
    """Return the next windows of `span`, at most `count`; the newest ones come from elsewhere."""
    edge = interval.floor(closed_by - _NEWEST_ROWS * interval.nominal_ns)
    if str(interval) == "1s":  # which the endpoint of the newest has not
        edge = span.end
    edges = [span.start]
    opened = interval.ceil(span.start)
    while len(edges) <= count and edges[-1] < span.end:
        if interval.fixed_ns is not None:
            opened += CANDLE_ROWS * interval.fixed_ns
        else:
            for _ in range(CANDLE_ROWS):
                if opened < span.end:
                    opened = interval.close(opened)
        opened = min(opened, edge) if edges[-1] < edge else opened
        edges.append(min(opened, span.end))
    return [_Window(Span(start, end), start >= edge) for start, end in pairwise(edges)]


async def _fill(rest: Rest, series: Series, window: _Window, closed_by: int) -> None:
    interval = series.data_type.interval
    assert interval is not None
    try:
        batch, end = await _ask(rest, series, window.span, window.newest, closed_by)
        for _ in range(BELIEVED_AFTER):
            asked = Span(window.span.start, max(end, window.span.start))
            holes = _holes(batch, interval, asked)
            if not holes:
                break
            found = [batch]
            for hole in holes:
                found.append((await _ask(rest, series, hole, window.newest, closed_by))[0])
            batch = _joined(series, found)
        last = window.span.start
        if len(batch):
            last = int(closes(batch.ts_event[-1:], interval)[0])
        sure = interval.floor(closed_by - max(LATE_NS, interval.nominal_ns))
        window.reach = max(min(end, max(last, sure)), window.span.start)
        window.batch = batch[batch.ts_event < window.reach]
    except (RequestError, PluginError) as error:
        window.error = error


async def _ask(
    rest: Rest, series: Series, span: Span, newest: bool, closed_by: int
) -> tuple[Batch, int]:
    """Return the closed candles of `span`, and up to where (ns) none is open."""
    interval = series.data_type.interval
    assert interval is not None
    answer = await rest.candles(series, span, newest=newest)
    batch = answer.batch
    closed = answer.confirmed & (closes(batch.ts_event, interval) <= closed_by)
    if bool(closed.all()):
        return batch, span.end
    first = int(batch.ts_event[np.argmin(closed)])
    if interval.close(first) <= closed_by - LATE_NS:
        raise PluginError(
            f"okx has not confirmed the candle of {series} at {format_time(first)}, long after its"
            " close; try again later"
        )
    return batch[batch.ts_event < first], first


def _holes(batch: Batch, interval: Interval, span: Span) -> list[Span]:
    """Return the first stretches of `span` in which no candle opens though one could."""
    opens = batch.ts_event
    starts = np.concatenate([[span.start], closes(opens, interval)])
    ends = np.concatenate([np.minimum(opens, span.end), [span.end]])
    at = np.flatnonzero(ends > starts)[:_MOST_HOLES]
    holes = [Span(start, end) for start, end in np.stack([starts, ends])[:, at].T.tolist()]
    return [hole for hole in holes if interval.ceil(hole.start) < hole.end]


def _joined(series: Series, batches: list[Batch]) -> Batch:
    try:
        return merged(batches)
    except Unreadable as error:
        raise PluginError(f"two answers on {series} differ: {error}; try again") from None


async def _begin(rest: Rest, series: Series, span: Span) -> int:
    """Return a time (ns) in `span` before which OKX has nothing of it, near the first candle."""
    interval = series.data_type.interval
    assert interval is not None

    async def nothing_before(ts: int) -> bool:
        for _ in range(BELIEVED_AFTER):
            if len(await rest.candles_before(series, ts)):
                return False
        return True

    low, high = span.start, span.end
    if not await nothing_before(low):
        return low
    if await nothing_before(high):
        return high
    while high - low > CANDLE_ROWS * interval.nominal_ns:
        middle = interval.floor((low + high) // 2)
        if await nothing_before(middle):
            low = middle
        else:
            high = middle
    return low


async def _lead(rest: Rest, series: Series, span: Span, now: int) -> Page:
    """Return the page of the time before the first candle.

    Before the first month it was not traded. After it, OKX no longer keeps candles that short: what
    was there nobody knows.
    """
    month = await rest.first_month(series, now)
    known = span.end if month is None else min(max(month.end, span.start), span.end)
    gaps = (Gap(Span(span.start, known), "no_trades"),) if known > span.start else ()
    holes = (Span(known, span.end),) if known < span.end else ()
    return Page(Batch.empty(series), span, gaps, "before the first candle", holes)
