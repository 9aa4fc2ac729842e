"""The suite for analyzer plugins notices what is wrong with one."""

from __future__ import annotations

from contextlib import asynccontextmanager

import numpy as np
import pytest

from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import DataType, Series
from tardisd.market.time import MINUTE
from tardisd.plugins.analyzer import Analysis, Analyzer, Answer
from tardisd.plugins.base import Options
from tardisd.testing.analyzer import AnalyzerSuite, analyzer_context


class Last(Analysis):
    """The close before the last one, of each series: right, and needs five minutes."""

    def __init__(self, seen):
        self.seen = seen
        self.count = 0

    def update(self, batch):
        self.count += len(batch)
        closes = batch.fields["close"]
        texts = [*self.seen.get(batch.series, []), *closes.texts()]
        self.seen[batch.series] = texts[-1:]
        values, times = texts[:-1], batch.release()[-len(texts) + 1 :]
        return [self.derived(batch, times, Decimals.of(values))] if values else []

    def derived(self, batch, times, values):
        kind = DataType.parse("indicator_last")
        series = Series(batch.series.exchange, batch.series.symbol, kind)
        return Batch(series, times, {"value": values})

    def finish(self):
        return {"count": self.count}


class Right(Analyzer):
    name = "right"
    consumes = frozenset({"candle"})
    warmup = 10 * MINUTE
    analysis = Last

    def start(self, request):
        return self.analysis({})


def suite_of(plugin):
    class Suite(AnalyzerSuite):
        @asynccontextmanager
        async def analyzer(self, folder):
            yield plugin(Options(), analyzer_context(folder))

    return Suite()


TESTS = {
    "cut": lambda suite, folder: suite.test_how_ticks_are_cut_makes_no_difference(folder, 1),
    "future": lambda suite, folder: suite.test_it_knows_nothing_of_the_future(folder, 0.37),
    "seek": lambda s, f: s.test_after_its_warmup_it_is_as_if_it_had_seen_all(f, 0.5),
    "input": lambda suite, folder: suite.test_what_it_is_given_stays_as_it_is(folder),
    "output": lambda suite, folder: suite.test_what_it_gave_stays_as_it_is(folder),
    "sessions": lambda suite, folder: suite.test_sessions_know_nothing_of_each_other(folder),
    "report": lambda suite, folder: suite.test_its_report_can_be_told(folder),
    "ask": lambda suite, folder: suite.test_it_answers_or_says_why_not(folder),
    "wants": lambda suite, folder: suite.test_it_says_what_it_wants(folder),
}


@pytest.mark.parametrize("test", TESTS)
async def test_a_right_one_passes(test, tmp_path):
    await TESTS[test](suite_of(Right), tmp_path)


class MeanOfBatch(Last):
    def update(self, batch):
        mean = Decimals(np.full(len(batch), int(batch.fields["close"].mantissa.mean())))
        return [self.derived(batch, batch.release(), mean)]


class AtTheOpen(Last):
    def update(self, batch):
        return [self.derived(batch, batch.ts_event + 1, batch.fields["close"])]


class NoIndicator(Last):
    def update(self, batch):
        return [batch]


class Flood(Last):
    def update(self, batch):
        times = np.repeat(batch.release(), 100)
        return [self.derived(batch, times, Decimals(np.zeros(len(times), np.int64)))]


class Writing(Last):
    def update(self, batch):
        batch.fields["close"].mantissa[:1] += 1
        return super().update(batch)


class Reusing(Last):
    memory = np.zeros(4096, np.int64)

    def update(self, batch):
        closes = batch.fields["close"]
        held = self.memory[: len(batch)]
        held[:] = closes.parts(2)[0] * 100 + closes.parts(2)[1]
        return [self.derived(batch, batch.release(), Decimals(held, 2))]


class Unspeakable(Last):
    def finish(self):
        return {"seen": object()}


class Ever(Last):
    """How many candles there have been: no warm-up is long enough."""

    def update(self, batch):
        numbers = self.count + np.arange(len(batch))
        self.count += len(batch)
        return [self.derived(batch, batch.release(), Decimals(numbers))]


def wrong(analysis):
    return type(analysis.__name__, (Right,), {"analysis": analysis})


class Shared(Right):
    def start(self, request):
        return Last(SEEN)


class Forgetful(Right):
    warmup = 0


class Mute(Right):
    answers = True


class Empty(Mute):
    async def ask(self, question):
        return Answer("", "model")


class Hungry(Right):
    consumes = frozenset({"candles"})


SEEN: dict = {}


@pytest.mark.parametrize(
    ("plugin", "test", "told"),
    [
        (wrong(MeanOfBatch), "cut", "indicator_last"),
        (wrong(MeanOfBatch), "future", "indicator_last"),
        (wrong(AtTheOpen), "cut", "times of no tick's release"),
        (wrong(NoIndicator), "cut", "is not indicator_<name>"),
        (wrong(Flood), "cut", "more derived ticks than a session takes"),
        (wrong(Writing), "input", "writes into its input"),
        (wrong(Reusing), "output", "indicator_last"),
        (wrong(Unspeakable), "report", "JSON|object"),
        (wrong(Ever), "seek", "indicator_last"),
        (Forgetful, "seek", "indicator_last"),
        (Shared, "sessions", "indicator_last"),
        (Empty, "ask", "assert "),
        (Hungry, "wants", "are no kinds of tick"),
    ],
)
async def test_a_wrong_one_does_not(plugin, test, told, tmp_path):
    SEEN.clear()
    with pytest.raises((AssertionError, TypeError), match=told):
        await TESTS[test](suite_of(plugin), tmp_path)


async def test_one_that_cannot_answer_says_so(tmp_path):
    suite = suite_of(Mute)
    with pytest.raises(RequestError, match="answers no questions"):
        await suite.test_it_answers_or_says_why_not(tmp_path)
