"""The ordered merge: batches of many series in, windows of ticks and gap marks in total order out.

Pure and synchronous. A window reaches up to, and not into, the earliest last release time among the
series that have more to come: what is still unread cannot belong before it, so the order is exact.
Within a window: concatenate by series in their order, then one stable sort by release time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np

from tardisd.backfill.ledger import HoleScanner, covered_gaps, uncovered_gaps, whole_candles
from tardisd.market.columns import Batch
from tardisd.market.decimals import Ints
from tardisd.market.series import GAP_CLASS, KINDS, Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.market.ticks import Order, Rows, Ticks

BLOCK_TICKS = 4096
_FOREVER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Mark:
    """A gap told in the stream: it starts at `ts_release`."""

    ts_release: int
    series: Series
    gap: Gap


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive ticks of a window: by kind, and the runs (kind, first row, rows) in order."""

    kinds: Sequence[Ticks]
    runs: Sequence[tuple[int, int, int]]
    release: Ints


class Taker(Protocol):
    """What wants the rows that a track is fed, as they come."""

    def take_in(self, batch: Batch) -> None:
        """Take the next rows."""

    def finish(self) -> None:
        """Take note that nothing more comes."""


class _Fed(NamedTuple):
    """Rows of a track and when they are released (ns): each of them, the first, the last."""

    batch: Batch
    release: Ints
    first: int
    last: int

    def before(self, bound: int) -> int:
        """Return how many rows are released before `bound`."""
        return len(self.release) if self.last < bound else int(self.release.searchsorted(bound))

    def about(self, bound: int) -> int:
        """Return about how many rows are released before `bound`, reckoned from the ends."""
        part = min(max(bound - self.first, 0), span := self.last - self.first + 1)
        return len(self.release) * part // span


class Track:
    """One series on its way into the merge: what was read and not yet released.

    `takers` are given what it is fed. One that is not `delivered` is read for them alone.
    `first_open` (ns) is that of the first candle that will be fed, where earlier ones are left out.
    """

    def __init__(
        self,
        series: Series,
        span: Span,
        coverage: Coverage,
        causes: Sequence[Gap],
        delay: int,
        first_open: int | None = None,
    ) -> None:
        self.series = series
        self.takers: list[Taker] = []
        self.delivered = True
        self.marks: list[Mark] = []
        self.open = True
        #: Release time (ns) of the last row that was read and not taken; None when there is none.
        self.last: int | None = None
        self._waiting: deque[_Fed] = deque()
        self._taken = 0  # rows of the first one that waits
        self._span, self._coverage, self._causes, self._delay = span, coverage, causes, delay
        self._scanner: HoleScanner | None = None
        interval = series.data_type.interval
        within: Span | None = span
        if interval is not None:
            within = whole_candles(span, interval)
            known = span if first_open is None else Span(first_open, span.end)
            self._scanner = HoleScanner(interval, known)
        if within is not None:
            self._tell(uncovered_gaps(coverage, causes, within))

    def feed(self, batch: Batch, lookahead: bool) -> None:
        """Take the next batch of the series, rows inside the session's span."""
        if self._scanner is not None:
            self._tell_holes(self._scanner.feed(batch.ts_event))
        self.put(batch, batch.ts_event if lookahead else batch.release(self._delay))
        for taker in self.takers:
            taker.take_in(batch)

    def absorb(self) -> None:
        """Do what was put off while rows were read; called before each window is made."""

    def put(self, batch: Batch, release: Ints) -> None:
        """Take rows with the times (ns, ascending) at which they are released."""
        if len(batch):
            self.last = int(release[-1])
            self._waiting.append(_Fed(batch, release, int(release[0]), self.last))

    def finish(self) -> None:
        """Take note that nothing more comes."""
        self.open = False
        if self._scanner is not None:
            self._tell_holes(self._scanner.finish())
        for taker in self.takers:
            taker.finish()

    def _tell_holes(self, holes: Sequence[Span]) -> None:
        interval = self.series.data_type.interval
        assert interval is not None
        self._tell(covered_gaps(holes, self._coverage, self._causes, interval, self._span))

    def _tell(self, gaps: Sequence[Gap]) -> None:
        # A candle that closes at the gap's start is released `delay` later; the mark follows it.
        delay = self._delay if self._scanner is not None else 0
        self.marks += [Mark(gap.span.start + delay, self.series, gap) for gap in gaps]

    def ready(self, bound: int) -> int:
        """Return how many rows there are that are released before `bound`."""
        return sum(fed.before(bound) for fed in self._waiting) - self._taken

    def about(self, bound: int) -> int:
        """Return about how many those are, for much less than it costs to know."""
        return sum(fed.about(bound) for fed in self._waiting) - self._taken

    def after(self, count: int) -> int:
        """Return when the row is released (ns) that comes after so many, of those that wait."""
        count += self._taken
        for fed in self._waiting:
            if count < len(fed.release):
                break
            count -= len(fed.release)
        return int(fed.release[count])

    def take(self, bound: int | None) -> list[Rows]:
        """Return and drop the rows released before `bound` (None: all)."""
        taken = []
        while self._waiting:
            fed = self._waiting[0]
            start, upto = self._taken, len(fed.release)
            if bound is not None:
                upto = fed.before(bound)
            if start < upto:
                taken.append(Rows(fed.batch, fed.release, start, upto))
            if upto < len(fed.release):
                self._taken = upto
                break
            self._taken = 0
            self._waiting.popleft()
        if not self._waiting:
            self.last = None
        return taken

    def take_marks(self, bound: int | None) -> list[Mark]:
        """Return and drop the marks that start before `bound` (None: all)."""
        due = [mark for mark in self.marks if bound is None or mark.ts_release < bound]
        self.marks = [mark for mark in self.marks if bound is not None and mark.ts_release >= bound]
        return due


