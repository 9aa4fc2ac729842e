"""File formats of public.bybit.com: trades of spot and of linear swaps; fetches nothing.

Swap files have times in seconds with a fraction finer than a millisecond, and text ids; the oldest
are newest-first. Spot files have times in milliseconds; their `id` is the row's number in the file,
which is no id of the trade, and is not kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date

from tardisd.errors import DataError
from tardisd.market.time import DAY, from_datetime
from tardisd.plugins.format import FileFormat, Layout, Sample

# BTCUSDT2020-03-25.csv.gz, BTCUSDT_2026-07-25.csv.gz, BTCUSDT-2022-11.csv.gz
_NAME = re.compile(r"([0-9A-Z]+?)[_-]?(\d{4})-(\d{2})(?:-(\d{2}))?\.csv(?:\.gz)?")

_SKIPPED = "-"
SWAP_HEADER = (
    "timestamp", "symbol", "side", "size", "price", "tickdirection", "trdmatchid", "grossvalue",
    "homenotional", "foreignnotional",
)  # fmt: skip
_SWAP = ("time", "symbol", "side", "amount", "price", _SKIPPED, "id")
SPOT_HEADER = ("id", "timestamp", "price", "volume", "side")
_SPOT = (_SKIPPED, "time", "price", "amount", "side")


class BybitSwapTrades(FileFormat):
    """Daily files of `trading/`: 10 columns, 11 since 2025."""

    name = "bybit_swap_trades"
    kinds = frozenset({"trade"})
    exchanges = frozenset({"bybit"})

    def match(self, sample: Sample, kind: str) -> Layout | None:
        """Return the layout when the header is of `trading/`; DataError for inverse contracts."""
        if kind not in self.kinds or not _begins_with(sample, SWAP_HEADER):
            return None
        if any(len(row) > 1 and row[1].upper().endswith("USD") for row in sample.cells[1:]):
            raise DataError(
                "the file is of an inverse contract, whose amounts are in USD; only spot and linear"
                " swaps (USDT, USDC) can be imported"
            )
        return _layout(sample, _SWAP, "swap")


class BybitSpotTrades(FileFormat):
    """Daily and monthly files of `spot/`: 5 columns, 6 since 2025."""

    name = "bybit_spot_trades"
    kinds = frozenset({"trade"})
    exchanges = frozenset({"bybit"})

    def match(self, sample: Sample, kind: str) -> Layout | None:
        """Return the layout when the header is of `spot/`."""
        if kind not in self.kinds or not _begins_with(sample, SPOT_HEADER):
            return None
        return _layout(sample, _SPOT, "spot")


def _begins_with(sample: Sample, header: Sequence[str]) -> bool:
    found = [cell.lower() for cell in sample.cells[0]] if sample.cells else []
    return tuple(found[: len(header)]) == tuple(header)


def _layout(sample: Sample, meaning: tuple[str, ...], market: str) -> Layout:
    width = len(sample.cells[0])
    columns = meaning + (_SKIPPED,) * (width - len(meaning))
    stated = [found for name in sample.names if (found := span_of_name(name))[0] is not None]
    venue_id, covers = stated[0] if stated else (None, None)
    return Layout(
        columns, True, covers, archive=True, venue_id=venue_id, exchange="bybit", market=market
    )


def span_of_name(name: str) -> tuple[str | None, tuple[int, int] | None]:
    """Return the symbol and the span (ns) that a file's name states; None where it does not."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None, None
    venue_id, year, month, day = match.groups()
    following = int(year) * 12 + int(month)
    try:
        start = from_datetime(date(int(year), int(month), int(day or 1)))
        end = start + DAY
        if day is None:
            end = from_datetime(date(following // 12, following % 12 + 1, 1))
    except ValueError:  # no such day: then the name states nothing
        return None, None
    return venue_id, (start, end)
