"""Exchange plugin `synthetic`: a made-up venue with data for any symbol and time; no network."""

from __future__ import annotations

from typing import Any

from tardisd.plugins.exchange import Exchange
from tardisd.plugins.hooks import hookimpl

from .plugin import Synthetic


@hookimpl
def tardisd_exchanges() -> list[type[Exchange[Any]]]:
    """Register the made-up venue."""
    return [Synthetic]
