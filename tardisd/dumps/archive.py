"""One archive file of a venue, read and checked as a whole, then given page by page; fetches none.

Exchange plugins read what they have downloaded with it, with the checks of imports: a file in which
anything is wrong gives no row at all. Rows may stand in any order, and repeated; memory stays that
of a few pages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import trio

from tardisd.dumps.intake import Intake
from tardisd.dumps.spool import Part, open_spool
from tardisd.errors import DataError
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.plugins.exchange import Page
from tardisd.plugins.format import FileFormat
from tardisd.progress import Progress


@dataclass(frozen=True, slots=True)
class Piece:
    """A page to be: its span, and the stored rows that fall into it (none: no rows)."""

    span: Span
    part: Part | None


class Dump:
    """An archive file that has passed all checks."""

    def __init__(self, intake: Intake, parts: Sequence[Part]) -> None:
        self.series = intake.series
        self.rows = sum(reader.rows for reader in intake.readers)
        self._intake = intake
        self._parts = parts

    def pieces(self, span: Span) -> list[Piece]:
        """Return what makes up `span` (ns), in order and without holes between the pieces."""
        within = [p for p in self._parts if p.start < span.end and p.stop > span.start]
        if not within:
            return [Piece(span, None)]
        starts = [span.start, *(max(part.start, span.start) for part in within[1:])]
        ends = [*starts[1:], span.end]
        return [
            Piece(Span(start, end), part)
            for start, end, part in zip(starts, ends, within, strict=True)
        ]

    async def load(self, piece: Piece, source: str) -> Page:
        """Return a piece as a page that covers all of its span."""
        if piece.part is None:
            return Page(Batch.empty(self.series), piece.span, source=source)
        batch = await trio.to_thread.run_sync(self._rows, piece.part, piece.span)
        return Page(batch, piece.span, source=source)

    async def last(self, count: int) -> Batch:
        """Return the last rows: `count`, or as many as the last page has."""
        part = self._parts[-1]
        batch = await trio.to_thread.run_sync(self._rows, part, Span(part.start, part.stop))
        return batch[-count:]

    def _rows(self, part: Part, span: Span) -> Batch:
        batch = self._intake.page(part, Coverage([span]), "").batch
        inside = (batch.ts_event >= span.start) & (batch.ts_event < span.end)
        return batch if bool(inside.all()) else batch[inside]


@asynccontextmanager
async def read_dump(
    path: Path,
    series: Series,
    formats: Sequence[FileFormat],
    spool_dir: Path,
    *,
    contract_size: Decimal | None = None,
) -> AsyncIterator[Dump]:
    """Read the file at `path`, whose name says what it is; the rows wait in `spool_dir`.

    Raises DataError naming the line when anything is wrong with it, also when it has no rows.
    """
    with open_spool(series, spool_dir) as spool:
        intake = Intake(series, spool, formats, contract_size)
        try:
            raw = await trio.to_thread.run_sync(path.open, "rb")
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", file=path.name) from None
        with raw:
            await intake.read(path.name, raw, Progress(0, 0, "bytes", ""), _unheard)
            parts = await trio.to_thread.run_sync(intake.check, _unheard)
            yield Dump(intake, parts)


def _unheard(progress: Progress) -> None:
    """Take no notice."""
