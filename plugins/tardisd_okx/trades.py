"""Trades page by page over REST; stores nothing.

OKX gives trades from the newest back, while pages come from the oldest on: so a span is walked in
stretches, each of which is held. A walk begins at a time and goes on by id, so that none is lost
within a millisecond. Ids follow each other: where some are missing they are asked for again before
that is believed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from decimal import Decimal

import trio

from tardisd.errors import PluginError
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import DAY, MILLISECOND, MINUTE, SECOND
from tardisd.plugins.exchange import Page
from tardisd.venue.client import Unreadable

from .rest import BELIEVED_AFTER, Rest
from .rows import merged

SOURCE = "REST history-trades"
# OKX says three months; some days less are sure.
REACH_NS = 85 * DAY
_FIRST_NS = 10 * MINUTE
_SHORTEST_NS = 100 * MILLISECOND
_WANTED_ROWS = 3_000
_MOST_ROWS = 30_000
_SPARSE_PAGES = 5
_AGREED = 2  # answers that tell the same newest trade as one before them
_SLACK_NS = SECOND  # by how much times may go back from one id to the next


@dataclass(frozen=True, slots=True)
class _Walk:
    """What came of a stretch: its trades, and up to where (ns) OKX has none any more."""

    rows: Batch
    ended: int | None
    sparse: int  # pages in which ids are missing for good


@trio.as_safe_channel
async def trade_pages(
    rest: Rest, series: Series, span: Span, size: Decimal | None, listed_lately: bool
) -> AsyncGenerator[Page, None]:
    """Yield the trades of `span`, page by page. `span` ends before OKX's clock.

    `listed_lately` says that what OKX does not have never was, rather than being too old.
    """
    cursor, length, sparse = span.start, _FIRST_NS, 0
    while cursor < span.end:
        part = Span(cursor, min(cursor + length, span.end))
        # Where ids do not follow each other after all, one more answer must do.
        doubts = BELIEVED_AFTER if sparse < _SPARSE_PAGES else 1
        walk = await _walk(rest, series, part, size, doubts)
        if walk is None:
            if length <= _SHORTEST_NS:
                raise PluginError(f"okx gives more trades of {series} for {part} than can be held")
            length = max(part.length // 8, _SHORTEST_NS)
            continue
        rows = walk.rows
        sparse += walk.sparse
        holes: tuple[Span, ...] = ()
        if walk.ended is not None and walk.ended > part.start and not listed_lately:
            unknown = Span(part.start, min(walk.ended, part.end))
            rows, holes = rows[rows.ts_event >= unknown.end], (unknown,)
        yield Page(rows, part, source=SOURCE, holes=holes)
        cursor = part.end
        share = _WANTED_ROWS / max(len(rows), 1)
        length = max(int(length * min(max(share, 0.25), 4.0)), _SHORTEST_NS)


async def _walk(
    rest: Rest, series: Series, part: Span, size: Decimal | None, doubts: int
) -> _Walk | None:
    """Return the trades of a stretch; None when they are too many to hold."""
    pages: list[Batch] = []
    count, below, ended, sparse = 0, 0, None, 0
    while True:
        page, whole = await _page(rest, series, part, size, below, doubts)
        if page.ids is None or not len(page):
            # Rows of the last millisecond may be cut: only what is after it is whole.
            oldest = min((int(it.ts_event[0]) for it in pages), default=part.end - MILLISECOND)
            ended = oldest + MILLISECOND
            break
        pages.append(page)
        sparse += not whole
        count += int((page.ts_event >= part.start).sum())
        below = int(page.ids.min())
        if count > _MOST_ROWS:
            return None
        if int(page.ts_event[0]) < part.start - _SLACK_NS or below <= 1:
            break
    rows = _joined(series, pages).within(part) if pages else Batch.empty(series)
    return _Walk(rows, ended, sparse)


async def _page(
    rest: Rest, series: Series, part: Span, size: Decimal | None, below: int, doubts: int
) -> tuple[Batch, bool]:
    """Return the newest trades of a stretch, or below an id, and whether their ids are whole.

    Where ids are missing it asks again, `doubts` times; no trade at all is doubted the most. No id
    tells whether an answer by time begins with the newest trade: two more must have no newer one.
    """
    found = Batch.empty(series)
    newest, agreed = 0, 0
    for attempt in range(1 + BELIEVED_AFTER):
        if len(found) and attempt > doubts:
            break
        if below:
            page = await rest.trades(series, size, before_id=below)
        else:
            page = await rest.trades(series, size, before_ts=part.end)
        found = _joined(series, [found, page]) if len(found) else page
        if found.ids is not None and len(found):
            low, high = int(found.ids.min()), int(found.ids.max())
            agreed = agreed + 1 if high == newest else 0
            begins = high == below - 1 if below else agreed == _AGREED
            if high - low + 1 == len(found) and begins:
                return found, True
            newest = high
    return found, False


def _joined(series: Series, batches: list[Batch]) -> Batch:
    try:
        return merged(batches)
    except Unreadable as error:
        raise PluginError(f"two answers on {series} differ: {error}; try again") from None