class Window:
    """Ticks and marks between two bounds, in total order."""

    def __init__(
        self, kinds: Sequence[Ticks], marks: Sequence[Mark], block_ticks: int = BLOCK_TICKS
    ) -> None:
        self._kinds = kinds
        self._block_ticks = block_ticks
        starts = np.cumsum([0, *(len(ticks) for ticks in kinds)])
        self._starts: list[int] = starts.tolist()
        self._order: Order | None = None
        if not kinds:
            self.release: Ints = np.empty(0, np.int64)
        else:
            releases = [ticks.ts_release for ticks in kinds]
            release = releases[0] if len(releases) == 1 else np.concatenate(releases)
            if bool((release[1:] < release[:-1]).any()):
                self._order, release = _sorted(release)
            self.release = release
        # All marks are of one class, that of gaps: what class their series is of does not matter.
        self._marks = sorted(marks, key=lambda mark: (mark.ts_release, mark.series.order[1:]))

    @property
    def kinds(self) -> Sequence[Ticks]:
        """The ticks by kind, each in their own order."""
        return self._kinds

    def followed_by(self, ticks: Ticks) -> Window:
        """Return a window with more ticks, of a class after all that are in it."""
        return Window([*self._kinds, ticks], self._marks, self._block_ticks)

    def __iter__(self) -> Iterator[Mark | tuple[int, int]]:
        """Return marks, and ranges of at most `block_ticks` rows between them, in order."""
        row = 0
        for mark in self._marks:
            upto = self._place(mark)
            yield from _ranges(row, upto, self._block_ticks)
            yield mark
            row = upto
        yield from _ranges(row, len(self.release), self._block_ticks)

    def _place(self, mark: Mark) -> int:
        """Return how many rows come before a mark: at its instant, only candles do."""
        first = int(np.searchsorted(self.release, mark.ts_release, "left"))
        last = int(np.searchsorted(self.release, mark.ts_release, "right"))
        before = sum(len(t) for t in self._kinds if KINDS[t.kind] < GAP_CLASS)
        if self._order is None:
            return min(max(first, before), last)
        return first + int((self._order[first:last] < before).sum())

    def piece(self, first: int, last: int) -> Piece:
        """Return the ticks of rows `first <= i < last`, gathered in order."""
        release = self.release[first:last]
        order = self._order
        if len(self._kinds) == 1:
            ticks = self._kinds[0].take(slice(first, last) if order is None else order[first:last])
            return Piece([ticks], [(0, 0, last - first)], release)
        places = np.arange(first, last) if order is None else order[first:last]
        kind = bisect_right(self._starts, int(places.min())) - 1
        if int(places.max()) < self._starts[kind + 1]:  # as in most blocks, candles being few
            ticks = self._kinds[kind].take(places - self._starts[kind])
            return Piece([ticks], [(0, 0, last - first)], release)
        which = np.searchsorted(self._starts, places, "right") - 1
        kinds: list[Ticks] = []
        number: dict[int, int] = {}
        for kind in np.unique(which).tolist():
            number[kind] = len(kinds)
            kinds.append(self._kinds[kind].take(places[which == kind] - self._starts[kind]))
        borders = [0, *(np.flatnonzero(np.diff(which)) + 1).tolist(), last - first]
        taken = [0] * len(kinds)
        runs = []
        for start, end in pairwise(borders):
            kind = number[int(which[start])]
            runs.append((kind, taken[kind], end - start))
            taken[kind] += end - start
        return Piece(kinds, runs, release)


