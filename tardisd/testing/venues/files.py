"""Archive files of a test venue: made when first asked for, then kept; knows no format."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import trio

from tardisd.market.columns import Batch
from tardisd.testing.venues.printing import Printer, print_rows

CHUNK_ROWS = 65_536
_STAMP = (2024, 1, 1, 0, 0, 0)  # the same bytes, whenever they are made

Maker = Callable[[IO[bytes]], None]


class Files:
    """Files by key, in one folder; `level` is how hard they are compressed."""

    def __init__(self, folder: Path, level: int = 1) -> None:
        self.level = level
        self._folder = folder
        self._locks: dict[str, trio.Lock] = {}
        self._sums: dict[Path, str] = {}

    async def get(self, key: str, make: Maker) -> Path:
        """Return the file of that key; two who ask at once wait for the same one."""
        path = self._folder / hashlib.sha256(key.encode()).hexdigest()
        async with self._locks.setdefault(key, trio.Lock()):
            if path not in self._sums:
                self._sums[path] = await trio.to_thread.run_sync(_made, path, make)
        return path

    def checksum(self, path: Path) -> str:
        """Return the SHA-256 of a file that `get` returned, in hex."""
        return self._sums[path]


def csv_parts(batch: Batch, printer: Printer, header: bytes = b"") -> Iterator[bytes]:
    """Return the lines of a batch, piece by piece."""
    if header:
        yield header
    for first in range(0, len(batch), CHUNK_ROWS):
        part = batch[first : first + CHUNK_ROWS]
        yield print_rows(printer(part), len(part))[0]


def zipped(name: str, parts: Iterable[bytes], level: int) -> Maker:
    """Return what writes a zip of one file, compressed from 0 (not) to 9."""

    def make(out: IO[bytes]) -> None:
        with zipfile.ZipFile(out, "w") as archive:
            member = zipfile.ZipInfo(name, _STAMP)
            member.compress_type = zipfile.ZIP_DEFLATED
            member._compresslevel = level  # type: ignore[attr-defined]  # noqa: SLF001
            with archive.open(member, "w", force_zip64=True) as inner:
                for part in parts:
                    inner.write(part)

    return make


def gzipped(parts: Iterable[bytes], level: int) -> Maker:
    """Return what writes a gzip file, compressed from 0 (not) to 9."""

    def make(out: IO[bytes]) -> None:
        with gzip.GzipFile("", "wb", level, out, mtime=0) as inner:
            for part in parts:
                inner.write(part)

    return make


def _made(path: Path, make: Maker) -> str:
    with path.open("wb") as out:
        make(out)
    with path.open("rb") as done:
        return hashlib.file_digest(done, "sha256").hexdigest()
