"""The file sink does what every sink must, whatever its template."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import msgspec

from tardisd.testing.sink import SinkSuite, sink_context
from tardisd_file.plugin import FileOptions, FileSink


def in_order(path: Path) -> tuple[str, int]:
    """Return the key that sorts numbered parts as they were written."""
    match = re.fullmatch(r"(.*?)(?:\.(\d+))?(\.\w+)", path.name)
    return (match[1], int(match[2] or 0))


def rows_in(folder: Path) -> list[dict]:
    """Return the rows of all NDJSON files below a folder, in the order of their parts."""
    files = sorted(folder.rglob("*.ndjson"), key=lambda path: (str(path.parent), in_order(path)))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


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
        seqs = [row["seq"] for row in rows_in(folder / "out" / session_id.replace(":", "%3A"))]
        return sorted(seqs) if "{symbol}" in self.options["path"] else seqs

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
