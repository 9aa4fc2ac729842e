"""Exchange plugin `okx`: spot and linear swaps, from the archives and over REST.

It decides where each part of a span comes from; how a page is had is told in `candles` and
`trades`, which files there are in `archive`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Annotated, Literal
from urllib.parse import urlsplit

import trio
from msgspec import Meta

from tardisd.dumps.host import DumpHost
from tardisd.dumps.losses import Losses
from tardisd.errors import DataError, PluginError, RequestError
from tardisd.log import Log
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch, closes
from tardisd.market.series import SPOT, SWAP, Instrument, Series
from tardisd.market.span import Span
from tardisd.market.time import DAY, EARLIEST, HOUR, MILLISECOND, SECOND
from tardisd.plugins.base import Context, Options
from tardisd.plugins.exchange import Availability, Exchange, Page
from tardisd.venue.budget import Limit
from tardisd.venue.client import Judge, Missing, Patience, VenueClient
from tardisd.venue.lead import Lead
from tardisd.wall import wall_ns

from .archive import KINDS, SINCE, File, Plan
from .candles import AT_ONCE, candle_pages, fill_holes
from .formats import OkxCandles, OkxTrades
from .judge import judge_archive, judge_rest
from .rest import BARS, CANDLE_ROWS, LIMITS, Rest
from .trades import REACH_NS, trade_pages

log = Log("tardisd.okx")

# A candle may still change in the moment after its close. Trades may come late from OKX's caches,
# which do not all know the same.
SETTLE_NS = 2 * SECOND
TRADES_SETTLE_NS = 10 * SECOND
TRADES_HINT = (
    "the archives have trades since 2021-10-01, two days late; REST has the last three months"
)
_WORTH_PAGES = 4  # of candles: for fewer, asking is faster than a file
_WORTH_TIME = HOUR  # of trades
_COMPARED_ROWS = 100  # as many trades as an answer has


class OkxOptions(Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where OKX is, and how to treat it."""

    rest_url: Annotated[
        str, Meta(description="some regions have hosts of their own, as https://eea.okx.com")
    ] = "https://www.okx.com"
    archive_url: Annotated[str, Meta(description="files of whole days and months")] = (
        "https://static.okx.com"
    )
    archives: Annotated[
        Literal["prefer", "never", "only"],
        Meta(description="take files where they pay (prefer), never, or nothing else (only)"),
    ] = "prefer"
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


