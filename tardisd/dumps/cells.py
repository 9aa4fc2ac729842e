"""Read rows one by one and exactly, naming the first bad cell; the slow path, used on doubt.

What a cell means is defined here; the vectorised reader in `blocks` must agree or give up.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np

from tardisd.dumps.formats import Recipe, same_symbol
from tardisd.dumps.source import Block
from tardisd.errors import DataError
from tardisd.market.columns import BUY, SCHEMAS, SELL, Batch, Ids, pack_ids
from tardisd.market.decimals import Decimals, Ints, check_decimal
from tardisd.market.series import Series
from tardisd.market.time import (
    EARLIEST,
    LATEST,
    MILLISECOND,
    SECOND,
    from_datetime,
    parse_time,
)

MAX_ID_BYTES = 128
SIDES = {"buy": BUY, "b": BUY, "sell": SELL, "s": SELL}
TRUE_TEXTS = ("true", "True", "TRUE", "1")
FALSE_TEXTS = ("false", "False", "FALSE", "0")

# Times come in s, ms, µs or ns. The years 2009..2100 are so many of each that no two overlap.
UNITS = (1, 1000, MILLISECOND, SECOND)

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The rows of one block, in file order; `close_times` (ns) when the file has them."""

    batch: Batch
    close_times: Ints | None = None


@dataclass(slots=True)
class Place:
    """Where a row stands: its physical line and its cells."""

    line: int
    cells: list[str] = field(default_factory=list)


def parse_number(text: str) -> str:
    """Return decimal text that can be kept exactly; ValueError when it is none."""
    text = text.strip()
    if not text:
        raise ValueError("value is missing")
    if _NUMBER.fullmatch(text) is None:
        special = text.lower().lstrip("+-") in ("nan", "inf", "infinity")
        raise ValueError("not a finite number" if special else "not a number")
    check_decimal(text)
    return text


def parse_instant(text: str) -> int:
    """Return ns for a time cell: s, ms, µs or ns by magnitude, ISO-8601 with zone, or a date."""
    text = text.strip()
    if not text:
        raise ValueError("value is missing")
    if _NUMBER.fullmatch(text):
        value = Decimal(text)
        in_range = [value * unit for unit in UNITS if EARLIEST <= value * unit < LATEST]
        if not in_range:
            raise ValueError("time is outside 2009..2100")
        ts = int(in_range[0])
        if ts != in_range[0]:
            raise ValueError("time has digits beyond nanoseconds")
    elif _DATE.fullmatch(text):
        try:
            ts = from_datetime(datetime.fromisoformat(text).replace(tzinfo=UTC))
        except ValueError:
            raise ValueError("not a date") from None
    else:
        ts = parse_time(text)
    if not EARLIEST <= ts < LATEST:
        raise ValueError("time is outside 2009..2100")
    return ts


def parse_id(text: str) -> str:
    """Return an id; ValueError when it is too long to be one."""
    if len(text.encode()) > MAX_ID_BYTES:
        raise ValueError(f"id is longer than {MAX_ID_BYTES} bytes")
    return text


def parse_side(text: str) -> int:
    """Return the taker's side for `buy` or `sell`; ValueError for anything else."""
    side = SIDES.get(text.strip().lower())
    if side is None:
        raise ValueError("side is neither buy nor sell" if text else "value is missing")
    return side


def parse_maker(text: str) -> int:
    """Return the taker's side for "the buyer is the maker": true means that the taker sold."""
    if text.strip() in TRUE_TEXTS:
        return SELL
    if text.strip() in FALSE_TEXTS:
        return BUY
    raise ValueError("neither true nor false" if text else "value is missing")


def read_places(block: Block, recipe: Recipe, file: str) -> Iterator[Place]:
    """Yield each row with its physical line; DataError for one with the wrong shape."""
    try:
        text = block.data.decode()
    except UnicodeDecodeError as error:
        line = block.first_line + block.data.count(b"\n", 0, error.start)
        raise DataError("not UTF-8 text", file=file, line=line) from None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=recipe.delimiter, strict=True)
    width = len(recipe.layout.columns)
    line = block.first_line
    try:
        for cells in reader:
            line = block.first_line + reader.line_num - 1
            if not cells or (len(cells) == 1 and not cells[0].strip() and width > 1):
                continue
            if len(cells) != width:
                cut = "" if block.data.endswith(b"\n") else "; is the file cut off here?"
                raise DataError(
                    f"expected {width} columns, found {len(cells)}{cut if _last(reader) else ''}",
                    file=file,
                    line=line,
                    value=recipe.delimiter.join(cells),
                )
            yield Place(line, cells)
    except csv.Error as error:
        line = block.first_line + reader.line_num - 1
        raise DataError(f"not a CSV row: {error}", file=file, line=line) from None


def _last(reader: Iterator[list[str]]) -> bool:
    return next(reader, None) is None


def read_carefully(block: Block, recipe: Recipe, series: Series, file: str) -> Parsed:
    """Return the block's rows; DataError with line, column and value of the first bad cell."""
    schema = SCHEMAS[series.data_type.kind]

    def parse_symbol(text: str) -> None:
        if not same_symbol(text, series):
            raise ValueError(f"row is of another symbol than {series.symbol}")

    def parse_optional(text: str) -> str | None:
        return parse_number(text) if text.strip() else None

    parsers: dict[str, Callable[[str], object]] = {
        "time": parse_instant,
        "close_time": parse_instant,
        "id": parse_id,
        "side": parse_side,
        "buyer_is_maker": parse_maker,
        "symbol": parse_symbol,
    }
    for name in schema.fields:
        parsers[name] = parse_optional if name in schema.optional else parse_number
    found: dict[str, list[Any]] = {name: [] for name in meaning(recipe, series)}
    wanted = [(at, parsers[name], found[name]) for name, at in meaning(recipe, series).items()]
    for place in read_places(block, recipe, file):
        for at, parse, values in wanted:
            try:
                values.append(parse(place.cells[at]))
            except ValueError as error:
                raise DataError(
                    str(error),
                    file=file,
                    line=place.line,
                    column=recipe.labels[at],
                    value=place.cells[at],
                ) from None
    return _parsed(series, found)


def _parsed(series: Series, found: dict[str, list[Any]]) -> Parsed:
    schema = SCHEMAS[series.data_type.kind]
    ids: Ids | None = None
    if any(found.get("id", ())):
        ids = pack_ids(found["id"])
    sides = found.get("side", found.get("buyer_is_maker"))
    closes = found.get("close_time")
    batch = Batch(
        series,
        np.array(found["time"], np.int64),
        {name: Decimals.of(found[name]) for name in schema.fields if name in found},
        ids,
        np.array(sides, np.uint8) if schema.has_side else None,
    )
    return Parsed(batch, None if closes is None else np.array(closes, np.int64))


def meaning(recipe: Recipe, series: Series) -> dict[str, int]:
    """Return the place of each column that carries meaning for the series' ticks."""
    schema = SCHEMAS[series.data_type.kind]
    known = {"time", "symbol", *schema.fields}
    if series.data_type.interval is not None:
        known.add("close_time")
    if schema.has_id:
        known.add("id")
    columns = recipe.layout.columns
    if schema.has_side:
        known.add("side" if "side" in columns else "buyer_is_maker")
    return {name: at for at, name in enumerate(columns) if name in known}
