"""Plugin `okx`: the file formats of its historical data."""

from __future__ import annotations

from tardisd.plugins.format import FileFormat
from tardisd.plugins.hooks import hookimpl

from .formats import OkxAggTrades, OkxCandles, OkxTrades


@hookimpl
def tardisd_formats() -> list[type[FileFormat]]:
    """Register the archives' formats."""
    return [OkxTrades, OkxAggTrades, OkxCandles]
