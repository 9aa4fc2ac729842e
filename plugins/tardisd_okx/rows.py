"""OKX's JSON to exact columns and plain values; asks nothing.

What is not the JSON expected raises Unreadable, so that it is asked for again and never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import chain
from typing import Literal, TypeVar

import msgspec
import numpy as np

from tardisd.dumps.exact import arrow, decimals_of_texts
from tardisd.dumps.order import Conflict, settle
from tardisd.market.columns import BUY, SELL, Batch
from tardisd.market.decimals import Bools, Decimals, Ints
from tardisd.market.series import SWAP, Series
from tardisd.market.time import EARLIEST, LATEST, MILLISECOND
from tardisd.venue.client import Unreadable

T = TypeVar("T")

# Time, open, high, low, close, vol, volCcy, volCcyQuote, confirm.
Row = tuple[str, str, str, str, str, str, str, str, Literal["0", "1"]]
_PRICES = ("open", "high", "low", "close")
# Numbers are printed with as few digits as each needs, so no row tells how many another has.
_SCALE = 8


class _Candles(msgspec.Struct):
    data: list[Row]


class _Trade(msgspec.Struct, rename="camel"):
    inst_id: str
    side: Literal["buy", "sell"]
    sz: str
    px: str
    trade_id: str
    ts: str


class _Trades(msgspec.Struct):
    data: list[_Trade]


class Listed(msgspec.Struct, rename="camel"):
    """An instrument; spot has no contracts and no settlement, swaps no base and quote."""

    inst_id: str
    base_ccy: str = ""
    quote_ccy: str = ""
    settle_ccy: str = ""
    ct_type: str = ""
    ct_val: str = ""
    ct_mult: str = ""
    ct_val_ccy: str = ""
    tick_sz: str = ""
    lot_sz: str = ""
    list_time: str = ""
    exp_time: str = ""
    state: str = ""

    @property
    def contract_size(self) -> Decimal | None:
        """How much of `ct_val_ccy` a contract is, if that is told."""
        try:
            size = Decimal(self.ct_val) * Decimal(self.ct_mult or 1)
        except InvalidOperation:
            return None
        return size if size.is_finite() and size > 0 else None


class _Instruments(msgspec.Struct):
    data: list[Listed]


class _Time(msgspec.Struct):
    ts: str


class _Times(msgspec.Struct):
    data: tuple[_Time]


_CANDLES = msgspec.json.Decoder(_Candles)
_TRADES = msgspec.json.Decoder(_Trades)
_INSTRUMENTS = msgspec.json.Decoder(_Instruments)
_TIMES = msgspec.json.Decoder(_Times)


@dataclass(frozen=True, slots=True)
class Candles:
    """The candles of one answer, sorted, and which of them OKX says are complete."""

    batch: Batch
    confirmed: Bools


def candles(body: bytes, series: Series) -> Candles:
    """Return the candles of an answer; the one in progress may be among them."""
    found = _decode(body, _CANDLES).data
    if not found:
        return Candles(Batch.empty(series), np.empty(0, np.bool_))
    opened, *columns, confirmed = zip(*found, strict=True)
    count = len(opened)
    prices = _exact("price", list(chain(*columns[:4])))
    fields = {name: prices[at * count : (at + 1) * count] for at, name in enumerate(_PRICES)}
    # Swaps count contracts in the first of the volumes, and the base asset in the second.
    fields["volume"] = _exact("volume", columns[5 if series.symbol.kind == SWAP else 4])
    fields["quote_volume"] = _exact("volume", columns[6])
    flags = np.array(confirmed) == "1"
    batch, rows = _settled(Batch(series, _times(opened), fields))
    return Candles(batch, flags[rows])


def trades(body: bytes, series: Series, contract_size: Decimal | None) -> Batch:
    """Return the trades of an answer, sorted; contracts become the base asset."""
    found = _decode(body, _TRADES).data
    if not found:
        return Batch.empty(series)
    wanted = series.symbol.venue_id(series.exchange)
    strangers = {trade.inst_id for trade in found} - {wanted}
    if strangers:
        raise Unreadable(f"asked for {wanted}, got {min(strangers)[:40]}")
    amount = _exact("size", [trade.sz for trade in found])
    if contract_size is not None:
        amount = amount.times(contract_size).reduced()
    fields = {"price": _exact("price", [trade.px for trade in found]), "amount": amount}
    sides = np.array([BUY if trade.side == "buy" else SELL for trade in found], np.uint8)
    ids = _integers("an id", [trade.trade_id for trade in found])
    times = _times([trade.ts for trade in found])
    return _settled(Batch(series, times, fields, ids, sides))[0]


def instruments(body: bytes) -> list[Listed]:
    """Return the instruments of an answer."""
    return _decode(body, _INSTRUMENTS).data


def server_time(body: bytes) -> int:
    """Return the venue's clock (ns)."""
    return int(_times([_decode(body, _TIMES).data[0].ts])[0])


def merged(batches: Sequence[Batch]) -> Batch:
    """Return batches of several answers as one, sorted, without repeats; Unreadable if unequal."""
    return batches[0] if len(batches) == 1 else _settled(Batch.concat(batches))[0]


def _settled(batch: Batch) -> tuple[Batch, Ints]:
    """Return the batch in order without repeats, and where its rows were. It comes newest first."""
    rows = np.arange(len(batch), dtype=np.int64)
    try:
        settled, at = settle(batch[::-1], rows)
    except Conflict as conflict:
        raise Unreadable(f"the answer contradicts itself: {conflict.message}") from None
    return settled, len(batch) - 1 - at


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
        return decimals_of_texts(texts, _SCALE).reduced()
    except ValueError as error:
        raise Unreadable(f"{name} {error}") from None


def _integers(what: str, texts: Sequence[str]) -> Ints:
    pa = arrow()
    try:
        numbers: Ints = pa.array(texts, pa.string()).cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        raise Unreadable(f"{what} is no integer") from None
    return numbers


def _times(texts: Sequence[str]) -> Ints:
    times = _integers("a time", texts)
    low, high = int(times.min()), int(times.max())
    if low < EARLIEST // MILLISECOND or high >= LATEST // MILLISECOND:
        raise Unreadable("a time is outside 2009..2100; it should be in milliseconds")
    return times * MILLISECOND
