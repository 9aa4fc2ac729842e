"""How OKX prints candles and trades, in JSON and in archive files; serves nothing.

Numbers have no insignificant zeros, except that trade files keep one digit after the point. Swaps
count in contracts, each of them `ctVal` of the base asset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from tardisd.market.columns import BUY, Batch, closes
from tardisd.market.decimals import Decimals
from tardisd.market.series import SWAP, Instrument
from tardisd.market.time import MILLISECOND
from tardisd.testing.venues.printing import (
    Cell,
    Piece,
    choice,
    decimals,
    digits_of,
    integers,
)

CONTRACT_VALUES = {"BTC": "0.01", "ETH": "0.1"}
TRADE_HEADER = "instrument_name,trade_id,side,price,size,created_time"
LEGACY_TRADE_HEADER = (
    "instrument_name/交易对名,trade_id/交易id,side/交易方向,price/价格,size/数量,"
    "created_time/成交时间"
)
CANDLE_HEADER = "instrument_name,open,high,low,close,vol,vol_ccy,vol_quote,open_time,confirm"


def contract_value(known: Instrument) -> str:
    """Return how much of the base asset one contract is; "" for spot."""
    if known.symbol.kind != SWAP:
        return ""
    return known.extra.get("ctVal", CONTRACT_VALUES.get(known.symbol.base, "1"))


@dataclass(frozen=True, slots=True)
class Numbers:
    """How many fraction digits the numbers of a series have at most.

    `shift` is by how many places contracts stand left of the base asset; None for spot.
    """

    price: int
    amount: int
    quote: int
    shift: int | None

    @classmethod
    def of(cls, batch: Batch, known: Instrument) -> Numbers:
        """Return the digits for a tidied batch; ValueError when ctVal is not a power of ten."""
        shift = None
        value = contract_value(known)
        if value:
            shift = -Decimal(value).adjusted()
            if Decimal(value) != Decimal(1).scaleb(-shift):
                raise ValueError(f"{known.symbol}: ctVal {value} is not a power of ten")
        return cls(
            digits_of(batch, "open", "high", "low", "close", "price"),
            digits_of(batch, "volume", "amount"),
            digits_of(batch, "quote_volume"),
            shift,
        )

    def traded(self, column: Decimals, least: int = 0) -> Cell:
        """Print what is traded: contracts, or the base asset of spot."""
        if not self.shift:
            return decimals(column, max(self.amount, least), least)
        digits = max(self.amount - self.shift, least, 0)
        if column.fraction is not None:
            texts = [Decimal(text or 0).scaleb(self.shift) for text in column.texts()]
            return decimals(Decimals.of([f"{text:f}" for text in texts]), digits, least)
        scale = column.scale - self.shift
        if scale < 0:
            column = Decimals(column.mantissa * 10**-scale)
        else:
            column = Decimals(column.mantissa, scale)
        return decimals(column, digits, least)


def candle_json(batch: Batch, numbers: Numbers, now: int | None = None) -> Sequence[Piece]:
    """Return the pieces of `["1747094040000",…,"1"],`: nine texts; all closed without `now`."""
    pieces: list[Piece] = [b'["', integers(batch.ts_event // MILLISECOND)]
    for cell in _candle(batch, numbers):
        pieces += [b'","', cell]
    return [*pieces, b'","', _confirm(batch, now), b'"],']


def candle_csv(batch: Batch, numbers: Numbers, name: str) -> Sequence[Piece]:
    """Return the pieces of a line of a candlesticks file: the time is the ninth column."""
    pieces: list[Piece] = [name.encode()]
    for cell in _candle(batch, numbers):
        pieces += [b",", cell]
    return [*pieces, b",", integers(batch.ts_event // MILLISECOND), b",1\n"]


def trade_json(batch: Batch, numbers: Numbers, name: str) -> Sequence[Piece]:
    """Return the pieces of one object of trades and history-trades."""
    assert batch.ids is not None
    return [
        b'{"instId":"', name.encode(), b'","side":"', _side(batch),
        b'","sz":"', numbers.traded(batch.fields["amount"]), b'","source":"0","px":"',
        decimals(batch.fields["price"], numbers.price, 0), b'","tradeId":"', integers(batch.ids),
        b'","ts":"', integers(batch.ts_event // MILLISECOND), b'"},',
    ]  # fmt: skip


def trade_csv(batch: Batch, numbers: Numbers, name: str, source: bool) -> Sequence[Piece]:
    """Return the pieces of a line of a trades file."""
    assert batch.ids is not None
    return [
        name.encode(), b",", integers(batch.ids), b",", _side(batch), b",",
        decimals(batch.fields["price"], max(numbers.price, 1), 1), b",",
        numbers.traded(batch.fields["amount"], 1), b",",
        integers(batch.ts_event // MILLISECOND), b",0\n" if source else b"\n",
    ]  # fmt: skip


def _candle(batch: Batch, numbers: Numbers) -> list[Cell]:
    fields = batch.fields
    quote = fields.get("quote_volume", Decimals(np.zeros(len(batch), np.int64)))
    quoted = decimals(quote, numbers.quote, 0)
    base = decimals(fields["volume"], numbers.amount, 0)
    prices = [decimals(fields[n], numbers.price, 0) for n in ("open", "high", "low", "close")]
    if numbers.shift is None:
        return [*prices, base, quoted, quoted]
    return [*prices, numbers.traded(fields["volume"]), base, quoted]


def _confirm(batch: Batch, now: int | None) -> Piece:
    interval = batch.series.data_type.interval
    if now is None or interval is None:
        return b"1"
    return choice(closes(batch.ts_event, interval) <= now, b"1", b"0")


def _side(batch: Batch) -> Cell:
    assert batch.sides is not None
    return choice(batch.sides == BUY, b"buy", b"sell")
