"""All sessions of the daemon: made, found, listed, kept for a while after their end, forgotten."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import trio

from tardisd.errors import RequestError, StorageError
from tardisd.log import Log
from tardisd.market.span import Span
from tardisd.market.time import SECOND
from tardisd.plugins.analyzer import Analyzer
from tardisd.plugins.sessions import SessionRequest
from tardisd.plugins.sink import Sink
from tardisd.plugins.storage import Storage
from tardisd.replay.admission import check_id, check_request, named
from tardisd.replay.alarm import Alarm
from tardisd.replay.audience import Audience
from tardisd.replay.delivery import Delivery
from tardisd.replay.derivation import Found, find
from tardisd.replay.notes import Notes
from tardisd.replay.records import Place, request_from_json
from tardisd.replay.session import ReplaySession
from tardisd.replay.source import Source, Workers
from tardisd.replay.timeline import Timeline, Tuning
from tardisd.state import SessionRecord, State
from tardisd.supervise import attempt, describe
from tardisd.wall import wall_ns
from tardisd.wire.encode import make_tables

log = Log("tardisd.sessions")

# Requests wait so long for the sessions of the daemon before; a storage may be away.
_RECOVERY_SECS = 10.0

Outlet = tuple[str, Sink[Any] | Analyzer[Any]]


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How many sessions there may be, how large, and how long ended ones are kept."""

    max_sessions: int = 1000
    max_series: int = 1000
    kept_secs: float = 600.0
    max_kept: int = 10_000
    drain_secs: float = 5.0
    encoding_threads: int = 2
    note_secs: float = 1.0
    tuning: Tuning = field(default_factory=Tuning)


