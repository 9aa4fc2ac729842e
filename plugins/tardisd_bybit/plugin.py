"""Exchange plugin `bybit`: spot and linear swaps; candles over REST, trades from the archives.

How candles are paged is told in `candles`, which files there are in `archive`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Literal
from urllib.parse import urlsplit

import trio
from msgspec import Meta

from tardisd.dumps.host import DumpHost
from tardisd.dumps.losses import Losses
from tardisd.errors import DataError, RequestError
from tardisd.market.series import SPOT, Instrument, Series
from tardisd.market.span import Span
from tardisd.market.time import format_time, parse_time
from tardisd.plugins.base import Context, Options
from tardisd.plugins.exchange import Availability, Exchange, Page
from tardisd.venue.client import Missing, Patience, VenueClient
from tardisd.wall import wall_ns

from .archive import File, files_of, folder_of, names_in
from .candles import AT_ONCE, candle_pages
from .formats import BybitSpotTrades, BybitSwapTrades
from .judge import judge_archive, judge_rest
from .rest import INTERVALS, LIMIT, Rest

TRADES_HINT = (
    "from the archives, by the day: yesterday's come out at about 01:10 UTC; the REST interface has"
    " no more than the latest thousand"
)
_TRADES_SINCE = parse_time("2020-03-25T00:00:00Z")


class BybitOptions(Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where Bybit is, and how to treat it."""

    rest_url: Annotated[
        str, Meta(description="some regions have hosts of their own, as https://api.bybit.eu")
    ] = "https://api.bybit.com"
    archive_url: Annotated[str, Meta(description="files of whole days")] = (
        "https://public.bybit.com"
    )
    archives: Annotated[
        Literal["prefer", "never", "only"],
        Meta(description="trades come from files alone, candles from REST alone: never and only"
             " leave the one or the other out"),
    ] = "prefer"  # fmt: skip
    budget_share: Annotated[
        float, Meta(ge=0.01, le=1.0, description="how much of the venue's rate limits to use")
    ] = 0.85
    proxy: Annotated[
        str | None,
        Meta(description="HTTP proxy; none by default", examples=["http://127.0.0.1:3128"]),
    ] = None
    user_agent: Annotated[
        str | None,
        Meta(description="what to call oneself; default: tardisd/<version>", examples=["me/1.0"]),
    ] = None


class Bybit(Exchange[BybitOptions]):
    """Bybit spot and linear swaps."""

    name = "bybit"
    Options = BybitOptions

    def __init__(
        self, options: BybitOptions, context: Context, *, patience: Patience | None = None
    ) -> None:
        super().__init__(options, context)
        budgets, share = context.budgets, options.budget_share
        self._rest = Rest(
            VenueClient(
                options.rest_url,
                budgets.of(urlsplit(options.rest_url).netloc, [LIMIT], share),
                judge_rest,
                user_agent=options.user_agent,
                proxy=options.proxy,
                concurrency=AT_ONCE,
                patience=patience,
            )
        )
        host = VenueClient(
            options.archive_url,
            budgets.of(urlsplit(options.archive_url).netloc, [], share),
            judge_archive,
            user_agent=options.user_agent,
            proxy=options.proxy,
            patience=patience,
        )
        folder = context.data_dir / "downloads" / context.name
        self._host = DumpHost(host, folder, [BybitSwapTrades(), BybitSpotTrades()])

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Hold the connections open."""
        await trio.to_thread.run_sync(self._host.tidy_up)
        async with self._rest.client.opened(), self._host.client.opened():
            yield

    def data_types(self) -> Mapping[str, Availability]:
        """Return candles and trades."""
        found = {f"candle_{interval}": Availability() for interval in INTERVALS}
        found["trade"] = Availability(since=_TRADES_SINCE, hint=TRADES_HINT)
        return found

    async def instruments(self) -> Sequence[Instrument]:
        """Return the spot pairs and linear perpetuals that are listed now."""
        spot = await self._rest.instruments(self.name, "spot")
        return [*spot, *await self._rest.instruments(self.name, "linear")]

    async def server_time(self) -> int:
        """Return Bybit's clock (ns); with archives alone, this machine's."""
        if self.options.archives == "only":
            await trio.lowlevel.checkpoint()
            return wall_ns()
        return await self._rest.server_time()

    def fetch(
        self, series: Series, span: Span
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Page]]:
        """Open the pages of `span`: candles up to Bybit's clock, trades up to the newest file.

        Raises RequestError for what it lacks.
        """
        name = series.data_type.name
        if name not in self.data_types():
            raise RequestError(
                "bad_request",
                f"bybit has no {name}; it has trade and candle_<interval> with one of"
                f" {', '.join(INTERVALS)}",
            )
        if name == "trade":
            if self.options.archives == "never":
                raise RequestError(
                    "bad_request",
                    "bybit has no trade history over REST; it is in the archives"
                    ' (public.bybit.com): set archives = "prefer"',
                )
            return self._trades(series, span)
        if self.options.archives == "only":
            raise RequestError(
                "bad_request",
                "bybit publishes no files of candles; they are had over REST: set"
                ' archives = "prefer"',
            )
        return candle_pages(self._rest, series, span)

    @trio.as_safe_channel
    async def _trades(self, series: Series, span: Span) -> AsyncGenerator[Page, None]:
        files = await self._files(series)
        reach = files[-1].span.end
        if span.end <= files[0].span.start:
            raise RequestError(
                "no_data",
                f"bybit's archive of {series.symbol} begins at {format_time(files[0].span.start)};"
                " there are no earlier trades to be had",
            )
        cursor, end, losses = span.start, min(span.end, reach), Losses(series)
        for file in files:
            wanted = file.span.intersect(Span(cursor, max(cursor, end)))
            if wanted is None:
                continue
            if cursor < wanted.start:
                yield losses.page(Span(cursor, wanted.start), "no file")
            cursor = wanted.start
            try:
                async with self._host.opened(file.path, series) as (dump, source):
                    for piece in dump.pieces(wanted):
                        yield await dump.load(piece, source)
                        cursor = piece.span.end
            except DataError as error:
                left = Span(cursor, wanted.end)
                losses.note(left, error.message)
                yield losses.page(left, "damaged file")
            cursor = wanted.end
        if cursor < end:
            yield losses.page(Span(cursor, end), "no file")
        losses.tell()

    async def _files(self, series: Series) -> list[File]:
        folder = folder_of(series)
        try:
            names = await self._host.client.read(folder, None, names_in, weight=0)
        except Missing:
            names = []
        files = files_of(series, names)
        if not files:
            market = "spot" if series.symbol.kind == SPOT else "linear"
            raise RequestError(
                "bad_request",
                f"bybit's archives have no trades of {market} {series.symbol}"
                f" ({self._host.client.base_url}{folder}); is it spelt as the venue does, and is it"
                " spot (BTC/USDT) or swap (BTC/USDT:USDT)?",
            )
        return files
