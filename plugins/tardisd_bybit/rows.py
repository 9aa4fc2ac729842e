"""Bybit's JSON to exact columns and plain values; asks nothing.

What is not the JSON expected raises Unreadable, so that it is asked for again and never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np

from tardisd.dumps.exact import SAFE_DIGITS, arrow, decimals_of_arrow, decimals_of_texts
from tardisd.dumps.order import Conflict, settle
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals, Ints
from tardisd.market.series import Series
from tardisd.market.time import EARLIEST, LATEST, MILLISECOND
from tardisd.venue.client import Unreadable

T = TypeVar("T")

Kline = tuple[str, str, str, str, str, str, str]
_PRICES = ("open", "high", "low", "close")
# Klines are printed with as few digits as each number needs, so no row tells how many another has.
_SCALE = 8
_FIRST, _LAST = b'"list":[["', b'"]]'


class _Klines(msgspec.Struct, rename={"rows": "list"}):
    rows: list[Kline]
    category: str = ""
    symbol: str = ""


class _KlineAnswer(msgspec.Struct, rename="camel"):
    result: _Klines
    time: int


class PriceFilter(msgspec.Struct, frozen=True, rename="camel"):
    """What prices an instrument may have."""

    tick_size: str | None = None


class LotFilter(msgspec.Struct, frozen=True, rename="camel"):
    """What amounts an instrument may have: swaps have a step, spot a precision."""

    qty_step: str | None = None
    base_precision: str | None = None


class Listed(msgspec.Struct, rename="camel"):
    """An instrument; spot has no contract type, settlement or times."""

    symbol: str
    base_coin: str
    quote_coin: str
    status: str = ""
    contract_type: str = ""
    settle_coin: str = ""
    launch_time: str = ""
    delivery_time: str = ""
    price_filter: PriceFilter = PriceFilter()
    lot_size_filter: LotFilter = LotFilter()


class _Instruments(msgspec.Struct, rename={"rows": "list", "next_page_cursor": "nextPageCursor"}):
    rows: list[Listed]
    next_page_cursor: str | None = None


class _InstrumentAnswer(msgspec.Struct):
    result: _Instruments


class _Time(msgspec.Struct, rename="camel"):
    time_nano: str


class _TimeAnswer(msgspec.Struct):
    result: _Time


_KLINES = msgspec.json.Decoder(_KlineAnswer)
_INSTRUMENTS = msgspec.json.Decoder(_InstrumentAnswer)
_TIMES = msgspec.json.Decoder(_TimeAnswer)


@dataclass(frozen=True, slots=True)
class Klines:
    """The candles of one answer, sorted, and the venue's clock (ns) when it was given."""

    batch: Batch
    now: int


def klines(body: bytes, series: Series, category: str) -> Klines:
    """Return the candles of an answer; the one in progress may be among them."""
    cells = _cells(body)
    answer = _decode(body if cells is None else cells.envelope, _KLINES)
    found = answer.result
    symbol = series.symbol.venue_id(series.exchange)
    if (found.category or category, found.symbol or symbol) != (category, symbol):
        raise Unreadable(f"asked for {category} {symbol}, got {found.category} {found.symbol}")
    columns = None if cells is None else _parsed(cells.text)
    if columns is None:
        # In doubt, or to say what is wrong, one cell after the other.
        rows = found.rows if cells is None else _decode(body, _KLINES).result.rows
        if not rows:
            return Klines(Batch.empty(series), answer.time * MILLISECOND)
        columns = _parsed_carefully(rows)
    times, decimals = columns
    prices = Decimals.concat(decimals[:4]).reduced()
    count = len(times)
    fields = {name: prices[at * count : (at + 1) * count] for at, name in enumerate(_PRICES)}
    fields["volume"] = decimals[4].reduced()
    fields["quote_volume"] = decimals[5].reduced()
    batch = Batch(series, _checked(times) * MILLISECOND, fields)
    try:
        batch, _ = settle(batch[::-1], np.arange(count))
    except Conflict as conflict:
        raise Unreadable(f"the page contradicts itself: {conflict.message}") from None
    return Klines(batch, answer.time * MILLISECOND)


