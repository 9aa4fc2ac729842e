"""File formats of plain CSV: columns in any order, known by their header; parses no value."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tardisd.plugins.format import FileFormat, Layout, Sample

from .tardis import is_tardis

# Names of a column, the best first: where a header has two of them, the first counts.
_TIME = (
    "open_time", "timestamp", "datetime", "time", "date", "open_ms", "time_ms", "ts", "unix", "t",
)  # fmt: skip
_CANDLE = {
    "time": _TIME,
    "open": ("open", "o"),
    "high": ("high", "h"),
    "low": ("low", "l"),
    "close": ("close", "c"),
    "volume": ("volume", "vol", "v", "base_volume"),
}
_CANDLE_MORE = {
    "close_time": ("close_time",),
    "quote_volume": ("quote_volume", "quote_asset_volume", "quote_v"),
    "trades": ("trades", "count", "trade_count", "number_of_trades", "n"),
    "symbol": ("symbol",),
}
_TRADE = {
    "time": tuple(name for name in _TIME if name != "open_time"),
    "price": ("price",),
    "amount": ("amount", "qty", "quantity", "size"),
}
_TRADE_MORE = {
    "id": ("id", "trade_id", "tid"),
    "side": ("side", "taker_side"),
    "buyer_is_maker": ("buyer_is_maker", "is_buyer_maker"),
    "symbol": ("symbol",),
}
_SKIPPED = "-"
_CCXT = ("time", "open", "high", "low", "close", "volume")
_CCXT_TIME = re.compile(r"\d{10}|\d{13}|\d{16}|\d{19}")
_NUMBER = re.compile(r"\d+(\.\d+)?([eE][+-]?\d+)?")


class PlainCandles(FileFormat):
    """Candles with a header, or six columns without one as ccxt gives them."""

    name = "csv_candles"
    kinds = frozenset({"candle"})

    def match(self, sample: Sample, kind: str) -> Layout | None:
        """Return the layout when the header, or the shape of a row, tells so."""
        if not sample.cells or kind not in self.kinds:
            return None
        first = sample.cells[0]
        if _CCXT_TIME.fullmatch(first[0]) and any(_is_ccxt(row) for row in sample.cells):
            return Layout(_CCXT, header=False)
        columns = _columns(first, _CANDLE, _CANDLE_MORE)
        return None if columns is None else Layout(columns, header=True)


class PlainTrades(FileFormat):
    """Trades with a header that names time, price, amount and side; an id is optional."""

    name = "csv_trades"
    kinds = frozenset({"trade", "agg_trade"})

    def match(self, sample: Sample, kind: str) -> Layout | None:
        """Return the layout when the header tells that these are trades."""
        if not sample.cells or kind not in self.kinds or is_tardis(sample):
            return None
        columns = _columns(sample.cells[0], _TRADE, _TRADE_MORE)
        if columns is None or not {"side", "buyer_is_maker"} & set(columns):
            return None
        return Layout(columns, header=True)


def _is_ccxt(row: Sequence[str]) -> bool:
    return (
        len(row) == len(_CCXT)
        and _CCXT_TIME.fullmatch(row[0]) is not None
        and all(_NUMBER.fullmatch(cell) for cell in row[1:])
    )


def _columns(
    header: Sequence[str],
    needed: dict[str, tuple[str, ...]],
    more: dict[str, tuple[str, ...]],
) -> tuple[str, ...] | None:
    """Return what each column means, or None when a needed one is missing."""
    names = [re.sub(r"[\s-]+", "_", cell.strip().lower()) for cell in header]
    columns = [_SKIPPED] * len(names)
    for meaning, known in {**needed, **more}.items():
        name = next((name for name in known if name in names), None)
        if name is not None:
            columns[names.index(name)] = meaning
        elif meaning in needed:
            return None
    return tuple(columns)
