"""Write integer columns as ASCII digits into fixed-width rows; knows no JSON.

A `Grid` is rows of equal width in one contiguous buffer. Numbers go four digits at a time through
lookup tables, right-aligned, with blanks (JSON white space) in place of leading zeros. Digits that
are the same in every row need not be written row by row: whoever makes the rows puts them into what
the rows are copied from. In a block of neighbouring ticks, the high digits nearly always are.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tardisd.market.decimals import Ints

BLANK = 0x20
_QUOTE = ord('"')
_Words = NDArray[Any]


class Grid:
    """`rows` rows of `width` bytes each, written field by field."""

    __slots__ = ("buffer", "rows", "width")

    def __init__(self, buffer: NDArray[np.uint8]) -> None:
        self.buffer = buffer
        self.rows, self.width = buffer.shape

    def words(self, offset: int, dtype: str) -> _Words:
        """Return a view of one fixed-size item per row, at `offset` within the row."""
        return np.ndarray(
            (self.rows,), dtype, buffer=self.buffer, offset=offset, strides=(self.width,)
        )

    def put_digits(self, offset: int, values: Ints, low: int, high: int) -> None:
        """Write non-negative integers right-aligned, blanks on the left.

        `low` and `high` are the smallest and the largest; the latter's digits are the width.
        """
        if shared := shared_digits(low, high):
            self.words(offset, f"S{len(shared)}")[...] = shared
        self.put_varying(offset, values, low, high)

    def put_varying(self, offset: int, values: Ints, low: int, high: int) -> None:
        """Write what put_digits writes, save the `shared_digits`: they are there already."""
        width = digit_count(high)
        if digit_count(low) == width:
            shared = len(shared_digits(low, high))
            if count := width - shared:
                base = high - high % 10**count
                self.put_fixed(offset + shared, values - base if base else values, count)
            return
        rest = values
        end = offset + width
        while end > offset:
            size = min(4, end - offset)
            end -= size
            table = _digits(size, end + size == offset + width)
            if high < 10_000:
                digits = rest + 10**size
            else:
                above = rest // 10_000
                digits = rest - above * 10_000
                if low < 10_000:
                    digits += 10_000 * (above == 0)
                rest = above
            self.words(end, _word(size))[...] = table.take(digits)
            low, high = low // 10_000, high // 10_000

    def put_fixed(self, offset: int, values: Ints, count: int) -> None:
        """Write integers as exactly `count` digits, with leading zeros.

        Three digits are no word that NumPy copies fast: 1 and 2 are written, or 4 of which one is
        the next word's.
        """
        rest: Any = values
        for left in range(count, 4, -4):
            if left == 7:
                self.words(offset, "<u4")[...] = _digits(4, True).take(rest // 1000)
            above = rest // 10_000
            digits = rest - above * 10_000
            self.words(offset + left - 4, "<u4")[...] = _digits(4, True).take(digits)
            rest = above
        left = (count - 1) % 4 + 1
        if left == 3 and count == 3:
            above = rest // 100
            self.words(offset, "u1")[...] = _digits(1, True).take(above)
            self.words(offset + 1, "<u2")[...] = _digits(2, True).take(rest - above * 100)
        elif left != 3:
            self.words(offset, _word(left))[...] = _digits(left, True).take(rest)

    def put_counting(self, offset: int, first: int) -> None:
        """Write `first`, `first + 1`, … in the digits of the last, as put_varying does."""
        last = first + self.rows - 1
        if digit_count(first) < max(digit_count(last), 5) or self.rows > 10_000:
            self.put_varying(offset, np.arange(first, last + 1), first, last)
            return
        place = offset + digit_count(last) - 4
        table, start = _digits(4, True), first % 10_000
        rows = min(self.rows, 10_000 - start)  # from there on, the high digits are others
        words = self.words(place, "<u4")
        words[:rows] = table[start : start + rows]
        if rows < self.rows:
            words[rows:] = table[: self.rows - rows]
            above = self.words(offset, f"S{place - offset}")
            above[:rows] = str(first // 10_000).encode()
            above[rows:] = str(last // 10_000).encode()

    def put_quotes(self, offset: int, values: Ints, low: int, high: int) -> None:
        """Write the opening quote where put_digits at `offset + 1` begins, in rows of any length.

        Where all have the digits of the largest, the quote is at `offset` and there already.
        """
        width, fewest = digit_count(high), digit_count(low)
        if fewest == width:
            return
        end = offset + 1 + width
        for count in range(fewest, width + 1):
            rows = values <= _largest(count)
            if count > fewest:
                rows &= values > _largest(count - 1)
            self.buffer[rows, end - count - 1] = _QUOTE

    def put_text(self, offset: int, texts: NDArray[np.bytes_]) -> None:
        """Write byte strings left-aligned, with blanks after shorter ones."""
        width = texts.dtype.itemsize
        raw = np.ascontiguousarray(texts).view(np.uint8).reshape(self.rows, width)
        self.buffer[:, offset : offset + width] = np.where(raw == 0, BLANK, raw)


def extent(values: Ints) -> tuple[int, int]:
    """Return the smallest and the largest."""
    return int(np.minimum.reduce(values)), int(np.maximum.reduce(values))


def shared_digits(low: int, high: int) -> bytes:
    """Return the leading digits of every number from `low` to `high`, if all are of one length."""
    first, last = str(low), str(high)
    if len(first) < len(last):
        return b""
    count = len(last) - len(str(high - low)) if high > low else len(last)
    while first[:count] != last[:count]:
        count -= 1
    return last[:count].encode()


def digit_count(value: int) -> int:
    """Return how many digits a non-negative integer has."""
    return len(str(value))


def _largest(count: int) -> int:
    """Return the largest int64 of so many digits."""
    return int(min(10**count - 1, 2**63 - 1))


def _word(size: int) -> str:
    return "S3" if size == 3 else f"<u{size}"


@cache
def _digits(size: int, last: bool) -> _Words:
    """Return the texts of all numbers of `size` digits: zero-filled, then with blanks instead.

    Among the latter, zero is all blank unless the digits are the last of a number.
    """
    count = 10**size
    filled = "".join(f"{value:0{size}d}" for value in range(count))
    blanks = "".join(f"{value:{size}d}" for value in range(count))
    if not last:
        blanks = " " * size + blanks[size:]
    return np.frombuffer((filled + blanks).encode(), _word(size))


def make_tables() -> None:
    """Make the lookup tables now (some 50 ms, once), not when the first tick waits for them."""
    for size in range(1, 5):
        for last in (True, False):
            _digits(size, last)
