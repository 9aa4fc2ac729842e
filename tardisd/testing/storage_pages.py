"""Series, rows and pages that the storage suite is written in; knows no storage plugin."""

from __future__ import annotations

from typing import Any

from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.quarters import in_quarters
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import HOUR, MILLISECOND
from tardisd.plugins.exchange import Page
from tardisd.plugins.storage import Storage
from tardisd.testing.storage_model import START, Row

TRADES = Series.parse("binance:BTC/USDT@trade")
CANDLES = Series.parse("binance:BTC/USDT:USDT@candle_1m")
QUOTES = Series.parse("okx:BTC/USDT@quote")
TEXT_IDS = Series.parse("okx:BTC/USDT:USDT@liquidation")
ALL_TIME = Span(START - 1000 * HOUR, START + 1000 * HOUR)


def trade(at_ms: int, trade_id: int, price: str = "1", amount: str = "1", side: int = 0) -> Row:
    """Return a trade `at_ms` milliseconds after the suite's start."""
    return Row(START + at_ms * MILLISECOND, str(trade_id), side, (price, amount))


def between(first_ms: int, last_ms: int) -> Span:
    """Return a span in milliseconds after the suite's start."""
    return Span(START + first_ms * MILLISECOND, START + last_ms * MILLISECOND)


async def read(storage: Storage[Any], series: Series, span: Span = ALL_TIME) -> Batch:
    """Return all rows of a span as one batch."""
    async with storage.read(series, span) as batches:
        return Batch.concat([batch async for batch in batches] or [Batch.empty(series)])


def page_with(batch: Batch, span: Span | None = None) -> Page:
    """Return a page of the batch; without a span, it covers just its rows."""
    return Page(batch, batch.extent() if span is None else span)


def cut(batch: Batch, rows: int) -> list[Page]:
    """Return pages of about so many rows, whole instants each, without holes between them."""
    times = batch.ts_event
    marks = [*times[::rows].tolist(), int(times[-1]) + 1]
    return [
        page_with(batch.within(span), span)
        for span in (Span(*marks[at : at + 2]) for at in range(len(marks) - 1))
        if span
    ]


async def check_quarters(storage: Storage[Any], series: Series, span: Span) -> Coverage:
    """Check that what a storage has folded is what folding its rows gives; return what it knows."""
    found, rows = await storage.quarters(series, span), 0
    for part in found.known:
        expected, folded = in_quarters(await read(storage, series, part)), found.rows.within(part)
        assert len(folded) == len(expected)
        assert same_rows(folded, expected).all()
        assert part.start in span
        assert part.end <= span.end
        rows += len(folded)
    assert rows == len(found.rows)
    return found.known
