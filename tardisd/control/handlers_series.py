"""The control methods about what is stored, and what is missing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tardisd.backfill.ledger import find_gaps
from tardisd.backfill.strip import coverage_strip
from tardisd.control.call import Call
from tardisd.control.methods import Deletion, GapsOf, InStorage, SeriesPart, Showing
from tardisd.control.services import Services
from tardisd.control.values import instant_json, part_of, series_of, span_of
from tardisd.errors import RequestError
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import EARLIEST, LATEST
from tardisd.plugins.storage import Provenance, span_json


class SeriesMethods:
    """`series.*`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def list(self, params: InStorage, call: Call) -> list[dict[str, Any]]:
        """List stored series."""
        return [info.shown() for info in await self._services.storage(params.storage).list_series()]

    async def show(self, params: Showing, call: Call) -> dict[str, Any]:
        """Return one series and where its rows came from."""
        series = series_of(params.series)
        storage = self._services.storage(params.storage)
        known = [info for info in await storage.list_series() if info.series.key == series.key]
        if not known:
            raise RequestError("no_data", f"nothing is stored of {series}")
        instrument = await storage.instrument(series)
        pages = await storage.provenance(series, params.limit)
        return {
            **known[0].shown(),
            "tick_size": instrument and instrument.tick_size,
            "lot_size": instrument and instrument.lot_size,
            "listed_at": instrument and instant_json(instrument.listed_at),
            "pages": [_page_json(page) for page in pages],
        }

    async def coverage(self, params: SeriesPart, call: Call) -> dict[str, Any]:
        """Return the spans known to be complete."""
        series = series_of(params.series)
        known = await self._services.storage(params.storage).coverage(series)
        span = part_of(params.start, params.end, known.hull)
        part = known.intersect(span) if span else known
        return {
            "series": series.text,
            "stored": bool(known),
            "spans": [span_json(covered) for covered in part],
            "months": [
                {"month": month.name, "days": month.days}
                for month in (coverage_strip(known, span) if span else [])
            ],
        }

    async def gaps(self, params: GapsOf, call: Call) -> dict[str, Any]:
        """Return the gaps and their causes."""
        series = series_of(params.series)
        storage = self._services.storage(params.storage)
        hull = (await storage.coverage(series)).hull
        span = part_of(params.start, params.end, hull)
        found = await find_gaps(storage, series, span) if span else []
        storage_name = self._services.storage_name(params.storage)
        reason = self._services.backfills.why_failed(storage_name, series)
        listed = []
        for gap in found[: params.limit]:
            told = {**span_json(gap.span), "cause": gap.cause}
            listed.append({**told, "reason": reason} if gap.cause == "fetch_failed" else told)
        return {
            "series": series.text,
            "stored": hull is not None,
            "gaps": listed,
            "truncated": len(found) > params.limit,
        }

    async def delete(self, params: Deletion, call: Call) -> dict[str, Any]:
        """Delete rows and their coverage."""
        series = series_of(params.series)
        span = _deleted(params, series)
        rows = await self._services.storage(params.storage).delete(series, span)
        return {"series": series.text, "rows": rows}


def _page_json(page: Provenance) -> dict[str, Any]:
    return {
        **span_json(page.span),
        "source": page.source,
        "stored_at": instant_json(page.stored_at),
        **asdict(page.rows),
    }


def _deleted(params: Deletion, series: Series) -> Span:
    if params.everything and params.start is None and params.end is None:
        return Span(EARLIEST, LATEST)
    if params.start is None or params.end is None or params.everything:
        text = f"say what to delete of {series}: both from and to, or all"
        raise RequestError("bad_request", text)
    return span_of(params.start, params.end)
