"""Sink plugin `file`: sessions as NDJSON or CSV files, each complete or not there at all."""

from __future__ import annotations

from typing import Any

from tardisd.plugins.hooks import hookimpl
from tardisd.plugins.sink import Sink

from .plugin import FileSink


@hookimpl
def tardisd_sinks() -> list[type[Sink[Any]]]:
    """Register the file sink."""
    return [FileSink]
