"""Print columns as rows of text, the way venues do: fixed or trimmed decimals; knows no venue.

Rows are made in a grid of bytes with blanks where a number is shorter than its column, and the
blanks are squeezed out at the end. So no text in a row may hold one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tardisd.market.columns import Batch
from tardisd.market.decimals import DIGITS, POWERS, Bools, Decimals, Ints
from tardisd.wire.digits import BLANK, Grid, digit_count

_BLOCK_ROWS = 8192
_KEPT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Cell:
    """One column of a row: how wide it is at most, and how it is written there."""

    width: int
    put: Callable[[Grid, int], None]


Piece = bytes | Cell
Printer = Callable[[Batch], Sequence[Piece]]


def integers(values: Ints) -> Cell:
    """Print non-negative integers."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    return Cell(digit_count(high), lambda grid, at: grid.put_digits(at, values, low, high))


def decimals(column: Decimals, digits: int, least: int | None = None) -> Cell:
    """Print non-negative decimals with `digits` fraction digits, which must do for every value.

    With `least`, insignificant zeros go until that many digits are left; at 0 the point goes too.
    """
    whole, fraction = column.parts(digits)
    low, high = (int(whole.min()), int(whole.max())) if len(whole) else (0, 0)
    width = digit_count(high)
    size = width + 1 + digits if digits else width

    def put(grid: Grid, at: int) -> None:
        grid.put_digits(at, whole, low, high)
        if not digits:
            return
        point = at + width
        grid.buffer[:, point] = ord(".")
        grid.put_fixed(point + 1, fraction, digits)
        if least is not None:
            for count in range(1, digits - least + 1):
                zeros = fraction % POWERS[count] == 0
                grid.buffer[zeros, point + 1 + digits - count] = BLANK
            if least == 0:
                grid.buffer[fraction == 0, point] = BLANK

    return Cell(size, put)


def words(texts: NDArray[np.bytes_]) -> Cell:
    """Print byte strings; none has a blank in it."""
    return Cell(texts.dtype.itemsize, lambda grid, at: grid.put_text(at, texts))


def choice(mask: Bools, yes: bytes, no: bytes) -> Cell:
    """Print one of two words."""
    width = max(len(yes), len(no))
    texts = np.where(mask, np.bytes_(yes), np.bytes_(no)).astype(f"S{width}")
    return Cell(width, lambda grid, at: grid.put_text(at, texts))


def print_rows(pieces: Sequence[Piece], count: int) -> tuple[bytes, Ints]:
    """Return the rows as text, and the length of each."""
    if not count:
        return b"", np.empty(0, np.int64)
    width = sum(len(piece) if isinstance(piece, bytes) else piece.width for piece in pieces)
    grid = Grid(np.empty((count, width), np.uint8))
    at = 0
    for piece in pieces:
        if isinstance(piece, bytes):
            grid.buffer[:, at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
        else:
            piece.put(grid, at)
            at += piece.width
    lengths = (grid.buffer != BLANK).sum(axis=1, dtype=np.int64)
    return grid.buffer.tobytes().replace(b" ", b""), lengths


def tidied(batch: Batch) -> Batch:
    """Return the batch with every column at its smallest scale."""
    return replace(batch, fields={name: col.reduced() for name, col in batch.fields.items()})


def digits_in(size: str | None) -> int:
    """Return how many fraction digits a tick or lot size is written with."""
    return len((size or "").partition(".")[2])


def digits_of(batch: Batch, *names: str, least: int = 0) -> int:
    """Return how many fraction digits the columns of a tidied batch need, at least `least`."""
    return max([least, *(batch.fields[n].needed_scale for n in names if n in batch.fields)])


def product(left: Decimals, right: Decimals, digits: int) -> Decimals:
    """Return the products, cut to `digits` fraction digits."""
    scale = left.scale + right.scale
    most = float(left.mantissa.max(initial=0)) * float(right.mantissa.max(initial=0))
    if left.fraction is None and right.fraction is None and most < 2**62:
        mantissa = left.mantissa * right.mantissa
        if scale > digits:
            mantissa //= 10 ** (scale - digits)
        return Decimals(mantissa, min(scale, digits))
    exact = [whole * POWERS[DIGITS] + part for whole, part in _pairs(left)]
    times = [whole * POWERS[DIGITS] + part for whole, part in _pairs(right)]
    cut = [a * b // 10 ** (2 * DIGITS - digits) for a, b in zip(exact, times, strict=True)]
    parts = np.array([divmod(value, 10**digits) for value in cut], np.int64).reshape(-1, 2)
    return Decimals.from_parts(parts[:, 0], parts[:, 1] * POWERS[DIGITS - digits])


def _pairs(column: Decimals) -> list[tuple[int, int]]:
    whole, fraction = column.parts()
    return list(zip(whole.tolist(), fraction.tolist(), strict=True))


class Rows:
    """The rows of a batch as text, by number; prints what is asked for and keeps some of it.

    With `backward`, row 0 is the last one of the batch. Each row ends as its printer ends it.
    """

    def __init__(self, batch: Batch, printer: Printer, *, backward: bool = False) -> None:
        self.batch = batch
        self._printer = printer
        self._backward = backward
        self._blocks: OrderedDict[int, tuple[bytes, Ints]] = OrderedDict()
        self._kept = 0

    def text(self, first: int, last: int) -> bytes:
        """Return the rows from number `first` to before `last`."""
        parts = []
        for block in range(first // _BLOCK_ROWS, -(-last // _BLOCK_ROWS)):
            text, offsets = self._block(block)
            start = block * _BLOCK_ROWS
            low = max(first - start, 0)
            high = min(last - start, len(offsets) - 1)
            parts.append(text[offsets[low] : offsets[high]])
        return b"".join(parts)

    def printed(self, batch: Batch, printer: Printer | None = None) -> bytes:
        """Return the rows of another batch of the series, in its order; nothing is kept."""
        if not len(batch):
            return b""
        return print_rows((printer or self._printer)(batch), len(batch))[0]

    def _block(self, block: int) -> tuple[bytes, Ints]:
        kept = self._blocks.get(block)
        if kept is not None:
            self._blocks.move_to_end(block)
            return kept
        first = block * _BLOCK_ROWS
        last = min(first + _BLOCK_ROWS, len(self.batch))
        if self._backward:
            part = self.batch[len(self.batch) - last : len(self.batch) - first][::-1]
        else:
            part = self.batch[first:last]
        text, lengths = print_rows(self._printer(part), len(part))
        made = text, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        self._blocks[block] = made
        self._kept += len(text)
        while self._kept > _KEPT_BYTES and len(self._blocks) > 1:
            self._kept -= len(self._blocks.popitem(last=False)[1][0])
        return made
