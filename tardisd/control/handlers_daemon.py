"""The control methods about the daemon itself, its configuration, plugins and instances."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

import trio

from tardisd import __version__
from tardisd.config.json_schema import options_schema
from tardisd.config.load import load_config
from tardisd.control.call import Call
from tardisd.control.methods import Named, NoParams
from tardisd.control.protocol import VERSION
from tardisd.control.services import Services
from tardisd.control.values import instant_json
from tardisd.errors import ConfigError, Problem, RequestError
from tardisd.market.time import SECOND, format_time
from tardisd.plugins.registry import PluginRecord
from tardisd.wall import wall_ns


class DaemonMethods:
    """`daemon.*`, `config.*`, `plugin.*` and `instance.*`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def hello(self, params: NoParams, call: Call) -> dict[str, Any]:
        """Return version, protocol number and process id."""
        return {"version": __version__, "protocol": VERSION, "pid": os.getpid()}

    async def status(self, params: NoParams, call: Call) -> dict[str, Any]:
        """Return what runs, and for how long."""
        sessions = Counter(session.status()["status"] for session in self._services.sessions.list())
        book = self._services.backfills
        backfills = Counter(book.shown(job, whole=False)["state"] for job in book.active())
        return {
            **await self.hello(params, call),
            "started_at": instant_json(self._services.started_at),
            "started": format_time(self._services.started_at),
            "uptime_secs": (wall_ns() - self._services.started_at) // SECOND,
            "sessions": dict(sorted(sessions.items())),
            "backfills": dict(sorted(backfills.items())),
            "instances": [asdict(instance) for instance in self._services.instances()],
            "default_storage": self._services.config.default_storage,
        }

    async def reload(self, params: NoParams, call: Call) -> dict[str, Any]:
        """Take up the configuration files as they are now; return what has changed."""
        return dict(await self._services.reload())

    async def stop(self, params: NoParams, call: Call) -> dict[str, Any]:
        """Ask the daemon to stop in order; it does so after this is answered."""
        self._services.request_stop()
        return {"stopping": True}

    async def metrics(self, params: NoParams, call: Call) -> dict[str, Any]:
        """Return all metrics in Prometheus text form."""
        return {"text": self._services.metrics()}

    async def config_show(self, params: NoParams, call: Call) -> Any:
        """Return the running configuration, secrets masked."""
        return self._services.config.shown()

    async def config_check(self, params: NoParams, call: Call) -> dict[str, Any]:
        """Check the configuration files as they are now."""
        problems = await trio.to_thread.run_sync(_problems, self._services.config.path)
        return {"valid": not problems, "problems": [asdict(problem) for problem in problems]}

    async def plugin_list(self, params: NoParams, call: Call) -> list[dict[str, Any]]:
        """List plugins, those that failed to load included."""
        return [_plugin_json(record) for record in self._services.config.registry.plugins]

    async def plugin_show(self, params: Named, call: Call) -> dict[str, Any]:
        """Return one plugin and its options."""
        record = _only(self._services.config.registry.plugins, params, "plugin")
        return {**_plugin_json(record), "options": _options(record)}

    async def instance_list(self, params: NoParams, call: Call) -> list[dict[str, Any]]:
        """List configured instances and their state."""
        return [asdict(instance) for instance in self._services.instances()]

    async def instance_show(self, params: Named, call: Call) -> dict[str, Any]:
        """Return one instance's state."""
        return asdict(_only(self._services.instances(), params, "instance"))

    async def instance_restart(self, params: Named, call: Call) -> dict[str, Any]:
        """Close an instance and open it again; return its state."""
        one = _only(self._services.instances(), params, "instance")
        await self._services.restart(one.kind, one.name)
        return asdict(_only(self._services.instances(), Named(name=one.name, kind=one.kind), ""))


def _problems(path: Path) -> list[Problem]:
    try:
        load_config(path, os.environ)
    except ConfigError as error:
        return error.problems
    return []


def _plugin_json(record: PluginRecord) -> dict[str, Any]:
    names = ("name", "kind", "state", "version", "origin", "module", "reason")
    return {name: getattr(record, name) for name in names}


def _options(record: PluginRecord) -> dict[str, Any]:
    options = getattr(record.cls, "Options", None)
    described: dict[str, Any] = {} if options is None else options_schema(options)["properties"]
    return described


class _Kinded(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...


KindedT = TypeVar("KindedT", bound=_Kinded)


def _only(things: Iterable[KindedT], wanted: Named, what: str) -> KindedT:
    """Return the one thing of that name; RequestError when there is none or more than one."""
    everything: Sequence[KindedT] = list(things)
    found = [
        thing
        for thing in everything
        if thing.name == wanted.name and wanted.kind in (None, thing.kind)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        kinds = ", ".join(thing.kind for thing in found)
        text = f"kind: {wanted.name!r} is the name of several ({kinds}); say which"
    else:
        known = ", ".join(sorted({thing.name for thing in everything})) or "none"
        text = f"name: no {what} is named {wanted.name!r}; known: {known}"
    raise RequestError("bad_request", text)
