"""The tests that every exchange plugin passes; knows no venue.

Subclass `ExchangeSuite` in a test module, name the class `Test…`, and give it the plugin:

    class TestMyVenue(ExchangeSuite):
        cases = [Case("myvenue:BTC/USDT@trade", "2024-03-01T00:00:00Z", "2024-03-01T02:00:00Z")]

        @asynccontextmanager
        async def exchange(self):
            plugin = MyVenue(MyVenue.Options(), suite_context())
            async with plugin.run():
                yield plugin

Needs pytest with pytest-trio in trio mode; `pytest.register_assert_rewrite("tardisd.testing")` in a
conftest makes failures say what was compared.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import trio

from tardisd.errors import RequestError
from tardisd.market.check import check_batch, same_rows
from tardisd.market.columns import Batch, closes
from tardisd.market.series import KINDS, DataType, Series
from tardisd.market.span import COVERED_CAUSES, Span
from tardisd.market.time import parse_time
from tardisd.plugins.base import Context
from tardisd.plugins.exchange import Exchange, Page
from tardisd.plugins.sessions import Sessions

_PATIENCE = 60.0  # seconds that any one test may take


@dataclass(frozen=True, slots=True)
class Case:
    """A series that the venue has, and a span of its past for which it has rows."""

    series: str
    start: str
    end: str

    @property
    def span(self) -> Span:
        """The span (ns)."""
        return Span(parse_time(self.start), parse_time(self.end))


def suite_context(name: str = "exchange", data_dir: Path = Path()) -> Context:
    """Return a context for a plugin that runs outside a daemon: it has no sessions."""
    return Context(name, data_dir, cast(Sessions, None))


async def fetch_pages(exchange: Exchange[Any], series: Series, span: Span) -> list[Page]:
    """Return all pages of a span."""
    async with exchange.fetch(series, span) as pages:
        return [page async for page in pages]


def joined(series: Series, pages: Sequence[Page]) -> Batch:
    """Return the rows of all pages as one batch."""
    return Batch.concat([page.batch for page in pages] or [Batch.empty(series)])


class ExchangeSuite:
    """What the core relies on in every exchange plugin."""

    cases: ClassVar[Sequence[Case]] = ()

    @asynccontextmanager
    async def exchange(self) -> AsyncIterator[Exchange[Any]]:
        """Open the plugin under test. Override it; it is entered anew for every test."""
        raise NotImplementedError("override ExchangeSuite.exchange")
        yield

    @pytest.fixture(autouse=True)
    def _has_cases(self) -> None:
        assert self.cases, f"{type(self).__name__} names no cases"

    async def test_tells_what_it_has(self) -> None:
        async with self.exchange() as exchange:
            names = exchange.data_types()
            assert names
            for name in names:
                assert DataType.parse(name).name == name
            for case in self.cases:
                assert Series.parse(case.series).data_type.name in names

    async def test_server_time_is_ns_of_our_age(self) -> None:
        async with self.exchange() as exchange:
            now = await exchange.server_time()
            assert isinstance(now, int)
            assert parse_time("2009-01-01T00:00:00Z") <= now < parse_time("2100-01-01T00:00:00Z")
            assert now >= max(case.span.start for case in self.cases)

    async def test_instruments_have_exact_sizes(self) -> None:
        async with self.exchange() as exchange:
            for instrument in await exchange.instruments():
                sizes = (instrument.tick_size, instrument.lot_size)
                assert all(size is None or isinstance(size, str) for size in sizes)

    async def test_pages_cover_the_span_without_holes(self) -> None:
        for case in self.cases:
            pages = await self._fetch(case)
            assert pages, "no pages"
            assert pages[0].span.start == case.span.start
            assert pages[-1].span.end == case.span.end
            for page, later in itertools.pairwise(pages):
                assert page.span.end == later.span.start
            assert sum(len(page.batch) for page in pages), "the case should have rows"

    async def test_rows_pass_every_check(self) -> None:
        for case in self.cases:
            pages = await self._fetch(case)
            series = Series.parse(case.series)
            for page in pages:
                assert page.batch.series == series
                check_batch(page.batch, page.span)
            check_batch(joined(series, pages), case.span)

    async def test_columns_have_their_exact_types(self) -> None:
        for case in self.cases:
            for page in await self._fetch(case):
                batch, schema = page.batch, page.batch.schema
                assert batch.ts_event.dtype == "int64"
                assert set(batch.fields) <= set(schema.fields)
                for column in batch.fields.values():
                    assert column.mantissa.dtype == "int64"
                    assert len(column) == len(batch)
                if batch.ids is not None:
                    assert schema.has_id
                    assert batch.ids.dtype == "int64" or batch.ids.dtype.kind == "S"
                    assert len(batch.ids) == len(batch)
                if batch.sides is not None:
                    assert schema.has_side
                    assert batch.sides.dtype == "uint8"
                    assert bool((batch.sides <= 1).all())
                assert (batch.sides is not None) == schema.has_side

    async def test_gaps_lie_in_their_page_and_have_no_rows(self) -> None:
        for case in self.cases:
            for page in await self._fetch(case):
                for gap in page.gaps:
                    assert gap.cause in COVERED_CAUSES
                    assert gap.span.intersect(page.span) == gap.span
                    inside = page.batch.ts_event
                    assert not ((inside >= gap.span.start) & (inside < gap.span.end)).any()

    async def test_fetching_again_gives_the_same(self) -> None:
        for case in self.cases:
            series = Series.parse(case.series)
            first = joined(series, await self._fetch(case))
            again = joined(series, await self._fetch(case))
            _assert_same(first, again)

    async def test_parts_make_the_whole(self) -> None:
        for case in self.cases:
            series, span = Series.parse(case.series), case.span
            interval = series.data_type.interval
            middle = (span.start + span.end) // 2
            middle = middle if interval is None else interval.floor(middle)
            async with self.exchange() as exchange:
                whole = await fetch_pages(exchange, series, span)
                parts = await fetch_pages(exchange, series, Span(span.start, middle))
                parts += await fetch_pages(exchange, series, Span(middle, span.end))
            _assert_same(joined(series, whole), joined(series, parts))

    async def test_only_the_past_is_fetched(self) -> None:
        async with self.exchange() as exchange:
            for case in self.cases:
                series = Series.parse(case.series)
                interval = series.data_type.interval
                now = await exchange.server_time()
                # Some way back, so that it is cheap, and far ahead.
                reach = 3 * (interval.nominal_ns if interval else 1_000_000_000)
                pages = await fetch_pages(exchange, series, Span(now - reach, now + 1000 * reach))
                later = await exchange.server_time()
                for page in pages:
                    assert page.span.end <= later, "a page reaches beyond the venue's clock"
                    if interval is not None and len(page.batch):
                        last = int(closes(page.batch.ts_event, interval)[-1])
                        assert last <= later, "a candle that has not closed"

    async def test_what_it_does_not_have_is_refused(self) -> None:
        async with self.exchange() as exchange:
            kinds = [kind for kind in KINDS if kind != "candle"] + ["candle_7m"]
            absent = next(kind for kind in kinds if kind not in exchange.data_types())
            case = self.cases[0]
            known = Series.parse(case.series)
            series = Series(known.exchange, known.symbol, DataType.parse(absent))
            with pytest.raises(RequestError) as caught:
                await fetch_pages(exchange, series, case.span)
            assert absent in caught.value.message, "the error names what was asked for"
            have = next(iter(exchange.data_types())).split("_")[0]
            assert have in caught.value.message, "the error says what there is"

    async def test_leaving_early_leaves_nothing_behind(self) -> None:
        for case in self.cases:
            series = Series.parse(case.series)
            async with self.exchange() as exchange:
                tasks = _living_tasks()
                async with exchange.fetch(series, case.span):
                    pass
                async with exchange.fetch(series, case.span) as pages:
                    await pages.receive()
                assert _living_tasks() == tasks

    async def test_cancellation_at_any_await_leaves_nothing_hanging(self) -> None:
        case = self.cases[0]
        series = Series.parse(case.series)
        whole = joined(series, await self._fetch(case))
        async with self.exchange() as exchange:
            finished, step = False, 1
            while not finished:
                tasks = _living_tasks()
                with trio.fail_after(_PATIENCE):
                    finished = await _cancelled_at(step, exchange, series, case.span)
                assert _living_tasks() == tasks
                step += max(step // 8, 1)
            again = joined(series, await fetch_pages(exchange, series, case.span))
        _assert_same(whole, again)

    async def test_fetches_at_once_do_not_disturb_each_other(self) -> None:
        alone = [joined(Series.parse(case.series), await self._fetch(case)) for case in self.cases]
        together: dict[int, Batch] = {}
        async with self.exchange() as exchange:

            async def one(place: int, case: Case) -> None:
                series = Series.parse(case.series)
                together[place] = joined(series, await fetch_pages(exchange, series, case.span))

            async with trio.open_nursery() as nursery:
                for place, case in enumerate([*self.cases, *self.cases]):
                    nursery.start_soon(one, place, case)
        for place, batch in together.items():
            _assert_same(alone[place % len(alone)], batch)

    async def _fetch(self, case: Case) -> list[Page]:
        with trio.fail_after(_PATIENCE):
            async with self.exchange() as exchange:
                return await fetch_pages(exchange, Series.parse(case.series), case.span)


def _living_tasks() -> int:
    """Return how many tasks live, without those of servers here: their connections come and go."""
    root = trio.lowlevel.current_root_task()
    found = [] if root is None else [root]
    for task in found:
        children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        found += [child for child in children if "serve_listeners" not in child.name]
    return len(found)


class _CancelAt(trio.abc.Instrument):
    """Cancels a scope just before the n-th step of any task."""

    def __init__(self, steps: int, scope: trio.CancelScope) -> None:
        self._left = steps
        self._scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


async def _cancelled_at(step: int, exchange: Exchange[Any], series: Series, span: Span) -> bool:
    """Fetch, cancelled at the n-th step; tell whether it finished before."""
    with trio.CancelScope() as scope:
        instrument = _CancelAt(step, scope)
        trio.lowlevel.add_instrument(instrument)
        try:
            await fetch_pages(exchange, series, span)
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return not scope.cancelled_caught


def _assert_same(left: Batch, right: Batch) -> None:
    assert len(left) == len(right)
    assert bool(same_rows(left, right).all())
