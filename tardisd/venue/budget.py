"""A venue's rate limits as one budget for everything that talks to it from here; asks nothing.

Requests are paid for before they are sent. The venue counts a request when it arrives, which is
some time between sending and answer; so it counts here from the one until a whole period after the
other. Windows slide, also where the venue's own begin at full minutes: then no stretch of a period
holds more than is allowed, whatever its phase, and clocks need not agree. The rate is the same.

What the venue itself says was used only ever raises our count, since others may share the address.
A cool-down holds everyone back. Bans outlive the daemon, and so does what was spent: it is noted in
shares, each before any of it is spent, so that a daemon that is killed and started again does not
begin with a whole budget that the venue knows to be used.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from tardisd.errors import RequestError, StorageError
from tardisd.market.time import DAY, SECOND, format_time
from tardisd.wall import wall_ns

# No venue bans for longer. A ban remembered under a wrong clock must not last for years.
LONGEST_BAN_SECS = 3 * DAY / SECOND
# In how many shares a whole limit is noted: each is written to disk, and may be noted in vain.
_SHARES = 20
# How long a venue may take to count what was sent before the daemon was killed.
_LATE_NS = SECOND


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `weight` per `period_secs`; the venue's `aligned` windows begin at multiples of it.

    A budget keeps to the limit in windows of any phase, aligned or not.
    """

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

    def spent(self, venue: str, limit: str) -> Sequence[tuple[int | None, int]]:
        """Return the shares of a limit: until when (wall time, ns) it was spent, and its weight.

        None: it may have been spent until now.
        """

    def note_share(self, venue: str, limit: str, weight: int, now: int, since: int) -> None:
        """Note that a share is going to be spent, and the one before it was by `now` (ns).

        What was spent before `since` is forgotten.
        """


class NoBans:
    """Remembers nothing: for tests and tools."""

    def banned_until(self, venue: str) -> int | None:
        """Return None."""
        return None

    def remember(self, venue: str, until: int, reason: str) -> None:
        """Forget it at once."""

    def spent(self, venue: str, limit: str) -> Sequence[tuple[int | None, int]]:
        """Return nothing."""
        return ()

    def note_share(self, venue: str, limit: str, weight: int, now: int, since: int) -> None:
        """Note nothing."""


