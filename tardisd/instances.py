"""Configured plugins at work: one task each holds its instance open; failed ones start anew.

What an instance does is its own affair; this says only whether it runs, and lets instances come and
go while others run.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from tardisd.config import model
from tardisd.config.diff import section_of
from tardisd.errors import PluginError, RequestError, TardisError
from tardisd.log import Log
from tardisd.overdue import LOOK_SECS, Calls, watch
from tardisd.plugins.analyzer import Analyzer
from tardisd.plugins.base import KINDS, Context, Plugin
from tardisd.plugins.host import find_analyzer, find_storage
from tardisd.plugins.storage import Storage
from tardisd.supervise import Backoff, attempt, describe, outcome
from tardisd.venue.book import BudgetBook

log = Log("tardisd.instances")

# A plugin that has not closed by then is not waited for any longer.
CLOSE_SECS = 15.0


class StartError(TardisError):
    """Raised when an instance cannot start; the message names it."""

    code = "start_failed"


@dataclass(eq=False)
class Instance:
    """One configured plugin; `state` is starting, running, failed or stopped.

    `claims` is what no other instance can hold while this one runs, `calls` those of a storage.
    """

    section: model.Instance
    plugin: Plugin[Any]
    claims: frozenset[str] = frozenset()
    calls: Calls | None = None
    budgets: BudgetBook = field(default_factory=BudgetBook)
    state: str = "starting"
    message: str = ""
    _stop: trio.Event = field(default_factory=trio.Event)
    _gone: trio.Event = field(default_factory=trio.Event)
    _anew: trio.Event = field(default_factory=trio.Event)
    _settled: trio.Event = field(default_factory=trio.Event)

    @classmethod
    async def made(cls, section: model.Instance, context: Context) -> Instance:
        """Make the plugin that a section configures; StartError when it cannot be made."""

        async def make() -> Instance:
            plugin = section.cls(section.options, context)
            calls = watch(plugin, section.name) if isinstance(plugin, Storage) else None
            return cls(section, plugin, plugin.claims(), calls, context.budgets)

        one, error = await outcome(make)
        if one is None:
            assert error is not None
            raise StartError(f"[{section_of(section)}] cannot be made: {describe(error)}")
        return one

    @property
    def kind(self) -> str:
        """The kind of its plugin."""
        return self.section.kind

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return self.section.name

    async def hold(
        self,
        patient: bool = False,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep the instance open until `stop`.

        A first start that fails raises StartError, or is tried again for ever when `patient`.
        """
        backoff = Backoff(first=1.0, most=60.0)
        first = True
        while not self._stop.is_set():
            self._anew = trio.Event()
            error = await attempt(self._run_once, task_status if first else None)
            if error is None:
                first = False
                continue
            self.message = describe(error)
            started, self.state = self.state == "running", "failed"
            self._settled.set()
            if first and not started:
                if not patient:
                    raise StartError(f"[{section_of(self.section)}] cannot start: {self.message}")
                task_status.started()
            if started:
                backoff.reset()
            first = False
            wait = backoff.next()
            log.error("instance failed", kind=self.kind, name=self.name, error=self.message,
                      wait_secs=round(wait, 1))  # fmt: skip
            self._anew = trio.Event()
            with trio.move_on_after(wait):
                await self._anew.wait()
        self.state = "stopped"
        self._gone.set()

    async def _run_once(self, task_status: trio.TaskStatus[None] | None) -> None:
        started = False
        with trio.CancelScope() as scope:
            scope.deadline = trio.current_time() + self.plugin.start_secs
            async with self.plugin.run():
                scope.deadline, started = math.inf, True
                self.state, self.message = "running", ""
                self._settled.set()
                if task_status is not None:
                    task_status.started()
                await self._anew.wait()
                scope.deadline = trio.current_time() + self.plugin.stop_secs
        if scope.cancelled_caught and started:
            log.error("instance did not close in time", kind=self.kind, name=self.name,
                      secs=self.plugin.stop_secs)  # fmt: skip
        elif scope.cancelled_caught:
            raise PluginError(
                f"it did not start within {self.plugin.start_secs:g} s; see to what it waits for"
            )

    async def restart(self) -> None:
        """Close the instance and open it again at once; return when it runs or has failed.

        One that does not come to an end in time goes on with it, and is `starting` until then.
        """
        self.state, self._settled = "starting", trio.Event()
        self._anew.set()
        with trio.move_on_after(CLOSE_SECS):
            await self._settled.wait()

    @property
    def told_to_stop(self) -> bool:
        """Whether it is to be closed, or has been."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Have the instance closed."""
        self._stop.set()
        self._anew.set()
        self._settled.set()

    def discard(self) -> None:
        """Let go of what it holds of others, for good: it will never be started again."""
        self.budgets.leave()

    async def gone(self) -> None:
        """Return when it has closed after `stop`."""
        await self._gone.wait()

    def revive(self) -> None:
        """Allow a stopped instance to be held once more."""
        self._stop, self._gone, self.state = trio.Event(), trio.Event(), "starting"


