"""The wall clock; the one module that reads it."""

from __future__ import annotations

import time

MILLISECOND = 1_000_000


def wall_ns() -> int:
    """Return the time of day (ns since the epoch, UTC)."""
    return time.time_ns()


def wall_ms() -> int:
    """Return the time of day (ms since the epoch, UTC)."""
    return time.time_ns() // MILLISECOND
