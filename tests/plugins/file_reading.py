"""What the tests of the file sink share: reading its files, whatever their format, as others do."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet
import zstandard


def text_of(path: Path) -> str:
    """Return what a text file holds, unpacked; a damaged one raises."""
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    elif path.suffix == ".zst":
        # Whole frames only: an unfinished one is damage here, though a stream reader forgives it.
        unpacked = b""
        while raw:
            frame = zstandard.ZstdDecompressor().decompressobj()
            unpacked += frame.decompress(raw)
            assert frame.eof, f"{path} ends in the middle of a frame"
            raw = frame.unused_data
        raw = unpacked
    return raw.decode()


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an NDJSON or Parquet file; times in ns."""
    if path.suffix == ".parquet":
        table = pyarrow.parquet.ParquetFile(path).read()
        return in_ns(table).to_pylist()
    return [json.loads(line) for line in text_of(path).splitlines()]


def in_ns(table: Any) -> Any:
    """Return the table with its times as integers."""
    at = table.schema.get_field_index("datetime")
    return table.set_column(at, "datetime", table["datetime"].cast("int64"))


def in_order(path: Path) -> tuple[str, int]:
    """Return the key that sorts numbered parts as they were written."""
    match = re.fullmatch(r"(.*?)(?:\.(\d+))?(\.[a-z]+(?:\.gz|\.zst)?)", path.name)
    assert match is not None, path
    return (match[1], int(match[2] or 0))


def epoch_of(path: Path) -> int:
    """Return the epoch that is in the name of a file."""
    match = re.search(r"\.e(\d+)\.", path.name)
    return int(match[1]) if match else 1


def rows_in(folder: Path, epoch: int | None = None) -> list[dict[str, Any]]:
    """Return the rows of all complete files below a folder, in the order of their parts."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    paths.sort(key=lambda path: (str(path.parent), in_order(path)))
    return [row for path in paths if epoch in {None, epoch_of(path)} for row in rows_of(path)]
