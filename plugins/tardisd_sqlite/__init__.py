"""The embedded storage: ticks in one SQLite file, as columnar chunks; registers it, no more."""

from __future__ import annotations

from typing import Any

from tardisd.plugins.hooks import hookimpl
from tardisd.plugins.storage import Storage
from tardisd_sqlite.plugin import SqliteStorage


@hookimpl
def tardisd_storages() -> list[type[Storage[Any]]]:
    """Return the storage plugins of this package."""
    return [SqliteStorage]
