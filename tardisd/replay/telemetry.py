"""What a session can say of its own pace: achieved speed over the last seconds; decides nothing."""

from __future__ import annotations

from collections import deque

from tardisd.market.time import SECOND

_WINDOW_SECS = 5.0
_STEP_SECS = 0.05


class Pace:
    """Market seconds per wall second, measured over a sliding window of running time."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def restart(self, wall: float, market: int) -> None:
        """Forget what was before a pause, speed change or start."""
        self._samples.clear()
        self._samples.append((wall, market))

    def sample(self, wall: float, market: int) -> None:
        """Note where market time (ns) stands at `wall` (seconds)."""
        samples = self._samples
        if len(samples) > 1 and wall - samples[-2][0] < _STEP_SECS:
            samples[-1] = (wall, market)
        else:
            samples.append((wall, market))
        while len(samples) > 2 and samples[1][0] < wall - _WINDOW_SECS:
            samples.popleft()

    def speed(self) -> float | None:
        """Return the achieved speed, or None before anything can be said."""
        if len(self._samples) < 2:
            return None
        (wall, market), (last_wall, last_market) = self._samples[0], self._samples[-1]
        if last_wall <= wall:
            return None
        return (last_market - market) / SECOND / (last_wall - wall)
