"""The real engine over a storage in memory, in virtual time: hours of market time in milliseconds.

    def test_something():
        async def main(engine):
            await engine.store(batch)
            session = await engine.create([batch.series], speed=100)
            ...
        run_engine(main)

Time stands still while anything runs, worker threads included, and jumps when all are waiting.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.plugins.analyzer import Analyzer
from tardisd.plugins.exchange import Page
from tardisd.plugins.sessions import Block, Evicted, Notice, Resume, SessionRequest, WhenFull
from tardisd.plugins.sink import Sink
from tardisd.plugins.storage import Storage
from tardisd.replay.block import SessionBlock
from tardisd.replay.fanout import Follower
from tardisd.replay.manager import SessionLimits, SessionManager
from tardisd.replay.session import ReplaySession
from tardisd.state import State
from tardisd.testing.memory import MemoryStorage

T = TypeVar("T")
_THREAD_SECS = 0.0005  # of real time between two looks at what threads do


@dataclass(frozen=True, slots=True)
class Heard:
    """What a follower received, and when (virtual seconds)."""

    at: float
    item: SessionBlock | Notice


@dataclass
class Listener:
    """Everything that one follower of a session receives, until the end."""

    follower: Follower
    heard: list[Heard] = field(default_factory=list)
    evicted: str | None = None
    done: trio.Event = field(default_factory=trio.Event)

    async def listen(self) -> None:
        """Receive until the session ends or the follower is cut off."""
        try:
            while True:
                item = await self.follower.receive()
                self.heard.append(Heard(trio.current_time(), item))
        except trio.EndOfChannel:
            pass
        except Evicted as error:
            self.evicted = str(error)
        finally:
            self.done.set()

    @property
    def blocks(self) -> list[SessionBlock]:
        """The blocks received."""
        return [heard.item for heard in self.heard if not isinstance(heard.item, Notice)]

    def notices(self, *types: str) -> list[Notice]:
        """Return the notices received, of these types if any are named."""
        found = [heard.item for heard in self.heard if isinstance(heard.item, Notice)]
        return [notice for notice in found if not types or notice.type in types]

    @property
    def end(self) -> Mapping[str, Any]:
        """The fields of the `end` notice."""
        [notice] = self.notices("end")
        return notice.fields

    def seqs(self) -> list[int]:
        """Return the sequence numbers of ticks and gap marks, in the order received."""
        seqs: list[int] = []
        for heard in self.heard:
            item = heard.item
            if not isinstance(item, Notice):
                seqs += range(item.first_seq, item.first_seq + len(item))
            elif item.type == "gap":
                seqs.append(item.fields["seq"])
        return seqs

    def ticks(self) -> list[tuple[int, str, int]]:
        """Return (release time, series, event time) of every tick, in the order received."""
        return [tick for block in self.blocks for tick in ticks_of(block)]

    def arrivals(self) -> list[tuple[float, int]]:
        """Return (virtual seconds when received, release time) of every tick."""
        return [
            (heard.at, release)
            for heard in self.heard
            if not isinstance(heard.item, Notice)
            for release in heard.item.release.tolist()
        ]


def ticks_of(block: Block) -> list[tuple[int, str, int]]:
    """Return (release time, series, event time) of a block's ticks, in order."""
    rows: list[tuple[int, str, int]] = [(0, "", 0)] * len(block)
    release = block.release.tolist()
    for batch, seqs in block.batches():
        for seq, ts_event in zip(seqs, batch.ts_event.tolist(), strict=True):
            row = seq - block.first_seq
            rows[row] = (release[row], batch.series.text, ts_event)
    return rows


