"""What a session finds stored, and what its creator is told when there is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tardisd.errors import RequestError, StorageError
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.plugins.storage import Storage

_NAMED_IN_ERRORS = 5


@dataclass(frozen=True, slots=True)
class Material:
    """What is stored for one series of a session."""

    series: Series
    coverage: Coverage
    causes: Sequence[Gap]
    version: int


async def has_rows(storage: Storage[Any], series: Series, span: Span) -> bool:
    """Tell whether any tick of the series lies wholly in `span`."""
    async with storage.read(series, span) as batches:
        async for batch in batches:
            if len(batch.within(span)):
                return True
    return False


async def material(storage: Storage[Any], series: Series) -> Material:
    """Return what is stored for a series. Raises StorageError."""
    try:
        # First of all: what changes in between is told as a change, and not taken for what it was.
        version = await storage.version(series)
        return Material(series, await storage.coverage(series), await storage.gaps(series), version)
    except StorageError as error:
        raise type(error)(f"{series}: {error.message}") from None


async def refuse_without_data(storage: Storage[Any], series: Sequence[Series], span: Span) -> None:
    """Raise RequestError `no_data` when none of the series has a tick in the span."""
    for one in series:
        if await has_rows(storage, one, span):
            return
    raise RequestError("no_data", await _nothing_stored(storage, series, span))


async def _nothing_stored(storage: Storage[Any], series: Sequence[Series], span: Span) -> str:
    """Return what to tell someone who asked for data that is not there."""
    asked = ", ".join(map(str, series[:_NAMED_IN_ERRORS]))
    stored = {info.series: info for info in await storage.list_series() if info.rows}
    found = [one for one in series if one in stored]
    if not found:
        others = ", ".join(map(str, list(stored)[:_NAMED_IN_ERRORS])) or "nothing at all"
        more = ", …" if len(stored) > _NAMED_IN_ERRORS else ""
        return f"no data for {asked}: it is not stored; stored: {others}{more}"
    parts = []
    for one in found[:_NAMED_IN_ERRORS]:
        hull = (await storage.coverage(one)).hull
        parts.append(f"{one} {hull}" if hull else str(one))
    return f"no data for {asked} in {span}; stored: {', '.join(parts)}"
