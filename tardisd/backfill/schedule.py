"""When a backfill rule is due: pure arithmetic on wall times (ns); starts nothing, reads no clock.

A *slot* is when a rule is nominally due; it starts up to `jitter` later, so that rules, and the
daemons of many people, do not all ask at the same instant. Slots that went by unused, because the
daemon was down or a run took long, are made up for by one run, at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from tardisd.market.time import DAY


@dataclass(frozen=True, slots=True)
class Due:
    """A run to come: the slot it stands for and when to start, both wall time (ns)."""

    slot: int
    start: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often: each `every` ns, or daily `at` ns after midnight UTC, or (neither) just once."""

    every: int | None = None
    at: int | None = None
    jitter: int = 0

    def next_due(self, last: int | None, now: int, share: float = 0.0) -> Due | None:
        """Return the run after the one that stood for slot `last`, or None when none is to come.

        Without a `last` run it is due now. `share` (0..1, chosen anew for each run) is how much of
        the jitter is used. A clock that was set back never makes it wait for longer than a period.
        """
        if last is None:
            return Due(now, now)
        if self.every is None and self.at is None:
            return None
        slot = self._slot_after(last, now)
        if slot <= now:
            return Due(slot, now)
        return Due(slot, slot + int(self.jitter * share))

    def _slot_after(self, last: int, now: int) -> int:
        """Return the newest slot after `last` that is not in the future, else the first to come."""
        if self.every is not None:
            if last > now:  # the clock was set back
                return last - (last - now) // self.every * self.every
            passed = (now - last) // self.every
            return last + max(passed, 1) * self.every
        assert self.at is not None, "a rule with neither is due once"
        newest = now - (now - self.at) % DAY
        return newest if last < newest else newest + DAY
