"""The composition root: from a checked config to running instances, and back to silence.

    outer      signals, watchdog, control server (answers until the very end)
    └ instances  one task per configured plugin
      ├ backfills  one task per job, and one per rule that begins them
      ├ sessions   one nursery per session, with a task per sink
      └ reloads    one at a time

Nothing is decided here but the order in which things start and stop.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import Mapping, Sequence

import trio

from tardisd import log as logs
from tardisd.allocator import keep_freed_memory
from tardisd.backfill.jobs import JobBook
from tardisd.backfill.rules import rules_running
from tardisd.config.model import Config
from tardisd.config.model import Instance as InstanceConfig
from tardisd.control.server import serve_control
from tardisd.control.services import InstanceState, Services
from tardisd.errors import TardisError
from tardisd.instances import DaemonHost, Instance, Instances
from tardisd.log import Log
from tardisd.metrics import exposition
from tardisd.plugins.base import Context
from tardisd.plugins.host import Board
from tardisd.reload import Reloader
from tardisd.replay.alarm import make_alarm
from tardisd.replay.manager import SessionLimits, SessionManager
from tardisd.state import State
from tardisd.supervise import describe, innermost
from tardisd.systemd import Notifier
from tardisd.venue.book import BudgetBook
from tardisd.wall import wall_ns
from tardisd.watch import LoopWatch

log = Log("tardisd.daemon")

_MOST_DESCRIPTORS = 65_536
_START_ORDER = ("storage", "exchange", "analyzer", "sink")


class Daemon:
    """One daemon: made of a config, run once."""

    def __init__(self, config: Config) -> None:
        self._config = config  # as it was at the start
        self._notifier = Notifier.from_environ(os.environ)
        self._stop = trio.Event()
        self._instances = Instances()
        self._reloader: Reloader | None = None
        self._started_at = wall_ns()
        self._watch = LoopWatch(
            {one.module.partition(".")[0]: one.name for one in config.registry.plugins}
        )

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
            with self._watch.watching():
                await self._run(state)
        finally:
            state.close()
        log.info("stopped")

    async def _run(self, state: State) -> None:
        async with trio.open_nursery() as outer:
            outer.start_soon(self._watch.beat)
            outer.start_soon(self._instances.tell_overdue)
            outer.start_soon(self._watch_signals, outer.cancel_scope)
            outer.start_soon(self._keep_alive)
            await self._serve(outer, state)
            outer.cancel_scope.cancel()

    async def _serve(self, outer: trio.Nursery, state: State) -> None:
        config, instances = self._config, self._instances
        plugins, budgets = instances.plugins, BudgetBook(state)
        sessions = SessionManager(
            plugins["storage"],
            config.default_storage,
            plugins["sink"],
            state,
            _limits(config),
            plugins["analyzer"],
            make_alarm(),
        )

        host = DaemonHost(plugins["storage"], config.default_storage, plugins["analyzer"])
        board = Board()

        async def make(section: InstanceConfig) -> Instance:
            data_dir = config.daemon.data_dir
            context = Context(section.name, data_dir, sessions, budgets.page(), host, board)
            return await Instance.made(section, context)

        _tell_failed_plugins(config)
        for kind in _START_ORDER:
            instances.put([await make(one) for one in config.instances[kind].values()])
        backfills = JobBook(plugins["storage"], plugins["exchange"], state)
        services = self._services(sessions, backfills)
        host.metrics = services.metrics

        def adopt(new: Config) -> None:
            logs.set_up(new.daemon.log_level, new.daemon.log_format)
            sessions.adopt(new.default_storage, _limits(new))
            host.default_storage = new.default_storage
            _tell_failed_plugins(new)

        reloader = Reloader(
            services, sessions, instances, self._notifier, make, adopt, self._summary
        )
        self._reloader = reloader
        await outer.start(serve_control, config.daemon.control_socket, services)
        async with (
            instances.running("storage"),
            instances.running("exchange"),
            backfills.run(),
            rules_running(backfills, config.backfills.values()) as rules,
            sessions.run(restoring=True),
            instances.running("analyzer"),
            instances.running("sink"),
            reloader.run(rules),
        ):
            gc.freeze()  # what start-up made stays: the collector need not look at it ever again
            await sessions.restore()  # only now is all there that they are delivered to
            host.ready = True
            self._notifier.send(ready=1, status=self._summary())
            log.info("ready", control_socket=config.daemon.control_socket, **self._counts())
            await self._stop.wait()
            host.ready = False
            self._notifier.send(stopping=1, status="stopping")
            secs = services.config.daemon.shutdown_secs
            outer.cancel_scope.deadline = trio.current_time() + secs
            self._watch.end_within(secs, instances.unfinished)
            await backfills.end_all()
            await services.jobs.end_all()
            await sessions.end_all()

    def _services(self, sessions: SessionManager, backfills: JobBook) -> Services:
        plugins = self._instances.plugins

        async def reload() -> Mapping[str, Sequence[str]]:
            assert self._reloader is not None
            return await self._reloader.reload()

        async def restart(kind: str, name: str) -> None:
            assert self._reloader is not None
            await self._reloader.restart(kind, name)

        return Services(
            config=self._config,
            sessions=sessions,
            backfills=backfills,
            storages=plugins["storage"],
            exchanges=plugins["exchange"],
            instances=lambda: [
                InstanceState(one.kind, one.name, one.plugin.name, one.state, one.message)
                for one in self._instances
            ],
            metrics=lambda: exposition(
                [session.status() for session in sessions.list()],
                sessions.past_ticks,
                [job.state for job in backfills.jobs()],
            ),
            reload=reload,
            restart=restart,
            request_stop=self._stop.set,
            spool_dir=self._config.daemon.data_dir,
            started_at=self._started_at,
        )

    async def _watch_signals(self, scope: trio.CancelScope) -> None:
        def secs() -> float:
            return self._config.daemon.shutdown_secs

        with (
            trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
            self._watch.hearing([signal.SIGTERM, signal.SIGINT], secs),
        ):
            async for number in signals:
                if number == signal.SIGHUP:
                    if self._reloader is not None:
                        self._reloader.reload_soon()  # at the latest when all has started
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
            if (count := len(self._instances.plugins[kind]))
        }

    def _summary(self) -> str:
        counts = self._counts().items()
        return "ready: " + (
            ", ".join(f"{count} {kind if count > 1 else kind[:-1]}" for kind, count in counts)
            or "no instances"
        )


def _limits(config: Config) -> SessionLimits:
    daemon = config.daemon
    return SessionLimits(
        max_sessions=daemon.max_sessions,
        kept_secs=daemon.kept_secs,
        drain_secs=daemon.shutdown_secs / 2,
    )


def _tell_failed_plugins(config: Config) -> None:
    for record in config.registry.plugins:
        if record.state == "failed":
            log.warning("plugin failed", plugin=record.name, reason=record.reason)


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
    keep_freed_memory()
    daemon = Daemon(config)
    code = 0
    try:
        trio.run(daemon.run)
    except* TardisError as group:
        log.error("cannot run", error=describe(innermost(group)))
        code = 1
    return code
