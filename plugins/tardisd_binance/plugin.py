"""Exchange plugin `binance`: spot and USD-M swaps, from the archives and over REST.

It decides where each part of a span comes from; how a page is had is told in `candles`, `trades`
and `archive`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Annotated, Literal
from urllib.parse import urlsplit

import trio
from msgspec import Meta

from tardisd.dumps.losses import Losses
from tardisd.errors import DataError, PluginError, RequestError
from tardisd.log import Log
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.series import SPOT, SWAP, Instrument, Series
from tardisd.market.span import Span
from tardisd.market.time import DAY, EARLIEST, HOUR, MINUTE, SECOND, Interval
from tardisd.plugins.base import Context, Options
from tardisd.plugins.exchange import Availability, Exchange, Page
from tardisd.venue.client import Missing, Patience, VenueClient
from tardisd.venue.lead import Lead
from tardisd.wall import wall_ns

from .archive import Archive, File, Plan, Turn
from .candles import AT_ONCE, CandlePager, fill_holes
from .formats import BinanceAggTrades, BinanceKlines, BinanceTrades
from .judge import ARCHIVE_HINT, RestJudge, judge_archive
from .rest import RULES, Rest
from .trades import TradePager

log = Log("tardisd.binance")

INTERVALS = ("1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d",
             "1w", "1M")  # fmt: skip
SPOT_ONLY = "1s"
# The venue's servers take a moment until what has happened can be asked for.
SETTLE_NS = 3 * SECOND
_REST_REACH = 2 * DAY - 10 * MINUTE  # of USD-M's aggTrades
_WORTH_PAGES = 4  # of candles: for fewer, asking is faster than a file with its checksum
_WORTH_TIME = {"agg_trade": HOUR, "trade": 10 * MINUTE}
_COMPARED_ROWS = 100
_MIRROR = "data-api.binance.vision"  # has no historicalTrades


class BinanceOptions(Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where Binance is, and how to treat it."""

    rest_url: Annotated[
        str,
        Meta(
            description="spot; raw trades of today need https://api.binance.com, the rest does not"
        ),
    ] = "https://data-api.binance.vision"
    swap_rest_url: Annotated[str, Meta(description="USD-M swaps")] = "https://fapi.binance.com"
    archive_url: Annotated[str, Meta(description="files of whole days and months")] = (
        "https://data.binance.vision"
    )
    archives: Annotated[
        Literal["prefer", "never", "only"],
        Meta(description="take files where they pay (prefer), never, or nothing else (only)"),
    ] = "prefer"
    budget_share: Annotated[
        float, Meta(ge=0.02, le=1.0, description="how much of the venue's rate limits to use")
    ] = 0.85
    proxy: Annotated[
        str | None,
        Meta(description="HTTP proxy; none by default", examples=["http://127.0.0.1:3128"]),
    ] = None
    user_agent: Annotated[
        str | None,
        Meta(description="what to call oneself; default: tardisd/<version>", examples=["me/1.0"]),
    ] = None


