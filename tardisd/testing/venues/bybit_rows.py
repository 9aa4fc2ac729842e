"""How Bybit prints klines and trades, in JSON and in archive files; serves nothing.

Klines have as few digits as a number needs, trade prices as many as the tick size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tardisd.market.columns import BUY, Batch
from tardisd.market.decimals import POWERS, Decimals, Ints
from tardisd.market.time import MILLISECOND
from tardisd.testing.venues.printing import (
    Cell,
    Piece,
    choice,
    decimals,
    digits_in,
    digits_of,
    integers,
    product,
    words,
)

LINEAR_HEADER = (
    "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,"
    "foreignNotional{}\n"
)
SPOT_HEADER = "id,timestamp,price,volume,side{}\n"
_STAMP_NS = 100_000  # four fraction digits of a second
_GROSS = 8  # grossValue counts in units of 10**-8
_SIGNIFICANT = 17


@dataclass(frozen=True, slots=True)
class Numbers:
    """How many fraction digits the numbers of a series have at most, and a price in trades."""

    price: int
    amount: int
    quote: int

    @classmethod
    def of(cls, batch: Batch, tick_size: str | None) -> Numbers:
        """Return the digits for a tidied batch of an instrument."""
        least = digits_in(tick_size)
        return cls(
            digits_of(batch, "open", "high", "low", "close", "price", least=least),
            digits_of(batch, "volume", "amount"),
            digits_of(batch, "quote_volume"),
        )


def kline_json(batch: Batch, numbers: Numbers) -> Sequence[Piece]:
    """Return the pieces of `["1670608800000","17071",…],`: seven texts."""
    fields = batch.fields
    quote = fields.get("quote_volume", Decimals(np.zeros(len(batch), np.int64)))
    pieces: list[Piece] = [b'["', integers(batch.ts_event // MILLISECOND)]
    for name in ("open", "high", "low", "close"):
        pieces += [b'","', decimals(fields[name], numbers.price, 0)]
    pieces += [b'","', decimals(fields["volume"], numbers.amount, 0)]
    return [*pieces, b'","', decimals(quote, numbers.quote, 0), b'"],']


def trade_json(batch: Batch, numbers: Numbers, symbol: str) -> Sequence[Piece]:
    """Return the pieces of one object of recent-trade."""
    return [
        b'{"execId":"', _id(batch), b'","symbol":"', symbol.encode(),
        b'","price":"', decimals(batch.fields["price"], numbers.price),
        b'","size":"', decimals(batch.fields["amount"], numbers.amount, 0),
        b'","side":"', _side(batch, b"Buy", b"Sell"),
        b'","time":"', integers(batch.ts_event // MILLISECOND),
        b'","isBlockTrade":false,"isRPITrade":false,"seq":"1"},',
    ]  # fmt: skip


def linear_csv(batch: Batch, numbers: Numbers, symbol: str, rpi: bool) -> Sequence[Piece]:
    """Return the pieces of a line of a derivatives file: times in seconds, four digits."""
    price, size = batch.fields["price"], batch.fields["amount"]
    value = product(price, size, numbers.price + numbers.amount)
    size_cell = decimals(size, numbers.amount, 0)
    return [
        decimals(Decimals(batch.ts_event // _STAMP_NS, 4), 4, 0), b",", symbol.encode(), b",",
        _side(batch, b"Buy", b"Sell"), b",", size_cell, b",", decimals(price, numbers.price), b",",
        _direction(price), b",", _id(batch), b",", *_scientific(value), b",", size_cell, b",",
        decimals(value, numbers.price + numbers.amount, 0), b",0\n" if rpi else b"\n",
    ]  # fmt: skip


def spot_csv(batch: Batch, numbers: Numbers, first: int, rpi: bool) -> Sequence[Piece]:
    """Return the pieces of a line of a spot file: the id counts the lines, from `first`."""
    return [
        integers(np.arange(first, first + len(batch))), b",",
        integers(batch.ts_event // MILLISECOND), b",",
        decimals(batch.fields["price"], numbers.price, 0), b",",
        decimals(batch.fields["amount"], numbers.amount, 0), b",", _side(batch, b"buy", b"sell"),
        b",0\n" if rpi else b"\n",
    ]  # fmt: skip


def _id(batch: Batch) -> Cell:
    assert batch.ids is not None
    return integers(batch.ids) if batch.ids.dtype.kind == "i" else words(batch.ids)


def _side(batch: Batch, bought: bytes, sold: bytes) -> Cell:
    assert batch.sides is not None
    return choice(batch.sides == BUY, bought, sold)


def _direction(price: Decimals) -> Cell:
    """Print where the price went; a file's first line and what follows unmoved say ZeroPlus."""
    whole, fraction = price.parts()
    moves = np.sign(np.diff(whole, prepend=whole[:1])) * 2
    moves += np.sign(np.diff(fraction, prepend=fraction[:1]))
    texts = np.where(moves > 0, b"PlusTick", np.where(moves < 0, b"MinusTick", b"ZeroPlusTick"))
    return words(texts)


def _scientific(value: Decimals) -> list[Piece]:
    """Print the value in units of 10**-8 as `2.8059e+10`."""
    # The mantissa's digits are the value's; of one that needs the wide form the whole part will do.
    mantissa = value.mantissa
    scale = value.scale if value.fraction is None else 0
    count = _digit_counts(mantissa)
    shift = _SIGNIFICANT - count
    powers = 10 ** np.abs(shift)
    leading = np.where(shift >= 0, mantissa * np.where(shift >= 0, powers, 1), mantissa // powers)
    exponent = np.maximum(count - 1 - scale + _GROSS, 0)
    digits = Decimals(leading, _SIGNIFICANT - 1)
    return [
        decimals(digits, _SIGNIFICANT - 1, 0), b"e+",
        choice(exponent < 10, b"0", b""), integers(exponent),
    ]  # fmt: skip


def _digit_counts(values: Ints) -> Ints:
    limits = np.array(POWERS[1:], np.int64)
    return np.searchsorted(limits, np.maximum(values, 1), "right").astype(np.int64) + 1
