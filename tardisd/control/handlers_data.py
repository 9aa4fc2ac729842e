"""The control methods that move data: imports, exports and backfills.

Files come as descriptors, which belong to the call and end with it; paths never cross the socket.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import asdict
from typing import Any, BinaryIO

from tardisd.backfill.job import run_backfill
from tardisd.control.call import Call
from tardisd.control.methods import Backfill, Export, Import
from tardisd.control.patient import patient_writer
from tardisd.control.services import Services
from tardisd.control.values import instant_json, series_of, span_of
from tardisd.errors import RequestError
from tardisd.market.series import Series
from tardisd.plugins.exchange import Exchange
from tardisd.progress import Progress
from tardisd.transfer.exporting import export_series
from tardisd.transfer.importing import ImportResult, import_files


class DataMethods:
    """`data.*` and `backfill.*`."""

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
        async with self._job(call) as progress, _writing(next(iter(call.files))) as out:
            rows = await export_series(series, span, storage, out, params.form, progress)
        return {"series": series.text, "rows": rows, "format": params.form}

    async def backfill(self, params: Backfill, call: Call) -> dict[str, Any]:
        """Fetch what is missing of series, one after another."""
        span = span_of(params.start, params.end)
        wanted = [series_of(text) for text in params.series]
        exchanges = [self._exchange(series, params.exchange) for series in wanted]
        name = self._services.storage_name(params.storage)
        storage = self._services.storage(name)
        results = []
        async with self._job(call) as progress:
            for series, exchange in zip(wanted, exchanges, strict=True):
                with self._services.jobs.fetching(name, series):
                    result = await run_backfill(series, span, exchange, storage, progress)
                results.append({"series": series.text, **asdict(result)})
        return {"results": results}

    @asynccontextmanager
    async def _job(self, call: Call) -> AsyncIterator[Callable[[Progress], None]]:
        async with self._services.jobs.running(), call.reporting() as progress:
            yield progress

    def _exchange(self, series: Series, name: str | None) -> Exchange[Any]:
        """Return the instance to fetch from: the one named, or the only one of that venue."""
        found = {
            key: exchange
            for key, exchange in self._services.exchanges.items()
            if exchange.name == series.exchange and name in (None, key)
        }
        if len(found) == 1:
            return next(iter(found.values()))
        if found:
            text = f"exchange: several instances are of {series.exchange} ({', '.join(found)})"
        elif name is not None:
            text = f"exchange: no instance of {series.exchange} is named {name!r}"
        else:
            text = f"series: no exchange instance of {series.exchange} is configured"
        known = ", ".join(sorted(self._services.exchanges)) or "none"
        raise RequestError("bad_request", f"{text}; configured: {known}")


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
