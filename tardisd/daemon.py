"""The composition root: from a checked config to running instances, and back to silence.

    outer      signals, watchdog, control server (answers until the very end)
    └ instances  one task per configured plugin
      ├ backfills  one task per job, and one per rule that begins them
      └ sessions   one nursery per session, with a task per sink

Nothing is decided here but the order in which things start and stop.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tardisd import log as logs
from tardisd.backfill.jobs import JobBook
from tardisd.backfill.rules import rules_running
from tardisd.config.model import Config
from tardisd.control.server import serve_control
from tardisd.control.services import InstanceState, Services
from tardisd.errors import TardisError
from tardisd.instances import DaemonHost, Instance, of_kind
from tardisd.log import Log
from tardisd.metrics import exposition
from tardisd.plugins.base import Context
from tardisd.plugins.host import Board, Host
from tardisd.replay.manager import SessionLimits, SessionManager
from tardisd.state import State
from tardisd.supervise import describe, innermost
from tardisd.systemd import Notifier
from tardisd.venue.book import BudgetBook
from tardisd.wall import wall_ns

log = Log("tardisd.daemon")

_MOST_DESCRIPTORS = 65_536
_START_ORDER = ("storage", "exchange", "analyzer", "sink")


class Daemon:
    """One daemon: made of a config, run once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._notifier = Notifier.from_environ(os.environ)
        self._stop = trio.Event()
        self._instances: list[Instance] = []
        self._started_at = wall_ns()

    async def run(self) -> None:
        """Start everything, serve until told to stop, and stop in order.

        Raises TardisError when something cannot start.
        """
        data_dir = self._config.daemon.data_dir
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise TardisError(
                f"data_dir {data_dir} cannot be made: {error.strerror};"
                " set another [daemon] data_dir"
            ) from None
        state = State(data_dir / "state.sqlite")
        try:
            async with trio.open_nursery() as outer:
                outer.start_soon(self._watch_signals, outer.cancel_scope)
                outer.start_soon(self._keep_alive)
                await self._serve(outer, state)
                outer.cancel_scope.cancel()
        finally:
            state.close()
        log.info("stopped")

    def _build(self, sessions: SessionManager, budgets: BudgetBook, host: Host) -> None:
        board = Board()
        for kind in _START_ORDER:
            for name, one in self._config.instances[kind].items():
                data_dir = self._config.daemon.data_dir
                context = Context(name, data_dir, sessions, budgets.page(), host, board)
                self._instances.append(Instance(kind, name, one.cls(one.options, context)))

    async def _serve(self, outer: trio.Nursery, state: State) -> None:
        daemon = self._config.daemon
        storages: dict[str, object] = {}
        sinks: dict[str, object] = {}
        exchanges: dict[str, object] = {}
        sessions = SessionManager(
            storages,  # type: ignore[arg-type]
            self._config.default_storage,
            sinks,  # type: ignore[arg-type]
            state,
            SessionLimits(
                max_sessions=daemon.max_sessions,
                kept_secs=daemon.kept_secs,
                drain_secs=daemon.shutdown_secs / 2,
            ),
        )
        for record in self._config.registry.plugins:
            if record.state == "failed":
                log.warning("plugin failed", plugin=record.name, reason=record.reason)
        host = DaemonHost(storages, self._config.default_storage)  # type: ignore[arg-type]
        self._build(sessions, BudgetBook(state), host)
        storages.update(of_kind(self._instances, "storage"))
        sinks.update(of_kind(self._instances, "sink"))
        exchanges.update(of_kind(self._instances, "exchange"))
        backfills = JobBook(storages, exchanges, state)  # type: ignore[arg-type]
        services = self._services(sessions, backfills)
        host.metrics = services.metrics
        await outer.start(serve_control, daemon.control_socket, services)
        async with (
            self._running("storage"),
            self._running("exchange"),
            backfills.run(),
            rules_running(backfills, self._config.backfills.values()),
            sessions.run(),
            self._running("analyzer"),
            self._running("sink"),
        ):
            gc.freeze()  # what start-up made stays: the collector need not look at it ever again
            host.ready = True
            self._notifier.send(ready=1, status=self._summary())
            log.info("ready", control_socket=daemon.control_socket, **self._counts())
            await self._stop.wait()
            host.ready = False
            self._notifier.send(stopping=1, status="stopping")
            outer.cancel_scope.deadline = trio.current_time() + daemon.shutdown_secs
            await backfills.end_all()
            await services.jobs.end_all()
            await sessions.end_all()

    @asynccontextmanager
    async def _running(self, kind: str) -> AsyncIterator[None]:
        """Hold the instances of one kind; one that cannot start ends the daemon."""
        mine = [one for one in self._instances if one.kind == kind]
        async with trio.open_nursery() as nursery:
            for one in mine:
                await nursery.start(one.hold)
                log.info("instance running", kind=kind, name=one.name, plugin=one.plugin.name)
            yield
            for one in mine:
                one.stop()

    def _services(self, sessions: SessionManager, backfills: JobBook) -> Services:
        return Services(
            config=self._config,
            sessions=sessions,
            backfills=backfills,
            storages=of_kind(self._instances, "storage"),
            exchanges=of_kind(self._instances, "exchange"),
            instances=lambda: [
                InstanceState(one.kind, one.name, one.plugin.name, one.state, one.message)
                for one in self._instances
            ],
            metrics=lambda: exposition(
                [session.status() for session in sessions.list()],
                sessions.past_ticks,
                [job.state for job in backfills.jobs()],
            ),
            request_stop=self._stop.set,
            spool_dir=self._config.daemon.data_dir,
            started_at=self._started_at,
        )

    async def _watch_signals(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:  # by default it would end the daemon without a word
                    log.warning("a running daemon does not read its config again; restart it")
                    continue
                log.info("stopping", signal=signal.Signals(number).name)
                if self._stop.is_set():  # the second time: at once
                    scope.cancel()
                self._stop.set()

    async def _keep_alive(self) -> None:
        interval = self._notifier.watchdog_interval()
        while interval is not None:
            self._notifier.send(watchdog=1)
            await trio.sleep(interval)

    def _counts(self) -> dict[str, int]:
        return {
            f"{kind}s": count
            for kind in _START_ORDER
            if (count := sum(one.kind == kind for one in self._instances))
        }

    def _summary(self) -> str:
        counts = self._counts().items()
        return "ready: " + (
            ", ".join(f"{count} {kind if count > 1 else kind[:-1]}" for kind, count in counts)
            or "no instances"
        )


def _raise_descriptor_limit() -> None:
    """Allow as many open files as we may have: every client is one, and the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(config: Config) -> int:
    """Run a daemon until it is told to stop; return the exit code, having logged why not 0."""
    logs.set_up(config.daemon.log_level, config.daemon.log_format)
    _raise_descriptor_limit()
    daemon = Daemon(config)
    code = 0
    try:
        trio.run(daemon.run)
    except* TardisError as group:
        log.error("cannot run", error=describe(innermost(group)))
        code = 1
    return code
