"""The suite for exchange plugins notices what is wrong with one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
import trio

from tardisd.errors import DataError, RequestError
from tardisd.market.span import Gap, Span
from tardisd.market.time import DAY, parse_time
from tardisd.testing import exchange as suite
from tardisd_synthetic.plugin import Synthetic, SyntheticOptions

NOW = parse_time("2024-06-01T00:00:30Z")
CASE = suite.Case("synthetic:BTC/USDT@candle_1m", "2024-03-24T00:00:00Z", "2024-03-24T12:00:00Z")


class Faulty(Synthetic):
    """The made-up venue, with its pages passed through a fault."""

    def __init__(self, fault):
        super().__init__(SyntheticOptions(), suite.suite_context(), now=lambda: NOW)
        self.fault = fault
        self.calls = 0

    def fetch(self, series, span):
        self.calls += 1
        return self.spoilt(super().fetch(series, span))

    @trio.as_safe_channel
    async def spoilt(self, fetching):
        async with fetching as pages:
            async for page in pages:
                yield self.fault(page, self.calls)


def suite_of(fault, plugin=Faulty):
    calls = []

    class Suite(suite.ExchangeSuite):
        cases = (CASE,)

        @asynccontextmanager
        async def exchange(self):
            made = plugin(fault)
            made.calls = len(calls)
            calls.append(made)
            yield made

    return Suite()


def cut_first_row(page, _):
    return replace(page, batch=page.batch[1:])


FAULTS = {
    "hole": (
        "test_pages_cover_the_span_without_holes",
        lambda page, _: replace(page, span=Span(page.span.start + 1, page.span.end)),
    ),
    "no rows": (
        "test_pages_cover_the_span_without_holes",
        lambda page, _: replace(page, batch=page.batch[:0]),
    ),
    "backwards": (
        "test_rows_pass_every_check",
        lambda page, _: replace(page, batch=page.batch[np.arange(len(page.batch))[::-1]]),
    ),
    "outside": (
        "test_rows_pass_every_check",
        lambda page, _: replace(page, span=Span(page.span.start, page.span.end - DAY // 4)),
    ),
    "floats": (
        "test_columns_have_their_exact_types",
        lambda page, _: replace(
            page, batch=replace(page.batch, ts_event=page.batch.ts_event.astype(np.float64))
        ),
    ),
    "gap with rows": (
        "test_gaps_lie_in_their_page_and_have_no_rows",
        lambda page, _: replace(page, gaps=(Gap(page.span, "exchange_down"),)),
    ),
    "gap of another cause": (
        "test_gaps_lie_in_their_page_and_have_no_rows",
        lambda page, _: replace(
            page, gaps=(Gap(Span(page.span.start, page.span.start), "not_fetched"),)
        ),
    ),
    "changing its mind": (
        "test_fetching_again_gives_the_same",
        lambda page, calls: cut_first_row(page, calls) if calls > 1 else page,
    ),
    "losing rows at page edges": ("test_parts_make_the_whole", cut_first_row),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_faults_are_noticed(name):
    test, fault = FAULTS[name]
    with pytest.raises((AssertionError, DataError)):
        await getattr(suite_of(fault), test)()
    await getattr(suite_of(lambda page, _: page), test)()


class Early(Faulty):
    async def server_time(self):
        return NOW - DAY


class Silent(Faulty):
    def fetch(self, series, span):
        if series.data_type.name not in self.data_types():
            raise RequestError("bad_request", "no")
        return super().fetch(series, span)


class Leaking(Faulty):
    """Leaves a task behind whenever a stream of pages is left."""

    @asynccontextmanager
    async def leak(self, fetching):
        async with fetching as pages:
            yield pages
        trio.lowlevel.spawn_system_task(trio.sleep_forever)

    def fetch(self, series, span):
        return self.leak(super().fetch(series, span))


@pytest.mark.parametrize(
    ("plugin", "test"),
    [
        (Early, "test_only_the_past_is_fetched"),
        (Silent, "test_what_it_does_not_have_is_refused"),
        (Leaking, "test_leaving_early_leaves_nothing_behind"),
        (Leaking, "test_cancellation_at_any_await_leaves_nothing_hanging"),
    ],
    ids=["ahead of its clock", "no hint", "leak", "leak when cancelled"],
)
async def test_misbehaviour_is_noticed(plugin, test):
    with pytest.raises(AssertionError):
        await getattr(suite_of(lambda page, _: page, plugin), test)()
