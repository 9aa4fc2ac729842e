"""The exchange plugin `synthetic`: its options and pages; makes up no data itself."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Annotated

import numpy as np
import trio
from msgspec import Meta

from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Instrument, Series
from tardisd.market.span import Gap, Span
from tardisd.market.time import EARLIEST, LATEST
from tardisd.plugins.base import Context, Options
from tardisd.plugins.exchange import Availability, Exchange, Page
from tardisd.wall import wall_ns

from .candles import PAGE_ROWS, Candles
from .market import listed, market_of
from .noise import Seeds
from .trades import Tape, Trades

INTERVALS = (
    *("1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h"),
    *("1d", "3d", "1w", "1M"),
)


class SyntheticOptions(Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the made-up venue is like."""

    seed: Annotated[
        int, Meta(ge=0, le=2**63 - 1, description="another seed, another history of the market")
    ] = 1
    trades_per_second: Annotated[
        float,
        Meta(ge=0.001, le=1000, description="of each symbol, on average; hours and bursts differ"),
    ] = 1.0
    gaps: Annotated[
        bool, Meta(description="about once a month the venue is down, for minutes to hours")
    ] = True


class Synthetic(Exchange[SyntheticOptions]):
    """A made-up venue: the same history for the same options, whichever part is asked for first."""

    name = "synthetic"
    Options = SyntheticOptions

    def __init__(
        self,
        options: SyntheticOptions,
        context: Context,
        *,
        now: Callable[[], int] = wall_ns,
    ) -> None:
        super().__init__(options, context)
        self._now = now
        self._threads = trio.CapacityLimiter(os.cpu_count() or 1)

    def data_types(self) -> Mapping[str, Availability]:
        """Return trades and candles of the usual intervals."""
        names = ["trade", *(f"candle_{interval}" for interval in INTERVALS)]
        return {name: Availability(since=EARLIEST) for name in names}

    async def instruments(self) -> Sequence[Instrument]:
        """Return the familiar pairs; every other symbol can be had too."""
        await trio.lowlevel.checkpoint()
        return listed(self.name)

    async def server_time(self) -> int:
        """Return this machine's time (ns)."""
        await trio.lowlevel.checkpoint()
        return self._now()

    def fetch(
        self, series: Series, span: Span
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Page]]:
        """Open the pages of `span` up to now. Raises RequestError for other data types."""
        if series.data_type.name not in self.data_types():
            raise RequestError(
                "bad_request",
                f"the synthetic exchange has no {series.data_type.name}; use trade or"
                f" candle_<interval> with one of {', '.join(INTERVALS)}",
            )
        return self._stream(series, span)

    @trio.as_safe_channel
    async def _stream(self, series: Series, span: Span) -> AsyncGenerator[Page, None]:
        pages = self._pages(series, span, self._now())
        while not isinstance(
            page := await trio.to_thread.run_sync(next, pages, _DONE, limiter=self._threads), _Done
        ):
            if page is not None:
                yield page

    def _pages(self, series: Series, span: Span, now: int) -> Iterator[Page | None]:
        """Yield the pages; None now and then, where a cancellation may be looked for."""
        interval = series.data_type.interval
        end = min(now, LATEST) if interval is None else interval.floor(min(now, LATEST))
        end = min(span.end, end)
        start = max(span.start, EARLIEST)
        if span.start < min(start, end):  # before anything was traded
            yield Page(Batch.empty(series), Span(span.start, min(start, end)))
        if start >= end:
            return
        options = self.options
        symbol = series.symbol
        tape = Tape(
            Seeds(options.seed, f"{symbol.base}/{symbol.quote}", str(symbol)),
            market_of(series.exchange, symbol),
            options.trades_per_second,
            options.gaps,
        )
        pages = (
            trade_pages(tape, series, Span(start, end))
            if interval is None
            else Candles(tape, series, interval, Span(start, end)).pages()
        )
        source = f"synthetic, seed {options.seed}"
        for page in pages:
            yield None if page is None else replace(page, source=source)


class _Done:
    """What stands after the last page."""


_DONE = _Done()


def trade_pages(tape: Tape, series: Series, span: Span) -> Iterator[Page]:
    """Yield the trades of `span` in pages of about `PAGE_ROWS` rows."""
    kept: list[Trades] = []
    start = span.start
    for step, trades in tape.stream(span, PAGE_ROWS // 2):
        kept.append(trades)
        if sum(map(len, kept)) < PAGE_ROWS // 2 and step.end < span.end:
            continue
        whole = Trades.concat(kept)
        kept = []
        first = 0
        while len(whole) - first > PAGE_ROWS:
            # Trades of one millisecond stay on one page, which is cut by time.
            cut = int(np.searchsorted(whole.times, whole.times[first + PAGE_ROWS]))
            if cut == first:
                cut = int(np.searchsorted(whole.times, whole.times[first], "right"))
            upto = int(whole.times[cut]) if cut < len(whole) else step.end
            yield _trade_page(tape, series, Span(start, upto), whole[first:cut])
            start, first = upto, cut
        yield _trade_page(tape, series, Span(start, step.end), whole[first:])
        start = step.end


def _trade_page(tape: Tape, series: Series, span: Span, trades: Trades) -> Page:
    market = tape.market
    fields = {
        "price": Decimals(trades.ticks * market.tick_unit, market.price_scale),
        "amount": Decimals(trades.lots * market.lot_unit, market.amount_scale),
    }
    batch = Batch(series, trades.times, fields, trades.ids, trades.sides)
    gaps = tuple(Gap(outage, "exchange_down") for outage in tape.activity.outages(span))
    return Page(batch, span, gaps)
