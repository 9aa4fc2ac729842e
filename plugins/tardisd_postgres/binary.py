"""PostgreSQL's binary COPY format to columns and back, with NumPy; knows no table.

A row is: i16 number of fields, then per field i32 length (-1: NULL) and its bytes, all big-endian.
A `numeric` is: i16 number of digits, i16 weight, i16 sign, i16 display scale, and digits to base
10000; the value is the sum of digit[k] * 10000 ** (weight - k). How it is done without a step of
Python per row:

- Going in, the server takes digits with leading and trailing zeros and strips them itself. So
  every value of a column gets as many digits as the longest needs, rows have one width, and a page
  is one structured array. Where something is absent or a text is shorter, its bytes are masked out.
- Coming out, digits are stripped, so rows differ in length. The length of each row is known from
  the messages that brought it, and fields are walked one after another for all rows at once,
  reading at an array of positions through views of the buffer that may begin at any byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tardisd.errors import StorageCorrupt
from tardisd.market.decimals import DIGITS, POWERS, Bools, Decimals, Ints

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
PIECE_ROWS = 16_384  # fits the processor's cache

_BASE_DIGITS = 4
_BASE = 10_000
_NEGATIVE = 0x4000
_NUMERIC_HEAD = 8
_INT64_MAX = 2**63 - 1
_TOO_LONG = (
    "a number in the database has more digits than tardisd stores; somebody else has written it,"
    " delete its span and fetch it again"
)
_NOT_FINITE = (
    "a number in the database is NaN or infinite; somebody else has written it, delete its span and"
    " fetch it again"
)
_NULL_LENGTH = 2**32 - 1
_MOST_DIGITS = 10  # five before the point and five after it

Texts = NDArray[np.bytes_]


# --- going in -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IntColumn:
    """Integers of 2, 4 or 8 bytes; one value stands for all rows."""

    values: Ints | int
    width: int = 8


@dataclass(frozen=True, slots=True)
class CharColumn:
    """One ASCII character each, as `"char"`; None: all NULL."""

    values: NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True)
class TextColumn:
    """UTF-8 text, where an empty one is NULL; None: all NULL."""

    values: Texts | None


@dataclass(frozen=True, slots=True)
class NumericColumn:
    """Exact decimals; None: all NULL."""

    values: Decimals | None


Column = IntColumn | CharColumn | TextColumn | NumericColumn


def encode(columns: Sequence[Column], rows: int) -> Iterator[bytes]:
    """Yield the rows in COPY's binary format, a piece at a time."""
    yield HEADER
    for first in range(0, rows, PIECE_ROWS):
        yield _piece(columns, slice(first, min(first + PIECE_ROWS, rows)))
    yield TRAILER


def _piece(columns: Sequence[Column], at: slice) -> bytes:
    rows = at.stop - at.start
    fields: list[tuple[Any, ...]] = [("count", ">i2")]
    writers = []
    for number, column in enumerate(columns):
        writer = _writer(column, at, f"f{number}")
        fields += writer.fields
        writers.append(writer)
    table = np.empty(rows, np.dtype(fields))
    table["count"] = len(columns)
    masks = []
    for writer in writers:
        writer.fill(table)
        masks += writer.left_out
    if not masks:
        return table.tobytes()
    dtype = table.dtype
    keep = np.ones((rows, dtype.itemsize), np.bool_)
    for name, left_out in masks:
        assert dtype.fields is not None
        kind, offset = dtype.fields[name][:2]
        keep[:, offset : offset + kind.itemsize] &= ~left_out
    return table.view(np.uint8).reshape(rows, dtype.itemsize)[keep].tobytes()


class _Writer:
    """Puts one column into its fields of the structured array."""

    def __init__(self, name: str, value_fields: list[tuple[Any, ...]]) -> None:
        self.length = f"{name}_length"
        self.fields: list[tuple[Any, ...]] = [(self.length, ">i4"), *value_fields]
        # (field, mask of the bytes that are no part of the row)
        self.left_out: list[tuple[str, Bools]] = []

    def fill(self, table: NDArray[Any]) -> None:
        table[self.length] = -1


class _Plain(_Writer):
    def __init__(self, name: str, form: str, values: Any) -> None:
        super().__init__(name, [(name, form)])
        self._name, self._values = name, values

    def fill(self, table: NDArray[Any]) -> None:
        table[self.length] = table.dtype[self._name].itemsize
        table[self._name] = self._values


class _Text(_Writer):
    def __init__(self, name: str, values: Texts) -> None:
        super().__init__(name, [(name, values.dtype)])
        self._name, self._values = name, values

    def fill(self, table: NDArray[Any]) -> None:
        lengths = np.char.str_len(self._values).astype(np.int64)
        table[self._name] = self._values
        table[self.length] = np.where(lengths == 0, -1, lengths)
        width = self._values.dtype.itemsize
        self.left_out = [(self._name, np.arange(width) >= lengths[:, None])]