class Instances:
    """The instances of one daemon, each kind within a nursery of its own.

    `plugins` are those in service, by kind and name; the inner mappings change in place.
    """

    def __init__(self) -> None:
        self.plugins: Mapping[str, dict[str, Any]] = {kind: {} for kind in KINDS}
        self._in_service: dict[tuple[str, str], Instance] = {}
        self._alive: dict[Instance, None] = {}
        self._nurseries: dict[str, trio.Nursery] = {}

    def __iter__(self) -> Iterator[Instance]:
        """Iterate over those in service."""
        return iter(list(self._in_service.values()))

    def named(self, kind: str, name: str) -> Instance:
        """Return the instance that is in service under a name; RequestError when there is none."""
        try:
            return self._in_service[kind, name]
        except KeyError:
            text = f"name: no {kind} instance is named {name!r}"
            raise RequestError("bad_request", text) from None

    @asynccontextmanager
    async def running(self, kind: str) -> AsyncIterator[None]:
        """Hold the instances of a kind; one that cannot start ends it with StartError."""
        async with trio.open_nursery() as nursery:
            self._nurseries[kind] = nursery
            for one in [one for one in self if one.kind == kind]:
                await self.start(one)
            yield
            for one in [one for one in self._alive if one.kind == kind]:
                one.stop()

    def put(self, instances: Iterable[Instance]) -> None:
        """Put instances in service, each in the place of the one of its name."""
        for one in instances:
            self._in_service[one.kind, one.name] = one
            self.plugins[one.kind][one.name] = one.plugin

    def drop(self, instances: Iterable[Instance]) -> None:
        """Take instances out of service; they run on."""
        for one in instances:
            del self._in_service[one.kind, one.name]
            del self.plugins[one.kind][one.name]

    async def tell_overdue(self) -> None:
        """Log whenever a storage does not answer; runs until cancelled."""
        while True:
            await trio.sleep(LOOK_SECS)
            for one in self:
                if one.calls is not None:
                    one.calls.look()

    def unfinished(self) -> list[str]:
        """Return the sections of the instances that were told to stop and have not."""
        left = [one for one in self._alive if one.state != "stopped"]
        told = [one for one in left if one.told_to_stop]
        return [section_of(one.section) for one in told or left]

    async def start(self, one: Instance, *, patient: bool = False, secs: float = math.inf) -> None:
        """Start an instance and return when it runs; StartError when it cannot, or not in time.

        A `patient` start that fails is tried again and again.
        """
        for other in self._alive:
            if common := other.claims & one.claims:
                closing = "" if other in self else ", which is still closing"
                raise StartError(
                    f"[{section_of(one.section)}] cannot start: {min(common)} belongs to"
                    f" [{section_of(other.section)}]{closing}; let each have its own"
                )
        self._alive[one] = None
        late = StartError(f"[{section_of(one.section)}] has not started within {secs:g} s")
        error: Exception | None = late
        with trio.move_on_after(secs):
            error = await attempt(self._nurseries[one.kind].start, one.hold, patient)
        if error is not None:
            del self._alive[one]
            raise error
        log.info("instance running", kind=one.kind, name=one.name, plugin=one.plugin.name)

    async def stop(self, one: Instance) -> bool:
        """Stop an instance; tell whether it has closed, which a plugin may never do."""
        one.stop()
        with trio.move_on_after(CLOSE_SECS):
            await one.gone()
        if one.state != "stopped":
            log.error("instance does not close", kind=one.kind, name=one.name, secs=CLOSE_SECS)
            return False
        self._alive.pop(one, None)
        log.info("instance stopped", kind=one.kind, name=one.name)
        return True


@dataclass
class DaemonHost:
    """The daemon as `tardisd.plugins.host.Host` shows it to its plugins."""

    storages: Mapping[str, Storage[Any]]
    default_storage: str | None
    analyzers: Mapping[str, Analyzer[Any]] = field(default_factory=dict)
    metrics: Callable[[], str] = str
    ready: bool = False

    def storage(self, name: str | None = None) -> Storage[Any]:
        """Return a storage, the default one for None; RequestError says which there are."""
        return find_storage(self.storages, self.default_storage, name)

    def analyzer(self, name: str | None = None) -> Analyzer[Any]:
        """Return an analyzer, the first one that answers for None; RequestError."""
        return find_analyzer(self.analyzers, name)
