"""Sink plugin `redis`: sessions as pub/sub channels, and as streams to resume from, of Redis 7."""

from __future__ import annotations

from typing import Any

from tardisd.plugins.hooks import hookimpl
from tardisd.plugins.sink import Sink

from .plugin import RedisSink


@hookimpl
def tardisd_sinks() -> list[type[Sink[Any]]]:
    """Register the Redis sink."""
    return [RedisSink]
