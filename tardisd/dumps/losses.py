"""What files that stay wrong cost one fetch: gaps with their cause, and the reason in the end.

A file that is damaged at its venue must not hold back the days after it. Its time stays a hole, the
fetch goes on, and only when all the rest has been given is it told what is wrong. It reads no file.
"""

from __future__ import annotations

from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Gap, Span
from tardisd.plugins.exchange import Page


class Losses:
    """The holes of one fetch of a series, and which of them wrong files have left."""

    def __init__(self, series: Series) -> None:
        self._series = series
        self._wrong: list[tuple[Span, str]] = []
        self._lost: list[str] = []

    def note(self, span: Span, reason: str) -> None:
        """Take note that the file of a span is wrong; perhaps another source has what it holds."""
        self._wrong.append((span, reason))

    def page(self, span: Span, source: str) -> Page:
        """Return the page of a span that nothing has: `fetch_failed` where a file is wrong."""
        gaps = []
        for wrong, reason in self._wrong:
            lost = wrong.intersect(span)
            if lost is not None:
                gaps.append(Gap(lost, "fetch_failed"))
                self._lost += [reason] * (reason not in self._lost)
        return Page(Batch.empty(self._series), span, tuple(gaps), source, (span,))

    def tell(self) -> None:
        """Raise RequestError `no_data` when anything was lost."""
        if self._lost:
            more = f" (and {len(self._lost) - 1} more files)" if len(self._lost) > 1 else ""
            raise RequestError(
                "no_data",
                f"{self._series}: {self._lost[0]}{more}; the file was put aside, and its time is"
                " to be had nowhere else; all the rest is stored, and the next backfill asks again",
            )
