"""What a session can say of its own pace: speed achieved, and how late ticks are; no decision."""

from __future__ import annotations

from collections import deque

from tardisd.market.time import SECOND

_LATE_SAMPLES = 1000
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


class Lateness:
    """How long after they were due (wall seconds) the last few slices of ticks were handed out."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=_LATE_SAMPLES)

    def note(self, secs: float) -> None:
        """Note that a slice came so late."""
        self._samples.append(secs)

    def percentiles(self) -> dict[str, float] | None:
        """Return p50, p99 and max in milliseconds, or None when nothing was paced."""
        if not self._samples:
            return None
        ranked = sorted(self._samples)
        places = {"p50": len(ranked) // 2, "p99": len(ranked) * 99 // 100, "max": len(ranked) - 1}
        return {name: max(0.0, round(ranked[at] * 1000, 3)) for name, at in places.items()}
