"""Names of things: symbols, instruments, data types and series; knows no prices.

People write unified symbols (`BTC/USDT` spot, `BTC/USDT:USDT` linear swap); venues have ids of
their own (`BTCUSDT`, `BTC-USDT-SWAP`). A series is stored under (exchange, kind, venue id,
data type) and printed with the unified symbol.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

from tardisd.market.time import Interval

# Quote assets by which a concatenated venue id is split; Binance's exchangeInfo and Bybit's
# instruments-info list them per symbol, this is their union with the long ones first.
_QUOTE_ASSETS = """
USDT USDC FDUSD TUSD BUSD USDP USDS USDE USDR PAX DAI AEUR EURI BTC ETH BNB SOL XRP TRX DOGE DOT
EUR GBP AUD TRY BRL RUB UAH NGN ZAR PLN RON ARS JPY MXN COP IDR IDRT BIDR BVND VAI BRZ CZK MNT
XUSD USD1 USD RLUSD U
"""
_QUOTES = tuple(
    sorted(
        _QUOTE_ASSETS.split(),
        key=len,
        reverse=True,
    )
)
_CONCATENATED = frozenset({"binance", "bybit"})
_ASSET = re.compile(r"[^\s/:@,{}\"'\\\x00-\x1f]{1,40}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")

SPOT, SWAP = "spot", "swap"


@dataclass(frozen=True, slots=True)
class Symbol:
    """A traded pair; `settle` is None for spot and the settlement asset for a linear swap."""

    base: str
    quote: str
    settle: str | None = None

    @property
    def kind(self) -> str:
        """`spot` or `swap`."""
        return SPOT if self.settle is None else SWAP

    def __str__(self) -> str:
        tail = "" if self.settle is None else f":{self.settle}"
        return f"{self.base}/{self.quote}{tail}"

    @classmethod
    def parse(cls, text: str, exchange: str) -> Symbol:
        """Return the symbol for a unified one or the venue's own id.

        A bare id that spot and swap share means spot. Raises ValueError when it is neither.
        """
        if "/" in text:
            pair, colon, settle = text.partition(":")
            base, _, quote = pair.partition("/")
            assets = [base, quote, *([settle] if colon else [])]
            if not all(_ASSET.fullmatch(asset) for asset in assets):
                raise ValueError(f"{text[:60]!r} is not a symbol; write BTC/USDT or BTC/USDT:USDT")
            if colon and settle.upper() != quote.upper():
                raise ValueError(
                    f"{text[:60]!r}: only spot and linear swaps (settled in the quote asset) are"
                    " known"
                )
            if exchange in _CONCATENATED or exchange == "okx":
                base, quote, settle = base.upper(), quote.upper(), settle.upper()
            return cls(base, quote, settle if colon else None)
        return _parse_venue_id(text, exchange)

    def venue_id(self, exchange: str) -> str:
        """Return the venue's own id; an exchange without a form of its own uses the unified one."""
        if exchange in _CONCATENATED:
            return self.base + self.quote
        if exchange == "okx":
            return f"{self.base}-{self.quote}" + ("" if self.settle is None else "-SWAP")
        return str(self)


def _parse_venue_id(text: str, exchange: str) -> Symbol:
    known = text.upper()
    if exchange in _CONCATENATED and _ASSET.fullmatch(known):
        for quote in _QUOTES:
            if known.endswith(quote) and len(known) > len(quote):
                return Symbol(known[: -len(quote)], quote)
    if exchange == "okx":
        parts = known.split("-")
        if all(_ASSET.fullmatch(part) for part in parts):
            if len(parts) == 2:
                return Symbol(*parts)
            if len(parts) == 3 and parts[2] == "SWAP":
                if parts[1] == "USD":
                    raise ValueError(
                        f"{text[:60]!r} is an inverse swap (settled in {parts[0]}); only spot and"
                        " linear swaps are known"
                    )
                return Symbol(parts[0], parts[1], parts[1])
    raise ValueError(f"{text[:60]!r} is not a symbol of {exchange}; write it as BTC/USDT")


