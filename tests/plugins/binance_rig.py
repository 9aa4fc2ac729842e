"""What the tests of the Binance exchange share: the venue on loopback, with data, and a plugin."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tardisd.market.check import check_batch, same_rows
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import parse_time
from tardisd.plugins.base import Context
from tardisd.plugins.exchange import Page
from tardisd.testing.exchange import fetch_pages, joined, suite_context
from tardisd.testing.ticks import random_candles, random_trades
from tardisd.testing.venues.binance import BinanceVenue
from tardisd.venue.client import Patience
from tardisd_binance.plugin import Binance, BinanceOptions

HASTY = Patience(attempts=5, first_wait_secs=0.001, most_wait_secs=0.01)
NOW = parse_time("2024-03-20T12:00:30Z")
SPOT, SWAP = "binance:BTC/USDT", "binance:BTC/USDT:USDT"


def at(text: str) -> int:
    """Return ns of `03-20T12:00` in 2024."""
    return parse_time(f"2024-{text}:00Z" if "T" in text else f"2024-{text}T00:00:00Z")


def span(start: str, end: str) -> Span:
    """Return the span between two times in 2024."""
    return Span(at(start), at(end))


def candles(series: str, start: str, end: str) -> Batch:
    """Return candles of all of a span."""
    parsed = Series.parse(series)
    interval = parsed.data_type.interval
    assert interval is not None
    count = (at(end) - at(start)) // interval.nominal_ns
    return random_candles(parsed, count, at(start))


def trades(series: str, start: str, count: int, gap_ms: int) -> Batch:
    """Return trades from a time on."""
    return random_trades(Series.parse(series), count, at(start), mean_gap_ms=gap_ms)


def venue_of(*batches: Batch, **options: Any) -> BinanceVenue:
    """Return a venue that has the batches, at noon of March 20th."""
    options.setdefault("clock", NOW)
    return BinanceVenue({batch.series: batch for batch in batches}, **options)


@asynccontextmanager
async def plugin_at(
    venue: BinanceVenue,
    folder: Path,
    context: Context | None = None,
    patience: Patience = HASTY,
    **options: Any,
) -> AsyncIterator[Binance]:
    """Open a plugin that takes the venue, which serves already, for Binance."""
    made = BinanceOptions(
        **{
            "rest_url": venue.rest_url,
            "swap_rest_url": venue.swap_rest_url,
            "archive_url": venue.archive_url,
            **options,
        }
    )
    plugin = Binance(made, context or suite_context("binance", folder), patience=patience)
    async with plugin.run():
        yield plugin


async def fetched(
    venue: BinanceVenue, folder: Path, series: str, wanted: Span, **options: Any
) -> list[Page]:
    """Return all pages of a span, which have passed the checks that a backfill makes."""
    async with venue.serve(), plugin_at(venue, folder, **options) as plugin:
        pages = await fetch_pages(plugin, Series.parse(series), wanted)
    cursor = wanted.start
    for page in pages:
        assert page.span.start == cursor
        cursor = page.span.end
        check_batch(page.batch, page.span)
    return pages


def assert_same(pages: Sequence[Page], truth: Batch, wanted: Span) -> None:
    """Assert that the pages have exactly the rows of the truth within the span."""
    times = truth.ts_event
    expected = truth[(times >= wanted.start) & (times < wanted.end)]
    found = joined(truth.series, pages)
    assert len(found) == len(expected)
    assert bool(same_rows(found, expected).all())
    assert pages[-1].span.end == wanted.end


def sources(pages: Sequence[Page]) -> list[str]:
    """Return where the pages come from, each place once, files by their name."""
    return list(
        dict.fromkeys(page.source.partition(" sha256")[0].rpartition("/")[2] for page in pages)
    )


def asked(venue: BinanceVenue, text: str) -> list[str]:
    """Return the requests whose `path?query` holds the text."""
    return [f"{s.path}?{s.query}" for s in venue.requests if text in f"{s.path}?{s.query}"]
