"""Plugin `bybit`: the exchange, and the file formats of its public archives."""

from __future__ import annotations

from typing import Any

from tardisd.plugins.exchange import Exchange
from tardisd.plugins.format import FileFormat
from tardisd.plugins.hooks import hookimpl

from .formats import BybitSpotTrades, BybitSwapTrades
from .plugin import Bybit


@hookimpl
def tardisd_formats() -> list[type[FileFormat]]:
    """Register the archives' formats."""
    return [BybitSwapTrades, BybitSpotTrades]


@hookimpl
def tardisd_exchanges() -> list[type[Exchange[Any]]]:
    """Register the exchange."""
    return [Bybit]
