"""Plugin `bybit`: the file formats of its public archives."""

from __future__ import annotations

from tardisd.plugins.format import FileFormat
from tardisd.plugins.hooks import hookimpl

from .formats import BybitSpotTrades, BybitSwapTrades


@hookimpl
def tardisd_formats() -> list[type[FileFormat]]:
    """Register the archives' formats."""
    return [BybitSwapTrades, BybitSpotTrades]
