"""The tests that every analyzer plugin passes; knows nothing of what it finds out.

Subclass `AnalyzerSuite` in a test module, name the class `Test…`, and give it the plugin:

    class TestMyAnalyzer(AnalyzerSuite):
        @asynccontextmanager
        async def analyzer(self, folder):
            plugin = MyAnalyzer(MyAnalyzer.Options(), analyzer_context(folder))
            async with plugin.run():
                yield plugin

        def ticks(self):                          # optional
            return [batch, …]                     # one per series, enough for it to say something

Needs pytest with pytest-trio in trio mode.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import trio

from tardisd.errors import RequestError
from tardisd.market.columns import SCHEMAS, Batch
from tardisd.market.decimals import Ints
from tardisd.market.series import Series
from tardisd.market.time import parse_time
from tardisd.plugins.analyzer import Analysis, Analyzer, Answer, Question
from tardisd.plugins.sessions import Notice, Session, SessionRequest
from tardisd.replay.analyses import MAX_DERIVED
from tardisd.replay.report import as_objects
from tardisd.testing.blocks import make_blocks
from tardisd.testing.sink import SuiteSession, end_notice, sink_context
from tardisd.testing.ticks import random_candles, random_trades

START = parse_time("2024-02-29T20:58:30Z")
_PATIENCE = 60.0  # seconds that any one test may take
_REFUSALS = {"analyzer_failed", "analyzer_unavailable", "bad_request"}

analyzer_context = sink_context
# What was derived: the event time (ns) and the fields' decimal texts of every tick, by series.
Derived = dict[str, list[tuple[Any, ...]]]


def suite_ticks() -> list[Batch]:
    """Return candles and trades, of two symbols and around a midnight, one batch per series."""
    return [
        random_candles(Series.parse("binance:BTC/USDT@candle_1m"), 600, START, 1),
        random_candles(Series.parse("okx:ETH/USDT:USDT@candle_5m"), 120, START, 2),
        random_trades(Series.parse("binance:BTC/USDT@trade"), 600, START, 3, mean_gap_ms=50_000),
        random_trades(Series.parse("bybit:ETH/USDT@agg_trade"), 90, START, 4, mean_gap_ms=400_000),
    ]


class FollowedSession(SuiteSession):
    """What an analyzer that follows a session can ask of it; nothing replays here."""

    def __init__(self, session_id: str, ticks: Sequence[Mapping[str, Any]], clock: int) -> None:
        super().__init__(session_id)
        self.published: list[Notice] = []
        self._ticks, self._clock = ticks, clock

    def publish(self, notice: Notice) -> None:
        """Keep what is said."""
        self.published.append(notice)

    def last_ticks(self, count: int) -> tuple[list[Mapping[str, Any]], int]:
        """Return the last of all ticks, and when the last one was released."""
        return list(self._ticks[-count:]), self._clock


class Tape:
    """The ticks of a suite as the engine hands them to an analysis."""

    def __init__(self, batches: Sequence[Batch], consumes: frozenset[str]) -> None:
        self.all = sorted(batches, key=lambda batch: batch.series.order)
        self.consumed = [it for it in self.all if it.series.data_type.kind in consumes]
        everything = [batch.release() for batch in self.all]
        self.times: Ints = np.unique(np.concatenate(everything))

    @property
    def request(self) -> SessionRequest:
        """The session that replays them."""
        series = tuple(batch.series for batch in self.all)
        first = min(int(batch.ts_event[0]) for batch in self.all)
        return SessionRequest(series=series, start=first, end=int(self.times[-1]) + 1)

    def whole(self) -> list[Batch]:
        """Return everything at once."""
        return self.consumed

    def cut(self, seed: int, first: int = 0, last: int = 2**62) -> Iterator[Batch]:
        """Yield what is released in `[first, last)` (ns), as windows cut at random might have it.

        Windows end at any time, for a while at nearly every one; rows of one time may be in two.
        """
        draw = np.random.Generator(np.random.PCG64(seed))
        often = np.full(len(self.times), 0.01)
        dense = int(draw.integers(0, len(often)))
        often[dense : dense + 100] = 0.7
        places = np.flatnonzero(draw.random(len(often)) < often)
        ends = [first, *(t for t in self.times[places].tolist() if first < t < last), last]
        for begin, end in pairwise(ends):
            for batch in self.consumed:
                low, high = np.searchsorted(batch.release(), [begin, end], "left").tolist()
                middle = int(draw.integers(low, high + 1))
                for at, to in ((low, middle), (middle, high)):
                    if at < to:
                        yield batch[at:to]


def derived(analysis: Analysis, batches: Iterator[Batch] | Sequence[Batch]) -> Derived:
    """Return what an analysis makes of batches, checked as the engine checks it, and more."""
    found: Derived = {}
    consumed = count = 0
    for batch in batches:
        release = batch.release()
        consumed += len(batch)
        for one in analysis.update(batch):
            name = one.series.text
            assert one.series.data_type.kind == "indicator", f"{name} is not indicator_<name>"
            assert Series.parse(name) == one.series, f"{name} cannot be written and read again"
            assert set(one.fields) == set(SCHEMAS["indicator"].fields), name
            assert all(len(column) == len(one) for column in one.fields.values()), name
            assert np.isin(one.ts_event, release).all(), f"{name}: times of no tick's release"
            count += len(one)
            texts = [column.texts() for column in one.fields.values()]
            assert all(text is not None for column in texts for text in column), name
            rows = found.setdefault(name, [])
            rows += zip(one.ts_event.tolist(), *texts, strict=True)
    for name, rows in found.items():
        times = [row[0] for row in rows]
        assert times == sorted(times), f"{name} is not in ascending order"
    assert count <= MAX_DERIVED * consumed, "more derived ticks than a session takes"
    return found


def since(rows: Derived, first: int, last: int = 2**62) -> Derived:
    """Return the derived ticks with times in `[first, last)` (ns)."""
    kept = {name: [it for it in some if first <= it[0] < last] for name, some in rows.items()}
    return {name: some for name, some in kept.items() if some}


class AnalyzerSuite:
    """What the core relies on in every analyzer.

    Tests of ways to look that an analyzer does not offer (`start`, `open`) are skipped.
    """

    @asynccontextmanager
    async def analyzer(self, folder: Path) -> AsyncIterator[Analyzer[Any]]:
        """Open the plugin under test. Override it."""
        raise NotImplementedError("override AnalyzerSuite.analyzer")
        yield

    def ticks(self) -> list[Batch]:
        """Return what it looks at, one batch per series. Override it where it needs more."""
        return suite_ticks()

    async def test_it_is_usable(self, tmp_path: Path) -> None:
        async with self.analyzer(tmp_path) as analyzer:
            await analyzer.probe()

    async def test_it_says_what_it_wants(self, tmp_path: Path) -> None:
        async with self.analyzer(tmp_path) as analyzer:
            unknown = set(analyzer.consumes) - set(SCHEMAS)
            assert not unknown, f"consumes: {unknown} are no kinds of tick"
            tape = Tape(self.ticks(), analyzer.consumes)
            for length in (analyzer.warmup, analyzer.warmup_for(tape.request)):
                assert isinstance(length, int)
                assert length >= 0

    @pytest.mark.parametrize("seed", range(4))
    async def test_how_ticks_are_cut_makes_no_difference(self, tmp_path: Path, seed: int) -> None:
        async with self.analyzer(tmp_path) as analyzer:
            tape = Tape(self.ticks(), analyzer.consumes)
            whole, cut = _start(analyzer, tape), _start(analyzer, tape)
            assert derived(cut, tape.cut(seed)) == derived(whole, tape.whole())
            assert cut.finish() == whole.finish()

    @pytest.mark.parametrize("part", [0.001, 0.37, 0.9])
    async def test_it_knows_nothing_of_the_future(self, tmp_path: Path, part: float) -> None:
        """What it makes of a beginning is the beginning of what it makes of all."""
        async with self.analyzer(tmp_path) as analyzer:
            tape = Tape(self.ticks(), analyzer.consumes)
            until = int(tape.times[int(len(tape.times) * part)])
            all_of_it = derived(_start(analyzer, tape), tape.whole())
            begun = derived(_start(analyzer, tape), tape.cut(5, last=until))
            assert begun == since(all_of_it, 0, until)

    @pytest.mark.parametrize("part", [0.5, 0.97])
    async def test_after_its_warmup_it_is_as_if_it_had_seen_all(
        self, tmp_path: Path, part: float
    ) -> None:
        async with self.analyzer(tmp_path) as analyzer:
            tape = Tape(self.ticks(), analyzer.consumes)
            to = int(tape.times[int(len(tape.times) * part)])
            all_of_it = derived(_start(analyzer, tape), tape.whole())
            begin = to - analyzer.warmup_for(tape.request)
            sought = derived(_start(analyzer, tape), tape.cut(6, first=begin))
            assert since(sought, to) == since(all_of_it, to)

    async def test_what_it_is_given_stays_as_it_is(self, tmp_path: Path) -> None:
        async with self.analyzer(tmp_path) as analyzer:
            tape = Tape(self.ticks(), analyzer.consumes)
            before = [_arrays(batch) for batch in tape.whole()]
            kept = [[array.copy() for array in arrays] for arrays in before]
            derived(_start(analyzer, tape), tape.whole())
            for arrays, copies in zip(before, kept, strict=True):
                for array, copy in zip(arrays, copies, strict=True):
                    assert np.array_equal(array, copy), "it writes into its input"

    async def test_what_it_gave_stays_as_it_is(self, tmp_path: Path) -> None:
        """Derived ticks are kept for a while: they must not share memory that is written again."""
        async with self.analyzer(tmp_path) as analyzer:
            tape = Tape(self.ticks(), analyzer.consumes)
            analysis = _start(analyzer, tape)
            given = [one for batch in tape.cut(7) for one in analysis.update(batch)]
            late: Derived = {}
            for one in given:
                texts = [column.texts() for column in one.fields.values()]
                rows = zip(one.ts_event.tolist(), *texts, strict=True)
                late.setdefault(one.series.text, []).extend(rows)
            assert late == derived(_start(analyzer, tape), tape.whole())

    async def test_sessions_know_nothing_of_each_other(self, tmp_path: Path) -> None:
        async with self.analyzer(tmp_path) as analyzer:
            tape = Tape(self.ticks(), analyzer.consumes)
            alone = _start(analyzer, tape)
            expected = derived(alone, tape.whole())
            early, late = _start(analyzer, tape), _start(analyzer, tape)
            derived(early, tape.cut(8, last=int(tape.times[len(tape.times) // 2])))
            assert derived(late, tape.cut(9)) == expected
            assert late.finish() == alone.finish()

    async def test_its_report_can_be_told(self, tmp_path: Path) -> None:
        async with self.analyzer(tmp_path) as analyzer:
            tape = Tape(self.ticks(), analyzer.consumes)
            for batches in (tape.whole(), []):
                analysis = _start(analyzer, tape)
                derived(analysis, batches)
                report = analysis.finish()
                assert isinstance(report, Mapping)
                msgspec.json.encode(report)

    async def test_it_answers_or_says_why_not(self, tmp_path: Path) -> None:
        rows, clock = _rows(self.ticks())
        async with self.analyzer(tmp_path) as analyzer:
            with trio.fail_after(_PATIENCE):
                if analyzer.answers:
                    _check_answer(await analyzer.ask(Question(rows[-10:], clock=clock)))
                    code = await _refusal(analyzer, Question([], "no such type"))
                    assert code is None or code in _REFUSALS
                else:
                    code = await _refusal(analyzer, Question(rows[-10:], clock=clock))
                    assert code == "analyzer_unavailable"

    async def test_it_follows_a_session_to_its_end(self, tmp_path: Path) -> None:
        batches = self.ticks()
        rows, clock = _rows(batches)
        blocks = make_blocks(batches, "s", slice_ticks=100)
        followed = FollowedSession("s", rows, clock)
        async with self.analyzer(tmp_path) as analyzer:
            with trio.fail_after(_PATIENCE):
                async with analyzer.open(cast(Session, followed)) as writer:
                    if writer is None:
                        pytest.skip("this analyzer does not follow sessions")
                    for block in blocks:
                        await writer.write(block)
                        await writer.notice(Notice("paused", {"clock": 1}))
                    await writer.notice(end_notice(sum(map(len, blocks))))
        for notice in followed.published:
            assert notice.type
            msgspec.json.encode(notice.fields)


def _start(analyzer: Analyzer[Any], tape: Tape) -> Analysis:
    analysis = analyzer.start(tape.request)
    if analysis is None:
        pytest.skip("this analyzer derives no ticks")
    assert tape.consumed, f"the suite has no ticks of the kinds {set(analyzer.consumes)}"
    return analysis


def _arrays(batch: Batch) -> list[Any]:
    columns = [[c.mantissa, c.fraction, c.present] for c in batch.fields.values()]
    arrays = [batch.ts_event, batch.ids, batch.sides, *(it for some in columns for it in some)]
    return [array for array in arrays if array is not None]


async def _refusal(analyzer: Analyzer[Any], question: Question) -> str | None:
    """Return the code of the error that an analyzer refuses a question with, None if it does not.

    What it answers must then be an answer.
    """
    try:
        _check_answer(await analyzer.ask(question))
    except RequestError as error:
        return error.code if error.message else "without a message"
    return None


def _check_answer(answer: Answer) -> None:
    assert isinstance(answer, Answer)
    assert answer.content
    assert answer.model
    msgspec.json.encode([answer.content, answer.model, answer.usage, answer.cached, answer.more])


def _rows(batches: Sequence[Batch]) -> tuple[list[dict[str, Any]], int]:
    """Return ticks as JSON objects, as `data` of a `tick` message, and the last release (ns)."""
    blocks = make_blocks(batches, "s")
    return as_objects(blocks), blocks[-1].last_release