def instruments(body: bytes) -> tuple[list[Listed], str]:
    """Return a page of instruments, and the cursor of the next one or ''."""
    found = _decode(body, _INSTRUMENTS).result
    return found.rows, found.next_page_cursor or ""


def server_time(body: bytes) -> int:
    """Return the venue's clock (ns)."""
    text = _decode(body, _TIMES).result.time_nano
    if not text.isdecimal() or not EARLIEST <= int(text) < LATEST:
        raise Unreadable(f"{text[:40]!r} is not a time in nanoseconds")
    return int(text)


def _decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        begins = body[:40].decode(errors="replace")
        if body.lstrip()[:1] == b"<":
            raise Unreadable(
                f"a web page came instead of JSON ({begins!r}); is a proxy or login in between?"
            ) from None
        raise Unreadable(f"not the JSON expected: {error}; it begins {begins!r}") from None


@dataclass(frozen=True, slots=True)
class _Cells:
    """The rows of an answer as lines of plain numbers, and the answer without them."""

    text: bytes
    envelope: bytes


def _cells(body: bytes) -> _Cells | None:
    """Return the rows as lines, when they are numbers in quotes and nothing else."""
    start, end = body.find(_FIRST), body.rfind(_LAST)
    if not 0 <= start < end:
        return None
    text = body[start + len(_FIRST) : end].replace(b'"],["', b"\n").replace(b'","', b",")
    if text.translate(None, b"0123456789.,-\n"):
        return None
    empty = b'"list":[]'
    return _Cells(text, body[:start] + empty + body[end + len(_LAST) :])


def _parsed(text: bytes) -> tuple[Ints, list[Decimals]] | None:
    """Return the columns of the lines, or None where a cell is not what it should be."""
    pa = arrow()
    decimal = pa.decimal128(SAFE_DIGITS - _SCALE, _SCALE)
    names = ["time", *"123456"]
    try:
        table = pa.csv.read_csv(
            pa.py_buffer(text),
            read_options=pa.csv.ReadOptions(
                column_names=names, use_threads=False, block_size=len(text) + 1
            ),
            parse_options=pa.csv.ParseOptions(ignore_empty_lines=False, quote_char=False),
            convert_options=pa.csv.ConvertOptions(
                column_types={"time": pa.int64(), **dict.fromkeys(names[1:], decimal)},
                null_values=[],
            ),
        )
    except pa.ArrowInvalid:
        return None
    columns = [table.column(name).combine_chunks() for name in names]
    if any(column.null_count for column in columns):
        return None
    decimals = [decimals_of_arrow(column, _SCALE) for column in columns[1:]]
    if any(column is None for column in decimals):
        return None
    return columns[0].to_numpy(), [column for column in decimals if column is not None]


def _parsed_carefully(rows: Sequence[Kline]) -> tuple[Ints, list[Decimals]]:
    opened, *columns = zip(*rows, strict=True)
    pa = arrow()
    try:
        times: Ints = pa.array(opened, pa.string()).cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        raise Unreadable("a time is no integer") from None
    names = (*_PRICES, "volume", "turnover")
    return times, [_exact(name, texts) for name, texts in zip(names, columns, strict=True)]


def _exact(name: str, texts: Sequence[str]) -> Decimals:
    try:
        return decimals_of_texts(texts, _SCALE)
    except ValueError as error:
        raise Unreadable(f"{name} {error}") from None


def _checked(times: Ints) -> Ints:
    low, high = int(times.min()), int(times.max())
    if low < EARLIEST // MILLISECOND or high >= LATEST // MILLISECOND:
        raise Unreadable("a time is outside 2009..2100; it should be in milliseconds")
    return times
