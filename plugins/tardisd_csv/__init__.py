"""Plugin `csv`: plain CSV files of candles and trades, as exported here and by many tools."""

from __future__ import annotations

from tardisd.plugins.format import FileFormat
from tardisd.plugins.hooks import hookimpl

from .plain import PlainCandles, PlainTrades


@hookimpl
def tardisd_formats() -> list[type[FileFormat]]:
    """Register the plain formats."""
    return [PlainCandles, PlainTrades]
