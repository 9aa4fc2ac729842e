"""What the made-up venue says of a symbol: its price level, tick and lot; draws no trades."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b

from tardisd.market.series import Instrument, Symbol

# Dollars per coin, and the tick and lot sizes that venues have for it against the dollar.
_FAMILIAR = {
    "BTC": ("65000", -2, -5),
    "ETH": ("3200", -2, -4),
    "BNB": ("580", -2, -3),
    "SOL": ("150", -2, -3),
    "XRP": ("0.6", -4, -1),
    "DOGE": ("0.15", -5, 0),
    "ADA": ("0.45", -4, -1),
    "AVAX": ("35", -2, -2),
    "LINK": ("15", -2, -2),
    "DOT": ("7", -3, -2),
    "LTC": ("80", -2, -3),
    "TRX": ("0.12", -4, -1),
    "SHIB": ("0.00002", -8, 0),
    "PEPE": ("0.00001", -9, 0),
}
_DOLLARS = {
    **{coin: price for coin, (price, _, _) in _FAMILIAR.items()},
    **dict.fromkeys(["USD", "USDT", "USDC", "FDUSD", "TUSD", "BUSD", "DAI", "USDP", "USDE"], "1"),
    "EUR": "1.08",
    "GBP": "1.27",
    "AUD": "0.66",
    "JPY": "0.0067",
    "TRY": "0.03",
    "BRL": "0.18",
}
_LISTED_QUOTE = "USDT"
_TRADE_DOLLARS = 250  # of a middling trade
_MOST_DIGITS = 10  # of a price's fraction, so that exact turnovers fit


@dataclass(frozen=True, slots=True)
class Market:
    """A symbol's magnitudes. A price is `ticks * tick_unit / 10**price_scale`, an amount likewise.

    `base_ticks` is the price that the path wanders around, `typical_lots` a small trade.
    """

    base_ticks: int
    tick_unit: int
    price_scale: int
    typical_lots: int
    lot_unit: int
    amount_scale: int
    instrument: Instrument


def market_of(exchange: str, symbol: Symbol) -> Market:
    """Return the market of any symbol; names without a familiar price get one from their text."""
    dollars = _dollars(symbol.base)
    price = dollars / _dollars(symbol.quote)
    familiar = _FAMILIAR.get(symbol.base.upper())
    if familiar is not None and _dollars(symbol.quote) == 1:
        tick_power, lot_power = familiar[1:]
    else:
        tick_power = max(price.adjusted() - 4, -_MOST_DIGITS)
        lot_power = max((_TRADE_DOLLARS / dollars).adjusted() - 3, -6)
    typical = _TRADE_DOLLARS / dollars
    return Market(
        base_ticks=max(int(price.scaleb(-tick_power)), 100),
        tick_unit=10 ** max(tick_power, 0),
        price_scale=max(-tick_power, 0),
        typical_lots=max(int(typical.scaleb(-lot_power)), 1),
        lot_unit=10 ** max(lot_power, 0),
        amount_scale=max(-lot_power, 0),
        instrument=Instrument(
            exchange,
            symbol,
            f"{Decimal(1).scaleb(tick_power):f}",
            f"{Decimal(1).scaleb(lot_power):f}",
        ),
    )


def listed(exchange: str) -> list[Instrument]:
    """Return the instruments that the venue lists; it trades every other symbol too."""
    pairs = [(coin, _LISTED_QUOTE) for coin in _FAMILIAR]
    symbols = [Symbol(*pair, settle) for settle in (None, _LISTED_QUOTE) for pair in pairs]
    return [market_of(exchange, symbol).instrument for symbol in symbols]


def _dollars(asset: str) -> Decimal:
    """Return an asset's price: the familiar one, else from 0.01 to 1000 by its name."""
    known = _DOLLARS.get(asset.upper())
    if known is not None:
        return Decimal(known)
    number = int.from_bytes(blake2b(asset.encode(), digest_size=4).digest(), "little")
    return Decimal(number % 900 + 100).scaleb(number // 900 % 5 - 4)
