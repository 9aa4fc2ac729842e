"""Bybit's JSON to exact columns and plain values; asks nothing.

What is not the JSON expected raises Unreadable, so that it is asked for again and never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import msgspec
import numpy as np

from tardisd.dumps.exact import arrow, decimals_of_texts
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
_PRICE_SCALE = 8


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
    answer = _decode(body, _KLINES)
    found = answer.result
    symbol = series.symbol.venue_id(series.exchange)
    if (found.category or category, found.symbol or symbol) != (category, symbol):
        raise Unreadable(f"asked for {category} {symbol}, got {found.category} {found.symbol}")
    if not found.rows:
        return Klines(Batch.empty(series), answer.time * MILLISECOND)
    opened, *columns = zip(*found.rows, strict=True)
    count = len(opened)
    prices = _exact("price", list(chain(*columns[:4])))
    fields = {name: prices[at * count : (at + 1) * count] for at, name in enumerate(_PRICES)}
    fields["volume"] = _exact("volume", columns[4])
    fields["quote_volume"] = _exact("turnover", columns[5])
    batch = Batch(series, _times(opened), fields)
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


def _exact(name: str, texts: Sequence[str]) -> Decimals:
    try:
        return decimals_of_texts(texts, _PRICE_SCALE).reduced()
    except ValueError as error:
        raise Unreadable(f"{name} {error}") from None


def _times(texts: Sequence[str]) -> Ints:
    pa = arrow()
    try:
        times: Ints = pa.array(texts, pa.string()).cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        raise Unreadable("a time is no integer") from None
    low, high = int(times.min()), int(times.max())
    if low < EARLIEST // MILLISECOND or high >= LATEST // MILLISECOND:
        raise Unreadable("a time is outside 2009..2100; it should be in milliseconds")
    return times * MILLISECOND
