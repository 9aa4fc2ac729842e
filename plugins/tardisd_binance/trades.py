"""Trades page by page over REST, by id: none lost within a millisecond; stores nothing.

Paging by time would lose trades of one millisecond, so time is only where the walk begins. Ids
follow each other; where some are missing, they are asked for again before that is believed.
Times may go back a little from one id to the next: rows are held until they are a second old.
"""

from __future__ import annotations

import numpy as np
import trio

from tardisd.errors import PluginError
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import SECOND, format_time
from tardisd.plugins.exchange import Page

from .candles import BELIEVED_AFTER, tidy
from .rest import Rest, merged

_HELD_NS = SECOND
_MOST_HELD = 200_000  # rows; so many within a second are no market
_NEAR = 500  # ids: less than a page, so that the rest is found by reading on


class TradePager:
    """The trades of `span`, page by page. `span` ends at or before the venue's clock."""

    def __init__(self, rest: Rest, series: Series, span: Span) -> None:
        self._rest = rest
        self._series = series
        self._span = span
        self._cursor = span.start
        self._next_id: int | None = None
        self._holes = self._nothings = 0  # answers running that lack rows, or have none
        self._held: list[Batch] = []
        self._ended = False

    async def next(self) -> Page | None:
        """Return the next page, None after the last."""
        if self._cursor >= self._span.end:
            return None
        if self._next_id is None and not self._ended:
            self._next_id = await self._seek()
            self._ended = self._next_id is None
        while True:
            cut = self._span.end if self._ended else self._cut()
            if cut > self._cursor:
                return await trio.to_thread.run_sync(self._page, cut)
            await self._read_on()

    def _cut(self) -> int:
        """Return up to where (ns) all trades are known to be here."""
        if not self._held:
            return self._cursor
        newest = max(int(batch.ts_event[-1]) for batch in self._held)
        count = sum(map(len, self._held))
        cut = newest - _HELD_NS if count < _MOST_HELD else newest
        if count > 2 * _MOST_HELD and cut <= self._cursor:
            raise PluginError(
                f"binance gives more than {count} trades of {self._series} for one instant,"
                f" {format_time(newest)}"
            )
        return min(cut, self._span.end)

    def _page(self, cut: int) -> Page:
        rows = merged(self._held) if self._held else Batch.empty(self._series)
        times = rows.ts_event
        if len(times) and int(times[0]) < self._cursor:
            raise PluginError(
                f"binance's trades of {self._series} go back in time by more than a second, to"
                f" {format_time(int(times[0]))}; fetch this span again"
            )
        kept = rows[times >= cut]
        self._held = [kept] if len(kept) else []
        span = Span(self._cursor, cut)
        self._cursor = cut
        name = "aggTrades" if self._series.data_type.name == "agg_trade" else "historicalTrades"
        return Page(tidy(rows[times < cut]), span, source=f"REST {name}")

    async def _read_on(self) -> None:
        assert self._next_id is not None
        batch = await self._from_id(self._next_id)
        ids = batch.ids
        if ids is None or not len(batch):
            # Either there is no newer trade, or it is a slip: it must be said again.
            self._ended = self._nothings == BELIEVED_AFTER
            self._nothings += 1
            return
        self._nothings = 0
        sorted_ids = np.sort(ids)
        if int(sorted_ids[0]) < self._next_id:
            raise PluginError(f"binance gives trades before the id asked for ({self._next_id})")
        if int(sorted_ids[0]) > self._next_id and self._holes < BELIEVED_AFTER:
            self._holes += 1
            return
        self._holes = 0
        breaks = np.flatnonzero(np.diff(sorted_ids) > 1)
        last = int(sorted_ids[breaks[0] if len(breaks) else -1])
        if len(breaks):  # what stands behind the break is asked for again, from there
            batch = batch[ids <= last]
        self._next_id = last + 1
        # The first rows may be from before the span: the walk begins a little early.
        batch = batch[batch.ts_event >= self._span.start]
        if len(batch):
            self._held.append(batch)

    async def _from_id(self, from_id: int) -> Batch:
        if self._series.data_type.name == "agg_trade":
            return await self._rest.agg_trades(self._series, from_id=from_id)
        return await self._rest.historical_trades(self._series, from_id)

    async def _seek(self) -> int | None:
        """Return the id to begin with; None when there is no trade at or after the start."""
        start = self._span.start
        if self._series.data_type.name != "agg_trade":
            return await seek_trade(self._rest, self._series, start)
        for _ in range(
            1 + BELIEVED_AFTER
        ):  # an empty answer would cover everything: it must not be a slip
            found = await self._rest.agg_trades(self._series, start=start, limit=1)
            if found.ids is not None and len(found):
                return int(found.ids[0])
        return None


async def seek_trade(rest: Rest, series: Series, start: int) -> int | None:
    """Return an id shortly before the first raw trade at or after `start` (ns), if there is one.

    Raw trades can be asked for by id only. An aggregate trade tells an id near the place; where
    that is wrong, the place is found by halving.
    """
    for _ in range(1 + BELIEVED_AFTER):  # that nothing is there would cover everything
        newest = await rest.newest_trade(series)
        if len(newest) and int(newest.ts_event[0]) >= start:
            break
    else:
        return None
    assert newest.ids is not None
    low, high = -1, int(newest.ids[0])  # trades up to `low` are before, `high` is not
    near = await rest.first_trade_id(series, start)
    probes = [] if near is None or near >= high else [max(near - _NEAR // 2, 0), near]
    while high - low > _NEAR:
        probe = probes.pop(0) if probes else (low + high) // 2
        if not low < probe < high:
            continue
        found = await rest.historical_trades(series, probe, 1)
        if found.ids is None or not len(found):
            raise PluginError(
                f"binance has no trade of {series} from id {probe} on, yet newer ones"
            )
        if int(found.ts_event[0]) < start:
            low = max(low + 1, int(found.ids[0]))
        else:
            high = probe
    return low + 1
