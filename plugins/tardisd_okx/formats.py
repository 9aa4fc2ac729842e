"""File formats of OKX's historical data: trades, aggregated trades and candles; fetches nothing.

The files are cut at midnight UTC+8. Old headers name each column in English and Chinese
(`trade_id/交易id`), in GBK or UTF-8; only the English part is looked at. Sizes of swaps are in
contracts, while candles of swaps give the base asset in `vol_ccy`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date

from tardisd.market.time import HOUR, from_datetime
from tardisd.plugins.format import FileFormat, Layout, Sample

# BTC-USDT-SWAP-trades-2026-07-24.zip, BTC-USDT-candlesticks-2024-01.zip
_NAME = re.compile(
    r"([0-9A-Z]+-[0-9A-Z]+(?:-SWAP)?)-(trades|aggtrades|candlesticks)-(\d{4})-(\d{2})(?:-(\d{2}))?"
    r"(?:\.csv)?(?:\.zip|\.gz)?"
)
_UTC8 = 8 * HOUR

_SKIPPED = "-"
_TRADE = {
    "instrument_name": "symbol",
    "trade_id": "id",
    "side": "side",
    "size": "amount",
    "price": "price",
    "created_time": "time",
}
_CANDLE = {
    "instrument_name": "symbol",
    "open_time": "time",
    "open": "open",
    "high": "high",
    "low": "low",
    "close": "close",
    "vol_quote": "quote_volume",
}


class _Trades(FileFormat):
    """What the two formats of trades share: they differ by file name alone."""

    exchanges = frozenset({"okx"})

    def match(self, sample: Sample, kind: str) -> Layout | None:
        """Return the layout when the header is of trades, and no name says otherwise."""
        names = _header(sample)
        if kind not in self.kinds or not set(_TRADE) - {"instrument_name"} <= set(names):
            return None
        venue_id, what, covers = _stated(sample.names)
        if what not in (None, "trades" if kind == "trade" else "aggtrades"):
            return None
        columns = tuple(_TRADE.get(name, _SKIPPED) for name in names)
        market = None if venue_id is None else _market(venue_id)
        return Layout(
            columns, True, covers, archive=True, venue_id=venue_id, exchange="okx", market=market,
            contracts=frozenset({"amount"}),
        )  # fmt: skip


class OkxTrades(_Trades):
    """Raw trades."""

    name = "okx_trades"
    kinds = frozenset({"trade"})


class OkxAggTrades(_Trades):
    """Aggregated trades, published until 2024."""

    name = "okx_agg_trades"
    kinds = frozenset({"agg_trade"})


class OkxCandles(FileFormat):
    """Candles of one minute; the time is the ninth column."""

    name = "okx_candles"
    kinds = frozenset({"candle"})
    exchanges = frozenset({"okx"})

    def match(self, sample: Sample, kind: str) -> Layout | None:
        """Return the layout when the header is of candles, and rows or names tell the market."""
        names = _header(sample)
        if kind not in self.kinds or not {*_CANDLE, "vol", "vol_ccy"} <= set(names):
            return None
        venue_id, _, covers = _stated(sample.names)
        at = names.index("instrument_name")
        found = [row[at] for row in sample.cells[1:] if at < len(row)]
        instrument = next(iter(found), venue_id or "")
        market = _market(instrument)
        # `vol` counts what is traded: the base asset of spot, contracts of swaps.
        volume = "vol" if market == "spot" else "vol_ccy"
        columns = tuple({**_CANDLE, volume: "volume"}.get(name, _SKIPPED) for name in names)
        return Layout(
            columns, True, covers, archive=True, venue_id=venue_id, exchange="okx", market=market
        )


def _header(sample: Sample) -> list[str]:
    """Return the English names of the columns."""
    cells = sample.cells[0] if sample.cells else ()
    return [cell.partition("/")[0].strip().lower() for cell in cells]


def _market(instrument: str) -> str:
    return "swap" if instrument.upper().endswith("-SWAP") else "spot"


def _stated(names: Sequence[str]) -> tuple[str | None, str | None, tuple[int, int] | None]:
    """Return the instrument, the sort of data and the span (ns) that a file name states."""
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        venue_id, what, year, month, day = match.groups()
        following = int(year) * 12 + int(month)
        try:
            start = from_datetime(date(int(year), int(month), int(day or 1)))
            end = start + 24 * HOUR
            if day is None:
                end = from_datetime(date(following // 12, following % 12 + 1, 1))
        except ValueError:  # no such day: then the name states nothing
            continue
        return venue_id, what, (start - _UTC8, end - _UTC8)
    return None, None, None
