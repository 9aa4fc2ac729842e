"""One run of a backfill: fetch what is missing, check it, store it; no schedule and no retries.

Every page is committed with the coverage it proves before the next one is asked for. A run that
ends early, for whatever reason, has stored whole pages, and the next run goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from tardisd.backfill.plan import missing_spans
from tardisd.errors import DataError, PluginError, RequestError
from tardisd.market.check import check_batch
from tardisd.market.series import Series
from tardisd.market.span import Gap, Span
from tardisd.market.time import format_time
from tardisd.plugins.exchange import Exchange, Page
from tardisd.plugins.storage import Appended, Storage
from tardisd.progress import Progress


class ContractBroken(PluginError):
    """Raised when an exchange plugin gives what was not asked for; trying again would not help."""


@dataclass(frozen=True, slots=True)
class BackfillResult:
    """What a run has done, in pages and rows; `complete` when the whole span is covered now."""

    pages: int = 0
    added: int = 0
    unchanged: int = 0
    revised: int = 0
    complete: bool = False


async def run_backfill(
    series: Series,
    span: Span,
    exchange: Exchange[Any],
    storage: Storage[Any],
    progress: Callable[[Progress], None],
    *,
    stored: Callable[[Appended], None] = lambda _: None,
    again: int = 1,
) -> BackfillResult:
    """Fetch and store what `storage` does not have of `span`; progress counts ns of market time.

    `stored` hears of every page what it changed; the last `again` covered candles are asked for
    anew where something follows them. Raises what the exchange raises (RequestError, PluginError),
    DataError for a page that fails its checks, StorageError. What then is still missing of the span
    being fetched is recorded as a gap with the cause `fetch_failed`, unless the venue was reached
    and refused the request. A RequestError `no_data` is about one stretch of time only, so it is
    raised after the others have been fetched.
    """
    missing = missing_spans(series, span, await storage.coverage(series), again=again)
    total = sum(part.length for part in missing)
    done, pages, rows = 0, 0, Appended()
    out_of_reach: RequestError | None = None
    for part in missing:
        cursor = part.start
        try:
            async with exchange.fetch(series, part) as stream:
                async for page in stream:
                    await _check(series, exchange, page, Span(cursor, part.end))
                    appended = await storage.append(series, page)
                    stored(appended)
                    rows += appended
                    pages, cursor = pages + 1, page.span.end
                    text = f"{series}: {rows.added:,} rows added"
                    progress(Progress(done + cursor - part.start, total, "ns", text))
        except (PluginError, DataError, RequestError) as error:
            if isinstance(error, RequestError) and error.code == "no_data":
                out_of_reach = out_of_reach or error
                continue
            if isinstance(error, RequestError) and error.code != "fetch_failed":
                raise
            rest = (await storage.coverage(series)).gaps(Span(cursor, part.end))
            await storage.record_gaps(series, [Gap(gap, "fetch_failed") for gap in rest])
            raise
        done += part.length
    if out_of_reach is not None:
        raise out_of_reach
    complete = (await storage.coverage(series)).covers(span)
    return BackfillResult(pages, rows.added, rows.unchanged, rows.revised, complete)


async def _check(series: Series, exchange: Exchange[Any], page: Page, rest: Span) -> None:
    """Raise unless the page is what was due next, for `rest`, and its rows are sane."""
    due = page.span.start == rest.start and rest.start < page.span.end <= rest.end
    if not due or page.batch.series != series:
        raise ContractBroken(
            f"exchange {exchange.name} broke its contract: it gave {page.batch.series} {page.span}"
            f" where the next page of {series} {rest} was due; report this to its author"
        )
    try:
        await trio.to_thread.run_sync(check_batch, page.batch, page.span)
    except DataError as error:
        raise DataError(
            f"page {page.span} of {series} ({page.source or exchange.name}) is refused:"
            f" {error}{_evidence(page, error.row)}",
            row=error.row,
        ) from error


def _evidence(page: Page, row: int | None) -> str:
    """Return the offending row in words."""
    if row is None:
        return ""
    batch = page.batch[row : row + 1]
    values = {name: column.texts()[0] for name, column in batch.fields.items()}
    if batch.ids is not None:
        values["id"] = str(batch.ids.tolist()[0])
    told = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
    return f" in row {row}: {format_time(int(batch.ts_event[0]))}, {told}"
