"""WebSocket sink: clients create, steer and follow sessions; holds no market data of its own."""

from __future__ import annotations

from typing import Any

from tardisd.plugins.hooks import hookimpl
from tardisd.plugins.sink import Sink
from tardisd_websocket.plugin import WebSocketSink


@hookimpl
def tardisd_sinks() -> list[type[Sink[Any]]]:
    """Return the sink classes of this package."""
    return [WebSocketSink]
