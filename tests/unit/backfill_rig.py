"""What the tests of backfill jobs share: a book over a storage in memory, and a made-up venue."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from tardisd.backfill.jobs import JobBook
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import DAY, HOUR, SECOND, parse_time
from tardisd.state import State
from tardisd.testing.exchange import suite_context
from tardisd.testing.memory import MemoryStorage
from tardisd_synthetic.plugin import Synthetic, SyntheticOptions

CANDLES = Series.parse("synthetic:BTC/USDT@candle_1m")
TRADES = Series.parse("synthetic:BTC/USDT@trade")
OTHERS = [Series.parse(f"synthetic:C{at}/USDT@candle_1h") for at in range(8)]
START = parse_time("2024-03-01T00:00:00Z")
TODAY = Span(START, START + DAY)


class Venue(Synthetic):
    """A made-up venue in pages of six hours.

    `troubles` are raised by the fetches to come (None: no trouble), each after one page, or
    before it with `trouble_first`. After `hold` pages come only as `let` lets them. Its clock runs
    with trio's, from `opened` on.
    """

    def __init__(self, opened=START + 2 * DAY, seed=1):
        options = SyntheticOptions(trades_per_second=0.02, gaps=False, seed=seed)
        super().__init__(options, suite_context(), now=self.clock)
        self.opened = opened
        self.troubles = []
        self.asked = []
        self.gate = None
        self.trouble_first = False
        self.at_once = self.most_at_once = 0
        self.began = None
        self.fetching = set()

    def hold(self):
        """Let no page through."""
        self.gate = trio.Semaphore(0)

    def let(self, pages=1000):
        """Let some pages through."""
        for _ in range(pages):
            self.gate.release()

    def clock(self):
        if self.began is None:
            self.began = trio.current_time()
        return self.opened + int((trio.current_time() - self.began) * SECOND)

    def fetch(self, series, span):
        self.asked.append((series, span))
        trouble = self.troubles.pop(0) if self.troubles else None
        return self.pages(super().fetch(series, span), series, trouble)

    @trio.as_safe_channel
    async def pages(self, fetching, series, trouble):
        assert series not in self.fetching, f"{series} is fetched twice at once"
        self.fetching.add(series)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if trouble is not None and self.trouble_first:
                raise trouble
            async with fetching as pages:
                async for page in pages:
                    for part in cut(page):
                        if self.gate is not None:
                            await self.gate.acquire()
                        yield part
                        if trouble is not None:
                            raise trouble
            if trouble is not None:
                raise trouble
        finally:
            self.fetching.discard(series)
            self.at_once -= 1


async def in_place(function, *args, **options):
    """Stand in for `trio.to_thread.run_sync`: a clock that jumps knows nothing of other threads."""
    await trio.lowlevel.checkpoint()
    return function(*args)


async def until(condition):
    """Return when the condition holds; the clock does not jump meanwhile."""
    while not condition():
        await trio.sleep(0)


def cut(page):
    """Yield a page in parts of six hours."""
    start = page.span.start
    while start < page.span.end:
        part = Span(start, min(start + 6 * HOUR, page.span.end))
        first, last = page.batch.ts_event.searchsorted([part.start, part.end])
        yield replace(page, batch=page.batch[first:last], span=part, gaps=())
        start = part.end


class Rig:
    """A book, its storage and venues; `life` runs the book, again and again if need be."""

    def __init__(self, folder, **venues):
        self.folder = folder
        self.storage = MemoryStorage()
        self.venues = venues or {"made": Venue()}
        self.venue = next(iter(self.venues.values()))

    @asynccontextmanager
    async def life(self, now=None):
        """Run a book as one daemon's life does."""
        state = State(self.folder / "state.sqlite")
        clock = {} if now is None else {"now": now}
        try:
            book = JobBook({"main": self.storage}, self.venues, state, **clock)
            async with book.run():
                yield book
        finally:
            state.close()

    def submit(self, book, *series, span=TODAY, exchange="made"):
        """Begin a job."""
        return book.submit([(one, exchange) for one in series], span, "main")

    async def rows(self, series):
        """Return all that is stored of a series."""
        async with self.storage.read(series, Span(0, 2**62)) as batches:
            return Batch.concat([Batch.empty(series), *[batch async for batch in batches]])
