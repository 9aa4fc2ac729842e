"""Analyzer plugins `openai` and `holysheep`: language models of any OpenAI-compatible service."""

from __future__ import annotations

from typing import Any

from tardisd.plugins.analyzer import Analyzer
from tardisd.plugins.hooks import hookimpl

from .plugin import HolysheepAnalyzer, OpenaiAnalyzer


@hookimpl
def tardisd_analyzers() -> list[type[Analyzer[Any]]]:
    """Register the analyzer under both names."""
    return [OpenaiAnalyzer, HolysheepAnalyzer]
