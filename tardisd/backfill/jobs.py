"""The book of backfill jobs: it runs those asked for and those of rules, and remembers them.

Jobs live in the daemon, not in the call that asked for them. Series of all jobs are fetched side by
side, a few per venue, which share the venue's budget; no series is ever fetched twice at once.
A job that the daemon's end interrupts goes on when it runs again: coverage says where.
It knows neither clients nor when rules are due.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from tardisd.backfill.fetching import fetch_part, patiently
from tardisd.backfill.instruments import InstrumentKeeper
from tardisd.backfill.plan import fetchable, missing_spans
from tardisd.backfill.records import (
    CANCELLED,
    COOLING_DOWN,
    ENDED,
    FAILED,
    FINISHED,
    WAITING,
    Job,
    Part,
    shown_job,
)
from tardisd.errors import RequestError, StorageError, TardisError
from tardisd.log import Log
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.plugins.exchange import Exchange
from tardisd.plugins.storage import Storage
from tardisd.state import JobRecord, State
from tardisd.supervise import attempt, describe
from tardisd.wall import wall_ns

log = Log("tardisd.backfill")

# Series of one venue at the same time; its budget decides how fast they go.
SERIES_AT_ONCE = 4
MAX_ACTIVE = 200
KEPT, KEPT_PER_RULE = 200, 20
STORE_EVERY_SECS = 2.0
# How many of the newest candles a rule asks for anew: venues revise recent ones.
RECENT_CANDLES = 5

SpanAt = Callable[[int], Span | None]


class JobBook:
    """Backfill jobs of one daemon. Use inside `run`."""

    def __init__(
        self,
        storages: Mapping[str, Storage[Any]],
        exchanges: Mapping[str, Exchange[Any]],
        state: State,
        now: Callable[[], int] = wall_ns,
    ) -> None:
        self._storages = storages
        self._exchanges = exchanges
        self._state = state
        self._now = now
        self._jobs: dict[int, Job] = {}
        self._last_id = 0
        self._nursery: trio.Nursery | None = None
        self._closed = False
        self._fetching: dict[tuple[str, str], trio.Lock] = {}
        self._rooms: dict[str, trio.Semaphore] = {}
        self._stored_at: dict[int, float] = {}
        self._instruments = InstrumentKeeper()
        self._open = trio.Event()  # shut while instances change places
        self._open.set()

    @property
    def closed(self) -> bool:
        """Whether no more jobs are taken, because the daemon stops."""
        return self._closed

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Take up what was left unfinished, and run jobs until the block is left."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._restore()
            yield
            await self.end_all()

    async def end_all(self) -> None:
        """Interrupt all jobs, take no more, and return when none runs."""
        self._closed = True
        active = self.active()
        for job in active:
            job.cancel()
        for job in active:
            await job.ended.wait()

    @asynccontextmanager
    async def held(self, concerned: Callable[[Job], bool]) -> AsyncIterator[None]:
        """Interrupt jobs that `concerned` picks; when the block is left, they go on.

        Within the block none of them uses an exchange or a storage, and no job begins to.
        """
        self._open = trio.Event()
        try:
            resting = [job.interrupt() for job in self.active() if concerned(job)]
            for rests in resting:
                await rests.wait()
            yield
        finally:
            self._open.set()

    def submit(self, wanted: Iterable[tuple[Series, str]], span: Span, storage: str) -> Job:
        """Begin a job: series, each with the exchange instance to ask, over a span.

        Raises RequestError for what an exchange does not have, or when too much is under way.
        """
        parts = {series.key: Part(series, name) for series, name in wanted}
        for part in parts.values():
            _refuse_unknown(part, self._exchanges[part.exchange])
        job = self._new(storage, parts.values(), span)
        self._put(job)
        self._start(job, None)
        return job

    def start_rule(
        self, rule: str, version: str, slot: int, wanted: Iterable[tuple[Series, str]],
        storage: str, span_at: SpanAt,
    ) -> Job:  # fmt: skip
        """Begin a rule's job; `span_at` gives its span for the time (ns) that the venue tells.

        Raises RequestError as `submit` does.
        """
        job = self._new(storage, [Part(series, name) for series, name in wanted], None)
        job.rule, job.version, job.slot = rule, version, slot
        self._start(job, span_at)
        return job

    def last_slot(self, rule: str, version: str) -> int | None:
        """Return what the newest run of a rule, as it is written now, was due for (ns)."""
        slots = [
            job.slot
            for job in self._jobs.values()
            if (job.rule, job.version) == (rule, version) and job.slot and job.state in ENDED
        ]
        return max(slots, default=None)

    def jobs(self) -> list[Job]:
        """Return the jobs that are known, oldest first."""
        return list(self._jobs.values())

    def active(self) -> list[Job]:
        """Return the jobs that have not ended."""
        return [job for job in self._jobs.values() if not job.ended.is_set()]

    def find(self, job_id: int) -> Job:
        """Return a job; RequestError when there is none of that number."""
        job = self._jobs.get(job_id)
        if job is None:
            text = f"job: there is no backfill {job_id}; old ones are forgotten"
            raise RequestError("bad_request", text)
        return job

    async def cancel(self, job_id: int) -> Job:
        """End a job; what it has stored stays. RequestError when it has ended already."""
        job = self.find(job_id)
        if job.ended.is_set():
            text = f"backfill {job_id} has ended already ({job.state})"
            raise RequestError("wrong_state", text)
        job.cancel()
        await job.ended.wait()
        return job

    def shown(self, job: Job, *, whole: bool = True) -> dict[str, Any]:
        """Return a job as clients see it; not `whole`: without its parts, and few series."""
        names = {part.exchange for part in job.parts if part.state not in ENDED}
        budgets = [
            budget
            for name in sorted(names)
            if name in self._exchanges
            for budget in self._exchanges[name].context.budgets.opened
        ]
        used = [share for budget in budgets for share in budget.usage().values()]
        waits = [text for budget in budgets if (text := budget.waiting_for())]
        limit_used = max(used, default=None)
        if not job.ended.is_set():
            job.settle()
        return shown_job(job, trio.current_time(), limit_used, waits, whole=whole)

    def why_failed(self, storage: str, series: Series) -> str | None:
        """Return the newest reason why a fetch of the series failed, if one is remembered."""
        for job in reversed(self._jobs.values()):
            for part in job.parts:
                same = job.storage == storage and part.series.key == series.key
                if same and part.state in (FAILED, COOLING_DOWN):
                    return part.message
        return None

    def _new(self, storage: str, parts: Iterable[Part], span: Span | None) -> Job:
        if self._closed or self._nursery is None:
            raise RequestError("wrong_state", "the daemon is stopping; ask again later")
        if len(self.active()) >= MAX_ACTIVE:
            text = f"{MAX_ACTIVE} backfills are under way; wait for one, or cancel some"
            raise RequestError("wrong_state", text)
        self._last_id += 1
        return Job(self._last_id, storage, list(parts), span, self._now())

    def _start(self, job: Job, span_at: SpanAt | None) -> None:
        assert self._nursery is not None
        self._jobs[job.job_id] = job
        self._nursery.start_soon(self._run, job, span_at)

    def _restore(self) -> None:
        for record in self._state.jobs():
            self._last_id = max(self._last_id, record.job_id)
            try:
                job = Job.restored(record.job_id, record.rule, record.details)
            except (KeyError, TypeError, ValueError) as error:
                log.warning("job forgotten", job=record.job_id, error=describe(error))
                self._state.forget_job(record.job_id)
                continue
            if record.ended:
                job.ended.set()
                self._jobs[job.job_id] = job
                continue
            for part in job.parts:
                if part.state not in ENDED:
                    part.state, part.message = WAITING, ""
            log.info("backfill taken up again", job=job.job_id)
            self._start(job, None)

    async def _run(self, job: Job, span_at: SpanAt | None) -> None:
        tell = log.info if job.rule is None else log.debug
        tell("backfill begins", job=job.job_id, rule=job.rule, series=len(job.parts))
        job.begin(self._now(), trio.current_time())
        try:
            while await self._perform_once(job, span_at):
                job.take_up_again()
            self._end(job)
        finally:
            job.ended.set()
            job.rests.set()

    async def _perform_once(self, job: Job, span_at: SpanAt | None) -> bool:
        """Do the job's work; tell whether it was interrupted, to go on later."""
        with job.scope:
            await self._open.wait()
            error = await attempt(self._perform, job, span_at)
            if error is not None:
                self._fail(job, job.parts, error)
        return job.interrupted and not self._closed

    async def _perform(self, job: Job, span_at: SpanAt | None) -> None:
        now = None
        if span_at is not None:
            # A rule is about one venue, whose clock says what is closed; ours may be wrong.
            first = job.parts[0]
            now = await patiently(first, self._exchanges[first.exchange].server_time)
            job.span = span_at(now)
        spans = [fetchable(part.series, job.span, now) for part in job.parts]
        again = 1 if job.rule is None else RECENT_CANDLES
        if (storage := self._storages.get(job.storage)) is None:
            text = f"no storage is named {job.storage!r} any more"
            raise RequestError("bad_request", text)
        for part, span in zip(job.parts, spans, strict=True):
            if span is not None and part.state not in ENDED:
                coverage = await storage.coverage(part.series)
                missing = missing_spans(part.series, span, coverage, again=again)
                left = sum(one.length for one in missing)
                part.total = max(part.total, left)
                part.done = part.total - left
        job.begin(self._now(), trio.current_time())
        async with trio.open_nursery() as nursery:
            for part, span in zip(job.parts, spans, strict=True):
                if part.state not in ENDED:
                    nursery.start_soon(self._run_part, job, part, span, storage, again)

    async def _run_part(
        self, job: Job, part: Part, span: Span | None, storage: Storage[Any], again: int
    ) -> None:
        if span is None:  # nothing of it is closed yet
            part.state, part.message, part.complete = FINISHED, "", True
            return
        if (exchange := self._exchanges.get(part.exchange)) is None:
            text = f"no exchange instance is named {part.exchange!r} any more"
            self._fail(job, [part], RequestError("bad_request", text))
            return
        part.state, part.message = WAITING, "another job fetches this series"
        async with self._sole(job.storage, part.series):
            fetch = partial(self._fetch, exchange, storage, again, partial(self._paged, job))
            error = await attempt(fetch, part, span)
        if error is None:
            part.state, part.message = FINISHED, ""
        else:
            self._fail(job, [part], error)
        job.settle()
        self._paged(job)

    async def _fetch(
        self, exchange: Exchange[Any], storage: Storage[Any], again: int,
        on_page: Callable[[], None], part: Part, span: Span,
    ) -> None:  # fmt: skip
        """Fetch when no other daemon does, and when the venue has room."""
        part.message = "another daemon fetches this series"
        async with storage.lease(part.series):
            part.message = f"{SERIES_AT_ONCE} other series of {exchange.name} come first"
            async with self._rooms.setdefault(exchange.name, trio.Semaphore(SERIES_AT_ONCE)):
                try:
                    await fetch_part(part, span, exchange, storage, again=again, on_page=on_page)
                finally:
                    if part.pages:
                        await self._instruments.keep(part.series, part.exchange, exchange, storage)

    @asynccontextmanager
    async def _sole(self, storage: str, series: Series) -> AsyncIterator[None]:
        """Hold the right to fetch a series into a storage, waiting for who has it."""
        key = (storage, series.text)
        lock = self._fetching.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._fetching.pop(key, None)

    def _fail(self, job: Job, parts: Sequence[Part], error: Exception) -> None:
        told = describe(error)
        for part in parts:
            if part.state not in ENDED:
                part.state, part.message = FAILED, told
        if isinstance(error, TardisError):
            log.warning("backfill failed", job=job.job_id, rule=job.rule, error=told)
        else:
            log.error("exchange plugin failed", job=job.job_id, rule=job.rule, error=told)

    def _paged(self, job: Job) -> None:
        """Keep how far the job is, now and then."""
        job.settle()
        clock = trio.current_time()
        if job.rule is None and clock >= self._stored_at.get(job.job_id, 0.0) + STORE_EVERY_SECS:
            self._stored_at[job.job_id] = clock
            self._put(job)

    def _end(self, job: Job) -> None:
        self._stored_at.pop(job.job_id, None)
        left = [part for part in job.parts if part.state not in ENDED]
        if left and self._closed:
            if job.rule is None:
                self._put(job)
            return
        for part in left:
            part.state, part.message = CANCELLED, ""
        job.settle()
        job.ended_at = self._now()
        job.message = next((part.message for part in job.parts if part.state == FAILED), "")
        if not job.idle:
            rows = {"added": sum(part.rows.added for part in job.parts),
                    "revised": sum(part.rows.revised for part in job.parts)}  # fmt: skip
            # Rules may run every second; what they fail at and what is revised is logged besides.
            tell = log.info if job.rule is None else log.debug
            tell("backfill ended", job=job.job_id, rule=job.rule, state=job.state, **rows)
        self._forget_old(job)
        self._put(job)

    def _forget_old(self, job: Job) -> None:
        """Keep history bounded; of a rule's runs in a row that found nothing to do, the last."""
        ended = [one for one in self._jobs.values() if one.ended.is_set() and one.rule == job.rule]
        most = KEPT if job.rule is None else KEPT_PER_RULE
        old = ended[: max(0, len(ended) + 1 - most)]
        if job.rule is not None and job.idle and ended and ended[-1].idle:
            old.append(ended[-1])
        for one in old:
            self._jobs.pop(one.job_id, None)
            try:
                self._state.forget_job(one.job_id)
            except StorageError as error:
                log.warning("job not forgotten", job=one.job_id, error=error.message)

    def _put(self, job: Job) -> None:
        details = job.details()
        record = JobRecord(job.job_id, job.rule, job.state in ENDED, details)
        try:
            self._state.put_job(record)
        except StorageError as error:  # the data is what counts; coverage tells how far it is
            log.warning("job not remembered", job=job.job_id, error=error.message)


def _refuse_unknown(part: Part, exchange: Exchange[Any]) -> None:
    known = exchange.data_types()
    name = part.series.data_type.name
    if name not in known:
        text = f"{part.series}: {exchange.name} has no {name}; it has {', '.join(known)}"
        raise RequestError("bad_request", text)
