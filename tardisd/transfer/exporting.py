"""Write the rows of a series to an open file: CSV, NDJSON or Parquet; reads them batch by batch.

CSV and Parquet come back through `data import` as the same rows. Encoding and writing run in
threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import BinaryIO, Literal

import trio

from tardisd.errors import RequestError
from tardisd.market.columns import SCHEMAS, Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.plugins.storage import Storage
from tardisd.progress import Progress
from tardisd.wire.parquet import ParquetTable
from tardisd.wire.text import csv_header, encode_batch


async def export_series(
    series: Series,
    span: Span,
    storage: Storage,  # type: ignore[type-arg]
    out: BinaryIO,
    form: Literal["csv", "ndjson", "parquet"],
    progress: Callable[[Progress], None],
) -> int:
    """Write the rows that lie wholly in `span` (candles by open and close); return how many.

    Progress is in rows, its total unknown. Raises RequestError when the file cannot be written,
    StorageError when the rows cannot be read.
    """
    if series.data_type.kind not in SCHEMAS:
        raise RequestError("bad_request", f"{series.data_type} cannot be exported yet")
    rows = 0
    table: ParquetTable | None = None
    if form == "parquet":
        table = await trio.to_thread.run_sync(ParquetTable, series, partial(_write, out))
    elif form == "csv":
        await trio.to_thread.run_sync(_write, out, csv_header(series))

    def write(batch: Batch) -> None:
        if form == "parquet":
            assert table is not None
            table.add(batch)
        else:
            _write(out, encode_batch(batch, form, rows + 1))

    async with storage.read(series, span) as batches:
        async for batch in batches:
            whole = batch.within(span)
            await trio.to_thread.run_sync(write, whole)
            rows += len(whole)
            progress(Progress(rows, 0, "rows", "writing"))
    if table is not None:
        await trio.to_thread.run_sync(table.finish)
    await trio.to_thread.run_sync(_flush, out)
    return rows


def _write(out: BinaryIO, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[out.write(rest) :]
    except OSError as error:
        raise _unwritable(error) from None


def _flush(out: BinaryIO) -> None:
    try:
        out.flush()
    except OSError as error:
        raise _unwritable(error) from None


def _unwritable(error: OSError) -> RequestError:
    return RequestError("bad_request", f"the file cannot be written: {error.strerror or error}")