class _Numeric(_Writer):
    def __init__(self, name: str, values: Decimals) -> None:
        self._name, self._values = name, values
        self._scale = DIGITS if values.fraction is not None else values.scale
        self._whole, self._fraction, self._negative = _magnitudes(values)
        largest = int(self._whole.max(initial=0))
        self._wholes = max(1, -(-len(str(largest)) // _BASE_DIGITS))
        self._fractions = -(-self._scale // _BASE_DIGITS)
        digits = self._wholes + self._fractions
        super().__init__(name, [(name, [("head", ">u2", (4,)), ("digits", ">u2", (digits,))])])

    def fill(self, table: NDArray[Any]) -> None:
        head, digits = table[self._name]["head"], table[self._name]["digits"]
        count = self._wholes + self._fractions
        table[self.length] = _NUMERIC_HEAD + 2 * count
        head[:, 0], head[:, 1], head[:, 3] = count, self._wholes - 1, self._scale
        head[:, 2] = 0 if self._negative is None else np.where(self._negative, _NEGATIVE, 0)
        rest = self._whole
        for place in range(self._wholes - 1, 0, -1):
            higher = rest // _BASE
            digits[:, place] = rest - higher * _BASE
            rest = higher
        digits[:, 0] = rest
        self._fill_fraction(digits)
        if self._values.present is not None and not self._values.present.all():
            absent = ~self._values.present
            table[self.length][absent] = -1
            self.left_out = [(self._name, absent[:, None])]

    def _fill_fraction(self, digits: NDArray[np.uint16]) -> None:
        rest, scale, last = self._fraction, self._scale, self._wholes + self._fractions - 1
        if not self._fractions:
            return
        tail = scale - _BASE_DIGITS * (self._fractions - 1)  # digits in the last place
        higher = rest // POWERS[tail]
        digits[:, last] = (rest - higher * POWERS[tail]) * POWERS[_BASE_DIGITS - tail]
        for place in range(last - 1, self._wholes - 1, -1):
            rest, higher = higher, higher // _BASE
            digits[:, place] = rest - higher * _BASE


def _magnitudes(values: Decimals) -> tuple[Ints, Ints, Bools | None]:
    """Return whole parts and fractions (at the column's own scale) without signs, and the signs."""
    whole, fraction = values.mantissa, values.fraction
    negative: Bools | None = None
    if len(whole) and (whole.min() < 0 or (fraction is not None and fraction.min() < 0)):
        negative = whole < 0
        if fraction is not None:
            negative = negative | (fraction < 0)
            fraction = np.abs(fraction)
        whole = np.abs(whole)
    if fraction is None:
        if not values.scale:
            return whole, np.zeros(len(whole), np.int64), negative
        mantissa = whole
        whole = mantissa // POWERS[values.scale]
        fraction = mantissa - whole * POWERS[values.scale]
    return whole, fraction, negative


def _writer(column: Column, at: slice, name: str) -> _Writer:
    match column:
        case IntColumn(values, width):
            part = values if isinstance(values, int) else values[at]
            return _Plain(name, f">i{width}", part)
        case CharColumn(values) if values is not None:
            return _Plain(name, ">u1", values[at])
        case TextColumn(values) if values is not None and values.dtype.itemsize:
            return _Text(name, values[at])
        case NumericColumn(values) if values is not None:
            return _Numeric(name, values[at])
    return _Writer(name, [])


# --- coming out ---------------------------------------------------------------------------------


class Reader:
    """Walks the fields of all rows at once; call one method per field, in order."""

    def __init__(self, messages: Sequence[bytes]) -> None:
        """Take what COPY sent, one message a row, the first with the header before it."""
        rows = len(messages) - 1  # the last one tells that there are no more
        if rows < 0 or not messages[0].startswith(HEADER[:11]) or messages[-1][-2:] != TRAILER:
            raise StorageCorrupt("the database sent rows that are not in binary COPY format")
        lengths = np.fromiter(map(len, messages), np.int64, len(messages))[:rows]
        # Room behind the last row, so that reading ahead at an absent value stays inside.
        data = b"".join([*messages, bytes(64)])
        ends = np.cumsum(lengths)
        starts = ends - lengths
        if rows:
            starts[0] += len(HEADER)
        self._data = data
        self._at = starts + 2
        self.rows = rows
        size = len(data)
        self._quads = np.ndarray((size - 3,), ">i4", data, 0, (1,))
        self._octets = np.ndarray((size - 7,), ">i8", data, 0, (1,))  # any eight bytes
        self._bytes = np.frombuffer(data, np.uint8)

    def _field(self) -> tuple[Ints, Ints]:
        """Return where the values of the next field begin and their lengths; move on behind it."""
        lengths = self._quads[self._at].astype(np.int64)
        begin = self._at + 4
        self._at = begin + np.maximum(lengths, 0)
        return begin, lengths

    def ints(self) -> Ints:
        """Return a column of bigint that has no NULL."""
        begin, _ = self._field()
        return self._octets[begin].astype(np.int64)

    def chars(self) -> tuple[NDArray[np.uint8], Bools]:
        """Return a column of "char", and which are not NULL."""
        begin, lengths = self._field()
        return self._bytes[begin], lengths > 0

    def texts(self) -> tuple[Texts, Bools]:
        """Return a column of text (empty for NULL), and which are not NULL."""
        begin, lengths = self._field()
        width = max(1, int(lengths.max(initial=0)))
        places = np.arange(width)
        there = places < lengths[:, None]
        matrix = np.zeros((self.rows, width), np.uint8)
        matrix[there] = self._bytes[(begin[:, None] + places)[there]]
        return matrix.view(f"S{width}").reshape(self.rows), lengths >= 0

    def numerics(self) -> Decimals | None:
        """Return a column of numeric, or None when all are NULL. Raises StorageCorrupt."""
        # Eight bytes at a time: length, count and weight; sign, scale and two digits; four digits.
        begin = self._at
        first = self._octets[begin].astype(np.uint64)
        length = (first >> 32).astype(np.int64)
        there = length != _NULL_LENGTH
        if not there.any():
            self._at = begin + 4
            return None
        present: Bools | None = None if there.all() else there
        second = self._octets[begin + 8].astype(np.uint64)
        if present is not None:
            length, first, second = (
                np.where(present, words, 0) for words in (length, first, second)
            )
        self._at = begin + 4 + length
        count = (first >> 16 & 0xFFFF).astype(np.int64)
        weight = ((first & 0xFFFF ^ 0x8000).astype(np.int64)) - 0x8000
        negative = second >> 48 == _NEGATIVE
        scale = int((second >> 32 & 0xFFFF).max())
        if scale > DIGITS or int(weight.max()) > 4 or int(count.max()) > _MOST_DIGITS:
            raise StorageCorrupt(_TOO_LONG)
        if (second >> 48 & ~np.uint64(_NEGATIVE)).any():
            raise StorageCorrupt(_NOT_FINITE)
        digits = self._digits(begin, second, count)
        decimals = _composed(digits, weight, scale, self.rows)
        if negative.any():
            decimals = _negated(decimals, negative)
        return Decimals(decimals.mantissa, decimals.scale, decimals.fraction, present)

    def _digits(self, begin: Ints, second: NDArray[np.uint64], count: Ints) -> Iterator[Ints]:
        """Yield the digits to base 10000, highest first; 0 where a row has no more of them."""
        most, least, words = int(count.max()), int(count.min()), second
        for place in range(most):
            if place >= 2 and place % 4 == 2:
                words = self._octets[begin + 12 + 2 * place].astype(np.uint64)
            shift = 16 * (1 - place) if place < 2 else 16 * (3 - (place - 2) % 4)
            digit = (words >> np.uint64(shift) & 0xFFFF).astype(np.int64)
            yield digit if place < least else np.where(place < count, digit, 0)


def _composed(digits: Iterator[Ints], weight: Ints, scale: int, rows: int) -> Decimals:
    """Return the magnitudes that digits stand for, the first with 10000 ** weight."""
    highest, fractions = int(weight.max()), -(-scale // _BASE_DIGITS)
    alike = int(weight.min()) == highest
    fits = _BASE_DIGITS * (highest + 1 + fractions) <= DIGITS
    # In one piece, counted from the last fraction digit, or whole part and fraction by themselves.
    lowest = fractions if fits else 0
    whole, fraction = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    for place, digit in enumerate(digits):
        exponent = highest - place if alike else weight - place
        whole += digit * np.take(_WHOLE, exponent + lowest + 1, mode="clip")
        if not fits:
            fraction += digit * np.take(_PARTS, -exponent, mode="clip")
            fraction += np.where(np.equal(exponent, -5), digit // 100, 0)
    if fits:
        surplus = _BASE_DIGITS * fractions - scale
        return Decimals(whole // POWERS[surplus] if surplus else whole, scale)
    if int(whole.min(initial=0)) < 0:  # beyond int64, which nobody here has written
        raise StorageCorrupt(_TOO_LONG)
    if int(whole.max(initial=0)) <= _INT64_MAX // POWERS[scale] - 1:
        return Decimals(whole * POWERS[scale] + fraction // POWERS[DIGITS - scale], scale)
    return Decimals(whole, 0, fraction)


# Factors of digits by exponent + 1, from 0 to 5: below the last place there are only zeros.
_WHOLE = np.array([0, 1, 10**4, 10**8, 10**12, 10**16], np.int64)
# Factors of fraction digits by -exponent, in units of 10**-18. The fifth reaches beyond: it is
# divided.
_PARTS = np.array([0, 10**14, 10**10, 10**6, 10**2, 0], np.int64)


def _negated(decimals: Decimals, negative: Bools) -> Decimals:
    fraction = decimals.fraction
    return Decimals(
        np.where(negative, -decimals.mantissa, decimals.mantissa),
        decimals.scale,
        None if fraction is None else np.where(negative, -fraction, fraction),
    )
