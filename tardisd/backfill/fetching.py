"""Fetch one series of a job with patience: what may pass is tried again, what is final is not.

Which series comes when, and what is kept of it, is the job book's affair.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from tardisd.backfill.job import BackfillResult, ContractBroken, run_backfill
from tardisd.backfill.records import COOLING_DOWN, RUNNING, Part
from tardisd.errors import DataError, PluginError, RequestError, Retry, Unavailable
from tardisd.log import Log
from tardisd.market.span import Span
from tardisd.market.time import format_time
from tardisd.plugins.exchange import Exchange
from tardisd.plugins.storage import Appended, Storage
from tardisd.progress import Progress
from tardisd.supervise import Backoff

log = Log("tardisd.backfill")

# Attempts without any page in between. The waits between them double up to a quarter of an hour:
# together about an hour, which outlasts most of what venues call maintenance.
MAX_ATTEMPTS = 10
FIRST_WAIT_SECS = 1.0
MOST_WAIT_SECS = 900.0
# A page that fails its checks may have been caught while the venue was changing it; not thrice.
MAX_BAD_PAGES = 3

T = TypeVar("T")


async def patiently(part: Part, action: Callable[[], Awaitable[T]]) -> T:
    """Return what `action` returns, having tried again after failures that may pass.

    A stored page of the part starts the count anew. Raises the last error when patience ends, and
    at once what no repetition mends.
    """
    backoff = Backoff(first=FIRST_WAIT_SECS, most=MOST_WAIT_SECS)
    bad_pages = 0
    while True:
        pages, part.state, part.message = part.pages, RUNNING, ""
        try:
            return await action()
        except (ContractBroken, Unavailable):
            raise
        except (PluginError, DataError) as error:
            if part.pages > pages:
                backoff.reset()
                bad_pages = 0
            bad_pages += isinstance(error, DataError)
            wait = backoff.next()
            if backoff.attempts >= MAX_ATTEMPTS or bad_pages >= MAX_BAD_PAGES:
                raise
            if isinstance(error, Retry):
                wait = max(wait, error.after)
            log.warning("fetch failed", series=part.series, error=error.message,
                        wait_secs=round(wait, 1))  # fmt: skip
            part.state, part.message = COOLING_DOWN, f"{error.message}; tried again in {wait:.0f} s"
        await trio.sleep(wait)


async def fetch_part(
    part: Part,
    span: Span,
    exchange: Exchange[Any],
    storage: Storage[Any],
    *,
    again: int = 1,
    on_page: Callable[[], None] = lambda: None,
) -> BackfillResult:
    """Fetch what is missing of the part's series; `on_page` is called when one is stored.

    Raises RequestError for what is final, PluginError, DataError or StorageError when patience has
    ended.
    """

    def count(appended: Appended) -> None:
        part.stored(appended)
        if appended.revised:
            log.info("rows revised", series=part.series, rows=appended.revised)

    def progress(step: Progress) -> None:
        # A later attempt counts from what was missing then.
        part.total = max(part.total, step.total)
        part.done = part.total - step.total + step.done
        on_page()

    async def attempt() -> BackfillResult:
        result = await run_backfill(
            part.series, span, exchange, storage, progress, stored=count, again=again
        )
        if not result.complete and not result.pages:
            await _refuse_future(part, span, exchange)
        return result

    result = await patiently(part, attempt)
    part.complete = result.complete
    if result.complete:
        part.done = part.total
    return result


async def _refuse_future(part: Part, span: Span, exchange: Exchange[Any]) -> None:
    now = await exchange.server_time()
    if span.start >= now:
        raise RequestError(
            "bad_request",
            f"{part.series}: {span} lies in the future; the clock of {exchange.name} says"
            f" {format_time(now)}",
        )
