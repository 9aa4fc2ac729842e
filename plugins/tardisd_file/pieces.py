"""Blocks as pieces: the rows that go to one file; cut the same way at every attempt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Literal

import numpy as np

from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.time import DAY
from tardisd.plugins.sessions import Block
from tardisd.wire.text import csv_header, encode_batch, squeeze

from .template import SERIES_FIELDS, PathTemplate, marked

FileForm = Literal["ndjson", "csv", "parquet"]

_PATHS_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows for one file, as lines or as columns.

    `key` tells files apart, `day` is None unless files end by day. A piece of `size` (bytes, or
    rows) may be taken in parts. Its rows have the numbers `seqs`, each `base` higher.
    """

    key: str
    path: str
    day: int | None
    header: bytes = b""
    lines: bytes = b""
    columns: Batch | None = None
    seqs: Sequence[int] = ()
    base: int = 0

    @property
    def size(self) -> int:
        """How much there is of it."""
        return len(self.lines) if self.columns is None else len(self.columns)

    def last_seq(self, end: int) -> int:
        """Return the number of the last row before `end` (bytes, or rows)."""
        rows = len(self.seqs)
        if end < self.size:
            rows = min(self.lines.count(b"\n", 0, end) if self.columns is None else end, rows)
        return self.base + int(self.seqs[rows - 1])


class Cutter:
    """Cuts a session's blocks into pieces, by the template, format and rotation asked for.

    With `one_file` all rows of a day and an epoch go to the same file.
    """

    def __init__(
        self,
        template: PathTemplate,
        form: FileForm,
        by_day: bool,
        session_id: str,
        suffix: str = "",
    ) -> None:
        self._template = template
        self._form = form
        self._by_day = by_day or "date" in template.fields
        self._by_series = bool(template.fields & SERIES_FIELDS)
        self.one_file = form == "ndjson" and not self._by_series
        self._session_id = session_id
        self._suffix = suffix
        self._paths: dict[tuple[Series | None, int | None, int], str] = {}

    def pieces(self, block: Block, start: int, stop: int) -> Iterator[Piece]:
        """Return rows of the block in pieces; days in order, those of one file in the session's."""
        for first, last, day in self._days(block, start, stop):
            if self._form == "parquet":
                yield from self._columns(block, first, last, day)
                continue
            text = bytes(block.encode(self._form).bytes(first, last))
            if self._form == "csv" and b'"' in text:  # ids with blanks, commas or line ends
                yield from self._csv_slowly(block, first, last, day)
                continue
            text = squeeze(text)
            base, every = block.first_seq + first, range(last - first)
            if not self._by_series:
                path = self._path(None, day, block.epoch)
                yield Piece(path, path, day, lines=text, seqs=every, base=base)
                continue
            files = self._files(block, first, last, day)
            if len(files) == 1:
                [(key, (series, path, _))] = files.items()
                yield Piece(key, path, day, self._header(series), text, None, every, base)
                continue
            lines = text.split(b"\n")
            for key, (series, path, rows) in files.items():
                picked = _joined(lines, rows)
                yield Piece(key, path, day, self._header(series), picked, None, rows, base)

    def _days(self, block: Block, start: int, stop: int) -> Iterator[tuple[int, int, int | None]]:
        if not self._by_day:
            yield start, stop, None
            return
        days = block.release[start:stop] // DAY
        borders = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), len(days)]
        for first, last in pairwise(borders):
            yield start + first, start + last, int(days[first])

    def _files(
        self, block: Block, first: int, last: int, day: int | None
    ) -> dict[str, tuple[Series, str, list[int]]]:
        """Return by key: a series of the file, its path, and its rows counted from `first`."""
        files: dict[str, tuple[Series, str, list[int]]] = {}
        for series, places in block.series_rows():
            low, high = np.searchsorted(places, [first, last])
            if low < high:
                path = self._path(series, day, block.epoch)
                rows = (places[low:high] - first).tolist()
                known = files.setdefault(self._key(series, path), (series, path, rows))
                if known[2] is not rows:
                    known[2].extend(rows)
                    known[2].sort()
        return files

    def _batches(
        self, block: Block, first: int, last: int
    ) -> Iterator[tuple[Batch, Sequence[int]]]:
        start = block.first_seq
        for batch, seqs in block.batches():
            low, high = np.searchsorted(np.asarray(seqs), [start + first, start + last]).tolist()
            if low < high:
                yield batch[low:high], seqs[low:high]

    def _columns(self, block: Block, first: int, last: int, day: int | None) -> Iterator[Piece]:
        for batch, seqs in self._batches(block, first, last):
            path = self._path(batch.series, day, block.epoch)
            yield Piece(self._key(batch.series, path), path, day, columns=batch, seqs=seqs)

    def _csv_slowly(self, block: Block, first: int, last: int, day: int | None) -> Iterator[Piece]:
        for batch, seqs in self._batches(block, first, last):
            path = self._path(batch.series, day, block.epoch)
            lines = encode_batch(batch, "csv")
            key = self._key(batch.series, path)
            yield Piece(key, path, day, self._header(batch.series), lines, None, seqs)

    def _key(self, series: Series, path: str) -> str:
        """Return what tells files apart: series share NDJSON files only, whatever their names."""
        return path if self._form == "ndjson" else f"{path}\0{series}"

    def _header(self, series: Series) -> bytes:
        return csv_header(series) if self._form == "csv" else b""

    def _path(self, series: Series | None, day: int | None, epoch: int) -> str:
        known = self._paths.get((series, day, epoch))
        if known is not None:
            return known
        values = {"session_id": self._session_id, "epoch": str(epoch)}
        if day is not None:
            values["date"] = str(np.datetime64(day, "D"))
        if series is not None:
            values["exchange"] = series.exchange
            values["symbol"] = str(series.symbol)
            values["data_type"] = series.data_type.name
        path = self._template.fill(values) + self._suffix
        if epoch > 1 and "epoch" not in self._template.fields:
            path = marked(path, f"e{epoch}")
        if len(self._paths) >= _PATHS_KEPT:  # mostly of days gone by
            self._paths.clear()
        self._paths[series, day, epoch] = path
        return path


def _joined(lines: Sequence[bytes], rows: Sequence[int]) -> bytes:
    picked = itemgetter(*rows)(lines) if len(rows) > 1 else (lines[rows[0]],)
    return b"\n".join((*picked, b""))