class Binance(Exchange[BinanceOptions]):
    """Binance spot and USD-M swaps."""

    name = "binance"
    Options = BinanceOptions

    def __init__(
        self, options: BinanceOptions, context: Context, *, patience: Patience | None = None
    ) -> None:
        super().__init__(options, context)
        self._rest = {
            kind: self._make_rest(kind, url, patience)
            for kind, url in ((SPOT, options.rest_url), (SWAP, options.swap_rest_url))
        }
        host = VenueClient(
            options.archive_url,
            context.budgets.of(urlsplit(options.archive_url).netloc, [], options.budget_share),
            judge_archive,
            user_agent=options.user_agent,
            proxy=options.proxy,
            patience=patience,
        )
        formats = [BinanceKlines(), BinanceTrades(), BinanceAggTrades()]
        self._archive = Archive(host, context.data_dir / "downloads" / context.name, formats)
        self._begins: dict[tuple[str, str], int] = {}

    def _make_rest(self, kind: str, url: str, patience: Patience | None) -> Rest:
        rules, options = RULES[kind], self.options
        budget = self.context.budgets.of(urlsplit(url).netloc, [rules.limit], options.budget_share)
        client = VenueClient(
            url,
            budget,
            RestJudge(budget, rules.limit.name),
            user_agent=options.user_agent,
            proxy=options.proxy,
            concurrency=AT_ONCE,
            patience=patience,
        )
        return Rest(client, rules)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Hold the connections open."""
        await trio.to_thread.run_sync(self._archive.tidy_up)
        async with AsyncExitStack() as opened:
            for client in (*(rest.client for rest in self._rest.values()), self._archive.client):
                await opened.enter_async_context(client.opened())
            yield

    def data_types(self) -> Mapping[str, Availability]:
        """Return candles, aggregate and raw trades."""
        found = {f"candle_{interval}": Availability() for interval in INTERVALS}
        found[f"candle_{SPOT_ONLY}"] = Availability(hint="spot only")
        found["agg_trade"] = Availability(
            hint="USD-M over REST: the last 48 hours; older ones from the archives"
        )
        found["trade"] = Availability(
            hint="from the archives, a day late; spot also over REST from https://api.binance.com"
        )
        return found

    async def instruments(self) -> Sequence[Instrument]:
        """Return the spot pairs and USD-M perpetuals; either alone when the other is not had."""
        found: list[Instrument] = []
        failures: list[PluginError | RequestError] = []
        for kind, rest in self._rest.items():
            try:
                found += await rest.instruments(self.name)
            except (PluginError, RequestError) as error:
                log.warning("instruments not had", market=kind, reason=error.message)
                failures.append(error)
        if len(failures) == len(self._rest):
            raise failures[0]
        return found

    async def server_time(self) -> int:
        """Return Binance's clock (ns); with archives alone, this machine's."""
        return await self._time_of(SPOT)

    async def _time_of(self, kind: str) -> int:
        if self.options.archives == "only":
            await trio.lowlevel.checkpoint()
            return wall_ns()
        return await self._rest[kind].server_time()

    def fetch(
        self, series: Series, span: Span
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Page]]:
        """Open the pages of `span` up to Binance's clock. Raises RequestError for what it lacks."""
        name, kind = series.data_type.name, series.symbol.kind
        if name not in self.data_types() or (kind == SWAP and name == f"candle_{SPOT_ONLY}"):
            known = [interval for interval in INTERVALS if kind == SPOT or interval != SPOT_ONLY]
            raise RequestError(
                "bad_request",
                f"binance has no {name} of {'spot' if kind == SPOT else 'USD-M swaps'}; it has"
                f" agg_trade, trade and candle_<interval> with one of {', '.join(known)}",
            )
        if name == "trade" and self.options.archives == "never" and not self._has_trades(kind):
            where = "USD-M" if kind == SWAP else _MIRROR
            raise RequestError(
                "bad_request", f"{where} has no raw trades over REST; {ARCHIVE_HINT}"
            )
        return self._streaming(series, span)

    @asynccontextmanager
    async def _streaming(
        self, series: Series, span: Span
    ) -> AsyncIterator[trio.abc.ReceiveChannel[Page]]:
        async with self._archive.in_turn() as turn, self._stream(series, span, turn) as pages:
            yield pages

    @trio.as_safe_channel
    async def _stream(self, series: Series, span: Span, turn: Turn) -> AsyncGenerator[Page, None]:
        now, began = await self._time_of(series.symbol.kind), trio.current_time()
        interval = series.data_type.interval
        end = now - SETTLE_NS
        end, cursor = min(span.end, end if interval is None else interval.floor(end)), span.start
        if cursor >= end:
            return
        self._refuse_what_is_too_old(series, end, now)
        plan = Plan(series, now, self._worth(series))
        losses, lead = Losses(series), Lead(series)
        if self._file(plan, cursor, end) is not None:
            begin = min(await self._first_day(series), end)
            if begin > cursor:  # years without a file need no questions
                yield lead.before(Span(cursor, begin), "before the first day")
                cursor = begin
        while cursor < end:
            file = self._file(plan, cursor, end)
            if file is None:
                stop = end if self.options.archives == "never" else plan.next_start(cursor, end)
                reach = self._rest_since(series, now + _elapsed(began))
                reach = stop if reach is None else min(max(reach, cursor), stop)
                if reach > cursor:
                    yield losses.page(Span(cursor, reach), "not had")
                pager = self._pager(series, Span(reach, stop), now - SETTLE_NS, turn.nursery)
                while (page := await pager.next()) is not None:
                    if await self._begins_in(page, span):
                        lead.begins()
                    yield lead.mark(page)
                cursor = stop
                continue
            try:
                following = self._file(plan, file.span.end, end)
                async with turn.opened(file, following, series) as (dump, source):
                    if await self._agrees(series, await dump.last(_COMPARED_ROWS), file):
                        for piece in dump.pieces(Span(cursor, min(file.span.end, end))):
                            page = await self._filled(await dump.load(piece, source), series)
                            yield lead.mark(page)
                            cursor = piece.span.end
                    else:
                        plan.missing(file)
            except (Missing, DataError) as error:  # what is wrong with a file is logged there
                log.debug("archive not used", file=file.name, reason=error.message)
                plan.missing(file)
                if isinstance(error, DataError):
                    losses.note(file.span, error.message)
            except (PluginError, RequestError) as error:
                # Candles are had over REST too; of trades it would be too many.
                if interval is None or self.options.archives == "only":
                    raise
                log.warning("archives out of reach", file=file.name, reason=error.message)
                await trio.to_thread.run_sync(self._archive.discard, file)
                plan.missing(file)
        losses.tell()

    def _file(self, plan: Plan, cursor: int, end: int) -> File | None:
        return None if self.options.archives == "never" else plan.at(cursor, end)

    def _pager(
        self, series: Series, span: Span, closed_by: int, nursery: trio.Nursery
    ) -> CandlePager | TradePager:
        rest = self._rest[series.symbol.kind]
        if series.data_type.interval is not None:
            return CandlePager(rest, series, span, closed_by, nursery)
        return TradePager(rest, series, span)

    def _rest_since(self, series: Series, now: int) -> int | None:
        """Return the earliest time (ns) that REST gives; None when it gives nothing."""
        kind, name = series.symbol.kind, series.data_type.name
        if self.options.archives == "only" or (name == "trade" and not self._has_trades(kind)):
            return None
        reach = now - _REST_REACH
        return reach - reach % MINUTE if kind == SWAP and name == "agg_trade" else EARLIEST - DAY

    def _has_trades(self, kind: str) -> bool:
        return kind == SPOT and urlsplit(self.options.rest_url).hostname != _MIRROR

    def _refuse_what_is_too_old(self, series: Series, end: int, now: int) -> None:
        since = self._rest_since(series, now)
        if self.options.archives == "never" and since is not None and end <= since:
            raise RequestError(
                "no_data", f"USD-M trades reach back 48 hours over REST; {ARCHIVE_HINT}"
            )

    def _worth(self, series: Series) -> int:
        """Return how much time (ns) a file must bring to be taken."""
        interval, kind = series.data_type.interval, series.symbol.kind
        if self.options.archives == "only":
            return 0
        if interval is not None:
            return _WORTH_PAGES * RULES[kind].kline_rows * interval.nominal_ns
        return 0 if kind == SWAP else _WORTH_TIME[series.data_type.name]

    async def _first_day(self, series: Series) -> int:
        """Return the day (ns) of the symbol's first candle; the earliest time when unknown."""
        key = (series.symbol.kind, series.symbol.venue_id(series.exchange))
        if self.options.archives == "only":
            return EARLIEST
        if key not in self._begins:
            days = Series.of(series.exchange, str(series.symbol), "candle_1d")
            try:
                found = await self._rest[key[0]].klines(days, EARLIEST, limit=1)
            except RequestError as error:
                if error.code != "bad_request":
                    raise
                return EARLIEST  # no longer listed; the archives keep what was
            if not len(found):
                return EARLIEST
            self._begins[key] = Interval(1, "d").floor(int(found.ts_event[0]))
        return self._begins[key]

    async def _begins_in(self, page: Page, span: Span) -> bool:
        """Tell whether the first page of a span lacks candles because there were none as yet."""
        series, opens = page.batch.series, page.batch.ts_event
        first = int(opens[0]) if len(opens) else page.span.end
        if series.data_type.interval is None or page.span.start > span.start:
            return False
        return first - span.start > DAY and await self._first_day(series) > span.start

    async def _filled(self, page: Page, series: Series) -> Page:
        """Return a page of a file with the candles that only REST has."""
        if series.data_type.interval is None or self.options.archives == "only":
            return page
        rest = self._rest[series.symbol.kind]
        batch = await fill_holes(rest, series, page.batch, page.span)
        if batch is page.batch:
            return page
        more = len(batch) - len(page.batch)
        log.info("archive filled up", series=str(series), span=str(page.span), candles=more)
        return replace(page, batch=batch, source=f"{page.source} and REST klines")

    async def _agrees(self, series: Series, rows: Batch, file: File) -> bool:
        """Tell whether REST has the same as the last rows of a file, as far as it can be asked.

        Candles that differ are had over REST instead; trades have their checksum, and would take
        days that way: that they differ is logged.
        """
        rest = self._rest[series.symbol.kind]
        first = int(rows.ts_event[0])
        try:
            if self.options.archives == "only" or series.data_type.name == "trade":
                return True
            if series.data_type.interval is not None:
                there = await rest.klines(series, first, limit=len(rows))
            elif series.symbol.kind == SPOT and rows.ids is not None:
                there = await rest.agg_trades(series, from_id=int(rows.ids[0]), limit=len(rows))
            else:
                return True
        except (PluginError, RequestError) as error:
            log.info("archive not compared", file=file.name, reason=error.message)
            return True
        if len(there) == len(rows) and bool(same_rows(there, rows).all()):
            return True
        log.warning("archive and REST differ", file=file.name, compared_rows=len(rows))
        return series.data_type.interval is None


def _elapsed(began: float) -> int:
    return round((trio.current_time() - began) * SECOND)
