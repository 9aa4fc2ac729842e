"""Analyzer plugin `indicators`: technical indicators and candlestick patterns, by TA-Lib."""

from __future__ import annotations

from typing import Any

from tardisd.plugins.analyzer import Analyzer
from tardisd.plugins.hooks import hookimpl

from .plugin import Indicators


@hookimpl
def tardisd_analyzers() -> list[type[Analyzer[Any]]]:
    """Register the analyzer."""
    return [Indicators]
