"""What the control methods work with, as the daemon hands it to them; does no work itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tardisd.backfill.jobs import JobBook
from tardisd.config.model import Config
from tardisd.control.jobs import Jobs
from tardisd.plugins.exchange import Exchange
from tardisd.plugins.host import find_storage
from tardisd.plugins.sessions import Sessions
from tardisd.plugins.storage import Storage


@dataclass(frozen=True, slots=True)
class InstanceState:
    """One configured plugin: `state` is starting, running, failed or stopped; `message` why."""

    kind: str
    name: str
    plugin: str
    state: str
    message: str = ""


@dataclass(slots=True, kw_only=True)
class Services:
    """The daemon's parts. All are read anew at every call, so they may change under way.

    `reload` takes up the configuration anew and tells what has changed, `restart` closes an
    instance, by kind and name, and opens it again; both raise TardisError when that fails.
    `request_stop` begins the shutdown and returns at once; `spool_dir` is where imports keep what
    does not fit in memory; `started_at` is wall time, ns; `metrics` gives Prometheus text;
    `backfills` and `jobs` must be ended before the storages are.
    """

    config: Config
    sessions: Sessions
    storages: Mapping[str, Storage[Any]]
    exchanges: Mapping[str, Exchange[Any]]
    instances: Callable[[], Sequence[InstanceState]]
    metrics: Callable[[], str]
    reload: Callable[[], Awaitable[Mapping[str, Sequence[str]]]]
    restart: Callable[[str, str], Awaitable[None]]
    request_stop: Callable[[], None]
    spool_dir: Path
    started_at: int
    backfills: JobBook
    jobs: Jobs = field(default_factory=Jobs)

    def storage_name(self, name: str | None) -> str:
        """Return the name of a storage, the default one for None; RequestError for another."""
        self.storage(name)
        return name or self.config.default_storage or ""

    def storage(self, name: str | None) -> Storage[Any]:
        """Return a storage, the default one for None; RequestError says which there are."""
        return find_storage(self.storages, self.config.default_storage, name)
