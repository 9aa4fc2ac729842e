"""Candles page by page over REST: closed ones only, every hole asked for again; stores nothing.

Pages end where a candle closes. A short page is no end of the data, only an empty one is, and that
is believed when a question without an end brings nothing either. Where one answer was full, the
next ones are asked for side by side, and taken as far as they are full as well.
"""

from __future__ import annotations

import numpy as np
import trio

from tardisd.errors import PluginError, RequestError
from tardisd.market.columns import Batch, closes
from tardisd.market.decimals import Ints
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import Interval
from tardisd.plugins.exchange import Page

from .rest import Rest, merged

SOURCE = "REST klines"
BELIEVED_AFTER = 2  # answers that say again that something is not there
_TRIES = 4  # of an answer that another contradicts
AT_ONCE = 8
_MOST_HOLES = 20  # asked for again one by one


class CandlePager:
    """The candles of `span` that have closed by a time (ns), page by page."""

    def __init__(self, rest: Rest, series: Series, span: Span, closed_by: int) -> None:
        interval = series.data_type.interval
        assert interval is not None
        self._rest = rest
        self._series = series
        self._interval = interval
        self._closed_by = closed_by
        self._cursor = span.start
        self._end = span.end
        self._flowing = False
        self._refused: RequestError | None = None

    async def next(self) -> Page | None:
        """Return the next page, None after the last."""
        if self._cursor >= self._end:
            return None
        if self._flowing and (found := await self._several()):
            page = Batch.concat(found)
            span = Span(self._cursor, _next_open(page.ts_event, self._interval))
            self._cursor = span.end
            return Page(tidy(page), span, source=SOURCE)
        if self._refused is not None:
            raise self._refused
        for _ in range(_TRIES):
            batch = await self._rest.klines(self._series, self._cursor, self._end)
            self._flowing = len(batch) == self._rest.rules.kline_rows
            batch = self._closed(batch)
            if self._cursor >= self._end:
                return None
            span = Span(self._cursor, self._end)
            if len(batch):
                end = _page_end(batch.ts_event, self._interval, span)
                page = batch[batch.ts_event < end]
                batch = await fill_holes(self._rest, self._series, page, Span(span.start, end))
                break
            # An empty answer would cover all the rest: it must not be a slip.
            ahead = await self._rest.klines(self._series, span.start, limit=1)
            if not len(ahead) or int(ahead.ts_event[0]) >= span.end:
                end = span.end
                break
        else:
            raise PluginError(
                f"binance answers emptily for {self._series} {span}, where it has candles;"
                " try again later"
            )
        self._cursor = end
        return Page(tidy(batch), Span(span.start, end), source=SOURCE)

    async def _several(self) -> list[Batch]:
        """Return the next answers as far as each has every candle that it could have."""
        step, start = self._interval.fixed_ns, self._cursor
        if step is None or self._interval.floor(start) != start:
            return []
        length = self._rest.rules.kline_rows * step
        count = min(AT_ONCE, (min(self._end, self._closed_by) - start) // length)
        answers: list[Batch | None] = [None] * count
        refused: dict[int, RequestError] = {}

        async def ask(at: int) -> None:
            begin = start + at * length
            try:
                answers[at] = await self._rest.klines(self._series, begin, begin + length)
            except PluginError:
                answers[at] = None  # asked for again by itself, it tells what is wrong
            except RequestError as error:
                refused[at] = error  # what is final is not asked for again

        async with trio.open_nursery() as nursery:
            for at in range(count):
                nursery.start_soon(ask, at)
        found: list[Batch] = []
        for batch in answers:
            wanted = np.arange(start + len(found) * length, start + (len(found) + 1) * length, step)
            if batch is None or not np.array_equal(batch.ts_event, wanted):
                self._flowing = False
                self._refused = refused.get(len(found))
                break
            found.append(batch)
        return found

    def _closed(self, batch: Batch) -> Batch:
        """Return the closed candles; the span ends where one is open, whatever its grid."""
        still_open = closes(batch.ts_event, self._interval) > self._closed_by
        if not still_open.any():
            return batch
        self._end = min(self._end, int(batch.ts_event[still_open][0]))
        return batch[~still_open]


async def fill_holes(rest: Rest, series: Series, batch: Batch, span: Span) -> Batch:
    """Return the candles of `span` with what REST has where `batch` has none."""
    interval = series.data_type.interval
    assert interval is not None
    found = [batch]
    for hole in candle_holes(batch.ts_event, interval, span):
        cursor, doubts = hole.start, 0
        while cursor < hole.end and doubts < BELIEVED_AFTER:
            hidden = await rest.klines(series, cursor, hole.end)
            doubts += 1
            if len(hidden):
                found.append(hidden)
                cursor, doubts = _next_open(hidden.ts_event, interval), 0
    return batch if len(found) == 1 else tidy(await trio.to_thread.run_sync(merged, found))


def candle_holes(opens: Ints, interval: Interval, span: Span) -> list[Span]:
    """Return the stretches of `span` without a candle; one that holds all when they are many."""
    ends = np.concatenate([[span.start], closes(opens, interval)])
    np.maximum.accumulate(ends, out=ends)
    upto = np.append(opens, interval.floor(span.end))
    at = np.flatnonzero(upto > ends)
    holes = [Span(int(ends[i]), int(upto[i])) for i in at]
    return holes if len(holes) <= _MOST_HOLES else [Span(holes[0].start, holes[-1].end)]


def tidy(batch: Batch) -> Batch:
    """Return the batch with every column at its smallest scale."""
    fields = {name: column.reduced() for name, column in batch.fields.items()}
    return Batch(batch.series, batch.ts_event, fields, batch.ids, batch.sides)


def _next_open(opens: Ints, interval: Interval) -> int:
    return int(closes(opens[-1:], interval)[0])


def _page_end(opens: Ints, interval: Interval, span: Span) -> int:
    """Return where a page ends: at a close, or before a last candle that is off the grid.

    After an outage Binance's candles may open some seconds late, and the next ones on the grid
    again: a cut after a late one could lose its successor.
    """
    last = int(opens[-1])
    aligned = interval.floor(last)
    if aligned != last and span.start < aligned:
        return aligned
    return min(max(_next_open(opens, interval), span.start + 1), span.end)