class Engine:
    """A running session manager, its storage, and short ways to use them."""

    def __init__(
        self, storage: Storage[Any], sessions: SessionManager, nursery: trio.Nursery
    ) -> None:
        self.storage = storage
        self.sessions = sessions
        self._nursery = nursery

    async def store(self, batch: Batch, covered: Coverage | Span | None = None) -> None:
        """Store rows and what they are complete for: their own extent, unless `covered` says it."""
        if covered is None:
            covered = batch.extent()
        proven = Coverage([covered]) if isinstance(covered, Span) else covered
        hull = proven.hull
        assert hull is not None, "nothing is covered"
        holes = tuple(proven.gaps(hull))
        await self.storage.append(batch.series, Page(batch, hull, (), "", holes))

    async def create(self, series: Sequence[Series], span: Span, **options: Any) -> ReplaySession:
        """Create a session; options are those of SessionRequest."""
        request = SessionRequest(series=tuple(series), start=span.start, end=span.end, **options)
        return await self.sessions.create(request)

    def listen(
        self, session: ReplaySession, when_full: WhenFull = "block", name: str = ""
    ) -> Listener:
        """Follow a session from now on, in the background."""
        listener = Listener(session.subscribe(when_full, (), name))
        self._nursery.start_soon(listener.listen)
        return listener

    def listen_from(
        self, session: ReplaySession, resume: Resume, when_full: WhenFull = "block"
    ) -> Listener:
        """Follow a session from where one was, in the background."""
        listener = Listener(session.subscribe(when_full, (), "", resume))
        self._nursery.start_soon(listener.listen)
        return listener

    async def play(self, series: Sequence[Series], span: Span, **options: Any) -> Listener:
        """Create a session, begin it, and return what a follower heard when it has ended."""
        session = await self.create(series, span, **options)
        listener = self.listen(session)
        session.begin()
        await listener.done.wait()
        return listener


def run_engine(
    main: Callable[[Engine], Awaitable[T]],
    *,
    storage: Storage[Any] | None = None,
    sinks: Mapping[str, Sink[Any]] | None = None,
    analyzers: Mapping[str, Analyzer[Any]] | None = None,
    limits: SessionLimits | None = None,
    limiters: Sequence[trio.CapacityLimiter] = (),
    state: Path = Path(":memory:"),
) -> T:
    """Run `main` with an engine, in virtual time, and return what it returns.

    `limiters` are those of threads that sinks or storages start.
    """
    clock = MockClock()

    async def run() -> T:
        async with (
            engine_running(
                storage=storage, sinks=sinks, analyzers=analyzers, limits=limits, state=state
            ) as engine,
            virtual_time(clock, engine.sessions.limiter, *limiters),
        ):
            return await main(engine)

    try:
        return trio.run(run, clock=clock)
    except BaseExceptionGroup as group:  # told plainly when it is only one
        raise plainly(group) from None


def plainly(error: BaseException) -> BaseException:
    """Return the one error that a group, or a group of groups, is about; else the group."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


@asynccontextmanager
async def engine_running(
    *,
    storage: Storage[Any] | None = None,
    sinks: Mapping[str, Sink[Any]] | None = None,
    analyzers: Mapping[str, Analyzer[Any]] | None = None,
    limits: SessionLimits | None = None,
    state: Path = Path(":memory:"),
) -> AsyncIterator[Engine]:
    """Run an engine in the trio loop that is on, by that loop's clock."""
    kept, own = storage or MemoryStorage(), State(state)
    manager = SessionManager({"main": kept}, "main", sinks or {}, own, limits, analyzers)
    try:
        async with trio.open_nursery() as nursery:
            async with manager.run():
                await manager.restore()
                yield Engine(kept, manager, nursery)
            nursery.cancel_scope.cancel()
    finally:
        own.close()


@asynccontextmanager
async def virtual_time(clock: MockClock, *limiters: trio.CapacityLimiter) -> AsyncIterator[None]:
    """Let the clock jump to the next deadline whenever all tasks wait and no thread works.

    `limiters` are those that the threads are started with. trio's own autojump does not wait for
    threads, and a deadline may pass while one works.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_jump, clock, limiters)
        yield
        nursery.cancel_scope.cancel()


async def _jump(clock: MockClock, limiters: Sequence[trio.CapacityLimiter]) -> None:
    while True:
        await wait_all_tasks_blocked()
        if any(limiter.borrowed_tokens for limiter in limiters):
            await wait_all_tasks_blocked(_THREAD_SECS)
            continue
        left = trio.lowlevel.current_statistics().seconds_to_next_deadline
        if left != float("inf"):
            clock.jump(max(left, 1e-9))
