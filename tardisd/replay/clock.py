"""The replay clock: maps wall time to market time from an anchor; pure, reads no clock itself.

Every pause, resume and speed change anchors it anew, so drift never adds up.
"""

from __future__ import annotations

import math

from tardisd.errors import RequestError
from tardisd.market.time import SECOND
from tardisd.plugins.sessions import Speed

# Any speed above 0 is allowed, but nothing passes faster (ns per second), or the sums overflow.
_FASTEST = 1e300


class ReplayClock:
    """Market time (ns) as a function of wall time (seconds of a monotonic clock).

    At speed `max` nothing is waited for: the clock stands where `advance` last put it.
    """

    __slots__ = ("_market", "_running", "_speed", "_wall")

    def __init__(self, market: int, speed: Speed) -> None:
        self._market = market
        self._wall = 0.0
        self._speed = speed
        self._running = False

    @property
    def speed(self) -> Speed:
        """Market seconds per wall second, or `max`."""
        return self._speed

    @property
    def running(self) -> bool:
        """Whether time passes."""
        return self._running

    @property
    def unpaced(self) -> bool:
        """Whether the speed is `max`."""
        return self._speed == "max"

    @property
    def _passing(self) -> float:
        """Market ns per wall second; never infinite, so that none of it in no time is none."""
        assert self._speed != "max"
        return min(self._speed * SECOND, _FASTEST)

    def market(self, wall: float) -> int:
        """Return market time (ns) at `wall`."""
        if not self._running or self._speed == "max":
            return self._market
        passed = (wall - self._wall) * self._passing
        return self._market + round(min(passed, _FASTEST))

    def wall(self, market: int) -> float:
        """Return the wall time at which `market` (ns) is reached: -inf unpaced, inf while halted.

        At that time it is: who sleeps until then never finds the clock a rounding short of it.
        """
        if self._speed == "max":
            return -math.inf
        if not self._running:
            return math.inf
        wall = self._wall + (market - self._market) / self._passing
        while wall < math.inf and self.market(wall) < market:
            wall = math.nextafter(wall, math.inf)
        return wall

    def anchor(self, market: int, wall: float) -> None:
        """Stand at `market` (ns) as of `wall`, and go on from there."""
        self._market, self._wall = market, wall

    def advance(self, market: int) -> None:
        """Move an unpaced clock forward to `market` (ns)."""
        self._market = max(self._market, market)

    def run(self, wall: float) -> None:
        """Let time pass from `wall` on."""
        self._wall, self._running = wall, True

    def halt(self, market: int) -> None:
        """Stop time at `market` (ns)."""
        self._market, self._running = market, False

    def change_speed(self, speed: Speed, market: int, wall: float) -> None:
        """Go on at another speed from `market` (ns) as of `wall`."""
        self._market, self._wall, self._speed = market, wall, speed


def check_speed(speed: Speed) -> None:
    """Raise RequestError unless the speed is a finite number > 0 or `max`."""
    if speed != "max" and not (math.isfinite(speed) and speed > 0):
        raise RequestError("bad_request", f"speed: expected a number > 0 or 'max', found {speed}")
