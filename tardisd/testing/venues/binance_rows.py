"""How Binance prints klines and trades, in JSON and in archive files; serves nothing.

Spot has eight fraction digits everywhere, USD-M as many as the price and the lot have. What the
venue prints beyond what a batch holds is made up: half of a volume was bought by takers, and every
aggregate trade is one trade.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tardisd.market.columns import SELL, Batch, closes
from tardisd.market.decimals import DIGITS, Decimals
from tardisd.testing.venues.printing import (
    Cell,
    Piece,
    choice,
    decimals,
    digits_in,
    digits_of,
    integers,
    product,
)

MILLISECOND_NS, MICROSECOND_NS = 1_000_000, 1_000
_FIRST_TRADE = 25_000_000  # added to an aggregate's id, it is the id of its first trade
_SPOT_DIGITS = 8

KLINE_HEADER = (
    b"open_time,open,high,low,close,volume,close_time,quote_volume,count,"
    b"taker_buy_volume,taker_buy_quote_volume,ignore\n"
)
AGG_TRADE_HEADER = (
    b"agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n"
)
TRADE_HEADER = b"id,price,qty,quote_qty,time,is_buyer_maker\n"


@dataclass(frozen=True, slots=True)
class Numbers:
    """How many fraction digits the numbers of a series have."""

    price: int
    amount: int
    quote: int
    spot: bool

    @classmethod
    def of(cls, batch: Batch, tick_size: str | None, lot_size: str | None, spot: bool) -> Numbers:
        """Return the digits for a tidied batch of an instrument."""
        least = [_SPOT_DIGITS] * 2 if spot else [digits_in(tick_size), digits_in(lot_size)]
        price = digits_of(batch, "open", "high", "low", "close", "price", least=least[0])
        amount = digits_of(batch, "volume", "amount", least=least[1])
        quote = digits_of(batch, "quote_volume", least=_SPOT_DIGITS if spot else price + amount)
        return cls(price, amount, min(quote, DIGITS), spot)


def kline_json(batch: Batch, numbers: Numbers, unit: int) -> Sequence[Piece]:
    """Return the pieces of `[1499040000000,"0.0163",…,"0"],`; times in units of `unit` ns."""
    opens, ends, prices, volume, quote, trades = _kline(batch, numbers, unit)
    pieces: list[Piece] = [b"[", opens]
    for price in prices:
        pieces += [b',"', price, b'"']
    pieces += [b',"', volume[0], b'",', ends, b',"', quote[0], b'",', trades]
    return [*pieces, b',"', volume[1], b'","', quote[1], b'","0"],']


def kline_csv(batch: Batch, numbers: Numbers, unit: int) -> Sequence[Piece]:
    """Return the pieces of a line of a klines file."""
    opens, ends, prices, volume, quote, trades = _kline(batch, numbers, unit)
    cells = [opens, *prices, volume[0], ends, quote[0], trades, volume[1], quote[1]]
    return [*_joined(cells), b",0\n"]


def agg_trade_json(batch: Batch, numbers: Numbers, unit: int) -> Sequence[Piece]:
    """Return the pieces of `{"a":26129,"p":…,"M":true},`; USD-M has `nq` and no `M`."""
    number, price, amount, first, time = _agg_trade(batch, numbers, unit)
    made = choice(_sides(batch) == SELL, b"true", b"false")
    more: list[Piece] = [] if numbers.spot else [b'","nq":"', amount]
    end = b',"M":true},' if numbers.spot else b"},"
    return [
        b'{"a":', number, b',"p":"', price, b'","q":"', amount, *more, b'","f":', first,
        b',"l":', first, b',"T":', time, b',"m":', made, end,
    ]  # fmt: skip


def agg_trade_csv(batch: Batch, numbers: Numbers, unit: int) -> Sequence[Piece]:
    """Return the pieces of a line of an aggTrades file."""
    number, price, amount, first, time = _agg_trade(batch, numbers, unit)
    return [*_joined([number, price, amount, first, first, time]), *_flags(batch, numbers)]


def trade_json(batch: Batch, numbers: Numbers, unit: int) -> Sequence[Piece]:
    """Return the pieces of `{"id":28457,"price":…,"isBestMatch":true},`."""
    number, price, amount, quote, time = _trade(batch, numbers, unit)
    made = choice(_sides(batch) == SELL, b"true", b"false")
    end = b',"isBestMatch":true},' if numbers.spot else b"},"
    return [
        b'{"id":', number, b',"price":"', price, b'","qty":"', amount, b'","quoteQty":"', quote,
        b'","time":', time, b',"isBuyerMaker":', made, end,
    ]  # fmt: skip


def trade_csv(batch: Batch, numbers: Numbers, unit: int) -> Sequence[Piece]:
    """Return the pieces of a line of a trades file."""
    return [*_joined(_trade(batch, numbers, unit)), *_flags(batch, numbers)]


def _kline(
    batch: Batch, numbers: Numbers, unit: int
) -> tuple[Cell, Cell, list[Cell], tuple[Cell, Cell], tuple[Cell, Cell], Cell]:
    interval = batch.series.data_type.interval
    assert interval is not None
    ends = closes(batch.ts_event, interval) // unit - 1
    fields = batch.fields
    nothing = Decimals(np.zeros(len(batch), np.int64))
    volume, quote = fields["volume"], fields.get("quote_volume", nothing)
    trades, _ = fields.get("trades", nothing).parts()
    return (
        integers(batch.ts_event // unit),
        integers(ends),
        [decimals(fields[name], numbers.price) for name in ("open", "high", "low", "close")],
        (decimals(volume, numbers.amount), decimals(_half(volume), numbers.amount)),
        (decimals(quote, numbers.quote), decimals(_half(quote), numbers.quote)),
        integers(trades),
    )


def _agg_trade(batch: Batch, numbers: Numbers, unit: int) -> tuple[Cell, Cell, Cell, Cell, Cell]:
    assert batch.ids is not None
    return (
        integers(batch.ids),
        decimals(batch.fields["price"], numbers.price),
        decimals(batch.fields["amount"], numbers.amount),
        integers(batch.ids + _FIRST_TRADE),
        integers(batch.ts_event // unit),
    )


def _trade(batch: Batch, numbers: Numbers, unit: int) -> tuple[Cell, Cell, Cell, Cell, Cell]:
    assert batch.ids is not None
    price, amount = batch.fields["price"], batch.fields["amount"]
    return (
        integers(batch.ids),
        decimals(price, numbers.price),
        decimals(amount, numbers.amount),
        decimals(product(price, amount, numbers.quote), numbers.quote),
        integers(batch.ts_event // unit),
    )


def _flags(batch: Batch, numbers: Numbers) -> list[Piece]:
    sold = _sides(batch) == SELL
    if numbers.spot:
        return [b",", choice(sold, b"True", b"False"), b",True\n"]
    return [b",", choice(sold, b"true", b"false"), b"\n"]


def _sides(batch: Batch) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    assert batch.sides is not None
    return batch.sides


def _half(column: Decimals) -> Decimals:
    fraction = None if column.fraction is None else np.zeros(len(column), np.int64)
    return Decimals(column.mantissa // 2, column.scale, fraction)


def _joined(cells: Sequence[Cell]) -> list[Piece]:
    pieces: list[Piece] = []
    for cell in cells:
        pieces += [b",", cell]
    return pieces[1:]