@dataclass(frozen=True)
class DataType:
    """What a series holds: `trade`, `agg_trade`, `candle_<interval>`, `quote`, …

    `indicator_<name>` is what analyzers derive; it is never stored.
    """

    name: str
    interval: Interval | None = None

    @classmethod
    def parse(cls, text: str) -> DataType:
        """Return the data type of that name; ValueError when there is none."""
        if text.startswith("candle_"):
            return cls(text, Interval.parse(text.removeprefix("candle_")))
        if _INDICATOR.fullmatch(text):
            return cls(text)
        if text not in KINDS or text in _WITH_A_NAME:
            known = ", ".join(kind for kind in KINDS if kind not in _WITH_A_NAME)
            raise ValueError(f"{text[:60]!r} is not a data type; use candle_<interval> or {known}")
        return cls(text)

    def __str__(self) -> str:
        return self.name

    @cached_property
    def kind(self) -> str:
        """The data type without what follows: `candle` for every `candle_<interval>`."""
        if self.interval is not None:
            return "candle"
        return "indicator" if self.name.startswith("indicator_") else self.name

    @cached_property
    def order(self) -> tuple[int, int, str]:
        """Place in the total order at one release time: (class, interval length, name)."""
        length = 0 if self.interval is None else self.interval.nominal_ns
        return (KINDS[self.kind], length, self.name)


GAP_CLASS = 2
# Class in the total order of a session: candles, (2: gap marks), slow facts, books, trades, and
# last what analyzers derive.
KINDS = {
    "candle": 1,
    "funding": 3,
    "open_interest": 3,
    "liquidation": 3,
    "quote": 4,
    "book_snapshot": 4,
    "book_delta": 4,
    "agg_trade": 5,
    "trade": 5,
    "indicator": 6,
}
_WITH_A_NAME = frozenset({"candle", "indicator"})
_INDICATOR = re.compile(r"indicator_[a-z0-9_]{1,80}")


@dataclass(frozen=True)
class Series:
    """One stream of ticks: exchange + symbol + data type, `binance:BTC/USDT@candle_1m`."""

    exchange: str
    symbol: Symbol
    data_type: DataType

    @classmethod
    def parse(cls, text: str) -> Series:
        """Return the series written `exchange:symbol@data_type`; ValueError names what is wrong."""
        exchange, colon, rest = text.partition(":")
        symbol, at, data_type = rest.rpartition("@")
        if not (colon and at and exchange and symbol and data_type):
            raise ValueError(
                f"{text[:120]!r} is not a series; write exchange:symbol@data_type,"
                " such as binance:BTC/USDT@candle_1m"
            )
        return cls.of(exchange, symbol, data_type)

    @classmethod
    def of(cls, exchange: str, symbol: str, data_type: str) -> Series:
        """Return the series of these names; ValueError names what is wrong."""
        if not _NAME.fullmatch(exchange):
            raise ValueError(f"{exchange[:60]!r} is not an exchange name; use lower-case letters")
        return cls(exchange, Symbol.parse(symbol, exchange), DataType.parse(data_type))

    @cached_property
    def text(self) -> str:
        """The canonical spelling, with the unified symbol."""
        return f"{self.exchange}:{self.symbol}@{self.data_type}"

    def __str__(self) -> str:
        return self.text

    def __hash__(self) -> int:  # a text knows its hash, and a session's table has hundreds
        return hash(self.text)

    @property
    def is_forming(self) -> bool:
        """Whether its candles are not finished yet."""
        return False

    @cached_property
    def key(self) -> tuple[str, str, str, str]:
        """What it is stored under: (exchange, kind, venue id, data type)."""
        venue_id = self.symbol.venue_id(self.exchange)
        return (self.exchange, self.symbol.kind, venue_id, self.data_type.name)

    @cached_property
    def order(self) -> tuple[int, int, str, str, str]:
        """Place among ticks of one release time: (class, length, data type, exchange, symbol)."""
        return (*self.data_type.order, self.exchange, str(self.symbol))


@dataclass(frozen=True)
class DerivedSeries(Series):
    """Candles that are built from what is stored of `source`, not stored themselves.

    It is spelt as the stored series would be, and never equal to it. Candles that still form are
    a series of their own (`closed` is false), told apart from the finished ones by nothing else.
    """

    source: DataType
    closed: bool = True

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def is_forming(self) -> bool:
        """Whether its candles are not finished yet."""
        return not self.closed


@dataclass(frozen=True, slots=True)
class Instrument:
    """What a venue says of one symbol. Sizes are exact decimal text, times ns or None.

    `extra["contract_size"]` is how much of the base asset one contract of a swap is, where the
    venue counts contracts.
    """

    exchange: str
    symbol: Symbol
    tick_size: str | None = None
    lot_size: str | None = None
    listed_at: int | None = None
    delisted_at: int | None = None
    extra: dict[str, str] = field(default_factory=dict)
