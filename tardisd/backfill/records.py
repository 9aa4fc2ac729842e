"""What is known of a backfill job: its parts, how far each is, and how it is kept; runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import MILLISECOND, format_time
from tardisd.plugins.storage import Appended

WAITING, RUNNING, COOLING_DOWN = "waiting", "running", "cooling_down"
FINISHED, FAILED, CANCELLED = "finished", "failed", "cancelled"
ENDED = (FINISHED, FAILED, CANCELLED)
SOME_SERIES = 20


@dataclass(slots=True)
class Part:
    """One series of a job; `done` and `total` are ns of market time, `message` why it is so."""

    series: Series
    exchange: str
    state: str = WAITING
    message: str = ""
    done: int = 0
    total: int = 0
    pages: int = 0
    rows: Appended = field(default_factory=Appended)
    complete: bool = False

    def stored(self, appended: Appended) -> None:
        """Count a page that was stored."""
        self.pages += 1
        self.rows += appended

    def shown(self) -> dict[str, Any]:
        """Return it as clients see it."""
        return {
            "series": self.series.text,
            "exchange": self.exchange,
            "state": self.state,
            "message": self.message,
            "done": self.done,
            "total": self.total,
            "pages": self.pages,
            "added": self.rows.added,
            "unchanged": self.rows.unchanged,
            "revised": self.rows.revised,
            "complete": self.complete,
        }

    @classmethod
    def restored(cls, kept: dict[str, Any]) -> Part:
        """Return the part that `shown` gave."""
        rows = Appended(kept["added"], kept["unchanged"], kept["revised"])
        names = ("state", "message", "done", "total", "pages", "complete")
        series = Series.parse(kept["series"])
        return cls(series, kept["exchange"], rows=rows, **{name: kept[name] for name in names})


@dataclass(slots=True)
class Job:
    """One backfill, asked for or begun by a rule. Times are wall clock, ns.

    A rule's job has no span until the venue has told the time; `slot` is what it was due for, and
    `version` tells whether the rule has changed since.
    """

    job_id: int
    storage: str
    parts: list[Part]
    span: Span | None
    created_at: int
    rule: str | None = None
    slot: int | None = None
    version: str = ""
    state: str = WAITING
    message: str = ""
    started_at: int | None = None
    ended_at: int | None = None
    ended: trio.Event = field(default_factory=trio.Event, repr=False)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope, repr=False)
    interrupted: bool = False
    rests: trio.Event = field(default_factory=trio.Event, repr=False)
    # Progress since this process took it up, for the rate: trio's clock, and what was done then.
    since: float | None = None
    done_before: int = 0
    rows_before: int = 0

    @property
    def done(self) -> int:
        """How much market time (ns) is behind it."""
        return sum(part.done for part in self.parts)

    @property
    def total(self) -> int:
        """How much market time (ns) was missing when it began."""
        return sum(part.total for part in self.parts)

    @property
    def rows(self) -> int:
        """How many rows have come."""
        counts = (part.rows for part in self.parts)
        return sum(rows.added + rows.unchanged + rows.revised for rows in counts)

    @property
    def pages(self) -> int:
        """How many pages were stored."""
        return sum(part.pages for part in self.parts)

    @property
    def idle(self) -> bool:
        """Whether it ended well without anything to do."""
        return self.state == FINISHED and self.pages == 0

    def begin(self, now: int, clock: float) -> None:
        """Note that work begins, at a wall time (ns) and at trio's clock."""
        self.started_at = self.started_at or now
        self.since = clock
        self.done_before, self.rows_before = self.done, self.rows

    def cancel(self) -> None:
        """Have it end; what it has stored stays."""
        self.interrupted = False
        self.scope.cancel()

    def interrupt(self) -> trio.Event:
        """Have it stop where it is, to go on later; the event comes when it has stopped."""
        self.interrupted, self.rests = True, trio.Event()
        self.scope.cancel()
        return self.rests

    def take_up_again(self) -> None:
        """Make it ready to go on after an interruption: coverage tells where."""
        self.interrupted, self.scope = False, trio.CancelScope()
        for part in self.parts:
            if part.state not in ENDED:
                part.state, part.message = WAITING, ""
        self.rests.set()

    def settle(self) -> None:
        """Take the state over from the parts."""
        states = {part.state for part in self.parts}
        for state in (RUNNING, COOLING_DOWN, WAITING, FAILED, CANCELLED):
            if state in states:
                self.state = state
                break
        else:
            self.state = FINISHED

    def details(self) -> dict[str, Any]:
        """Return what is kept of it across restarts."""
        return {
            "storage": self.storage,
            "parts": [part.shown() for part in self.parts],
            "span": None if self.span is None else [self.span.start, self.span.end],
            "created_at": self.created_at,
            "slot": self.slot,
            "version": self.version,
            "state": self.state,
            "message": self.message,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
        }

    @classmethod
    def restored(cls, job_id: int, rule: str | None, kept: dict[str, Any]) -> Job:
        """Return the job that was kept."""
        names = ("storage", "created_at", "slot", "version", "state", "message", "started_at")
        return cls(
            job_id=job_id,
            rule=rule,
            parts=[Part.restored(part) for part in kept["parts"]],
            span=None if kept["span"] is None else Span(*kept["span"]),
            ended_at=kept["ended_at"],
            **{name: kept[name] for name in names},
        )


def shown_job(
    job: Job, clock: float, limit_used: float | None, waits: Sequence[str], *, whole: bool = True
) -> dict[str, Any]:
    """Return a job as clients see it: times in ms and as text, progress, rate and time to go.

    `clock` is trio's; `limit_used` the fraction of the venue's limit in use; `waits` why the venue
    may not be asked just now. Not `whole`: without results, and with some of its series.
    """
    elapsed = 0.0 if job.since is None or job.state in ENDED else clock - job.since
    done = job.done - job.done_before
    rate = done / elapsed if elapsed > 0 else None
    rows = (job.rows - job.rows_before) / elapsed if elapsed > 0 else None
    told = [part.message for part in job.parts if part.message and part.state not in ENDED]
    waiting_for = next(iter([*waits, *told]), None) if job.state not in ENDED else None
    shown = {
        "id": job.job_id,
        "state": COOLING_DOWN if waits and job.state == RUNNING else job.state,
        "rule": job.rule,
        "storage": job.storage,
        "series": [part.series.text for part in job.parts[: None if whole else SOME_SERIES]],
        "series_count": len(job.parts),
        "from": None if job.span is None else job.span.start // MILLISECOND,
        "to": None if job.span is None else -(-job.span.end // MILLISECOND),
        "start": None if job.span is None else format_time(job.span.start),
        "end": None if job.span is None else format_time(job.span.end),
        "created_at": _ms(job.created_at),
        "started_at": _ms(job.started_at),
        "ended_at": _ms(job.ended_at),
        "done": job.done,
        "total": job.total,
        "unit": "ns",
        "rate": None if rate is None else round(rate, 3),
        "rows": job.rows,
        "rows_per_sec": None if rows is None else round(rows, 1),
        "eta_secs": round((job.total - job.done) / rate, 1) if rate else None,
        "limit_used": None if limit_used is None else round(limit_used, 3),
        "waiting_for": waiting_for,
        "message": job.message,
    }
    return {**shown, "results": [part.shown() for part in job.parts]} if whole else shown


def _ms(ts: int | None) -> int | None:
    return None if ts is None else ts // MILLISECOND
