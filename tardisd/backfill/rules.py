"""Begin the backfills that the configuration's rules want, when they are due; fetches nothing."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import msgspec
import trio

from tardisd.backfill.jobs import JobBook
from tardisd.backfill.schedule import Due, Schedule
from tardisd.config.model import BackfillRule, plain
from tardisd.errors import RequestError
from tardisd.log import Log
from tardisd.market.span import Span
from tardisd.market.time import SECOND
from tardisd.wall import wall_ns

log = Log("tardisd.backfill")

# A wall clock that jumps is noticed within this time.
LOOK_UP_SECS = 60.0


class Rules:
    """The rules in force, each in a task of its own."""

    def __init__(
        self, nursery: trio.Nursery, book: JobBook, now: Callable[[], int] = wall_ns
    ) -> None:
        self._nursery = nursery
        self._book = book
        self._now = now
        self._in_force: dict[str, tuple[BackfillRule, trio.CancelScope]] = {}

    def replace(self, rules: Iterable[BackfillRule]) -> None:
        """Put rules in force; those that are the same go on, jobs of all others are cancelled."""
        wanted = {rule.name: rule for rule in rules}
        for name, (rule, scope) in list(self._in_force.items()):
            if wanted.get(name) != rule:
                del self._in_force[name]
                scope.cancel()
                for job in self._book.active():
                    if job.rule == name:
                        job.cancel()
        for name, rule in wanted.items():
            if name not in self._in_force:
                scope = trio.CancelScope()
                self._in_force[name] = rule, scope
                self._nursery.start_soon(self._run, rule, scope)

    async def _run(self, rule: BackfillRule, scope: trio.CancelScope) -> None:
        with scope:
            await _run_rule(self._book, rule, self._now)


@asynccontextmanager
async def rules_running(
    book: JobBook, rules: Iterable[BackfillRule], now: Callable[[], int] = wall_ns
) -> AsyncIterator[Rules]:
    """Let rules begin jobs of the book until the block is left; one job per rule at a time."""
    async with trio.open_nursery() as nursery:
        running = Rules(nursery, book, now)
        running.replace(rules)
        yield running
        nursery.cancel_scope.cancel()


async def _run_rule(book: JobBook, rule: BackfillRule, now: Callable[[], int]) -> None:
    schedule = Schedule(rule.every, rule.at, rule.jitter)
    version = version_of(rule)
    # A rule without times runs at every start of the daemon; of others, what was missed is made up.
    last = None if rule.every is rule.at is None else book.last_slot(rule.name, version)
    while (due := await _wait(schedule, last, now)) is not None:
        try:
            job = book.start_rule(
                rule.name,
                version,
                due.slot,
                [(series, rule.exchange) for series in rule.series],
                rule.storage,
                lambda ts: span_at(rule, ts),
            )
        except RequestError as error:
            if book.closed:
                return
            log.warning("backfill rule not begun", rule=rule.name, error=error.message)
        else:
            await job.ended.wait()
        last = due.slot


async def _wait(schedule: Schedule, last: int | None, now: Callable[[], int]) -> Due | None:
    """Return the next run when its time has come; None when there is none."""
    share = random.random()
    before = now()
    due = schedule.next_due(last, before, share)
    while due is not None and (rest := due.start - now()) > 0:
        await trio.sleep(min(rest / SECOND, LOOK_UP_SECS))
        if (here := now()) < before:
            due = schedule.next_due(last, here, share)
        before = here
    await trio.lowlevel.checkpoint()
    return due


def span_at(rule: BackfillRule, ts: int) -> Span | None:
    """Return what a rule wants when it is `ts` (ns) at the venue; None when nothing, as yet."""
    end = ts if rule.end is None else min(rule.end.at(ts), ts)
    start = rule.start.at(ts)
    return Span(start, end) if start < end else None


def version_of(rule: BackfillRule) -> str:
    """Return a text that differs between two versions of a rule."""
    text = msgspec.json.encode(plain(rule.table), order="sorted")
    return hashlib.blake2b(text, digest_size=8).hexdigest()
