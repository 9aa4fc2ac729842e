"""Say of the time before a symbol's first candle that nobody traded; asks no venue.

Plugins know roughly where a symbol begins (its first day, or month) and give an empty page up to
there. What then lies before the first candle is as empty, and no outage.
"""

from __future__ import annotations

from dataclasses import replace

from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Gap, Span
from tardisd.plugins.exchange import Page


class Lead:
    """The pages of one fetch, in order, until the first of them has a row."""

    def __init__(self, series: Series) -> None:
        self._series = series
        self._candles = series.data_type.interval is not None
        self._untraded = False

    def before(self, span: Span, source: str) -> Page:
        """Return the page of a span in which nobody traded; what follows begins as empty."""
        self._untraded = self._candles
        gaps = (Gap(span, "no_trades"),) if self._candles else ()
        return Page(Batch.empty(self._series), span, gaps, source)

    def begins(self) -> None:
        """Note that nobody traded before the first page."""
        self._untraded = self._candles

    def mark(self, page: Page) -> Page:
        """Return the next page, with what lies before the first candle marked."""
        if not self._untraded:
            return page
        rows = len(page.batch)
        self._untraded = not rows and not page.holes
        empty = Span(page.span.start, int(page.batch.ts_event[0]) if rows else page.span.end)
        if not empty or page.holes:
            return page
        return replace(page, gaps=(Gap(empty, "no_trades"), *page.gaps))