def _sorted(times: Ints) -> tuple[Order, Ints]:
    """Return the stable order of times, and the times in it.

    Time and row number packed into one integer sort faster than the numbers by their times: there
    are no look-ups. It needs a window of less than years. All are different, so any sort would do;
    the stable one makes use of it that each series is sorted already, and just merges them.
    """
    first, last = int(times.min()), int(times.max())
    bits = len(times).bit_length()
    if (last - first).bit_length() + bits > 63:
        order = np.argsort(times, kind="stable")
        return order, times[order]
    packed = times - first
    packed <<= bits
    packed |= np.arange(len(times))
    packed.sort(kind="stable")
    order = packed & ((1 << bits) - 1)
    packed >>= bits
    packed += first
    return order, packed


def _ranges(first: int, last: int, most: int) -> Iterator[tuple[int, int]]:
    """Return blocks of about equal size: each costs the same overhead, however small."""
    count = -(-(last - first) // most)
    borders = [first + (last - first) * at // count for at in range(count + 1)] if count else []
    yield from pairwise(borders)


class Merger:
    """Merges tracks. Feed the hungry ones, take a window, and so on until `done`."""

    def __init__(
        self, tracks: Sequence[Track], lookahead: bool = False, window_ticks: int = 0
    ) -> None:
        self.tracks = sorted(tracks, key=lambda track: track.series.order)
        self._lookahead = lookahead
        self.window_ticks = window_ticks
        self.block_ticks = BLOCK_TICKS
        self._bound: int | None = None
        delivered = [track.series for track in self.tracks if track.delivered]
        kinds = dict.fromkeys(series.data_type.kind for series in delivered)
        self._tables = {
            kind: tuple(series for series in delivered if series.data_type.kind == kind)
            for kind in kinds
        }

    @property
    def done(self) -> bool:
        """Whether everything has been given out."""
        return not any(t.open or t.last is not None or t.marks for t in self.tracks)

    def hungry(self) -> list[Track]:
        """Return the tracks that must be fed, or finished, before the next window; ask again then.

        Each window costs the same overhead, so those that end it early are fed until it has
        `window_ticks`, or until there is no more; of many series several at once, because finding
        out whether there is enough takes a look at each.
        """
        still_open = [track for track in self.tracks if track.open]
        starving = [t for t in still_open if t.last is None or t.last == self._bound]
        if starving or not still_open or not self.window_ticks:
            return starving
        lasts = sorted(track.last for track in still_open if track.last is not None)
        if self._enough(lasts[0]):
            return []
        bound = lasts[len(lasts) // 8]
        return [track for track in still_open if track.last is not None and track.last <= bound]

    def _enough(self, bound: int) -> bool:
        rows = 0
        for track in reversed(self.tracks):  # candles, of which there are few, come first
            rows += track.about(bound)
            if rows >= self.window_ticks:
                return True
        return False

    def _nearer(self, bound: int | None) -> int | None:
        """Return a bound that cuts off what would make the window much too long for the cache."""
        most = max(2 * self.window_ticks, 4 * min(self.block_ticks, BLOCK_TICKS))
        end = _FOREVER if bound is None else bound
        ready = [track.ready(end) if track.delivered else 0 for track in self.tracks]
        rows = sum(ready)
        if rows <= most:
            return bound
        largest = max(range(len(ready)), key=ready.__getitem__)
        nearer = self.tracks[largest].after(ready[largest] * most // (2 * rows))
        # The rows of one instant stay together, and there must be some before it.
        return nearer if self.tracks[largest].ready(nearer) else bound

    def feed(self, track: Track, batch: Batch) -> None:
        """Give a track its next batch."""
        track.feed(batch, self._lookahead)

    def window(self) -> Window:
        """Return what can be ordered now; it may be empty while a track stays hungry."""
        for track in self.tracks:
            track.absorb()
        lasts = [track.last for track in self.tracks if track.open and track.last is not None]
        self._bound = self._nearer(min(lasts) if lasts else None)
        kinds: list[Ticks] = []
        marks: list[Mark] = []
        parts = [part for track in self.tracks for part in track.take(self._bound)]
        for kind, table in self._tables.items():
            mine = [part for part in parts if part.batch.series.data_type.kind == kind]
            if mine:
                kinds.append(Ticks.gather(mine, table))
        for track in self.tracks:
            marks += track.take_marks(self._bound)
        return Window(kinds, marks, self.block_ticks)
