"""The file sink does what every sink must, whatever its template, format and compression."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import msgspec
from file_reading import rows_in

from tardisd.testing.sink import SinkSuite, sink_context
from tardisd_file.plugin import FileOptions, FileSink


@asynccontextmanager
async def full_disk() -> AsyncIterator[None]:
    """Let no file of this process grow while it is held."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FileSuite(SinkSuite):
    options: ClassVar[dict] = {}

    @asynccontextmanager
    async def sink(self, folder):
        plugin = FileSink(msgspec.convert(self.options, FileOptions), sink_context(folder))
        async with plugin.run():
            yield plugin

    async def arrived(self, folder, session_id):
        seqs = []
        for epoch in (1, 2):
            place = folder / "out" / session_id.replace(":", "%3A")
            rows = [row["seq"] for row in rows_in(place, epoch)]
            seqs += sorted(rows) if "{symbol}" in self.options["path"] else rows
        return seqs

    def broken(self, folder):
        return full_disk()


class TestOneFile(FileSuite):
    options: ClassVar[dict] = {"path": "out/{session_id}/all.ndjson"}


class TestFilesOfEachSeriesAndDay(FileSuite):
    options: ClassVar[dict] = {
        "path": "out/{session_id}/{date}/{exchange}/{symbol}-{data_type}.ndjson",
        "max_open_files": 2,
    }


class TestRotatedFiles(FileSuite):
    options: ClassVar[dict] = {
        "path": "out/{session_id}/x.ndjson",
        "rotate_bytes": 5000,
        "rotate": "day",
    }


class TestGzip(FileSuite):
    options: ClassVar[dict] = {"path": "out/{session_id}/x.ndjson", "compression": "gzip"}


class TestZstdRotated(FileSuite):
    options: ClassVar[dict] = {
        "path": "out/{session_id}/x.ndjson.zst",
        "compression": "zstd",
        "rotate_bytes": 3000,
        "rotate": "day",
    }


class TestZstdWithFewOpenFiles(FileSuite):
    options: ClassVar[dict] = {
        "path": "out/{session_id}/{exchange}/{symbol}-{data_type}.ndjson",
        "compression": "zstd",
        "max_open_files": 1,
    }


class TestParquet(FileSuite):
    options: ClassVar[dict] = {
        "path": "out/{session_id}/{exchange}/{symbol}-{data_type}.parquet",
        "format": "parquet",
    }


class TestParquetRotated(FileSuite):
    options: ClassVar[dict] = {
        "path": "out/{session_id}/exchange={exchange}/symbol={symbol}/{date}-{data_type}.parquet",
        "format": "parquet",
        "compression": "gzip",
        "rotate_bytes": 20_000,
        "max_open_files": 1,
    }
