"""File format of tardis.dev's trades in CSV; their other files are refused by name.

Times are microseconds. A file holds what was received on its day, in that order, so its first
trades may have happened on the day before.
"""

from __future__ import annotations

import re

from tardisd.errors import DataError
from tardisd.plugins.format import FileFormat, Layout, Sample

_ALWAYS = ("exchange", "symbol", "timestamp", "local_timestamp")
_TRADES = (*_ALWAYS, "id", "side", "price", "amount")
_COLUMNS = ("-", "symbol", "time", "-", "id", "side", "price", "amount")
_OTHERS: dict[tuple[str, ...], str] = {
    ("ask_amount", "ask_price", "bid_price", "bid_amount"): "quotes",
    ("is_snapshot", "side", "price", "amount"): "incremental_book_L2",
    ("asks[0].price", "asks[0].amount", "bids[0].price", "bids[0].amount"): "book snapshots",
}

# Whose data each of their exchange names is: our exchange, and the market where it is one.
_ORIGINS = {
    "binance": ("binance", "spot"),
    "binance-futures": ("binance", "swap"),
    "bybit": ("bybit", "swap"),
    "bybit-spot": ("bybit", "spot"),
    "okex": ("okx", "spot"),
    "okex-swap": ("okx", "swap"),
}
_IN_CONTRACTS = frozenset({"okex-swap"})
_NAME = re.compile(r"[a-z0-9-]+_trades_\d{4}-\d{2}-\d{2}_([^_]+)\.csv(?:\.gz)?")


def is_tardis(sample: Sample) -> bool:
    """Tell whether the file is one of tardis.dev's."""
    return bool(sample.cells) and tuple(sample.cells[0][: len(_ALWAYS)]) == _ALWAYS


class TardisTrades(FileFormat):
    """Trades as tardis.dev's datasets have them."""

    name = "tardis_trades"
    kinds = frozenset({"trade"})

    def match(self, sample: Sample, kind: str) -> Layout | None:
        """Return the layout of trades; DataError for another of their files."""
        if kind not in self.kinds or not is_tardis(sample):
            return None
        header = tuple(sample.cells[0])
        other = "" if header == _TRADES else _OTHERS.get(header[4:8], "other data")
        if any("_liquidations_" in name for name in sample.names):  # these look like trades
            other = "liquidations"
        if other:
            raise DataError(f"this is a tardis.dev file of {other}; only trades can be imported")
        origin = next((row[0] for row in sample.cells[1:] if row), "")
        exchange, market = _ORIGINS.get(origin, (origin or None, None))
        names = [match[1] for name in sample.names if (match := _NAME.fullmatch(name))]
        return Layout(
            _COLUMNS,
            header=True,
            archive=True,
            venue_id=next(iter(names), None),
            exchange=exchange,
            market=market,
            contracts=frozenset({"amount"}) if origin in _IN_CONTRACTS else frozenset(),
        )
