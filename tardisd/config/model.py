"""A checked configuration: what the daemon works with; reads no file and starts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from tardisd.config.schema import (
    SECTIONS,
    BackfillTable,
    DaemonTable,
    Moment,
    PluginsTable,
    SessionTable,
)
from tardisd.market.series import Series
from tardisd.market.time import Interval
from tardisd.plugins.registry import Registry
from tardisd.plugins.secret import HIDDEN, Secret
from tardisd.plugins.sessions import SessionRequest


@dataclass(frozen=True, slots=True)
class Daemon:
    """What concerns the process as a whole; every default is filled in."""

    data_dir: Path
    control_socket: Path
    storage: str
    log_level: str
    log_format: Literal["auto", "text", "json", "systemd"]
    shutdown_secs: float
    kept_secs: float
    max_sessions: int


@dataclass(frozen=True, slots=True)
class Instance:
    """One configured plugin: `cls(options, context)` makes it. Equal ones need no restart."""

    kind: str
    name: str
    cls: type[Any]
    options: Any


@dataclass(frozen=True, slots=True)
class SessionPreset:
    """A session that `tardisctl session start NAME` starts; `storage` is always named."""

    name: str
    series: tuple[Series, ...]
    derive: tuple[Series, ...]
    barrier: Interval | None
    storage: str
    table: SessionTable

    def request(self, now: int) -> SessionRequest:
        """Return the request it stands for at `now` (ns); ValueError when its span is empty."""
        table = self.table
        start, end = table.start.at(now), table.end.at(now)
        if end <= start:
            raise ValueError(f"session preset {self.name!r} ends before it starts")
        until = None if table.until is None else table.until.at(now)
        if until is not None and not start < until <= end:
            raise ValueError(f"until of session preset {self.name!r} is not within its span")
        return SessionRequest(
            series=self.series,
            start=start,
            end=end,
            speed=table.speed,
            start_paused=table.start_paused,
            on_gap=table.on_gap,
            storage=self.storage,
            sinks=table.sinks,
            loop=table.loop,
            until=until,
            max_idle_secs=table.max_idle_secs,
            lockstep=table.lockstep,
            barrier=self.barrier,
            derive=self.derive,
            forming=table.forming,
            durable=table.durable,
            analyzers=table.analyzers,
            origin=f"preset {self.name}",
        )


@dataclass(frozen=True, slots=True)
class BackfillRule:
    """History to fetch and keep up to date. Durations are ns, `at` is ns after midnight UTC.

    With neither `every` nor `at` it runs once, when the daemon starts. `exchange` is an instance's
    name, while `series` name its venue. No `end` means now, each time.
    """

    name: str
    exchange: str
    storage: str
    series: tuple[Series, ...]
    start: Moment
    end: Moment | None
    every: int | None
    at: int | None
    jitter: int
    table: BackfillTable


@dataclass(frozen=True)
class Config:
    """Everything a checked configuration says; instances by kind (`sink`), then by name."""

    path: Path
    daemon: Daemon
    plugins: PluginsTable
    instances: Mapping[str, Mapping[str, Instance]]
    sessions: Mapping[str, SessionPreset]
    backfills: Mapping[str, BackfillRule]
    registry: Registry = field(repr=False)
    files: tuple[Path, ...] = ()

    @property
    def default_storage(self) -> str:
        """The storage of everything that names none."""
        return self.daemon.storage

    def shown(self) -> dict[str, Any]:
        """Return the effective configuration as plain values, secrets hidden."""
        daemon = {
            key: getattr(self.daemon, key)
            for key in (field.name for field in msgspec.structs.fields(DaemonTable))
        }
        shown: dict[str, Any] = {"daemon": plain(daemon), "plugins": plain(self.plugins)}
        for section, kind in SECTIONS.items():
            shown[section] = {
                name: {"plugin": instance.cls.name, **plain(instance.options)}
                for name, instance in self.instances[kind].items()
            }
        for section, presets in (("sessions", self.sessions), ("backfills", self.backfills)):
            shown[section] = {name: plain(preset.table) for name, preset in presets.items()}
        return shown


def plain(value: object) -> Any:
    """Return options as values that JSON knows; a secret says only where it came from."""

    def encode(inner: object) -> str:
        if isinstance(inner, Secret):
            return f"{HIDDEN} ({inner.source})" if inner.source else HIDDEN
        return str(inner)

    return msgspec.to_builtins(value, str_keys=True, enc_hook=encode)
