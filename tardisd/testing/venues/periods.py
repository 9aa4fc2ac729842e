"""The days and months that archives are cut into, in the venue's own time zone; knows no file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np

from tardisd.market.columns import Batch
from tardisd.market.span import Span
from tardisd.market.time import SECOND, from_datetime


@dataclass(frozen=True, slots=True)
class Period:
    """A day, or the month that begins with it; it begins `ahead` ns before that in UTC."""

    day: date
    monthly: bool
    ahead: int = 0

    @classmethod
    def parse(cls, text: str, ahead: int = 0) -> Period | None:
        """Return the period of `2024-03` or `2024-03-01`, or None when there is no such."""
        parts = text.split("-")
        try:
            day = date(*(int(part) for part in [*parts, "1"][:3]))
        except (ValueError, TypeError):
            return None
        found = cls(day, len(parts) == 2, ahead)
        return found if found.stamp == text else None

    @property
    def stamp(self) -> str:
        """How file names state it."""
        return f"{self.day:%Y-%m}" if self.monthly else f"{self.day:%Y-%m-%d}"

    @property
    def next(self) -> Period:
        """The period after it."""
        if self.monthly:
            year, month = self.day.year + self.day.month // 12, self.day.month % 12 + 1
            return Period(date(year, month, 1), True, self.ahead)
        return Period(self.day + timedelta(days=1), False, self.ahead)

    @property
    def span(self) -> Span:
        """What it holds (ns, UTC)."""
        start, end = from_datetime(self.day), from_datetime(self.next.day)
        return Span(start - self.ahead, end - self.ahead)

    def rows(self, batch: Batch) -> slice:
        """Return which rows of a batch lie in it."""
        span = self.span
        bounds = np.searchsorted(batch.ts_event, [span.start, span.end], "left").tolist()
        return slice(*bounds)

    def has_rows(self, batch: Batch) -> bool:
        """Tell whether any row of a batch lies in it."""
        rows = self.rows(batch)
        return bool(rows.stop > rows.start)


def periods(batch: Batch, monthly: bool, ahead: int = 0) -> Iterator[Period]:
    """Return the periods from the first row to the last, in order."""
    first, last = (int(batch.ts_event[at]) + ahead for at in (0, -1))
    day = datetime.fromtimestamp(first // SECOND, UTC).date()
    period = Period(day.replace(day=1) if monthly else day, monthly, ahead)
    while period.span.start + ahead <= last:
        yield period
        period = period.next
