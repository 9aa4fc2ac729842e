"""A venue's rate limits as one budget for everything that talks to it from here.

Requests are paid for before they are sent. Limits count either by the clock (Binance's minutes
begin at :00 UTC) or over any stretch of time. What the venue itself says was used only ever raises
our own count, since others may share the address. A cool-down holds everyone back, and a ban
outlives the daemon.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from tardisd.market.time import SECOND, format_time
from tardisd.wall import wall_ns

# A sliding window as the venue sees it may be shorter than ours by what the network adds.
_SLACK = 1.05


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `weight` per `period_secs`; `aligned` windows begin at whole multiples of it, UTC."""

    name: str
    weight: int
    period_secs: float
    aligned: bool = False


class Bans(Protocol):
    """Where bans are remembered across restarts."""

    def banned_until(self, venue: str) -> int | None:
        """Return the wall time (ns) until which the venue has banned this address, if it has."""

    def remember(self, venue: str, until: int, reason: str) -> None:
        """Remember a ban until a wall time (ns)."""


class NoBans:
    """Remembers nothing: for tests and tools."""

    def banned_until(self, venue: str) -> int | None:
        """Return None."""
        return None

    def remember(self, venue: str, until: int, reason: str) -> None:
        """Forget it at once."""


class _Window:
    """What was spent of one limit. Times are wall clock, ns."""

    def __init__(self, limit: Limit, share: float) -> None:
        self.limit = limit
        self.allowed = max(1, math.floor(limit.weight * share))
        self._spent: deque[tuple[int, int]] = deque()
        self._period = round(limit.period_secs * SECOND * (1.0 if limit.aligned else _SLACK))

    def _forget(self, now: int) -> None:
        start = now - now % self._period if self.limit.aligned else now - self._period + 1
        while self._spent and self._spent[0][0] < start:
            self._spent.popleft()

    def used(self, now: int) -> int:
        """Return what counts against the limit at `now`."""
        self._forget(now)
        return sum(weight for _, weight in self._spent)

    def free_at(self, weight: int, now: int) -> int:
        """Return when (ns) `weight` more fits; `now` when it does already."""
        over = self.used(now) + min(weight, self.allowed) - self.allowed
        if over <= 0:
            return now
        if self.limit.aligned:
            return now - now % self._period + self._period
        for ts, spent in self._spent:
            over -= spent
            if over <= 0:
                return ts + self._period
        return now + self._period

    def spend(self, weight: int, now: int) -> None:
        self._spent.append((now, weight))

    def observe(self, used: int, now: int) -> None:
        missing = used - self.used(now)
        if missing > 0:
            self._spent.append((now, missing))


class Budget:
    """The budget of one venue and address, shared by all its users."""

    def __init__(
        self,
        venue: str,
        limits: Sequence[Limit],
        share: float,
        bans: Bans | None = None,
        now: Callable[[], int] = wall_ns,
    ) -> None:
        self.venue = venue
        self._windows = {limit.name: _Window(limit, share) for limit in limits}
        self._bans = bans or NoBans()
        self._now = now
        self._closed_until = self._bans.banned_until(venue) or 0
        self._reason = "banned" if self._closed_until else ""
        self._changed = trio.Event()

    def add(self, limit: Limit, share: float) -> None:
        """Know one more limit, such as an endpoint's own; one that is known stays as it is."""
        self._windows.setdefault(limit.name, _Window(limit, share))

    async def spend(self, weight: int, limits: Sequence[str] = ()) -> None:
        """Wait until `weight` may be spent of the named limits (none: of all), and spend it."""
        windows = [self._windows[name] for name in limits] or list(self._windows.values())
        while True:
            now = self._now()
            ready = max([self._closed_until, *(w.free_at(weight, now) for w in windows)])
            if ready <= now:
                break
            with trio.move_on_after((ready - now) / SECOND + 0.001):
                await self._changed.wait()
        for window in windows:
            window.spend(weight, now)
        await trio.lowlevel.checkpoint()

    def observe(self, name: str, used: int) -> None:
        """Take the venue's word for how much was used of a limit; it only raises our count."""
        if name in self._windows:
            self._windows[name].observe(used, self._now())

    def cool_down(self, secs: float, reason: str, *, ban: bool = False) -> None:
        """Hold everybody back for a while; a ban is remembered across restarts."""
        until = self._now() + round(secs * SECOND)
        if until > self._closed_until:
            self._closed_until, self._reason = until, reason
            if ban:
                self._bans.remember(self.venue, until, reason)

    def usage(self) -> dict[str, float]:
        """Return how much of each limit is in use, as a fraction of the venue's own figure."""
        now = self._now()
        return {name: w.used(now) / w.limit.weight for name, w in self._windows.items()}

    def waiting_for(self) -> str | None:
        """Return why nothing may be asked now and until when, or None."""
        if self._closed_until <= self._now():
            return None
        return f"{self._reason} until {format_time(self._closed_until)}"
