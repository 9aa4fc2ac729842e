"""File formats of Binance's public archives: klines, trades, aggTrades; fetches nothing.

The archives have a header or none, times in ms or µs, and spot files have one more column than
those of USD-M futures. What a file is shows in its cells; its name adds symbol and day or month.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date

from tardisd.market.time import from_datetime
from tardisd.plugins.format import FileFormat, Layout, Sample

Cells = Sequence[str]

# BTCUSDT-1m-2023-02.zip, BTCUSDT-trades-2024-03-01.csv
_NAME = re.compile(
    r"([^\s-]+)-(trades|aggTrades|\d+(?:mo|[smhdw]))-(\d{4})-(\d{2})(?:-(\d{2}))?"
    r"(?:\.csv)?(?:\.zip|\.gz)?"
)
_TIME = re.compile(r"\d{13}|\d{16}")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")

KLINES = (
    "time", "open", "high", "low", "close", "volume", "close_time", "quote_volume", "trades",
    "taker_buy_volume", "taker_buy_quote_volume", "ignore",
)  # fmt: skip
TRADES = ("id", "price", "amount", "quote_amount", "time", "buyer_is_maker", "best_match")
AGG_TRADES = (
    "id", "price", "amount", "first_id", "last_id", "time", "buyer_is_maker", "best_match",
)  # fmt: skip
# What Binance calls them, for files without a header.
_LABELS = {
    KLINES: ("open_time", *KLINES[1:8], "count", *KLINES[9:]),
    TRADES: ("id", "price", "qty", "quote_qty", "time", "is_buyer_maker", "is_best_match"),
    AGG_TRADES: (
        "agg_trade_id", "price", "quantity", "first_trade_id", "last_trade_id", "transact_time",
        "is_buyer_maker", "is_best_match",
    ),
}  # fmt: skip
_CELLS = {
    "time": _TIME,
    "close_time": _TIME,
    "buyer_is_maker": re.compile(r"true|false", re.IGNORECASE),
    "best_match": re.compile(r"true|false", re.IGNORECASE),
}


class _Archive(FileFormat):
    """What the three formats share."""

    exchanges = frozenset({"binance"})
    shapes: tuple[tuple[str, ...], ...]

    def match(self, sample: Sample, kind: str) -> Layout | None:
        """Return the layout when some row, or the header, has the archive's columns."""
        if not sample.cells or kind not in self.kinds:
            return None
        for columns in self.shapes:
            header = not _is_number(sample.cells[0], columns.index("time"))
            rows = sample.cells[1:] if header else sample.cells
            known = header and _is_header(sample.cells[0], columns)
            if known or any(_fits(row, columns) for row in rows):
                labels = next(
                    labels for full, labels in _LABELS.items() if columns[0:6] == full[0:6]
                )
                venue_id, covers = _stated(sample.names)
                return Layout(columns, header, covers, labels[: len(columns)], True, venue_id)
        return None


class BinanceKlines(_Archive):
    """Klines: 12 columns, the same for spot and futures."""

    name = "binance_klines"
    kinds = frozenset({"candle"})
    shapes = (KLINES,)


class BinanceTrades(_Archive):
    """Raw trades: 7 columns (spot) or 6 (futures)."""

    name = "binance_trades"
    kinds = frozenset({"trade"})
    shapes = (TRADES, TRADES[:-1])


class BinanceAggTrades(_Archive):
    """Aggregated trades: 8 columns (spot) or 7 (futures); the time is the sixth."""

    name = "binance_agg_trades"
    kinds = frozenset({"agg_trade"})
    shapes = (AGG_TRADES, AGG_TRADES[:-1])


def _is_number(row: Cells, at: int) -> bool:
    return at < len(row) and _NUMBER.fullmatch(row[at]) is not None


def _fits(row: Cells, columns: tuple[str, ...]) -> bool:
    return len(row) == len(columns) and all(
        _CELLS.get(column, _NUMBER).fullmatch(cell)
        for column, cell in zip(columns, row, strict=True)
    )


def _is_header(row: Cells, columns: tuple[str, ...]) -> bool:
    """Tell whether the row is Binance's header: some names changed over time, these never did."""
    if columns[0] == "time":
        steady = {0: "open_time", 6: "close_time"}
    elif "first_id" in columns:
        steady = {0: "agg_trade_id", 5: "transact_time"}
    else:
        steady = {0: "id", 4: "time"}
    return len(row) == len(columns) and all(row[at] == name for at, name in steady.items())


def _stated(names: Sequence[str]) -> tuple[str | None, tuple[int, int] | None]:
    """Return the symbol and the span (ns) that a file name states, if any does."""
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        venue_id, _, year, month, day = match.groups()
        first = int(year) * 12 + int(month) - 1
        try:
            if day is not None:
                start = from_datetime(date(int(year), int(month), int(day)))
                end = start + 86_400 * 10**9
            else:
                start = from_datetime(date(int(year), int(month), 1))
                end = from_datetime(date((first + 1) // 12, (first + 1) % 12 + 1, 1))
        except ValueError:  # no such day: then the name states nothing
            continue
        return venue_id, (start, end)
    return None, None