class SessionManager:
    """Sessions as `tardisd.plugins.sessions.Sessions` describes them; works inside `run`."""

    def __init__(
        self,
        storages: Mapping[str, Storage[Any]],
        default_storage: str | None,
        sinks: Mapping[str, Sink[Any]],
        state: State,
        limits: SessionLimits | None = None,
        analyzers: Mapping[str, Analyzer[Any]] | None = None,
        alarm: Alarm | None = None,
    ) -> None:
        self._storages = storages
        self._default_storage = default_storage
        self._sinks = sinks
        self._analyzers = {} if analyzers is None else analyzers
        self._state = state
        self._notes = Notes(state)
        self._limits = limits or SessionLimits()
        self._alarm = alarm
        #: The threads in which sessions read ahead and encode.
        self.limiter = trio.CapacityLimiter(self._limits.encoding_threads)
        hasher = ThreadPoolExecutor(1, "tardisd hash")  # its thread starts with the first block
        self._workers = Workers(self.limiter, hasher, lambda: self._living)
        self._sessions: dict[str, ReplaySession] = {}
        self._reserved: set[str] = set()
        self._users: dict[str, tuple[object, ...]] = {}
        #: What ends the wait for an ended session to be forgotten, by its id.
        self._kept: dict[str, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._closing = False
        self._living = 0
        self._one_died = trio.Event()
        self._recovered = trio.Event()
        self.past_ticks = 0

    @asynccontextmanager
    async def run(self, *, restoring: bool = False) -> AsyncIterator[None]:
        """Hold all sessions; on leaving, end them and let their sinks finish, within a deadline.

        `restoring` says that `restore` is to come.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if not restoring:
                self._recovered.set()
            nursery.start_soon(trio.to_thread.run_sync, make_tables)
            if self._alarm is not None:
                nursery.start_soon(self._alarm.run)
            try:
                yield
            finally:
                self._nursery = None
                self._finish_all()
                self._tell_ends()
                nursery.cancel_scope.cancel()

    async def end_all(self) -> None:
        """End all sessions and take no more; return when followers and sinks have it all.

        That takes at most `drain_secs`: who has not read everything by then will not.
        """
        self._closing = True
        self._finish_all()
        with trio.move_on_after(self._limits.drain_secs):
            for session in list(self._sessions.values()):
                await session.drained()
            while self._living:
                await self._one_died.wait()
        self._tell_ends()

    def _tell_ends(self) -> None:
        """Have sessions wait no longer for the hash that belongs to their end."""
        for session in self._sessions.values():
            session.tell_end()

    def _finish_all(self) -> None:
        for session in self._sessions.values():
            if session.request.durable and not session.has_ended:
                session.suspend()
            else:
                session.finish("stopped", "the daemon is shutting down")

    def adopt(self, default_storage: str, limits: SessionLimits) -> None:
        """Let sessions that are yet to come follow another configuration."""
        self._default_storage, self._limits = default_storage, limits

    def users_of(self, plugin: object) -> Sequence[str]:
        """Return the ids of sessions that still read or write through a plugin instance."""
        return [name for name, plugins in self._users.items() if plugin in plugins]

    async def unused(self, plugin: object) -> None:
        """Return when no session reads or writes through a plugin instance any more."""
        while self.users_of(plugin):
            await self._one_died.wait()

    async def create(self, request: SessionRequest) -> ReplaySession:
        """Create a session that waits for `begin`.

        Raises RequestError: bad_request, session_exists, too_many_sessions, too_large, no_data.
        """
        storage = self._storage(request.storage)
        outlets = self._outlets(request)
        check_request(request, self._limits.max_series)
        session_id = self._reserve(request.session_id)
        self._users[session_id] = (storage, *(plugin for _, plugin in outlets))
        try:
            found = await find(storage, request)
            request = found.settle(request)
            self._running_nursery()
        except BaseException as error:
            del self._users[session_id]
            if isinstance(error, StorageError):
                raise RequestError("internal", error.message) from None
            raise
        finally:
            self._reserved.discard(session_id)
        session = self._make(session_id, request, found, storage, wall_ns())
        self._start(session, outlets)
        return session

    def _make(
        self,
        session_id: str,
        request: SessionRequest,
        found: Found,
        storage: Storage[Any],
        created_at: int,
    ) -> ReplaySession:
        def source(audience: Audience, time: Timeline) -> Source:
            return Source(
                session_id,
                Span(request.start, request.end),
                found.materials,
                storage,
                request.publish_delay,
                request.release == "open-lookahead",
                self._workers,
                lambda: audience.demand,
                lambda: time.unpaced,
                found.derivations,
                {name: self._analyzer(name) for name in request.analyzers},
                request,
            )

        tuning = replace(self._limits.tuning, alarm=self._alarm)
        return ReplaySession(session_id, request, source, tuning, self._spawn, created_at)

    def _start(self, session: ReplaySession, outlets: Sequence[Outlet]) -> None:
        session.sinks = deliveries = [Delivery(session, name, one) for name, one in outlets]
        self._notes.write(session)
        self._sessions[session.session_id] = session
        self._running_nursery().start_soon(self._live, session, deliveries)

    def _spawn(self, action: Callable[..., Awaitable[None]], /, *args: Any) -> None:
        """Run a session's side task in the manager's nursery; the last are cut off with it."""
        if self._nursery is not None:
            self._nursery.start_soon(action, *args)

    def get(self, session_id: str) -> ReplaySession:
        """Return the session; RequestError `session_not_found` when there is none."""
        try:
            return self._sessions[session_id]
        except KeyError:
            raise RequestError(
                "session_not_found", f"there is no session {session_id[:128]!r}"
            ) from None

    def list(self) -> Sequence[ReplaySession]:
        """Return all sessions, ended ones that are still kept included."""
        return list(self._sessions.values())

    def remove(self, session_id: str) -> None:
        """Forget an ended session; RequestError `wrong_state` while it runs."""
        if not self.get(session_id).has_ended:
            raise RequestError(
                "wrong_state", f"session {session_id!r} is still running; stop it first"
            )
        self._forget(session_id)

    async def _live(self, session: ReplaySession, deliveries: Sequence[Delivery]) -> None:
        """Run a session and its sinks, write down how it ended, and forget it after a while."""
        log.info("session created", session=session.session_id, origin=session.request.origin)
        self._living += 1
        async with trio.open_nursery() as nursery:
            for delivery in deliveries:
                nursery.start_soon(delivery.run)
            nursery.start_soon(session.run)
            if session.request.durable:
                session.note = partial(self._notes.write, session)
                nursery.start_soon(self._notes.follow, session, self._limits.note_secs)
            await session.ended.wait()
            log.info("session ended", session=session.session_id, **(session.end_fields or {}))
            if self._sessions.get(session.session_id) is session:  # else it was removed at once
                self._notes.write(session)
                self._forget_in(session.session_id, self._limits.kept_secs)
            self._forget_oldest()
        self._living -= 1
        del self._users[session.session_id]
        self._one_died.set()
        self._one_died = trio.Event()

    def _forget_in(self, session_id: str, secs: float) -> None:
        """Forget an ended session after a while; nothing waits for one that is gone by then."""
        scope = self._kept[session_id] = trio.CancelScope()

        async def forget() -> None:
            with scope:
                await trio.sleep(secs)
                self._forget(session_id)

        self._spawn(forget)

    def _forget(self, session_id: str) -> None:
        if (scope := self._kept.pop(session_id, None)) is not None:
            scope.cancel()
        session = self._sessions.pop(session_id)
        self.past_ticks += session.ticks
        session.tell_end()
        self._notes.forget(session_id)

    def _forget_oldest(self) -> None:
        """Keep no more ended sessions than may be, whatever their age."""
        ended = [name for name, session in self._sessions.items() if session.has_ended]
        for name in ended[: max(0, len(ended) - self._limits.max_kept)]:
            self._forget(name)

    async def restore(self) -> None:
        """Take up the sessions of the daemon before this one: durable ones paused, others ended."""
        now = wall_ns()
        for record in self._state.sessions():
            why, again = "the daemon was restarted", False
            if record.ended_at is None and record.place is not None:
                error = await attempt(partial(self._take_up, record))
                if error is None:
                    continue
                # It may be because of the configuration: the next daemon tries once more.
                why, again = f"it could not be taken up again: {describe(error)}", True
                log.error("session not taken up", session=record.session_id, error=describe(error))
            error = await attempt(partial(self._take_up_ended, record, now, why, again))
            if error is not None:
                log.error("session dropped", session=record.session_id, error=describe(error))
                self._state.forget(record.session_id)
        self._recovered.set()

    async def recovered(self) -> None:
        """Return when the sessions of the daemon before this one are taken up, or that is slow."""
        with trio.move_on_after(_RECOVERY_SECS):
            await self._recovered.wait()

    async def _take_up(self, record: SessionRecord) -> None:
        place = Place.from_json(record.place or {})
        request = request_from_json(record.session_id, record.request)
        storage = self._storage(request.storage)
        now = await find(storage, request, again=True)
        found = now.as_of(place.versions)
        outlets = self._outlets(request)
        self._users[record.session_id] = (storage, *(plugin for _, plugin in outlets))
        session = self._make(record.session_id, request, found, storage, record.created_at)
        session.restore(place, same_data=now.versions == place.versions)
        self._start(session, outlets)
        log.info("session taken up", session=record.session_id, **place.as_json())

    async def _take_up_ended(self, record: SessionRecord, now: int, why: str, again: bool) -> None:
        end, ended_at = record.end, record.ended_at
        if end is None or ended_at is None:  # it was running when the daemon went
            ended_at = now
            end = {"epoch": 1, "reason": "stopped", "ticks": 0, "hash": "", "message": why}
            record = replace(record, status="stopped", ended_at=now, end=end, place=None)
            if not again:
                self._state.put(record)
        left = self._limits.kept_secs - (now - ended_at) / SECOND
        if left <= 0:
            self._state.forget(record.session_id)
            return
        request = request_from_json(record.session_id, record.request)
        place = None if record.place is None else Place.from_json(record.place)
        storage, found = next(iter(self._storages.values())), Found()
        if place is not None:
            with suppress(RequestError, StorageError):  # then only its end is known
                storage = self._storage(request.storage)
                found = (await find(storage, request, again=True)).as_of(place.versions)
        session = self._make(record.session_id, request, found, storage, record.created_at)
        session.restore_ended(record.status, end, place)
        self._sessions[record.session_id] = session
        if not again:
            self._forget_in(record.session_id, left)

    def _running_nursery(self) -> trio.Nursery:
        if self._nursery is None or self._closing:
            raise RequestError("wrong_state", "the daemon is shutting down")
        return self._nursery

    def _storage(self, name: str | None) -> Storage[Any]:
        return named(self._storages, "storage", self._default_storage if name is None else name)

    def _outlets(self, request: SessionRequest) -> Sequence[Outlet]:
        """Return the sinks and analyzers that a session is delivered to, by name."""
        sinks = [(name, named(self._sinks, "sinks", name)) for name in dict.fromkeys(request.sinks)]
        return [*sinks, *((name, self._analyzer(name)) for name in request.analyzers)]

    def _analyzer(self, name: str) -> Analyzer[Any]:
        return named(self._analyzers, "analyzers", name)

    def _reserve(self, session_id: str | None) -> str:
        """Return an id that nobody else has; it is taken from now on."""
        running = sum(not session.has_ended for session in self._sessions.values())
        if running + len(self._reserved) >= self._limits.max_sessions:
            raise RequestError(
                "too_many_sessions",
                f"{running} sessions are running; the limit is {self._limits.max_sessions}",
            )
        if session_id is None:
            session_id = f"s-{secrets.token_hex(6)}"
        else:
            check_id(session_id)
        if session_id in self._sessions or session_id in self._reserved:
            raise RequestError("session_exists", f"session {session_id!r} exists already")
        if session_id in self._users:  # removed, but its sinks have not everything yet
            raise RequestError(
                "session_exists", f"sinks still write what session {session_id!r} was; try later"
            )
        self._reserved.add(session_id)
        return session_id
