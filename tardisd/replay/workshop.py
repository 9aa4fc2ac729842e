"""The tracks of a derived series in the merge, and what turns the rows of its source into theirs.

Rows are taken in where they are read, and built when the next window is made: in the thread that
merges and encodes, which does not hold up the event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from tardisd.market.columns import Batch
from tardisd.market.decimals import Ints
from tardisd.market.series import DerivedSeries, Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.market.ticks import Rows
from tardisd.replay.derivation import Derivation, Resumption
from tardisd.replay.derive import Built
from tardisd.replay.merge import Mark, Track

_NOTHING = Span(0, 0)


class BuiltTrack(Track):
    """Candles, closed or forming, that a workshop puts here; it asks for nothing itself."""

    def __init__(self, series: DerivedSeries, delay: int, workshop: Workshop) -> None:
        super().__init__(series, _NOTHING, Coverage(), (), delay)
        self.open = False  # until its source has ended, that one stays open
        self._workshop = workshop

    def absorb(self) -> None:
        """Build what can be built of the rows that were taken in."""
        self._workshop.absorb()

    def tell(self, gaps: Sequence[tuple[int, Gap]]) -> None:
        """Take gaps with the times at which they are to be told, but for the delay."""
        self.marks += [Mark(at + self._delay, self.series, gap) for at, gap in gaps]


class SilentTrack(Track):
    """A source that is read for what is built of it, and not delivered itself."""

    def __init__(self, series: Series, delay: int) -> None:
        super().__init__(series, _NOTHING, Coverage(), (), delay)
        self.delivered = False
        self._rows = 0

    def put(self, batch: Batch, release: Ints) -> None:
        """Take note of how far the source is."""
        if len(batch):
            self.last = int(release[-1])
            self._rows += len(batch)

    def finish(self) -> None:
        """Take note that nothing more comes: no row waits here."""
        super().finish()
        self.last = None

    def ready(self, bound: int) -> int:
        """Return how many rows were read since the last window: they cost as much as others."""
        return self._rows

    def take(self, bound: int | None) -> list[Rows]:
        """Return nothing: what was read is with those who build of it."""
        self._rows = 0
        return []


class Workshop:
    """Builds one derived series of a merge: its candles and gaps go to its tracks.

    Candles that open before `unfinished_from` are not shown while they form.
    """

    def __init__(
        self,
        derivation: Derivation,
        span: Span,
        delay: int,
        unfinished_from: int,
        resumption: Resumption | None = None,
    ) -> None:
        start = None if resumption is None else resumption.start
        before = None if resumption is None else resumption.before
        self._builder = derivation.builder(span, start, before, derivation.forming)
        self._delay = delay
        self._waiting: deque[Batch] = deque()
        self._unfinished_from = unfinished_from
        self.closed = BuiltTrack(derivation.series, delay, self)
        self.forming: BuiltTrack | None = None
        if derivation.forming:
            series = replace(derivation.series, closed=False)
            self.forming = BuiltTrack(series, delay, self)
        self.closed.tell([(gap.span.start, gap) for gap in self._builder.uncovered])
        if resumption is not None and resumption.last is not None:
            self.closed.put(resumption.last, resumption.last.release(delay))

    @property
    def tracks(self) -> list[Track]:
        """The tracks of the series: closed candles and, if asked for, forming ones."""
        return [self.closed] if self.forming is None else [self.closed, self.forming]

    def take_in(self, batch: Batch) -> None:
        """Take the next rows of the source."""
        self._waiting.append(batch)

    def absorb(self) -> None:
        """Build what can be built of what was taken in; in any thread, one call at a time."""
        while self._waiting:
            self._put(self._builder.feed(self._waiting.popleft()))

    def finish(self) -> None:
        """Build the rest: the source has ended."""
        self.absorb()
        self._put(self._builder.finish())

    def _put(self, built: Built) -> None:
        self.closed.tell(built.gaps)
        self.closed.put(built.closed, built.closed.release(self._delay))
        if self.forming is not None and len(built.forming):
            rows = replace(built.forming, series=self.forming.series)
            updates = built.updates + self._delay
            first = int(rows.ts_event.searchsorted(self._unfinished_from, "left"))
            self.forming.put(rows[first:], updates[first:])
