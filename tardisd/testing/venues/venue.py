"""What all test venues share: clock, limits, faults, a record of requests; knows no endpoint."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

from tardisd.market.columns import Batch
from tardisd.market.series import Instrument, Series, Symbol
from tardisd.testing.venues.faults import (
    Change,
    Fault,
    FaultBook,
    Misreport,
    Refuse,
    Reset,
    Rewrite,
    Stall,
    Truncate,
)
from tardisd.testing.venues.files import Files
from tardisd.testing.venues.meters import Meter
from tardisd.testing.venues.server import Answer, Request, serve
from tardisd.testing.venues.shelf import shelved
from tardisd.venue.budget import Limit
from tardisd.wall import wall_ns

REST, ARCHIVE = "rest", "archive"


class VenueClock:
    """A venue's clock (ns): stands where it was set, or runs with the wall clock."""

    def __init__(self, at: int | None = None) -> None:
        self._at = at

    def __call__(self) -> int:
        return wall_ns() if self._at is None else self._at

    def set(self, ts: int) -> None:
        """Stand at a time (ns)."""
        self._at = ts

    def advance(self, by: int) -> None:
        """Stand `by` ns later than now."""
        self._at = self() + by


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the venue saw it: when (wall clock, ns), what it cost, how it was answered."""

    ts: int
    role: str
    path: str
    query: str
    weight: int
    status: int
    fault: str = ""


class Refused(Exception):
    """Raised where a request is not to be had; carries the answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request costs of which limits, and how to answer it."""

    charges: Mapping[str, int]
    produce: Callable[[Change | None], Awaitable[Answer]]


class Venue(ABC):
    """A venue on loopback, with the data it is given.

    `data` maps series to their batches, in order of time; what is not in them does not exist.
    `clock` is the venue's time: a clock, an instant (ns), or None for the wall clock. `limits`
    take the place of the venue's own (`{}`: none); they count by `now`, the wall clock.
    `instruments` say tick and lot sizes and listing times; without, they follow from the data.
    `compress` offers gzip for REST answers; `archive_level` is for files, from 0 (not) to 9.
    """

    exchange: ClassVar[str]
    roles: ClassVar[tuple[str, ...]] = (REST, ARCHIVE)

    def __init__(
        self,
        data: Mapping[Series, Batch],
        *,
        clock: VenueClock | int | None = None,
        faults: Sequence[Fault] = (),
        limits: Mapping[str, Limit] | None = None,
        instruments: Sequence[Instrument] = (),
        now: Callable[[], int] = wall_ns,
        seed: int = 0,
        compress: bool = False,
        archive_level: int = 1,
    ) -> None:
        self.data = {series: shelved(batch) for series, batch in data.items() if len(batch)}
        self.clock = clock if isinstance(clock, VenueClock) else VenueClock(clock)
        self.faults = FaultBook(faults, seed)
        self.requests: list[Seen] = []
        self.limits = dict(self.own_limits() if limits is None else limits)
        self.meters = {name: Meter(limit) for name, limit in self.limits.items()}
        self.now = now
        self.instruments = {
            symbol: _guess(self.exchange, symbol, self.data)
            for symbol in dict.fromkeys(series.symbol for series in data)
        }
        self.instruments.update((known.symbol, known) for known in instruments)
        self.files = Files(Path())
        self.urls: dict[str, str] = {}
        self._compress = compress
        self._archive_level = archive_level

    @property
    def rest_url(self) -> str:
        """Where its REST interface is, while it serves."""
        return self.urls[REST]

    @property
    def archive_url(self) -> str:
        """Where its archives are, while it serves."""
        return self.urls[ARCHIVE]

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Self]:
        """Answer on loopback, each role at a port of its own."""
        with tempfile.TemporaryDirectory(prefix="tardisd-venue-") as folder:
            self.files = Files(Path(folder), self._archive_level)
            handlers = {role: partial(self._answer, role) for role in self.roles}
            async with serve(handlers) as self.urls:
                yield self

    def most_used(self) -> dict[str, float]:
        """Return, per limit, the most that any window held, as a fraction of the limit."""
        return {name: meter.most / meter.limit.weight for name, meter in self.meters.items()}

    @abstractmethod
    def own_limits(self) -> Mapping[str, Limit]:
        """Return the limits that the venue documents."""

    @abstractmethod
    def plan(self, role: str, request: Request) -> Plan:
        """Return what a request costs and brings; raises Refused for what costs nothing."""

    @abstractmethod
    def refusal(self, plan: Plan, used: Mapping[str, int], now: int) -> Answer | None:
        """Return the answer to one who asks too much, if this request is that."""

    @abstractmethod
    def in_own_words(self, role: str, status: int) -> Answer:
        """Return how the venue words a status."""

    def usage_headers(self, used: Mapping[str, int]) -> Mapping[str, str]:
        """Return the headers that tell what was used."""
        return {}

    async def _answer(self, role: str, request: Request) -> Answer:
        now = self.now()
        fault = None
        weight = 0
        used: dict[str, int] = {}
        try:
            plan = self.plan(role, request)
            for name, charge in plan.charges.items():
                if name in self.meters:
                    used[name] = self.meters[name].charge(charge, now)
            weight = max(plan.charges.values(), default=0)
            refusal = self.refusal(plan, used, now)
            if refusal is not None:
                raise Refused(refusal)
            fault = self.faults.next(request.target)
            if isinstance(fault, Refuse):
                raise Refused(self._refused(role, fault))
            answer = await plan.produce(fault.change if isinstance(fault, Misreport) else None)
        except Refused as refused:
            answer = refused.answer
        answer = replace(
            _spoilt(answer, fault),
            headers={**answer.headers, **self.usage_headers(used), **_content_type(fault)},
            compress=self._compress,
        )
        told = "" if fault is None else type(fault).__name__
        self.requests.append(
            Seen(now, role, request.path, request.query, weight, answer.status, told)
        )
        return answer

    def _refused(self, role: str, fault: Refuse) -> Answer:
        answer = self.in_own_words(role, fault.status)
        headers = {**answer.headers, **fault.headers}
        if fault.retry_after is not None:
            headers["Retry-After"] = fault.retry_after
            if not fault.retry_after:
                del headers["Retry-After"]
        body = answer.body if fault.body is None else fault.body
        return replace(answer, body=body, headers=headers)


def _spoilt(answer: Answer, fault: Fault | None) -> Answer:
    if isinstance(fault, Stall):
        return replace(answer, stall_secs=fault.secs, stall_after=fault.after_bytes)
    if isinstance(fault, Reset):
        return replace(answer, reset=True, stop_after=fault.after_bytes)
    if isinstance(fault, Truncate):
        return replace(answer, stop_after=fault.after_bytes)
    if isinstance(fault, Rewrite):
        body = answer.body if isinstance(answer.body, bytes) else answer.body.read_bytes()
        return replace(answer, body=fault.change(body))
    return answer


def _content_type(fault: Fault | None) -> dict[str, str]:
    if isinstance(fault, Rewrite) and fault.content_type is not None:
        return {"Content-Type": fault.content_type}
    return {}


def _guess(exchange: str, symbol: Symbol, data: Mapping[Series, Batch]) -> Instrument:
    """Return an instrument whose sizes are the finest that its data shows."""
    prices = amounts = 0
    first: int | None = None
    found = [batch for series, batch in data.items() if series.symbol == symbol]
    for batch in found:
        prices = max(
            [prices, *(_scale(batch, n) for n in ("open", "high", "low", "close", "price"))]
        )
        amounts = max([amounts, *(_scale(batch, name) for name in ("volume", "amount"))])
        first = min(first or int(batch.ts_event[0]), int(batch.ts_event[0]))
    return Instrument(exchange, symbol, _unit(prices), _unit(amounts), first)


def _scale(batch: Batch, name: str) -> int:
    return batch.fields[name].needed_scale if name in batch.fields else 0


def _unit(scale: int) -> str:
    return "1" if not scale else f"0.{'1':0>{scale}}"
