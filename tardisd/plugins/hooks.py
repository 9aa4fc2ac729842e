"""The hooks of plugin group `tardisd`: synchronous, and only registering classes.

A plugin is a module with functions marked `@hookimpl`; each returns a list of classes.
"""

from __future__ import annotations

import pluggy

from tardisd.plugins.analyzer import Analyzer
from tardisd.plugins.exchange import Exchange
from tardisd.plugins.format import FileFormat
from tardisd.plugins.sink import Sink
from tardisd.plugins.storage import Storage

GROUP = "tardisd"

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def tardisd_exchanges() -> list[type[Exchange]]:  # type: ignore[type-arg,empty-body]
    """Return exchange plugin classes."""


@hookspec
def tardisd_storages() -> list[type[Storage]]:  # type: ignore[type-arg,empty-body]
    """Return storage plugin classes."""


@hookspec
def tardisd_sinks() -> list[type[Sink]]:  # type: ignore[type-arg,empty-body]
    """Return sink plugin classes."""


@hookspec
def tardisd_analyzers() -> list[type[Analyzer]]:  # type: ignore[type-arg,empty-body]
    """Return analyzer plugin classes."""


@hookspec
def tardisd_formats() -> list[type[FileFormat]]:  # type: ignore[empty-body]
    """Return file formats that `data import` reads."""
