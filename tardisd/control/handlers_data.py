"""The control methods that move and check data: imports, exports, verification.

Files come as descriptors, which belong to the call and end with it; paths never cross the socket.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import asdict
from typing import Any, BinaryIO

from tardisd.backfill.verify import WRONG, verify_series
from tardisd.control.call import Call
from tardisd.control.methods import Export, Import, SeriesPart
from tardisd.control.patient import patient_writer
from tardisd.control.services import Services
from tardisd.control.values import instant_json, part_of, series_of, span_of
from tardisd.errors import RequestError
from tardisd.market.series import Series
from tardisd.plugins.storage import span_json
from tardisd.progress import Progress
from tardisd.transfer.exporting import export_series
from tardisd.transfer.importing import ImportResult, import_files


class DataMethods:
    """`data.*`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def import_files(self, params: Import, call: Call) -> dict[str, Any]:
        """Import venue dumps and plain files."""
        try:
            series = Series.of(params.exchange, params.symbol, params.data_type)
        except ValueError as error:
            raise RequestError("bad_request", str(error)) from None
        storage = self._services.storage(params.storage)
        covers = span_of(*params.covers, "covers", "covers") if params.covers else None
        if len(call.files) != len(params.files):
            text = f"files: {len(params.files)} are named, {len(call.files)} came along"
            raise RequestError("bad_request", text)
        with ExitStack() as opened:
            files = [opened.enter_context(open(it, "rb", closefd=False)) for it in call.files]
            async with self._job(call) as progress:
                result = await import_files(
                    list(zip(params.files, files, strict=True)),
                    series,
                    storage,
                    self._services.config.registry.formats(),
                    covers=covers,
                    contract_size=params.contract_size,
                    spool_dir=self._services.spool_dir,
                    progress=progress,
                )
        return _import_json(series, result)

    async def export(self, params: Export, call: Call) -> dict[str, Any]:
        """Write a series to a file."""
        series = series_of(params.series)
        span = span_of(params.start, params.end)
        storage = self._services.storage(params.storage)
        if len(call.files) != 1:
            text = f"files: one to write to must come along, not {len(call.files)}"
            raise RequestError("bad_request", text)
        covered = await storage.coverage(series)
        if not covered.intersect(span):
            stored = f"; stored: {covered.hull}" if covered else "; see `tardisctl series list`"
            raise RequestError("no_data", f"nothing is stored of {series} in {span}{stored}")
        async with self._job(call) as progress, _writing(next(iter(call.files))) as out:
            rows = await export_series(series, span, storage, out, params.form, progress)
        return {"series": series.text, "rows": rows, "format": params.form}

    async def verify(self, params: SeriesPart, call: Call) -> dict[str, Any]:
        """Check what is stored against itself."""
        series = series_of(params.series)
        storage = self._services.storage(params.storage)
        hull = (await storage.coverage(series)).hull
        span = part_of(params.start, params.end, hull)
        if hull is None or not span:
            raise RequestError("no_data", f"nothing is stored of {series}")
        async with self._job(call) as progress:
            checks = await verify_series(storage, series, span, progress)
        return {
            "series": series.text,
            **span_json(span),
            "ok": all(check.state != WRONG for check in checks),
            "checks": [asdict(check) for check in checks],
        }

    @asynccontextmanager
    async def _job(self, call: Call) -> AsyncIterator[Callable[[Progress], None]]:
        async with self._services.jobs.running(), call.reporting() as progress:
            yield progress


def _writing(descriptor: int) -> AbstractAsyncContextManager[BinaryIO]:
    """Return a file over a descriptor, which stays open."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return patient_writer(descriptor)
    return _regular(descriptor)


@asynccontextmanager
async def _regular(descriptor: int) -> AsyncIterator[BinaryIO]:
    with open(descriptor, "wb", closefd=False) as out:
        yield out


def _import_json(series: Series, result: ImportResult) -> dict[str, Any]:
    files = [
        {**asdict(file), "first": instant_json(file.first), "last": instant_json(file.last)}
        for file in result.files
    ]
    return {"series": series.text, **asdict(result), "files": files}
