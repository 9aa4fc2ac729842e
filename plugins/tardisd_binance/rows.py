"""Binance's JSON to batches of exact columns; asks nothing.

What is not the JSON expected raises Unreadable, so that it is asked for again and never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
import numpy as np

from tardisd.dumps.exact import decimals_of_texts
from tardisd.dumps.order import Conflict, settle
from tardisd.market.columns import BUY, SELL, Batch
from tardisd.market.decimals import Decimals, Ints
from tardisd.market.series import Series
from tardisd.market.time import EARLIEST, LATEST, MILLISECOND
from tardisd.venue.client import Unreadable

T = TypeVar("T")

Kline = tuple[int, str, str, str, str, str, int, str, int, str, str, str]
_PRICES = ("open", "high", "low", "close")


class AggTrade(msgspec.Struct):
    """A row of `aggTrades`: id, price, quantity, first trade's id, time, "buyer is the maker"."""

    a: int
    p: str
    q: str
    f: int
    T: int
    m: bool


class Trade(msgspec.Struct, rename={"maker": "isBuyerMaker"}):
    """A row of `trades` and `historicalTrades`."""

    id: int
    price: str
    qty: str
    time: int
    maker: bool


class ServerTime(msgspec.Struct, rename="camel"):
    """The answer of `time`."""

    server_time: int


class RateLimit(msgspec.Struct, rename="camel"):
    """One of the limits that `exchangeInfo` tells."""

    rate_limit_type: str = ""
    interval: str = ""
    interval_num: int = 0
    limit: int = 0


class Filter(msgspec.Struct, rename="camel"):
    """One of a symbol's filters; there are many kinds, and more to come."""

    filter_type: str = ""
    tick_size: str | None = None
    step_size: str | None = None


class Listed(msgspec.Struct, rename="camel"):
    """A symbol of `exchangeInfo`; spot has no contract type and no dates."""

    symbol: str
    base_asset: str
    quote_asset: str
    status: str = ""
    contract_type: str = ""
    margin_asset: str | None = None
    onboard_date: int | None = None
    delivery_date: int | None = None
    filters: list[Filter] = []


class ExchangeInfo(msgspec.Struct, rename="camel"):
    """The answer of `exchangeInfo`."""

    symbols: list[Listed]
    rate_limits: list[RateLimit] = []


_KLINES = msgspec.json.Decoder(list[Kline])
_AGG_TRADES = msgspec.json.Decoder(list[AggTrade])
_TRADES = msgspec.json.Decoder(list[Trade])


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the decoded body; Unreadable tells what is wrong with it."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        begins = body[:40].decode(errors="replace")
        if body.lstrip()[:1] == b"<":
            raise Unreadable(
                f"a web page came instead of JSON ({begins!r}); is a proxy or login in between?"
            ) from None
        raise Unreadable(f"not the JSON expected: {error}; it begins {begins!r}") from None


def klines(body: bytes, series: Series) -> Batch:
    """Return candles, sorted and without repeats."""
    columns = list(zip(*decode(body, _KLINES), strict=True))
    if not columns:
        return Batch.empty(series)
    scale = max(len(text.partition(".")[2]) for at in (1, 2, 3, 4) for text in columns[at][:1])
    fields = {name: _exact(name, columns[at], scale) for at, name in enumerate(_PRICES, 1)}
    fields["volume"] = _exact("volume", columns[5])
    fields["quote_volume"] = _exact("quote volume", columns[7])
    fields["trades"] = Decimals(_ints("trades", columns[8]))
    return _settled(Batch(series, _times(columns[0]), fields))


def agg_trades(body: bytes, series: Series) -> Batch:
    """Return aggregate trades, sorted and without repeats."""
    rows = decode(body, _AGG_TRADES)
    return _trades(
        series,
        [row.T for row in rows],
        [row.a for row in rows],
        [row.p for row in rows],
        [row.q for row in rows],
        [row.m for row in rows],
    )


def first_trade_ids(body: bytes) -> list[int]:
    """Return the id of the first trade in each aggregate trade."""
    return [row.f for row in decode(body, _AGG_TRADES)]


def trades(body: bytes, series: Series) -> Batch:
    """Return raw trades, sorted and without repeats."""
    rows = decode(body, _TRADES)
    return _trades(
        series,
        [row.time for row in rows],
        [row.id for row in rows],
        [row.price for row in rows],
        [row.qty for row in rows],
        [row.maker for row in rows],
    )


READERS: dict[str, Callable[[bytes, Series], Batch]] = {
    "candle": klines,
    "agg_trade": agg_trades,
    "trade": trades,
}


def _trades(
    series: Series,
    times: Sequence[int],
    ids: Sequence[int],
    prices: Sequence[str],
    amounts: Sequence[str],
    makers: Sequence[bool],
) -> Batch:
    if not times:
        return Batch.empty(series)
    fields = {"price": _exact("price", prices), "amount": _exact("quantity", amounts)}
    # Where the buyer was the maker, the taker sold.
    sides = np.where(np.array(makers, np.bool_), np.uint8(SELL), np.uint8(BUY))
    return _settled(Batch(series, _times(times), fields, _ints("id", ids), sides))


def _settled(batch: Batch) -> Batch:
    try:
        return settle(batch, np.arange(len(batch)))[0]
    except Conflict as conflict:
        raise Unreadable(f"the page contradicts itself: {conflict.message}") from None


def _exact(name: str, texts: Sequence[str], scale: int | None = None) -> Decimals:
    try:
        return decimals_of_texts(texts, scale)
    except ValueError as error:
        raise Unreadable(f"{name} {error}") from None


def _ints(name: str, values: Sequence[int]) -> Ints:
    try:
        return np.array(values, np.int64)
    except OverflowError:
        raise Unreadable(f"{name} beyond 64 bits") from None


def _times(values: Sequence[int]) -> Ints:
    times = _ints("time", values)
    if bool(((times < EARLIEST // MILLISECOND) | (times >= LATEST // MILLISECOND)).any()):
        raise Unreadable("a time is outside 2009..2100; it should be in milliseconds")
    return times * MILLISECOND
