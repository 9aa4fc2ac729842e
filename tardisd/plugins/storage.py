"""The contract of storage plugins: where ticks and their coverage are kept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import trio

from tardisd.market.columns import Batch
from tardisd.market.quarters import quarters_of
from tardisd.market.series import Instrument, Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.market.time import MILLISECOND, format_time
from tardisd.plugins.base import OptionsT, Plugin
from tardisd.plugins.exchange import Page


@dataclass(frozen=True, slots=True)
class Appended:
    """What one append changed, in rows."""

    added: int = 0
    unchanged: int = 0
    revised: int = 0

    def __add__(self, other: Appended) -> Appended:
        return Appended(
            self.added + other.added,
            self.unchanged + other.unchanged,
            self.revised + other.revised,
        )


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """One stored series: rows, first and last event time (ns), bytes on disk, version."""

    series: Series
    rows: int
    first: int | None
    last: int | None
    size_bytes: int
    version: int

    def shown(self) -> dict[str, Any]:
        """Return it as clients are told of it; times in ms, and as text."""
        return {
            "series": self.series.text,
            "exchange": self.series.exchange,
            "symbol": str(self.series.symbol),
            "data_type": self.series.data_type.name,
            "rows": self.rows,
            "first": None if self.first is None else self.first // MILLISECOND,
            "last": None if self.last is None else self.last // MILLISECOND,
            "first_time": None if self.first is None else format_time(self.first),
            "last_time": None if self.last is None else format_time(self.last),
            "size_bytes": self.size_bytes,
            "version": self.version,
        }


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a page came from, when it was stored (wall clock, ns), and what it changed."""

    span: Span
    source: str
    stored_at: int
    rows: Appended


@dataclass(frozen=True, slots=True)
class Quarters:
    """Trades as candles of a quarter-hour, and of which time: there they are all that is stored."""

    rows: Batch
    known: Coverage


def span_json(span: Span) -> dict[str, Any]:
    """Return a span: `from` and `to` in ms (rounded outward), `start` and `end` exact, as text."""
    return {
        "from": span.start // MILLISECOND,
        "to": -(-span.end // MILLISECOND),
        "start": format_time(span.start),
        "end": format_time(span.end),
    }


class Storage(Plugin[OptionsT]):
    """Keeps ticks. Every method may be called from several tasks at once."""

    @abstractmethod
    async def append(self, series: Series, page: Page) -> Appended:
        """Commit the page's rows and coverage in one transaction; when it returns, both hold.

        The coverage is `page.covered`. Idempotent: rows of the same key (candle: open time; trade:
        id and event time, or content where there is no id) and content are `unchanged`, with other
        content `revised` (the new row replaces the old). Pages may come in any order, overlap, and
        be empty. Rows end up sorted by event time, then numeric id where there is one, else page
        order. What is covered now has no recorded gap any more whose cause is one of time without
        coverage only. Raises StorageError, or DataError for rows that cannot be stored; then
        nothing of the page is stored. A cancelled call has either committed all or nothing.
        """

    @abstractmethod
    def read(
        self, series: Series, span: Span
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Batch]]:
        """Open a stream of the rows with event time in `span`, in order, in bounded batches.

        Memory does not grow with the span, and appends go on meanwhile; each read sees one
        consistent state. An unknown series has no rows. Raises StorageCorrupt on a bad checksum.
        """

    @abstractmethod
    async def coverage(self, series: Series) -> Coverage:
        """Return the spans known to be complete; empty for an unknown series."""

    @abstractmethod
    async def gaps(self, series: Series) -> Sequence[Gap]:
        """Return the gaps whose cause was recorded, in order."""

    @abstractmethod
    async def record_gaps(self, series: Series, gaps: Sequence[Gap]) -> None:
        """Keep why spans have no data; a later gap replaces what it overlaps."""

    @abstractmethod
    async def list_series(self) -> Sequence[SeriesInfo]:
        """Return what is stored, sorted by series text."""

    @abstractmethod
    async def last_before(self, series: Series, ts: int) -> Batch | None:
        """Return the last row with event time before `ts` as a batch of one, or None."""

    @abstractmethod
    async def version(self, series: Series) -> int:
        """Return a number that grows with every change of the series; 0 when unknown."""

    @abstractmethod
    async def instrument(self, series: Series) -> Instrument | None:
        """Return the instrument kept for the series' exchange and symbol, if any."""

    @abstractmethod
    async def put_instrument(self, instrument: Instrument) -> None:
        """Keep the instrument, replacing what is known of the same exchange and symbol."""

    def lease(self, series: Series) -> AbstractAsyncContextManager[None]:
        """Hold the right to fetch the series while the block lasts, waiting for who has it.

        Optional, for a storage that several daemons share: only one of them fetches a series at a
        time, and one that has waited finds in the coverage what the other has stored. The right of
        a daemon that dies ends by itself. A storage of one daemon grants it at once. Raises
        StorageError, also amid the block when the right was lost.
        """
        return nullcontext()

    async def quarters(self, series: Series, span: Span) -> Quarters:
        """Return what is kept of trades folded into quarter-hours (`market.quarters`), in `span`.

        Optional: a storage that keeps none knows of no time, and the rows are read and folded.
        What is known must be what folding all the stored rows of that time gives. The span, and
        all that is known, begins and ends at quarter-hours.
        """
        return Quarters(Batch.empty(quarters_of(series)), Coverage())

    async def provenance(self, series: Series, limit: int) -> Sequence[Provenance]:
        """Return where the pages stored last came from, newest first, at most `limit`.

        Optional: a storage that does not keep it returns nothing.
        """
        return ()

    @abstractmethod
    async def delete(self, series: Series, span: Span) -> int:
        """Remove the rows with event time in `span`, its coverage and its recorded gaps.

        Returns how many rows went. The series' version grows on.
        """
