"""Configured plugins at work: one task each holds its instance open; failed ones start anew.

What an instance does is its own affair; this says only whether it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from tardisd.errors import TardisError
from tardisd.log import Log
from tardisd.plugins.base import Plugin
from tardisd.plugins.host import find_storage
from tardisd.plugins.storage import Storage
from tardisd.supervise import Backoff, attempt, describe

log = Log("tardisd.instances")


class StartError(TardisError):
    """Raised when an instance cannot start; the message names it."""

    code = "start_failed"


@dataclass
class Instance:
    """One configured plugin; `state` is starting, running, failed or stopped."""

    kind: str
    name: str
    plugin: Plugin[Any]
    state: str = "starting"
    message: str = ""
    _stop: trio.Event = field(default_factory=trio.Event)

    async def hold(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the instance open until `stop`. A first start that fails raises StartError."""
        backoff = Backoff(first=1.0, most=60.0)
        first = True
        while not self._stop.is_set():
            error = await attempt(self._run_once, task_status if first else None)
            if error is None:
                break
            self.message = describe(error)
            started, self.state = self.state == "running", "failed"
            if first and not started:
                raise StartError(f"[{self.kind}s.{self.name}] cannot start: {self.message}")
            if started:
                backoff.reset()
            first = False
            wait = backoff.next()
            log.error("instance failed", kind=self.kind, name=self.name, error=self.message,
                      wait_secs=round(wait, 1))  # fmt: skip
            with trio.move_on_after(wait):
                await self._stop.wait()
        self.state = "stopped"

    async def _run_once(self, task_status: trio.TaskStatus[None] | None) -> None:
        async with self.plugin.run():
            self.state, self.message = "running", ""
            if task_status is not None:
                task_status.started()
            await self._stop.wait()

    def stop(self) -> None:
        """Have the instance closed."""
        self._stop.set()


@dataclass
class DaemonHost:
    """The daemon as `tardisd.plugins.host.Host` shows it to its plugins."""

    storages: Mapping[str, Storage[Any]]
    default_storage: str | None
    metrics: Callable[[], str] = str
    ready: bool = False

    def storage(self, name: str | None = None) -> Storage[Any]:
        """Return a storage, the default one for None; RequestError says which there are."""
        return find_storage(self.storages, self.default_storage, name)


def of_kind(instances: list[Instance], kind: str) -> Mapping[str, Any]:
    """Return the plugins of one kind by instance name."""
    return {one.name: one.plugin for one in instances if one.kind == kind}
