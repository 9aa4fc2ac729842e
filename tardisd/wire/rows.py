"""Encoded ticks: rows of bytes in one contiguous buffer, sliced without copying."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tardisd.wire.digits import Grid


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring rows of one width. `stamp` is where in a row the wall time goes, or None."""

    first_row: int
    rows: int
    offset: int
    width: int
    stamp: int | None


class EncodedRows:
    """Rows in total order; runs of one kind have one width, so places are computed, not stored."""

    __slots__ = ("_buffer", "_first_rows", "_rows", "_runs", "_view")

    def __init__(self, buffer: NDArray[np.uint8], runs: Sequence[Run]) -> None:
        self._buffer = buffer
        self._view = memoryview(buffer.data)
        self._runs = runs
        self._first_rows = [run.first_row for run in runs]
        self._rows = runs[-1].first_row + runs[-1].rows if runs else 0

    def __len__(self) -> int:
        return self._rows

    def _offset(self, row: int) -> int:
        if row >= self._rows:
            return len(self._view)
        run = self._runs[bisect_right(self._first_rows, row) - 1]
        return run.offset + (row - run.first_row) * run.width

    def bytes(self, first: int = 0, last: int | None = None) -> memoryview:
        """Return the bytes of the rows `first <= i < last`."""
        return self._view[self._offset(first) : self._offset(self._rows if last is None else last)]

    def cut(self, limit: int, first: int = 0, last: int | None = None) -> Iterator[memoryview]:
        """Return the bytes in pieces of whole rows, each of at most `limit` bytes if it can be."""
        end = self._rows if last is None else last
        while first < end:
            start = self._offset(first)
            upto = min(end, self._row_before(start + limit))
            upto = max(upto, first + 1)
            yield self._view[start : self._offset(upto)]
            first = upto

    def grids(self, first: int = 0, last: int | None = None) -> Iterator[NDArray[np.uint8]]:
        """Return the rows `first <= i < last` as tables of neighbouring rows of one width."""
        end = self._rows if last is None else last
        at = max(bisect_right(self._first_rows, first) - 1, 0)
        for run in self._runs[at:]:
            low, high = max(first - run.first_row, 0), min(end - run.first_row, run.rows)
            if low >= high:
                return
            start = run.offset + low * run.width
            part = self._buffer[start : run.offset + high * run.width]
            yield part.reshape(high - low, run.width)

    def _row_before(self, place: int) -> int:
        """Return how many rows end at or before byte `place`."""
        if place >= len(self._view):
            return self._rows
        at = bisect_right(self._runs, place, key=lambda run: run.offset) - 1
        run = self._runs[at]
        return run.first_row + min(run.rows, (place - run.offset) // run.width)

    def stamp(self, first: int, last: int, milliseconds: int) -> None:
        """Write the wall time into the rows `first <= i < last`: when they were sent."""
        text = str(milliseconds).encode().rjust(13)
        at = bisect_right(self._first_rows, first) - 1
        while at < len(self._runs) and self._runs[at].first_row < last:
            run = self._runs[at]
            at += 1
            if run.stamp is None:
                continue
            low, high = max(first, run.first_row), min(last, run.first_row + run.rows)
            start = run.offset + (low - run.first_row) * run.width
            end = run.offset + (high - run.first_row) * run.width
            part = self._buffer[start:end].reshape(high - low, run.width)
            Grid(part).words(run.stamp, "S13")[...] = text


@dataclass(frozen=True, slots=True)
class RowSlice:
    """The rows `first <= i < last` of encoded ticks, as rows of their own."""

    whole: EncodedRows
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def bytes(self, first: int = 0, last: int | None = None) -> memoryview:
        """Return the bytes of the rows `first <= i < last`."""
        end = self.last if last is None else self.first + last
        return self.whole.bytes(self.first + first, end)

    def cut(self, limit: int) -> Iterator[memoryview]:
        """Return the bytes in pieces of whole rows, each of at most `limit` bytes if it can be."""
        return self.whole.cut(limit, self.first, self.last)

    def grids(self) -> Iterator[NDArray[np.uint8]]:
        """Return the rows as tables of neighbouring rows of one width; do not write to them."""
        return self.whole.grids(self.first, self.last)


def interleave(
    grids: Sequence[tuple[NDArray[np.uint8], int | None]], runs: Sequence[tuple[int, int, int]]
) -> EncodedRows:
    """Put the rows of several grids into one order.

    `grids` are (rows, stamp offset); `runs` are (grid, first row in it, rows) in the final order.
    """
    if len(grids) == 1:
        grid, stamp = grids[0]
        return EncodedRows(grid.reshape(-1), [Run(0, len(grid), 0, grid.shape[1], stamp)])
    buffer = np.empty(sum(count * grids[which][0].shape[1] for which, _, count in runs), np.uint8)
    placed, offset, row = [], 0, 0
    for which, first, count in runs:
        grid, stamp = grids[which]
        width = grid.shape[1]
        end = offset + count * width
        buffer[offset:end] = grid[first : first + count].reshape(-1)
        placed.append(Run(row, count, offset, width, stamp))
        offset, row = end, row + count
    return EncodedRows(buffer, placed)
