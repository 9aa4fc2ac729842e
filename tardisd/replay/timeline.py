"""A session's market time as it really passes: the clock, bounded by what was handed out.

Everything that waits in a session waits here, and is woken by `poke`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

from tardisd.market.time import MILLISECOND, SECOND
from tardisd.plugins.sessions import Speed
from tardisd.replay.alarm import Alarm
from tardisd.replay.clock import ReplayClock
from tardisd.replay.fanout import QueueLimits
from tardisd.replay.telemetry import Lateness, Pace

_NEAR_SECS = 1.0  # bells that were silenced are kept for as long


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a session paces and queues. A slice is what goes out in one step, at most.

    Wake-ups are at least `coalesce_secs` apart, so that all that is due soon goes out together. A
    session that is `max_lag_secs` late sets its clock back rather than hurry after it.
    """

    slice_ticks: int = 4096
    coalesce_secs: float = 0.001
    max_lag_secs: float = 0.25
    #: What wakes sessions up more exactly than trio's own timer would, if anything.
    alarm: Alarm | None = None
    limits: QueueLimits = field(default_factory=QueueLimits)


class Timeline:
    """Where a session stands in market time (ns), and how it waits for more of it."""

    def __init__(self, start: int, speed: Speed, tuning: Tuning) -> None:
        self._clock = ReplayClock(start, speed)
        self._tuning = tuning
        self._pace = Pace()
        self._lateness = Lateness()
        self._horizon = start
        self._changed = trio.Event()
        #: Whether ticks are let through one by one while time stands.
        self.stepping = False

    @property
    def speed(self) -> Speed:
        """Market seconds per wall second, or `max`."""
        return self._clock.speed

    @property
    def unpaced(self) -> bool:
        """Whether the speed is `max`."""
        return self._clock.unpaced

    @property
    def achieved_speed(self) -> float | None:
        """Market seconds per wall second over the last seconds, or None when there were none."""
        return self._pace.speed()

    def market(self) -> int:
        """Return market time: never beyond a tick that was not yet handed out."""
        return min(self._clock.market(trio.current_time()), self._horizon)

    def due(self) -> int:
        """Return market time by the clock alone: what was released until then is due."""
        return self._clock.market(trio.current_time())

    def lag_ms(self) -> float:
        """Return how far (wall ms) what was handed out is behind the clock."""
        speed = self._clock.speed
        if speed == "max" or not self._clock.running:
            return 0.0
        behind = self._clock.market(trio.current_time()) - self._horizon
        return max(0.0, round(behind / speed / MILLISECOND, 3))

    def emission_error_ms(self) -> dict[str, float] | None:
        """Return how late (wall ms) ticks were handed out lately, or None when none were paced."""
        return self._lateness.percentiles()

    @property
    def running(self) -> bool:
        """Whether time passes."""
        return self._clock.running

    def jump(self, market: int) -> None:
        """Stand at `market` (ns), before or after where time stood."""
        now = trio.current_time()
        if self._clock.running:
            self._clock.anchor(market, now)
        else:
            self._clock.halt(market)
        self._horizon = market
        self._pace.restart(now, market)
        self.poke()

    def run(self) -> None:
        """Let time pass."""
        now = trio.current_time()
        self._clock.run(now)
        self._pace.restart(now, self._clock.market(now))
        self.poke()

    def halt(self) -> None:
        """Stop time where it is."""
        self._clock.halt(self.market())
        self.poke()

    def change_speed(self, speed: Speed) -> None:
        """Go on from here at another speed."""
        now, market = trio.current_time(), self.market()
        self._clock.change_speed(speed, market, now)
        self._pace.restart(now, market)
        self.poke()

    def reached(self, market: int, first: int | None = None) -> None:
        """Note that everything released up to `market` was handed out, just now from `first` on."""
        now = trio.current_time()
        self._horizon = max(self._horizon, market)
        if self.stepping:
            self._clock.halt(max(market, self._clock.market(now)))
        elif self._clock.unpaced:
            self._clock.advance(market)
        elif first is not None:
            self._lateness.note(now - self._clock.wall(first))
        self._pace.sample(now, market)

    def poke(self) -> None:
        """Wake whoever waits, to look again."""
        self._changed.set()
        self._changed = trio.Event()

    async def changed(self, deadline: float = math.inf) -> None:
        """Wait for a poke, or until `deadline` (trio time), or for a poke that was none."""
        event, alarm = self._changed, self._tuning.alarm
        if alarm is not None and deadline - trio.current_time() < _NEAR_SECS:
            bell = alarm.at(deadline, self.poke)
            try:
                await event.wait()
            finally:
                bell.silence()
        else:  # if it is far away, what is left after that is waited for exactly
            with trio.move_on_at(deadline if alarm is None else deadline - _NEAR_SECS / 2):
                await event.wait()
        # A verb may have poked and cancelled at once: then nothing of before may go on.
        await trio.lowlevel.checkpoint_if_cancelled()

    async def until(
        self,
        due: int,
        gaps_until: Iterable[int] | None = None,
        max_idle_secs: float | None = None,
    ) -> None:
        """Wait until time runs and has reached `due`; time does not pass it before that.

        `gaps_until` are the ends of the gaps that the series are in: time that all of them share is
        jumped over. So is what would take longer than `max_idle_secs` of wall time. While stepping
        nothing is waited for.
        """
        self._horizon = max(self._horizon, due)
        earliest = trio.current_time() + self._tuning.coalesce_secs
        while not self.stepping:
            now = trio.current_time()
            deadline = math.inf
            if self._clock.running:
                market = self._clock.market(now)
                if self._clock.unpaced or market >= due:
                    self._slow_down(due, market, now)
                    return
                if gaps_until is not None and (upto := min(due, *gaps_until)) > market:
                    self._clock.anchor(upto, now)
                    continue
                wall = self._clock.wall(due)
                if max_idle_secs is not None and wall - now > max_idle_secs:
                    self._clock.anchor(max(market, self._earlier(due, max_idle_secs)), now)
                    wall = self._clock.wall(due)
                deadline = max(wall, earliest)
            await self.changed(deadline)

    def _earlier(self, due: int, secs: float) -> int:
        """Return the market time (ns) from which `due` is `secs` of wall time away."""
        speed = self._clock.speed
        assert speed != "max", "nothing is waited for at max"
        return due - round(secs * speed * SECOND)

    def _slow_down(self, due: int, market: int, now: float) -> None:
        """Set the clock back to `due` when it has run further ahead than jitter explains."""
        speed = self._clock.speed
        if speed != "max" and market - due > self._tuning.max_lag_secs * speed * SECOND:
            self._clock.anchor(due, now)
