"""What the import tests share: importing text into a storage in memory, and reading it back."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from pathlib import Path

import tardisd_binance
import tardisd_csv
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.testing.memory import MemoryStorage
from tardisd.transfer.importing import ImportResult, import_files

FORMATS = [
    format_() for plugin in (tardisd_csv, tardisd_binance) for format_ in plugin.tardisd_formats()
]
EVER = Span(0, 2**62)
MS = 1_000_000
T0 = 1_709_251_200_000  # 2024-03-01T00:00:00Z, a Friday, in ms
MINUTE = 60_000

KLINE_HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,"
    "taker_buy_volume,taker_buy_quote_volume,ignore\n"
)


def kline(minute: int, close: str = "100.5", volume: str = "2.25", every: int = MINUTE) -> str:
    """Return a row of a Binance kline file, `minute` intervals after T0."""
    opens = T0 + minute * every
    return (
        f"{opens},100.10,101.00000000,99.9,{close},{volume},{opens + every - 1},"
        f"225.123456789,12,1.0,100.0,0\n"
    )


def trade(at: int, id_: int, price: str = "100.5", amount: str = "0.00100000") -> str:
    """Return a row of a Binance spot trades file, `at` ms after T0."""
    maker = "True" if id_ % 3 else "False"
    return f"{id_},{price},{amount},0.1005,{T0 + at},{maker},True\n"


async def import_text(
    tmp_path: Path,
    series: str,
    files: dict[str, str | bytes],
    storage: MemoryStorage | None = None,
    covers: Span | None = None,
) -> tuple[ImportResult, MemoryStorage]:
    """Import the files; text is written as UTF-8."""
    storage = storage or MemoryStorage()
    opened = [
        (name, io.BytesIO(data if isinstance(data, bytes) else data.encode()))
        for name, data in files.items()
    ]
    result = await import_files(
        opened,
        Series.parse(series),
        storage,
        FORMATS,
        covers=covers,
        spool_dir=tmp_path,
        progress=lambda _: None,
    )
    return result, storage


async def stored(storage: MemoryStorage, series: str) -> Batch:
    """Return all rows of the series."""
    async with storage.read(Series.parse(series), EVER) as batches:
        parts = [batch async for batch in batches]
    return Batch.concat(parts or [Batch.empty(Series.parse(series))])


def candles(batch: Batch) -> list[tuple]:
    """Return the candles as tuples: open (ms) and exact values."""
    names = ("open", "high", "low", "close", "volume", "quote_volume", "trades")
    columns = [
        [None if text is None else Decimal(text) for text in batch.fields[name].texts()]
        for name in names
        if name in batch.fields
    ]
    return list(zip((batch.ts_event // MS).tolist(), *columns, strict=True))


def trades(batch: Batch) -> list[tuple]:
    """Return the trades as tuples: time (ms), id, price, amount, side."""
    prices = [Decimal(text) for text in batch.fields["price"].texts()]
    amounts = [Decimal(text) for text in batch.fields["amount"].texts()]
    ids = [None] * len(batch) if batch.ids is None else batch.ids.tolist()
    sides = ["buy" if side == 0 else "sell" for side in batch.sides.tolist()]
    return list(zip((batch.ts_event // MS).tolist(), ids, prices, amounts, sides, strict=True))


def kline_rows(text: str) -> list[tuple]:
    """Return what the rows of a Binance kline file say, read with csv and Decimal."""
    rows = [row for row in csv.reader(io.StringIO(text)) if row and row[0].isdecimal()]
    return [
        (
            int(row[0]) if len(row[0]) == 13 else int(row[0]) // 1000,
            *map(Decimal, row[1:6]),
            Decimal(row[7]),
            Decimal(row[8]),
        )
        for row in rows
    ]
