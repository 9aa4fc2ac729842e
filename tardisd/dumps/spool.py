"""Keep the parsed rows of an import in an unnamed temporary file, and give them back in order.

Each block becomes a run: its columns as plain arrays, sorted. Memory holds only where they are and
one time in 128; from those come cuts in time that make pages of about equal size, and a page is
the slices of all runs between two cuts. So a shuffled file of any size is sorted in the memory of
a few pages; a sorted one is read back straight on. Does no checks.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tardisd.errors import DataError, StorageError
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals, Ints
from tardisd.market.series import Series
from tardisd.market.time import format_time

PAGE_ROWS = 2**16
SAMPLE_EVERY = 128
# Rows of one instant cannot be told apart by time, so they are held together.
MAX_INSTANT_ROWS = 2**21

Column = NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Stored:
    """An array in the file."""

    offset: int
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class _Run:
    """One sorted block of rows in the file."""

    count: int
    first: int
    last: int
    times: _Stored
    rows: _Stored
    fields: dict[str, tuple[int, _Stored, _Stored | None, _Stored | None]]
    ids: _Stored | None
    sides: _Stored | None


@dataclass(frozen=True, slots=True)
class _Slice:
    run: _Run
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Part:
    """The rows with `start <= ts_event < stop` (ns)."""

    start: int
    stop: int
    slices: tuple[_Slice, ...]

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(piece.stop - piece.start for piece in self.slices)


class Spool:
    """The rows of an import on disk. Use from one thread at a time."""

    def __init__(self, series: Series, file: BinaryIO, folder: Path) -> None:
        self.series = series
        self.count = 0
        self._file = file
        self._folder = folder
        self._runs: list[_Run] = []
        self._sample: list[Ints] = []
        self._end = 0

    def add(self, batch: Batch, rows: Ints) -> None:
        """Append a run: a batch in time order, and each row's number in the import."""
        if not len(batch):
            return
        try:
            run = _Run(
                len(batch),
                int(batch.ts_event[0]),
                int(batch.ts_event[-1]),
                self._write(batch.ts_event),
                self._write(rows),
                {
                    name: (
                        column.scale,
                        self._write(column.mantissa),
                        None if column.fraction is None else self._write(column.fraction),
                        None if column.present is None else self._write(column.present),
                    )
                    for name, column in batch.fields.items()
                },
                None if batch.ids is None else self._write(batch.ids),
                None if batch.sides is None else self._write(batch.sides),
            )
        except OSError as error:
            raise StorageError(
                f"cannot keep the rows in {self._folder} while they are checked:"
                f" {error.strerror}; free space there"
            ) from None
        self._runs.append(run)
        self._sample.append(batch.ts_event[::SAMPLE_EVERY].copy())
        self.count += len(batch)

    def parts(self) -> list[Part]:
        """Return all rows cut by time into parts of about `PAGE_ROWS`, in order.

        Raises DataError when too many rows share one instant.
        """
        if not self._runs:
            return []
        sample = np.sort(np.concatenate(self._sample))
        step = max(1, PAGE_ROWS // SAMPLE_EVERY)
        cuts = np.unique(sample[::step][1:])
        low = min(run.first for run in self._runs)
        high = max(run.last for run in self._runs)
        cuts = cuts[cuts > low]
        bounds = [low, *cuts.tolist(), high + 1]
        slices: list[list[_Slice]] = [[] for _ in range(len(bounds) - 1)]
        for run in self._runs:
            first, last = np.searchsorted(cuts, [run.first, run.last], "right").tolist()
            edges = [0, run.count]
            if first != last:
                inner = np.searchsorted(self._read(run.times, 0, run.count), cuts[first:last])
                edges[1:1] = inner.tolist()
            for at, (start, stop) in enumerate(pairwise(edges), first):
                if start < stop:
                    slices[at].append(_Slice(run, start, stop))
        parts = [
            Part(start, stop, tuple(pieces))
            for (start, stop), pieces in zip(pairwise(bounds), slices, strict=True)
        ]
        for part in parts:
            if part.count > MAX_INSTANT_ROWS:
                raise DataError(
                    f"more than {MAX_INSTANT_ROWS} rows share about one time,"
                    f" {format_time(part.start)}; is the time column right?"
                )
        return parts

    def load(self, part: Part) -> tuple[Batch, Ints]:
        """Return the part's rows, run after run, and their numbers in the import."""
        batches = [self._batch(piece) for piece in part.slices]
        rows = [self._read(piece.run.rows, piece.start, piece.stop) for piece in part.slices]
        return Batch.concat(batches), np.concatenate(rows)

    def _batch(self, piece: _Slice) -> Batch:
        run = piece.run

        def read(stored: _Stored) -> Column:
            return self._read(stored, piece.start, piece.stop)

        return Batch(
            self.series,
            read(run.times),
            {
                name: Decimals(read(mantissa), scale, _maybe(read, fraction), _maybe(read, present))
                for name, (scale, mantissa, fraction, present) in run.fields.items()
            },
            _maybe(read, run.ids),
            _maybe(read, run.sides),
        )

    def _write(self, column: Column) -> _Stored:
        data = np.ascontiguousarray(column)
        stored = _Stored(self._end, data.dtype)
        view = data.view(np.uint8).reshape(-1).data
        while view:
            written = os.pwrite(self._file.fileno(), view, self._end)
            self._end += written
            view = view[written:]
        return stored

    def _read(self, stored: _Stored, start: int, stop: int) -> Column:
        size = stored.dtype.itemsize
        column = np.empty(stop - start, stored.dtype)
        view = column.view(np.uint8).reshape(-1).data
        offset = stored.offset + start * size
        while view:
            count = os.preadv(self._file.fileno(), [view], offset)
            if not count:
                raise StorageError(f"the temporary file in {self._folder} was cut off; try again")
            offset += count
            view = view[count:]
        return column


def _maybe(read: Callable[[_Stored], Column], stored: _Stored | None) -> Column | None:
    return None if stored is None else read(stored)


@contextmanager
def open_spool(series: Series, folder: Path) -> Iterator[Spool]:
    """Open a spool in `folder`; the file has no name, so nothing is left behind by a crash."""
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below
    except OSError as error:
        raise StorageError(
            f"cannot make a temporary file in {folder}: {error.strerror}; check the folder"
        ) from None
    with file:
        yield Spool(series, file, folder)
