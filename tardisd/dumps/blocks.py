"""Read blocks of CSV lines into exact columns, vectorised; where in doubt, gives up to `cells`.

Arrow parses the cells; decimals become int64 mantissas by viewing its 128-bit integers. Whatever
it refuses, and the little that it would accept differently from `cells`, is read again carefully.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tardisd.dumps.cells import (
    FALSE_TEXTS,
    MAX_ID_BYTES,
    SIDES,
    TRUE_TEXTS,
    UNITS,
    Parsed,
    meaning,
    read_carefully,
)
from tardisd.dumps.exact import SAFE_DIGITS, arrow, decimals_of_arrow
from tardisd.dumps.formats import Recipe, same_symbol
from tardisd.dumps.source import Block
from tardisd.market.columns import BUY, SCHEMAS, SELL, Batch, Ids, Sides
from tardisd.market.decimals import DIGITS, POWERS, Bools, Decimals, Ints
from tardisd.market.series import Series
from tardisd.market.time import EARLIEST, LATEST

_WIDE_SCALES = (12, DIGITS)
# How times may be written: an integer of some unit, ISO-8601, or seconds with a fraction.
_TIME_FORMS = ("integer", "iso", "fraction")
_FRACTION_DIGITS = 9


class _Doubt(Exception):
    """The fast reader cannot vouch for its reading."""


class BlockReader:
    """Reads the blocks of one file; remembers from block to block what its cells need."""

    def __init__(self, recipe: Recipe, series: Series, file: str) -> None:
        self.recipe = recipe
        self.series = series
        self.file = file
        self._places = meaning(recipe, series)
        self._scales = dict(recipe.scales)
        self._time_form = _TIME_FORMS[0]

    def read(self, block: Block) -> Parsed:
        """Return the rows of the block in file order; DataError names the first bad cell."""
        if not _may_be_hexadecimal(block.data):
            try:
                return self._read_fast(block)
            except _Doubt:
                pass
        return read_carefully(block, self.recipe, self.series, self.file)

    def _read_fast(self, block: Block) -> Parsed:
        attempts: list[dict[str, int]] = [self._scales]
        attempts += [dict.fromkeys(self._scales, scale) for scale in _WIDE_SCALES]
        for scales in attempts:
            for time_form in sorted(_TIME_FORMS, key=lambda form: form != self._time_form):
                table = self._parse(block.data, scales, time_form)
                if table is not None:
                    parsed = self._convert(table, scales)
                    self._time_form = time_form
                    if scales is not self._scales:
                        self._learn(parsed.batch)
                    return parsed
        raise _Doubt

    def _parse(self, data: bytes, scales: dict[str, int], time_form: str) -> Any:
        pa = arrow()
        time_type = {
            "integer": pa.int64(),
            "iso": pa.timestamp("ns", "UTC"),
            "fraction": pa.decimal128(SAFE_DIGITS - _FRACTION_DIGITS, _FRACTION_DIGITS),
        }[time_form]
        types = {
            "time": time_type,
            "close_time": time_type,
            "id": pa.string(),
            "side": pa.dictionary(pa.int32(), pa.string()),
            "symbol": pa.dictionary(pa.int32(), pa.string()),
            "buyer_is_maker": pa.bool_(),
        }
        for name, scale in scales.items():
            types[name] = pa.decimal128(SAFE_DIGITS - scale, scale)
        # Skipped columns may be named twice or like a role: give every column a name of its own.
        names = [str(at) for at in range(len(self.recipe.layout.columns))]
        try:
            return pa.csv.read_csv(
                pa.py_buffer(data),
                read_options=pa.csv.ReadOptions(
                    column_names=names, use_threads=False, block_size=len(data) + 1
                ),
                parse_options=pa.csv.ParseOptions(delimiter=self.recipe.delimiter),
                convert_options=pa.csv.ConvertOptions(
                    column_types={str(at): types[name] for name, at in self._places.items()},
                    include_columns=[str(at) for at in self._places.values()],
                    null_values=[""],
                    true_values=list(TRUE_TEXTS),
                    false_values=list(FALSE_TEXTS),
                    strings_can_be_null=True,
                ),
            )
        except pa.ArrowInvalid:
            return None

    def _convert(self, table: Any, scales: dict[str, int]) -> Parsed:
        schema = SCHEMAS[self.series.data_type.kind]
        columns = {name: table.column(str(at)) for name, at in self._places.items()}
        columns = {name: column.combine_chunks() for name, column in columns.items()}
        for name, column in columns.items():
            if column.null_count and name not in schema.optional and name != "id":
                raise _Doubt
        if "symbol" in columns and not all(
            same_symbol(text, self.series) for text in columns["symbol"].dictionary.to_pylist()
        ):
            raise _Doubt
        sides: Sides | None = None
        if schema.has_side:
            sides = _sides(columns["side"]) if "side" in columns else _takers(columns)
        batch = Batch(
            self.series,
            _times(columns["time"]),
            {
                name: _decimals(columns[name], scales[name])
                for name in schema.fields
                if name in scales
            },
            _ids(columns["id"]) if "id" in columns else None,
            sides,
        )
        closes = columns.get("close_time")
        return Parsed(batch, None if closes is None else _times(closes))

    def _learn(self, batch: Batch) -> None:
        for name, column in batch.fields.items():
            needed = column.reduced().needed_scale
            self._scales[name] = max(self._scales[name], min(needed, DIGITS))


def _may_be_hexadecimal(data: bytes) -> bool:
    """Tell whether a cell may be like `0x1f`, which Arrow would read as an integer."""
    # The search for one rare letter is fast; zeros are everywhere.
    return any(char in data and b"0" + char in data for char in (b"x", b"X"))


def _times(column: Any) -> Ints:
    if arrow().types.is_timestamp(column.type):
        return column.cast(arrow().int64()).to_numpy()  # type: ignore[no-any-return]
    if arrow().types.is_decimal(column.type):
        return _seconds(_decimals(column, _FRACTION_DIGITS))
    raw: Ints = column.to_numpy()
    if not len(raw):
        return raw
    low, high = int(raw.min()), int(raw.max())
    for unit in UNITS:  # nearly always all rows share one
        if low * unit >= EARLIEST and high * unit < LATEST:
            times: Ints = raw * unit
            return times
    # Only where the value is in range, so that no product overflows.
    within = [(raw >= EARLIEST // unit) & (raw < LATEST // unit) for unit in UNITS]
    if not bool(np.logical_or.reduce(within).all()):
        raise _Doubt
    return np.select(within, [raw * unit for unit in UNITS])


def _seconds(values: Decimals) -> Ints:
    """Return ns for seconds with a fraction; other units are left to the careful reader."""
    times = values.mantissa
    in_range = (times >= EARLIEST) & (times < LATEST)
    if values.scale != _FRACTION_DIGITS or not bool(in_range.all()):
        raise _Doubt
    return times


def _decimals(column: Any, scale: int) -> Decimals:
    exact = decimals_of_arrow(column, scale)
    if exact is None:
        raise _Doubt
    return exact


def _ids(column: Any) -> Ids | None:
    if column.null_count == len(column):
        return None
    pa = arrow()
    lengths = pa.compute.binary_length(column.fill_null("")).to_numpy()
    if len(lengths) and int(lengths.max()) > MAX_ID_BYTES:
        raise _Doubt
    if not column.null_count and column[0].as_py().isdecimal():
        try:
            numbers: Ints = pa.compute.cast(column, pa.int64()).to_numpy()
        except pa.ArrowInvalid:
            numbers = np.empty(0, np.int64)
        if len(numbers) == len(column) and _canonical(numbers, lengths):
            return numbers
    return _bytes_of(column.fill_null(""), lengths)


def _bytes_of(column: Any, lengths: Ints) -> Ids:
    """Return texts as fixed-width bytes."""
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    chars = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]
    width = max(int(lengths.max()), 1)
    if len(chars) == width * len(column):
        return chars.view(f"S{width}").copy()
    cells = np.zeros((len(column), width), np.uint8)
    cells[np.arange(width) < lengths[:, None]] = chars
    return cells.view(f"S{width}")[:, 0]


def _canonical(numbers: Ints, lengths: Ints) -> bool:
    """Tell whether the ids' texts were plain integers: no sign, no leading zero, no space."""
    if not len(numbers):
        return True
    if int(numbers.min()) < 0:
        return False
    digits = np.searchsorted(np.array(POWERS[1:], np.int64), numbers, "right") + 1
    return bool((digits == lengths).all())


def _sides(column: Any) -> Sides:
    codes = []
    for text in column.dictionary.to_pylist():
        code = SIDES.get(text.strip().lower())
        if code is None:
            raise _Doubt
        codes.append(code)
    sides: Sides = np.array(codes, np.uint8)[column.indices.to_numpy()]
    return sides


def _takers(columns: dict[str, Any]) -> Sides:
    makers: Bools = columns["buyer_is_maker"].to_numpy(zero_copy_only=False)
    return np.where(makers, np.uint8(SELL), np.uint8(BUY))