class Okx(Exchange[OkxOptions]):
    """OKX spot and linear swaps."""

    name = "okx"
    Options = OkxOptions

    def __init__(
        self,
        options: OkxOptions,
        context: Context,
        *,
        patience: Patience | None = None,
        limits: Mapping[str, Limit] = LIMITS,
    ) -> None:
        super().__init__(options, context)

        def client(url: str, known: Sequence[Limit], judge: Judge) -> VenueClient:
            return VenueClient(
                url,
                context.budgets.of(urlsplit(url).netloc, known, options.budget_share),
                judge,
                user_agent=options.user_agent,
                proxy=options.proxy,
                concurrency=AT_ONCE,
                patience=patience,
            )

        self._rest = Rest(client(options.rest_url, list(limits.values()), judge_rest))
        folder = context.data_dir / "downloads" / context.name
        files = client(options.archive_url, [], judge_archive)
        self._host = DumpHost(files, folder, [OkxTrades(), OkxCandles()])

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Hold the connections open."""
        await trio.to_thread.run_sync(self._host.tidy_up)
        async with self._rest.client.opened(), self._host.client.opened():
            yield

    def data_types(self) -> Mapping[str, Availability]:
        """Return candles and trades."""
        found = {f"candle_{interval}": Availability() for interval in BARS}
        found["candle_1s"] = Availability(depth_ns=90 * DAY)
        found["trade"] = Availability(since=SINCE["trade"], hint=TRADES_HINT)
        return found

    async def instruments(self) -> Sequence[Instrument]:
        """Return the spot pairs and linear perpetuals that are listed now."""
        spot = await self._rest.instruments(self.name, SPOT)
        return [*spot, *await self._rest.instruments(self.name, SWAP)]

    async def server_time(self) -> int:
        """Return OKX's clock (ns); with archives alone, this machine's."""
        if self.options.archives == "only":
            await trio.lowlevel.checkpoint()
            return wall_ns()
        return await self._rest.server_time()

    def fetch(
        self, series: Series, span: Span
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Page]]:
        """Open the pages of `span` up to OKX's clock. Raises RequestError for what it lacks."""
        name = series.data_type.name
        if name not in self.data_types():
            raise RequestError(
                "bad_request",
                f"okx has no {name}; it has trade and candle_<interval> with one of"
                f" {', '.join(BARS)}",
            )
        if self.options.archives == "only" and name not in KINDS:
            raise RequestError(
                "bad_request",
                f"okx publishes files of trade and candle_1m only; {name} is had over REST: set"
                ' archives = "prefer"',
            )
        return self._stream(series, span)

    @trio.as_safe_channel
    async def _stream(self, series: Series, span: Span) -> AsyncGenerator[Page, None]:
        now, interval = await self.server_time(), series.data_type.interval
        only = self.options.archives == "only"
        closed_by = now - (TRADES_SETTLE_NS if interval is None else SETTLE_NS)
        end = min(span.end, closed_by if interval is None else interval.floor(closed_by))
        cursor = span.start
        if cursor >= end:
            return
        rest_since = EARLIEST if interval is not None else now - REACH_NS
        rest_since = end if only else rest_since - rest_since % MILLISECOND
        self._refuse_what_is_too_old(series, end, rest_since)
        size = await self._rest.contract_size(series) if interval is None else None
        plan = Plan(series, now, self._worth(series), rest_since)
        losses, lead = Losses(series), Lead(series)
        if not only and self._file(plan, cursor, end) is not None:
            begin = min(await self._first_month(series, now), end)
            if begin > cursor:  # years without a file need no questions
                yield lead.before(Span(cursor, begin), "before the first month")
                cursor = begin
        while cursor < end:
            file = self._file(plan, cursor, end)
            if file is None:
                stop = plan.next_start(cursor, end) if self.options.archives != "never" else end
                reach = min(max(rest_since, cursor), stop)
                if reach > cursor:
                    yield losses.page(Span(cursor, reach), "not had")
                if reach < stop:
                    async with await self._over_rest(
                        series, Span(reach, stop), size, now, closed_by
                    ) as pages:
                        reached = reach
                        async for page in pages:
                            yield lead.mark(page)
                            reached = page.span.end
                    if reached < stop:
                        losses.tell()
                        return
                cursor = stop
                continue
            try:
                part = Span(cursor, min(file.span.end, end))
                async with self._from_file(
                    file, series, part, size, rest_since, closed_by
                ) as pages:
                    async for page in pages:
                        yield lead.mark(page)
                        cursor = page.span.end
            except Missing as error:
                log.info("archive not there", file=file.name, reason=error.message)
                plan.missing(file)
            except (DataError, PluginError, RequestError) as error:
                if isinstance(error, DataError):
                    losses.note(file.span, error.message)
                # Candles are had over REST too, and trades where REST reaches so far back.
                elif only or cursor < rest_since:
                    raise
                await self._give_up(file, error.message)
                plan.missing(file)
        losses.tell()

    async def _give_up(self, file: File, reason: str) -> None:
        log.warning("archive not used", file=file.name, reason=reason)
        await trio.to_thread.run_sync(self._host.discard, file.path)

    def _file(self, plan: Plan, cursor: int, end: int) -> File | None:
        return None if self.options.archives == "never" else plan.at(cursor, end)

    @trio.as_safe_channel
    async def _from_file(
        self, file: File, series: Series, span: Span, size: Decimal | None, rest_since: int,
        closed_by: int,
    ) -> AsyncGenerator[Page, None]:  # fmt: skip
        only = self.options.archives == "only"
        opened = self._host.opened(file.path, series, contract_size=size)
        async with opened as (dump, source):
            rows = await dump.last(_COMPARED_ROWS)
            if not only and not await self._agrees(series, rows, file, size, rest_since):
                raise DataError("its last candles are not those of REST", file=file.name)
            for piece in dump.pieces(span):
                page = await dump.load(piece, source)
                yield page if only else await self._filled(page, series, closed_by)

    async def _over_rest(
        self, series: Series, span: Span, size: Decimal | None, now: int, closed_by: int
    ) -> AbstractAsyncContextManager[trio.abc.ReceiveChannel[Page]]:
        if series.data_type.interval is not None:
            return candle_pages(self._rest, series, span, closed_by)
        listed_at = (await self._rest.instrument(series)).listed_at
        lately = listed_at is not None and listed_at > now - REACH_NS
        return trade_pages(self._rest, series, span, size, lately)

    def _refuse_what_is_too_old(self, series: Series, end: int, rest_since: int) -> None:
        if series.data_type.interval is not None and self.options.archives != "only":
            return
        files_since = SINCE[series.data_type.name]
        if self.options.archives == "never" and end <= rest_since:
            raise RequestError(
                "no_data", f'okx: {TRADES_HINT}; set archives = "prefer"'
            )  # fmt: skip
        if end <= files_since and end <= rest_since:
            what = TRADES_HINT if series.data_type.name == "trade" else "files begin at 2023-07-01"
            raise RequestError("no_data", f"okx has no such old {series.data_type}: {what}")

    def _worth(self, series: Series) -> int:
        """Return how much time (ns) a file must bring to be taken."""
        interval = series.data_type.interval
        if self.options.archives == "only":
            return 0
        return _WORTH_TIME if interval is None else _WORTH_PAGES * CANDLE_ROWS * interval.nominal_ns

    async def _first_month(self, series: Series, now: int) -> int:
        """Return the month (ns) of the symbol's first candle; the earliest time when unknown."""
        try:
            month = await self._rest.first_month(series, now)
        except RequestError as error:
            if error.code != "bad_request":
                raise
            return EARLIEST  # no longer listed; the archives keep what was
        return EARLIEST if month is None else month.start

    async def _agrees(
        self, series: Series, rows: Batch, file: File, size: Decimal | None, rest_since: int
    ) -> bool:
        """Tell whether REST has the same as the last rows of a file, as far as it can be asked.

        Candles that differ are had over REST instead; of trades that would take days, so that they
        differ is logged.
        """
        interval = series.data_type.interval
        try:
            if interval is not None:
                span = Span(int(rows.ts_event[0]), int(closes(rows.ts_event[-1:], interval)[0]))
                there = (await self._rest.candles(series, span)).batch
            elif rows.ids is None or int(rows.ts_event[0]) < rest_since:
                return True
            else:
                there = await self._rest.trades(series, size, before_id=int(rows.ids.max()) + 1)
                # Only what both must have: the answer may begin before or after the rows.
                known = there.ids
                if known is None or not len(there):
                    return True
                first = max(int(rows.ids.min()), int(known.min()))
                there, rows = there[known >= first], rows[rows.ids >= first]
        except (PluginError, RequestError) as error:
            log.info("archive not compared", file=file.name, reason=error.message)
            return True
        if len(there) == len(rows) and bool(same_rows(there, rows).all()):
            return True
        if interval is None:
            log.warning("archive and REST differ", file=file.name, compared_rows=len(rows))
        return interval is None

    async def _filled(self, page: Page, series: Series, closed_by: int) -> Page:
        """Return a page of a file with the candles that only REST has."""
        if series.data_type.interval is None:
            return page
        batch = await fill_holes(self._rest, series, page.batch, page.span, closed_by)
        if batch is page.batch:
            return page
        more = len(batch) - len(page.batch)
        log.info("archive filled up", series=str(series), span=str(page.span), candles=more)
        return replace(page, batch=batch, source=f"{page.source} and REST candles")
