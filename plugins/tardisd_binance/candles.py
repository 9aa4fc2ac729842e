"""Candles page by page over REST: closed ones only, every hole asked for again; stores nothing.

Pages end where a candle closes. A short page is no end of the data, only an empty one is, and that
is believed when a question without an end brings nothing either. Where one answer was full, the
next ones are asked for side by side, and taken in order as far as they are full as well; one that
is not is asked for again by itself, while the others go on coming.
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
from tardisd.venue.ahead import Sliding

from .rest import Rest, merged

SOURCE = "REST klines"
BELIEVED_AFTER = 3  # answers that say again that something is not there
_TRIES = 4  # of an answer that another contradicts
AT_ONCE = 32  # requests under way
# Answers asked for before those before them have been taken: few at first, twice as many after each
# page. Among the most, half may be under way while the others wait to be stored together.
_FEW, _MOST = 8, 64
_MOST_HOLES = 20  # asked for again one by one


class CandlePager:
    """The candles of `span` that have closed by a time (ns), page by page.

    What is asked ahead is asked in `nursery`, which must not outlast the fetch.
    """

    def __init__(
        self, rest: Rest, series: Series, span: Span, closed_by: int, nursery: trio.Nursery
    ) -> None:
        interval = series.data_type.interval
        assert interval is not None
        self._rest = rest
        self._series = series
        self._interval = interval
        self._closed_by = closed_by
        self._cursor = span.start
        self._end = span.end
        self._flowing = False
        self._width = _FEW
        self._ahead: Sliding[Batch] = Sliding(nursery, self._ask)

    async def next(self) -> Page | None:
        """Return the next page, None after the last."""
        if self._cursor >= self._end:
            await self._ahead.stop()
            return None
        if found := await self._several():
            page = await trio.to_thread.run_sync(_joined, found)
            span = Span(self._cursor, _next_open(page.ts_event, self._interval))
            self._cursor = span.end
            return Page(page, span, source=SOURCE)
        for _ in range(_TRIES):
            span = Span(self._cursor, self._bound())
            batch = await self._ask(span)
            self._flowing = len(batch) == self._rest.rules.kline_rows
            batch = self._closed(batch)
            if self._cursor >= self._end:
                await self._ahead.stop()
                return None
            span = Span(self._cursor, self._bound())
            if len(batch):
                end = _page_end(batch.ts_event, self._interval, span)
                page = batch[batch.ts_event < end]
                batch = await fill_holes(self._rest, self._series, page, Span(span.start, end))
                break
            if await self._nothing_in(span):
                end = span.end
                break
        else:
            raise PluginError(
                f"binance answers emptily for {self._series} {span}, where it has candles;"
                " try again later"
            )
        self._cursor = end
        return Page(tidy(batch), Span(span.start, end), source=SOURCE)

    def _bound(self) -> int:
        """Return where (ns) a question ends: what lies behind has been asked already."""
        held = self._ahead.first
        return self._end if held is None else min(held.start, self._end)

    async def _ask(self, span: Span) -> Batch:
        return await self._rest.klines(self._series, span.start, span.end)

    async def _nothing_in(self, span: Span) -> bool:
        """Tell whether an empty answer was no slip: it would cover all of the span."""
        for _ in range(BELIEVED_AFTER):
            after = await self._rest.klines(self._series, span.start, limit=1)
            if len(after):
                return int(after.ts_event[0]) >= span.end
        return True

    async def _several(self) -> list[Batch]:
        """Return the next answers as far as each has every candle that it could have."""
        self._ask_ahead()
        found: list[Batch] = []
        cursor = self._cursor
        while (span := self._ahead.first) is not None and span.start == cursor:
            if len(found) >= (_MOST if self._ahead.ready else _FEW):
                break
            batch: Batch | None = None
            try:
                batch = await self._ahead.look()
            except PluginError:
                pass  # asked for again by itself, it tells what is wrong
            except RequestError:  # what is final is not asked for again
                if found:
                    break
                raise
            if batch is None or not np.array_equal(batch.ts_event, self._wanted(span)):
                if not found:
                    await self._doubt(batch)
                break
            self._ahead.drop()
            found.append(batch)
            cursor = span.end
        if found:
            self._width = min(2 * self._width, _MOST)
        return found

    def _ask_ahead(self) -> None:
        """Ask on, where every answer may be expected to be full."""
        step, start = self._interval.fixed_ns, self._ahead.end or self._cursor
        if not self._flowing or step is None or self._interval.floor(start) != start:
            return
        length = self._rest.rules.kline_rows * step
        while len(self._ahead) < self._width and start + length <= min(self._end, self._closed_by):
            self._ahead.ask(Span(start, start + length))
            start += length

    def _wanted(self, span: Span) -> Ints:
        step = self._interval.fixed_ns
        assert step is not None
        return np.arange(span.start, span.end, step)

    async def _doubt(self, batch: Batch | None) -> None:
        """Let an answer that is not full go: its span is asked for by itself."""
        self._ahead.drop()
        self._flowing, self._width = False, _FEW
        if batch is not None and not len(batch):  # what follows may be as empty
            await self._ahead.stop()

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
    whole = batch
    for _ in range(BELIEVED_AFTER):
        # An answer may lack rows as well: what it leaves open is asked for anew.
        found = [whole]
        for hole in candle_holes(whole.ts_event, interval, span):
            cursor = hole.start
            while cursor < hole.end and len(hidden := await rest.klines(series, cursor, hole.end)):
                found.append(hidden)
                cursor = _next_open(hidden.ts_event, interval)
        if len(found) > 1:
            whole = await trio.to_thread.run_sync(merged, found)
    return batch if whole is batch else tidy(whole)


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


def _joined(found: list[Batch]) -> Batch:
    return tidy(Batch.concat(found))


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