class _Window:
    """What was spent of one limit. Times are trio's clock, in seconds."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.shares: dict[object, float] = {}  # by who asked for it
        self._last_share = 1.0
        self._spent: deque[tuple[float, int]] = deque()
        self._sum = 0
        self._under_way = 0
        self.noted: int | None = None  # what is left of the newest share; None: nothing recalled

    @property
    def share(self) -> float:
        """The smallest share of those who use it, or that of the last who did."""
        return min(self.shares.values(), default=self._last_share)

    def forget_share(self, user: object) -> None:
        """No longer heed the share of a user."""
        self._last_share = self.share
        self.shares.pop(user, None)

    @property
    def allowed(self) -> int:
        """How much may be spent in any period."""
        return max(1, math.floor(self.limit.weight * self.share))

    def used(self, now: float) -> int:
        """Return what counts against the limit at `now`."""
        self._forget(now)
        return self._sum + self._under_way

    def free_at(self, weight: int, now: float) -> float | None:
        """Return when `weight` more fits, `now` when it does; None: after an answer has come."""
        over = self.used(now) + weight - self.allowed
        if over <= 0:
            return now
        for ts, spent in self._spent:
            over -= spent
            if over <= 0:
                return ts + self.limit.period_secs
        return None

    def send(self, weight: int) -> None:
        """Count a request that is about to be sent."""
        self._under_way += weight

    def answered(self, weight: int, now: float) -> None:
        """Let its period begin."""
        self._under_way -= weight
        self._add(weight, now)

    def recall(self, shares: Sequence[tuple[float, int]]) -> None:
        """Count what was spent at some times before."""
        for ts, weight in sorted(shares):
            self._add(weight, ts)
        self.noted = 0

    def observe(self, used: int, now: float) -> None:
        """Count at least `used`; what is under way may not be in it yet, and counts besides."""
        self._forget(now)
        if used > self._sum:
            self._add(used - self._sum, now)

    def _add(self, weight: int, now: float) -> None:
        self._spent.append((now, weight))
        self._sum += weight

    def _forget(self, now: float) -> None:
        while self._spent and self._spent[0][0] + self.limit.period_secs <= now:
            self._sum -= self._spent.popleft()[1]


class Budget:
    """The budget of one venue and address, shared by all its users within one trio run.

    `share` of each limit is spent at most. `now` reads the wall clock (ns), for bans alone.
    """

    def __init__(
        self,
        venue: str,
        limits: Sequence[Limit],
        share: float,
        bans: Bans | None = None,
        now: Callable[[], int] = wall_ns,
        user: object = None,
    ) -> None:
        self.venue = venue
        self._windows: dict[str, _Window] = {}
        for limit in limits:
            self.add(limit, share, user)
        self._queues: dict[tuple[str, ...], trio.Lock] = {}
        self._bans = bans or NoBans()
        self._now = now
        self._banned_until = self._bans.banned_until(venue) or 0
        self._closed_until = -math.inf
        self._reason = "banned by the venue"
        self._answered = trio.Event()

    def add(self, limit: Limit, share: float, user: object = None) -> None:
        """Know one more limit, as of one endpoint; of a known one the smallest share holds."""
        shares = self._windows.setdefault(limit.name, _Window(limit)).shares
        shares[user] = min(shares.get(user, share), share)

    def leave(self, user: object) -> None:
        """Forget the shares that a user named: it is gone. What it spent stays spent."""
        for window in self._windows.values():
            window.forget_share(user)

    def revise(self, name: str, weight: int) -> None:
        """Take the venue's word for how high a limit is; what was spent stays spent."""
        if name in self._windows and weight > 0:
            limit = self._windows[name].limit
            self._windows[name].limit = Limit(name, weight, limit.period_secs, limit.aligned)

    @asynccontextmanager
    async def spending(self, weight: int, limits: Sequence[str] = ()) -> AsyncIterator[None]:
        """Wait until `weight` may be spent of the named limits (none: of all); ask within.

        Those who wait for the same limits are served in order. Raises RequestError for a weight
        that the share never allows.
        """
        names = tuple(limits) or tuple(self._windows)
        windows = [self._windows[name] for name in names]
        async with self._queues.setdefault(names, trio.Lock()):
            for window in windows:
                self._recall(window)
            while (wait := self._wait_secs(weight, windows)) > 0:
                with trio.move_on_after(wait):
                    await self._answered.wait()
            for window in windows:
                self._note(window, weight)
                window.send(weight)
        try:
            yield
        finally:
            for window in windows:
                window.answered(weight, trio.current_time())
            self._answered.set()
            self._answered = trio.Event()

    def observe(self, name: str, used: int) -> None:
        """Take the venue's word for how much was used of a limit; it only raises our count."""
        if name in self._windows:
            self._windows[name].observe(used, trio.current_time())

    def cool_down(self, secs: float, reason: str, *, ban: bool = False) -> None:
        """Hold everybody back for a while; a ban is remembered across restarts."""
        if secs > self.closed_secs():
            self._closed_until, self._reason = trio.current_time() + secs, reason
            if ban:
                self._banned_until = self._now() + round(secs * SECOND)
                self._bans.remember(self.venue, self._banned_until, reason)

    def closed_secs(self) -> float:
        """Return for how many more seconds nothing may be asked; 0 when it may."""
        banned = min((self._banned_until - self._now()) / SECOND, LONGEST_BAN_SECS)
        return max(0.0, banned, self._closed_until - trio.current_time())

    def usage(self) -> dict[str, float]:
        """Return how much of each limit is in use, as a fraction of the venue's own figure."""
        now = trio.current_time()
        return {name: w.used(now) / w.limit.weight for name, w in self._windows.items()}

    def waiting_for(self) -> str | None:
        """Return why nothing may be asked now and until when, or None."""
        secs = self.closed_secs()
        if not secs:
            return None
        return f"{self._reason} until {format_time(self._now() + round(secs) * SECOND)}"

    def _recall(self, window: _Window) -> None:
        """Count what a daemon before this one may have spent."""
        if window.noted is not None:
            return
        now, clock = self._now(), trio.current_time()
        shares = []
        for until, weight in self._bans.spent(self.venue, window.limit.name):
            passed = 0 if until is None else max(0, now - until - _LATE_NS)
            shares.append((clock - passed / SECOND, weight))
        window.recall(shares)

    def _note(self, window: _Window, weight: int) -> None:
        """Have noted what is about to be spent."""
        assert window.noted is not None
        if window.noted < weight:
            share, now = max(weight, window.allowed // _SHARES), self._now()
            since = now - round(window.limit.period_secs * SECOND) - _LATE_NS
            try:
                self._bans.note_share(self.venue, window.limit.name, share, now, since)
            except StorageError:
                return  # unremembered, the budget is kept to all the same
            window.noted = share
        window.noted -= weight

    def _wait_secs(self, weight: int, windows: Sequence[_Window]) -> float:
        now = trio.current_time()
        wait = self.closed_secs()
        for window in windows:
            if weight > window.allowed:
                raise RequestError(
                    "fetch_failed",
                    f"{self.venue}: a request of weight {weight} never fits into {window.allowed}"
                    f" ({window.share:.0%} of {window.limit.weight} per"
                    f" {window.limit.period_secs:g} s); raise budget_share",
                )
            free_at = window.free_at(weight, now)
            wait = max(wait, math.inf if free_at is None else free_at - now)
        return wait
