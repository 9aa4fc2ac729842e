"""A test venue's own count of what was asked of it; refuses nothing by itself."""

from __future__ import annotations

from collections import deque

from tardisd.market.time import SECOND
from tardisd.venue.budget import Limit


class Meter:
    """What was used of one limit, as the venue counts; remembers the most of any window."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.most = 0
        self._used = 0
        self._charged: deque[tuple[int, int]] = deque()

    @property
    def period(self) -> int:
        """The window's length (ns)."""
        return round(self.limit.period_secs * SECOND)

    def charge(self, weight: int, now: int) -> int:
        """Count a request, refused or not, and return what the window at `now` (ns) holds."""
        start = now - now % self.period if self.limit.aligned else now - self.period + 1
        while self._charged and self._charged[0][0] < start:
            self._used -= self._charged.popleft()[1]
        self._charged.append((now, weight))
        self._used += weight
        self.most = max(self.most, self._used)
        return self._used

    def free_at(self, now: int) -> int:
        """Return when (ns) the window at `now` has room again."""
        if self.limit.aligned:
            return now - now % self.period + self.period
        over = self._used - self.limit.weight
        for ts, weight in self._charged:
            over -= weight
            if over < 0:
                return ts + self.period
        return now + self.period
