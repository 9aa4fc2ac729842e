"""Take up a changed configuration while everything runs, or leave everything as it is.

    read     the whole new configuration is checked; what is wrong with it changes nothing
    start    new instances start beside the old ones; one that cannot start changes nothing
    swap     in one step: from now on, names mean the new instances
    retire   old instances close, each once no session that began with it needs it any more

Where a new instance needs what an old one holds (a port, a file: `Plugin.claims`), the old one has
to stop first; it is started again when its successor cannot start.
It does not decide what differs: that is `tardisd.config.diff`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from tardisd.backfill.records import Job
from tardisd.backfill.rules import Rules
from tardisd.config import model
from tardisd.config.diff import Diff, compare, section_of, without_restart
from tardisd.config.load import load_config
from tardisd.control.services import Services
from tardisd.errors import ConfigError, RequestError, TardisError
from tardisd.instances import Instance, Instances
from tardisd.log import Log
from tardisd.replay.manager import SessionManager
from tardisd.supervise import describe, outcome
from tardisd.systemd import Notifier

log = Log("tardisd.reload")

# Others wait for their turn while an instance starts.
START_SECS = 60.0

Make = Callable[[model.Instance], Awaitable[Instance]]


@dataclass
class _Wish:
    """Something to be done in its turn, for somebody who waits for it."""

    action: Callable[[], Awaitable[Any]]
    done: trio.Event = field(default_factory=trio.Event)
    result: Any = None
    error: Exception | None = None


class Reloader:
    """Changes the instances of a running daemon, one change after the other. Use inside `run`.

    `make` makes an instance of a section; `adopt` has the daemon follow a configuration in all that
    is no instance.
    """

    def __init__(
        self,
        services: Services,
        sessions: SessionManager,
        instances: Instances,
        notifier: Notifier,
        make: Make,
        adopt: Callable[[model.Config], None],
        status: Callable[[], str],
    ) -> None:
        self._services = services
        self._sessions = sessions
        self._instances = instances
        self._notifier = notifier
        self._make = make
        self._adopt = adopt
        self._status = status
        self._send, self._wishes = trio.open_memory_channel[_Wish](16)
        self._retiring: trio.Nursery | None = None
        self._rules: Rules | None = None

    @asynccontextmanager
    async def run(self, rules: Rules) -> AsyncIterator[None]:
        """Do what is asked for until the block is left; what is under way then is given up."""
        self._rules = rules
        async with trio.open_nursery() as nursery:
            self._retiring = nursery
            nursery.start_soon(self._work)
            try:
                yield
            finally:
                self._send.close()
                nursery.cancel_scope.cancel()

    async def reload(self) -> dict[str, list[str]]:
        """Take up the configuration as its files are now; return what has changed.

        Raises ConfigError, StartError or RequestError; then everything runs as before.
        """
        told: dict[str, list[str]] = await self._ask(self._reload)
        return told

    async def restart(self, kind: str, name: str) -> None:
        """Close an instance and open it anew.

        Raises RequestError when it does not run then, or is a storage that something uses.
        """
        await self._ask(partial(self._restart, kind, name))

    def reload_soon(self) -> None:
        """Have the configuration taken up, and the outcome logged."""
        try:
            self._send.send_nowait(_Wish(self._reload))
        except (trio.WouldBlock, trio.ClosedResourceError):
            log.warning("reload not begun", reason="another one waits, or the daemon is stopping")

    async def _ask(self, action: Callable[[], Awaitable[Any]]) -> Any:
        wish = _Wish(action)
        try:
            await self._send.send(wish)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise _stopping() from None
        await wish.done.wait()
        if wish.error is not None:
            raise wish.error
        return wish.result

    async def _work(self) -> None:
        """Do one thing after the other: whoever asked may leave, but nothing is left half done."""
        try:
            async for wish in self._wishes:
                wish.error = _stopping()  # unless it comes to an end
                try:
                    wish.result, wish.error = await outcome(wish.action)
                finally:
                    wish.done.set()
        finally:
            with suppress(trio.WouldBlock, trio.EndOfChannel):
                while True:
                    wish = self._wishes.receive_nowait()
                    wish.error = _stopping()
                    wish.done.set()
            self._wishes.close()

    async def _reload(self) -> dict[str, list[str]]:
        self._notifier.reloading()
        failure = "; the last reload failed, see the log"
        try:
            diff = await self._change()
            failure = ""
        except ConfigError as error:
            for problem in error.problems:
                log.error("configuration invalid", problem=problem)
            raise
        except TardisError as error:
            log.error("reload failed", error=describe(error), outcome="everything runs as before")
            raise
        finally:
            self._notifier.send(ready=1, status=self._status() + failure)
        told = diff.told()
        log.info("reloaded", **{what: ", ".join(names) for what, names in told.items() if names})
        return told

    async def _change(self) -> Diff:
        old = self._services.config
        read = await trio.to_thread.run_sync(load_config, old.path, os.environ)
        diff, new = compare(old, read), without_restart(old, read)
        leaving = [self._instances.named(one.kind, one.name) for one in diff.leaving]
        coming: list[Instance] = []
        started: list[Instance] = []
        try:
            for section in diff.coming:
                coming.append(await self._make(section))
            held: frozenset[str] = frozenset().union(*(one.claims for one in leaving))
            for one in coming:
                if not one.claims & held:
                    await self._instances.start(one, secs=START_SECS)
                    started.append(one)
            async with self._services.backfills.held(partial(_concerns, diff.leaving)):
                await self._succeed(leaving, coming, started)
                self._swap(diff, new, leaving, coming)
        except TardisError:
            await self._stop_all(started)
            for one in coming:
                one.discard()
            raise
        assert self._retiring is not None
        for one in leaving:
            self._retiring.start_soon(self._retire, one)
        return diff

    async def _succeed(
        self,
        leaving: Sequence[Instance],
        coming: Sequence[Instance],
        started: list[Instance],
    ) -> None:
        """Start those that have to wait until others have stopped, or have these back again."""
        late = [one for one in coming if one not in started]
        needed: frozenset[str] = frozenset().union(*(one.claims for one in late))
        stopping = [one for one in leaving if one.claims & needed]
        for one in stopping:
            self._refuse_if_used(one)
        try:
            for one in stopping:
                if not await self._instances.stop(one):
                    text = f"[{section_of(one.section)}] does not close; restart the daemon"
                    raise RequestError("wrong_state", text)
            for one in late:
                await self._instances.start(one, secs=START_SECS)
                started.append(one)
        except TardisError:
            await self._stop_all(started)
            for one in stopping:
                if one.state == "stopped":
                    one.revive()
                    await self._instances.start(one, patient=True, secs=START_SECS)
            raise

    def _swap(
        self,
        diff: Diff,
        new: model.Config,
        leaving: Sequence[Instance],
        coming: Sequence[Instance],
    ) -> None:
        """Let names mean the new instances; nothing in between can see one half of it."""
        assert self._rules is not None
        self._instances.drop(leaving)
        self._instances.put(coming)
        self._services.config = new
        self._adopt(new)
        self._rules.replace(new.backfills.values())
        for key in diff.restart:
            log.warning("restart needed", key=key)

    async def _stop_all(self, started: list[Instance]) -> None:
        while started:
            await self._instances.stop(started.pop())

    async def _retire(self, one: Instance) -> None:
        """Close an instance that is out of service, once nothing that began with it needs it."""
        await self._sessions.unused(one.plugin)
        if one.kind == "storage":
            await self._services.jobs.over()
        if one.state != "stopped":
            await self._instances.stop(one)
        one.discard()

    async def _restart(self, kind: str, name: str) -> None:
        one = self._instances.named(kind, name)
        self._refuse_if_used(one)
        async with self._services.backfills.held(partial(_concerns, [one.section])):
            await one.restart()
        if one.state != "running":
            told = one.message or "has not closed yet"
            raise RequestError("wrong_state", f"[{section_of(one.section)}] {told}")

    def _refuse_if_used(self, one: Instance) -> None:
        """Refuse to close a storage under those that read or write it."""
        if one.kind != "storage" or one.state != "running":
            return
        users = [f"session {name}" for name in self._sessions.users_of(one.plugin)]
        if self._services.jobs.busy:
            users.append("an import, export or check")
        if users:
            some = ", ".join(users[:5]) + (", …" if len(users) > 5 else "")
            text = (
                f"[{section_of(one.section)}] cannot be closed while it is used by {some};"
                " wait for them or stop them, then try again"
            )
            raise RequestError("wrong_state", text)


def _stopping() -> RequestError:
    return RequestError("wrong_state", "the daemon is stopping")


def _concerns(sections: Collection[model.Instance], job: Job) -> bool:
    """Tell whether a job uses one of the instances."""
    names = {(one.kind, one.name) for one in sections}
    mine = {("storage", job.storage), *(("exchange", part.exchange) for part in job.parts)}
    return bool(names & mine)
