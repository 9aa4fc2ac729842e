"""Plugin `csv`: plain CSV files of candles and trades, and tardis.dev's trades."""

from __future__ import annotations

from tardisd.plugins.format import FileFormat
from tardisd.plugins.hooks import hookimpl

from .plain import PlainCandles, PlainTrades
from .tardis import TardisTrades


@hookimpl
def tardisd_formats() -> list[type[FileFormat]]:
    """Register the formats."""
    return [PlainCandles, PlainTrades, TardisTrades]
