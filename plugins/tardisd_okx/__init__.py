"""Plugin `okx`: the exchange, and the file formats of its historical data."""

from __future__ import annotations

from typing import Any

from tardisd.plugins.exchange import Exchange
from tardisd.plugins.format import FileFormat
from tardisd.plugins.hooks import hookimpl

from .formats import OkxAggTrades, OkxCandles, OkxTrades
from .plugin import Okx


@hookimpl
def tardisd_formats() -> list[type[FileFormat]]:
    """Register the archives' formats."""
    return [OkxTrades, OkxAggTrades, OkxCandles]


@hookimpl
def tardisd_exchanges() -> list[type[Exchange[Any]]]:
    """Register the exchange."""
    return [Okx]
