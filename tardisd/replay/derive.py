"""Candles that a venue's own were not stored for: built from trades or finer candles as they come.

Pure and synchronous; reads nothing and orders nothing. What comes out depends on the source's rows
and coverage alone, never on how the rows are cut into batches:

- A candle is built of an interval that the source covers wholly and in which it has rows. It is
  complete once a row at or past its close has been seen, or the source has ended.
- An interval that uncovered time touches gives no candle but a gap, told at its start. So does
  one of a candle source in which a row is missing and nobody knows why, or whose bounds a row
  straddles; that is found out on the way, and told there: at the hole, or at the close.
- An interval without rows gives a gap: `no_trades`, or what was recorded for the source.
- Where the venue was down, or is known to have had no trades, what remains is the whole of it.

With `forming`, candles are also given out unfinished: at the end of each market second in which the
source had rows, as of then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tardisd.backfill.ledger import (
    HoleScanner,
    assign_causes,
    covered_gaps,
    merge_gaps,
    uncovered_gaps,
    whole_candles,
)
from tardisd.market.columns import Batch, closes, floors
from tardisd.market.decimals import Bools, Ints
from tardisd.market.fold import as_candles, fold, running, starts_of
from tardisd.market.series import Series
from tardisd.market.span import COVERED_CAUSES, Coverage, Gap, Span
from tardisd.market.time import SECOND, Interval

# Causes that say what happened in covered time without a row: nothing was traded.
_NOTHING_HAPPENED = ("exchange_down", "no_trades")


@dataclass(frozen=True, slots=True)
class Built:
    """What became known: finished candles, unfinished ones with when they were so, and gaps.

    Gaps come with the time (ns) at which they are to be told, candles not delayed.
    """

    closed: Batch
    forming: Batch
    updates: Ints
    gaps: Sequence[tuple[int, Gap]]


class CandleBuilder:
    """Builds the candles of one series within `span` from batches of `source`, in order.

    `coverage` and `causes` are the source's. Its rows are read from `start` on (default: all of
    the span), which is an open of the series; a candle of the source that opens at `before`, the
    last one before `start`, may reach beyond it.
    """

    def __init__(
        self,
        series: Series,
        source: Series,
        span: Span,
        coverage: Coverage,
        causes: Sequence[Gap],
        forming: bool = False,
        start: int | None = None,
        before: int | None = None,
    ) -> None:
        interval = series.data_type.interval
        assert interval is not None
        self.series, self.source = series, source
        self._interval, self._forming = interval, forming
        self._coverage, self._causes = coverage, causes
        within = whole_candles(span, interval) or Span(span.start, span.start)
        begin = within.start if start is None else max(start, within.start)
        self.within = Span(min(begin, within.end), within.end)
        #: Gaps known from the beginning, each told at its start.
        self.uncovered = _whole(uncovered_gaps(coverage, causes, within), interval, within)
        self._broken = _Broken(self.uncovered)
        self._rows_scanner: HoleScanner | None = None
        if source.data_type.interval is not None:
            self._rows_scanner = HoleScanner(source.data_type.interval, self.within)
            if before is not None and before >= within.start:
                self._rows_scanner.feed(np.array([before], np.int64))
                reach = Span(before, source.data_type.interval.close(before))
                if (part := _outer(reach, interval).intersect(self.within)) is not None:
                    self._broken.add(part.start, Gap(part, "unknown"))
        self._scanner = HoleScanner(interval, self.within)
        self._pending = Batch.empty(series)
        self._pending_update = np.empty(0, np.int64)
        self._carry = self._pending
        self._over = not self.within

    def feed(self, batch: Batch) -> Built:
        """Take the next rows of the source; return what they complete."""
        rows = batch.within(self.within)
        gaps: list[tuple[int, Gap]] = []
        if self._rows_scanner is not None:
            rows = self._without_breaks(rows, self._rows_scanner.feed(rows.ts_event), gaps)
        made = as_candles(rows, self.series)
        updates = self._updates(rows) if self._forming else made.ts_event
        starts = starts_of(made.ts_event, updates)
        made, updates = fold(made, starts), updates[starts]
        gaps += self._empty(self._scanner.feed(made.ts_event))
        if len(batch) and int(batch[-1:].release()[0]) >= self.within.end:
            return self._finish(made, updates, gaps)
        return self._complete(made, updates, gaps, self._closes_before(batch, made))

    def finish(self) -> Built:
        """Return what is complete now that the source has no more rows."""
        return self._finish(self._pending[:0], self._pending_update[:0], [])

    def _finish(self, made: Batch, updates: Ints, gaps: list[tuple[int, Gap]]) -> Built:
        if not self._over:
            self._over = True
            if self._rows_scanner is not None:
                self._break(self._rows_scanner.finish(), [], gaps)
            gaps += self._empty(self._scanner.finish())
        return self._complete(made, updates, gaps, True)

    def _updates(self, rows: Batch) -> Ints:
        """Return the end of the second at which each row may be known."""
        known = rows.release()
        if self._rows_scanner is None:  # a trade at the very end of a second is of the next
            known = known + 1
        return -(-known // SECOND) * SECOND

    def _closes_before(self, batch: Batch, made: Batch) -> bool:
        """Tell whether the last interval that has rows is over when the last row is reached."""
        last = made if len(made) else self._pending
        if not len(last) or not len(batch):
            return False
        return self._interval.close(int(last.ts_event[-1])) <= int(batch.ts_event[-1])

    # ---- gaps

    def _without_breaks(
        self, rows: Batch, holes: Sequence[Span], gaps: list[tuple[int, Gap]]
    ) -> Batch:
        """Take note of what spoils candles made of candles; return the rows that spoil nothing."""
        opens = floors(rows.ts_event, self._interval)
        bounds = closes(opens, self._interval)
        ends = rows.release()
        astride = ends > bounds
        found = []
        if astride.any():
            at = np.flatnonzero(astride)
            columns = (bounds[at], opens[at], ends[at])
            found = [
                (bound, Gap(Span(first, self._interval.ceil(end)), "unknown"))
                for bound, first, end in zip(*(c.tolist() for c in columns), strict=True)
            ]
            rows = rows[~astride]
        self._break(holes, found, gaps)
        return rows

    def _break(
        self,
        holes: Sequence[Span],
        found: list[tuple[int, Gap]],
        gaps: list[tuple[int, Gap]],
    ) -> None:
        """Spoil the intervals in which rows are missing for no known reason, and those `found`."""
        interval = self.source.data_type.interval
        assert interval is not None
        if holes:
            missing = covered_gaps(holes, self._coverage, self._causes, interval, self.within)
            found += [
                (gap.span.start, Gap(_outer(gap.span, self._interval), gap.cause))
                for gap in missing
                if gap.cause not in _NOTHING_HAPPENED
            ]
        for since, gap in sorted(found, key=lambda item: item[0]):
            part = gap.span.intersect(self.within)
            if part is not None:
                gaps += self._broken.add(since, Gap(part, gap.cause))

    def _empty(self, holes: Sequence[Span]) -> list[tuple[int, Gap]]:
        """Return the gaps of intervals without rows that are not spoilt anyway."""
        if not holes:
            return []
        parts = [part for hole in holes for part in self._broken.leave(hole)]
        default = "no_trades" if self._rows_scanner is None else "unknown"
        found = assign_causes(parts, self._causes, COVERED_CAUSES, default)
        return [(gap.span.start, gap) for gap in found]

    # ---- candles

    def _complete(
        self, made: Batch, updates: Ints, gaps: list[tuple[int, Gap]], all_of_it: bool
    ) -> Built:
        """Add rows to those that wait, and return what is complete; the last is if `all_of_it`."""
        if len(self._pending):
            made = Batch.concat([self._pending, made])
            updates = np.concatenate([self._pending_update, updates])
            starts = starts_of(made.ts_event, updates)
            made, updates = fold(made, starts), updates[starts]
        upto = len(made) if all_of_it else max(0, len(made) - 1)
        self._pending, self._pending_update = made[upto:], updates[upto:]
        made, updates = made[:upto], updates[:upto]
        if not len(made):
            return Built(made, made, updates, gaps)
        if self._forming:
            carried = len(self._carry)
            made = Batch.concat([self._carry, made])
            made = running(made, starts_of(made.ts_event))[carried:]
        opens = made.ts_event
        last = np.ones(len(opens), np.bool_)
        last[:-1] = opens[1:] != opens[:-1]
        if len(self._pending):
            last[-1] = opens[-1] != self._pending.ts_event[0]
        self._carry = made[:0] if last[-1] else made[-1:]
        since = self._broken.since(opens)
        self._broken.forget(int(opens[-1]))
        closed = made[last & (since < 0)]
        if not self._forming:
            return Built(closed, made[:0], updates[:0], gaps)
        shown: Bools = (updates < closes(opens, self._interval)) & (
            (since < 0) | (updates <= since)
        )
        return Built(closed, made[shown], updates[shown], gaps)


class _Broken:
    """The intervals that give no candle, and since when that is known."""

    def __init__(self, uncovered: Sequence[Gap]) -> None:
        self._uncovered = Coverage(gap.span for gap in uncovered)
        self._spans = [(span.start, span.end, span.start) for span in self._uncovered]
        self._told = 0
        self._set()

    def _set(self) -> None:
        self._columns = np.array(self._spans, np.int64).reshape(-1, 3)

    def add(self, since: int, gap: Gap) -> list[tuple[int, Gap]]:
        """Add intervals found to be broken at `since`; return the gaps not told before."""
        found = []
        for part in self._uncovered.gaps(gap.span):
            start = max(part.start, self._told)
            if start < part.end:
                at = max(since, start)
                found.append((at, Gap(Span(start, part.end), gap.cause)))
                self._spans.append((start, part.end, at))
                self._told = part.end
        if found:
            self._spans.sort()
            self._set()
        return found

    def forget(self, before: int) -> None:
        """Drop what ended by then: the table stays as short as what lies ahead is broken."""
        if self._spans and self._spans[0][1] <= before:
            self._spans = [span for span in self._spans if span[1] > before]
            self._set()

    def leave(self, span: Span) -> Iterable[Span]:
        """Return what of `span` is not broken."""
        return Coverage(Span(start, end) for start, end, _ in self._spans).gaps(span)

    def since(self, opens: Ints) -> Ints:
        """Return since when the interval at each of `opens` is broken, -1 for a sound one."""
        if not self._spans:
            return np.full(len(opens), -1, np.int64)
        at = np.searchsorted(self._columns[:, 0], opens, "right") - 1
        inside = (at >= 0) & (opens < self._columns[at, 1])
        return np.where(inside, self._columns[at, 2], -1)


def _outer(span: Span, interval: Interval) -> Span:
    """Return the whole intervals that a span touches."""
    return Span(interval.floor(span.start), interval.ceil(span.end))


def _whole(gaps: Sequence[Gap], interval: Interval, within: Span) -> list[Gap]:
    """Return the gaps widened to whole intervals; where two meet in one, the first explains it."""
    found: list[Gap] = []
    told = within.start
    for gap in gaps:
        touched = _outer(gap.span, interval)
        start, end = max(told, touched.start), min(touched.end, within.end)
        if start < end:
            found.append(Gap(Span(start, end), gap.cause))
            told = end
    return merge_gaps(found)
