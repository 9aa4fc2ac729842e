"""What Binance's exchangeInfo says of limits and symbols; serves nothing."""

from __future__ import annotations

from collections.abc import Iterable

from tardisd.market.series import Instrument
from tardisd.market.time import MILLISECOND
from tardisd.testing.venues.server import dumped
from tardisd.venue.budget import Limit


def exchange_info(
    spot: bool, now: int, limits: Iterable[tuple[str, Limit]], instruments: Iterable[Instrument]
) -> bytes:
    """Return the whole answer of spot or USD-M at a time (ns)."""
    info = {
        "timezone": "UTC",
        "serverTime": now // MILLISECOND,
        "rateLimits": [_rate_limit(name, limit) for name, limit in limits],
        "exchangeFilters": [],
        "symbols": [_listed(spot, known) for known in instruments],
    }
    return dumped(info)


def _rate_limit(name: str, limit: Limit) -> dict[str, object]:
    kind = "REQUEST_WEIGHT" if name.endswith("weight") else "RAW_REQUESTS"
    minutes = limit.period_secs % 60 == 0
    return {
        "rateLimitType": kind,
        "interval": "MINUTE" if minutes else "SECOND",
        "intervalNum": int(limit.period_secs // (60 if minutes else 1)),
        "limit": limit.weight,
    }


def window_name(limit: Limit) -> str:
    """Return the window as the usage headers name it: `1m`, `10s`."""
    minutes = limit.period_secs % 60 == 0
    return f"{int(limit.period_secs // 60)}m" if minutes else f"{int(limit.period_secs)}s"


def _listed(spot: bool, known: Instrument) -> dict[str, object]:
    tick, lot = known.tick_size or "0.01", known.lot_size or "0.001"
    if spot:
        tick, lot = _eight_digits(tick), _eight_digits(lot)
    filters = [
        {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "1000000", "tickSize": tick},
        {"filterType": "LOT_SIZE", "minQty": lot, "maxQty": "9000", "stepSize": lot},
        {"filterType": "NOTIONAL", "minNotional": "5.00000000"}
        if spot
        else {"filterType": "MIN_NOTIONAL", "notional": "5"},
    ]
    symbol = known.symbol
    venue_id = symbol.venue_id("binance")
    common = {"symbol": venue_id, "status": "TRADING", "baseAsset": symbol.base,
              "quoteAsset": symbol.quote, "baseAssetPrecision": 8, "quotePrecision": 8}  # fmt: skip
    if spot:
        return {**common, "isSpotTradingAllowed": True, "filters": filters, "permissions": []}
    return {
        **common,
        "pair": venue_id,
        "contractType": "PERPETUAL",
        "onboardDate": (known.listed_at or 0) // MILLISECOND,
        "deliveryDate": 4133404800000,
        "marginAsset": symbol.settle,
        "pricePrecision": len(tick.partition(".")[2]),
        "quantityPrecision": len(lot.partition(".")[2]),
        "underlyingType": "COIN",
        "filters": filters,
    }


def _eight_digits(size: str) -> str:
    whole, _, fraction = size.partition(".")
    return f"{whole}.{fraction:0<8}"
