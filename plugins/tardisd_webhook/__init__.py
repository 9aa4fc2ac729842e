"""Sink plugin `webhook`: sessions as signed batches of ticks, POSTed in order to one address."""

from __future__ import annotations

from typing import Any

from tardisd.plugins.hooks import hookimpl
from tardisd.plugins.sink import Sink

from .plugin import WebhookSink


@hookimpl
def tardisd_sinks() -> list[type[Sink[Any]]]:
    """Register the webhook sink."""
    return [WebhookSink]
