"""Plugins that only have options; the config tests copy this file into their plugin folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

import tardisd


class Venue(tardisd.Exchange):
    name = "venue"


class Memory(tardisd.Storage):
    name = "memory"


class ProbeOptions(tardisd.Options, frozen=True, kw_only=True):
    listen: str = "127.0.0.1:8001"
    token: tardisd.Secret | None = None
    max_clients: Annotated[int, Meta(ge=1)] = 10
    mode: Literal["normal", "full"] = "normal"
    folder: Path | None = None
    keys: tuple[tardisd.Secret, ...] = ()

    def __post_init__(self):
        if not self.listen.startswith("127.") and self.token is None:
            raise ValueError("listen on loopback, or set a token")


class Probe(tardisd.Sink):
    name = "probe"
    Options = ProbeOptions


class Hook(tardisd.Sink):
    name = "hook"

    class Options(tardisd.Options, frozen=True, kw_only=True):
        url: Annotated[str, Meta(description="where to post")]


for abstract in (Venue, Memory):
    abstract.__abstractmethods__ = frozenset()  # nothing here is ever called


@tardisd.hookimpl
def tardisd_exchanges():
    return [Venue]


@tardisd.hookimpl
def tardisd_storages():
    return [Memory]


@tardisd.hookimpl
def tardisd_sinks():
    return [Probe, Hook]
