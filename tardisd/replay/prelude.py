"""What lies before the position at which a source is opened: told once, as a snapshot.

A source that begins in the middle is fed, per series, the last row before it as well. Those rows
and the gaps that are still open make the snapshot; all else goes its usual way. It paces nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tardisd.market.columns import Batch
from tardisd.market.decimals import Ints
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.ticks import Ticks
from tardisd.market.time import MILLISECOND
from tardisd.plugins.storage import Storage
from tardisd.replay.block import Prepared
from tardisd.replay.merge import Mark, Window
from tardisd.replay.position import Position
from tardisd.wall import wall_ms
from tardisd.wire.encode import Encoder

Item = Mark | tuple[int, int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The newest tick of each series before a position, as JSON, and the gaps open there."""

    data: bytes
    gaps: Sequence[Mark]

    def fields(self, clock: int) -> dict[str, Any]:
        """Return the fields of a `snapshot` message that come from the data, at a time (ns).

        Time may have passed the end of a gap since the last tick.
        """
        gaps = [gap_fields(mark) for mark in self.gaps if mark.gap.span.end > clock]
        return {"data": msgspec.Raw(self.data), "gaps": gaps}


def gap_fields(mark: Mark) -> dict[str, Any]:
    """Return the fields of a `gap` message that come from the data."""
    span = mark.gap.span
    return {
        "series": mark.series.text,
        "from": span.start // MILLISECOND,
        "to": span.end // MILLISECOND,
        "cause": mark.gap.cause,
    }


class Prelude:
    """Strains what lies before a position out of the first windows."""

    def __init__(self, begin: Position, encoder: Encoder) -> None:
        self._begin = begin
        self._encoder = encoder
        self._left = begin.ticks
        self._marks = begin.marks
        self._latest: dict[Series, tuple[Batch, Ints]] = {}
        self._open: list[Mark] = []
        #: Marks of the position's own time that may or may not lie before it.
        self._pending: list[Mark] = []

    def strain(self, window: Window) -> list[Item] | None:
        """Return what of the window follows the position; None while it is not reached."""
        items = iter(window)
        for item in items:
            rest = self._mark(item) if isinstance(item, Mark) else self._rows(window, *item)
            if rest is not None:
                return [*self._pending, rest, *items]
        return None

    @property
    def pending(self) -> Sequence[Item]:
        """What follows the position when the data end before it is reached."""
        return self._pending

    def _mark(self, mark: Mark) -> Mark | None:
        at = self._begin.release
        if mark.ts_release < at or (mark.ts_release == at and self._marks > 0):
            self._marks -= mark.ts_release == at
            self._pass(mark)
        elif mark.ts_release == at and self._left > 0:
            self._pending.append(mark)
        else:
            return mark
        return None

    def _rows(self, window: Window, first: int, last: int) -> tuple[int, int] | None:
        at = self._begin.release
        release = window.release[first:last]
        before = int(release.searchsorted(at, "left"))
        equal = min(self._left, int(release.searchsorted(at, "right")) - before)
        if equal:
            self._left -= equal
            for mark in self._pending:
                self._marks -= 1
                self._pass(mark)
            self._pending.clear()
        upto = first + before + equal
        if upto > first:
            piece = window.piece(first, upto)
            for ticks in piece.kinds:
                for batch, rows in ticks.batches():
                    self._latest[batch.series] = (batch[-1:], ticks.ts_release[rows[-1:]])
        return (upto, last) if upto < last else None

    def _pass(self, mark: Mark) -> None:
        if mark.gap.span.end > self._begin.release:
            self._open.append(mark)

    def snapshot(self, session_id: str, epoch: int) -> Snapshot:
        """Return what was found; callable from any thread, once the position is reached."""
        kinds = dict.fromkeys(series.data_type.kind for series in self._latest)
        tables = {
            kind: tuple(sorted((s for s in self._latest if s.data_type.kind == kind), key=_order))
            for kind in kinds
        }
        ticks = [_joined(table, self._latest) for table in tables.values()]
        if not ticks:
            return Snapshot(b"[]", self._open)
        ticks.sort(key=lambda one: one.series[0].order)
        window = Window(ticks, [])
        piece = window.piece(0, len(window.release))
        encoders = {"batch": self._encoder}
        block = Prepared(
            session_id, epoch, piece.kinds, piece.runs, piece.release, encoders, 1, None
        )
        whole = block[0 : len(block)]
        whole.sent_ms = wall_ms()
        rows = bytes(whole.encode("batch").bytes())
        return Snapshot(b"[" + rows.rstrip(b",") + b"]", self._open)


def _order(series: Series) -> tuple[int, int, str, str, str]:
    return series.order


def _joined(table: tuple[Series, ...], latest: Mapping[Series, tuple[Batch, Ints]]) -> Ticks:
    found = [latest[series] for series in table]
    return Ticks.concat([batch for batch, _ in found], [release for _, release in found], table)


async def last_released(
    storage: Storage[Any], series: Series, span: Span, before: int, delay: int, lookahead: bool
) -> Batch | None:
    """Return the last row in `span` that was released before `before` (ns), as a batch of one."""
    interval = None if lookahead else series.data_type.interval
    bound = before
    if interval is not None:  # months have no fixed length: then the loop finds the right one
        bound -= delay + (interval.fixed_ns or 0)
    while (row := await storage.last_before(series, bound)) is not None:
        bound = int(row.ts_event[0])
        if bound < span.start:
            return None
        if interval is None or interval.close(bound) + delay < before:
            return row if len(row.within(span)) else None
    return None
