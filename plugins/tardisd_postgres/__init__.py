"""The storage for many daemons and for SQL: ticks in PostgreSQL; registers it, no more."""

from __future__ import annotations

from typing import Any

from tardisd.plugins.hooks import hookimpl
from tardisd.plugins.storage import Storage
from tardisd_postgres.plugin import PostgresStorage


@hookimpl
def tardisd_storages() -> list[type[Storage[Any]]]:
    """Return the storage plugins of this package."""
    return [PostgresStorage]
