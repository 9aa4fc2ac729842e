"""What OKX's instruments endpoint says of a symbol; serves nothing."""

from __future__ import annotations

from decimal import Decimal

from tardisd.market.series import SWAP, Instrument
from tardisd.market.time import MILLISECOND
from tardisd.testing.venues.okx_rows import contract_value


def listed(known: Instrument) -> dict[str, object]:
    """Return one entry of the list, with every field that matters to market data."""
    symbol = known.symbol
    swap = symbol.kind == SWAP
    pair = f"{symbol.base}-{symbol.quote}"
    value = contract_value(known)
    lot = known.lot_size
    if value and lot is not None:  # lots count contracts, like everything that is traded here
        lot = f"{(Decimal(lot) / Decimal(value)).normalize():f}"
    return {
        "alias": "",
        "baseCcy": "" if swap else symbol.base,
        "category": "1",
        "ctMult": "1" if swap else "",
        "ctType": "linear" if swap else "",
        "ctVal": value,
        "ctValCcy": symbol.base if swap else "",
        "expTime": "",
        "instFamily": pair if swap else "",
        "instId": symbol.venue_id("okx"),
        "instType": "SWAP" if swap else "SPOT",
        "lever": "100" if swap else "10",
        "listTime": str((known.listed_at or 0) // MILLISECOND),
        "lotSz": lot,
        "minSz": lot,
        "optType": "",
        "quoteCcy": "" if swap else symbol.quote,
        "settleCcy": symbol.settle or "",
        "state": "live",
        "stk": "",
        "tickSz": known.tick_size,
        "uly": pair if swap else "",
    }
