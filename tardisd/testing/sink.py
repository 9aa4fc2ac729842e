"""The tests that every sink plugin passes whose writers take blocks; knows no destination.

Subclass `SinkSuite` in a test module, name the class `Test…`, and give it the plugin:

    class TestMySink(SinkSuite):
        @asynccontextmanager
        async def sink(self, folder):
            plugin = MySink(MySink.Options(url=…), sink_context(folder))
            async with plugin.run():
                yield plugin

        async def arrived(self, folder, session_id):
            return [row["seq"] for row in …]     # what is at the destination, in order

        @asynccontextmanager
        async def broken(self, folder):           # optional
            …
            yield
            …

Needs pytest with pytest-trio in trio mode.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, NoReturn, cast

import numpy as np
import pytest
import trio

from tardisd.errors import NotConnected, PluginError, RequestError, Retry
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.time import parse_time
from tardisd.plugins.base import Context
from tardisd.plugins.sessions import Block, Notice, Session, Sessions
from tardisd.plugins.sink import Sink, Writer
from tardisd.replay.block import SessionBlock
from tardisd.replay.merge import Mark
from tardisd.testing.blocks import make_blocks, make_stream
from tardisd.testing.ticks import random_candles, random_trades

START = parse_time("2024-02-29T23:58:30Z")
_PATIENCE = 60.0  # seconds that any one test may take
_FAILURES_BEFORE_MENDING = 3
_MOST_FAILURES = 50


def sink_context(folder: Path, name: str = "suite") -> Context:
    """Return a context for a sink that runs outside a daemon: it has no sessions."""
    return Context(name, folder, cast(Sessions, None))


class SuiteSession:
    """What a sink can ask of a session when it opens it; nothing replays here."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id

    def status(self) -> dict[str, Any]:
        """Return the fields of a running session."""
        return {**self.created().fields, "session_id": self.session_id, "clock": 0, "seq": 0}

    def subscribe(self, *words: object, **named: object) -> NoReturn:
        """Raise RequestError: what was missed cannot be had again."""
        raise RequestError("wrong_state", "nothing replays here")

    def created(self) -> Notice:
        """Return the `session_created` notice."""
        fields = {
            "status": "active",
            "series": [batch.series.text for batch in suite_batches()],
            "start_time": START // 1_000_000,
            "end_time": START // 1_000_000 + 600_000,
            "speed": "max",
            "epoch": 1,
        }
        return Notice("session_created", fields)


def suite_session(session_id: str) -> Session:
    """Return a session to open a sink with."""
    return cast(Session, SuiteSession(session_id))


def suite_batches() -> list[Batch]:
    """Return ticks of several kinds around a midnight, awkward values included."""
    candles = random_candles(Series.parse("binance:BTC/USDT@candle_1m"), 6, START, 1)
    bare = dict(candles.fields)
    present = np.arange(len(candles)) % 2 == 0
    bare["trades"] = Decimals(np.where(present, 7, 0), present=present)
    del bare["quote_volume"]
    texts = Series.parse("okx:DOGE/USDT:USDT@trade")
    return [
        Batch(candles.series, candles.ts_event, bare),
        random_trades(Series.parse("binance:BTC/USDT@trade"), 900, START, 2, mean_gap_ms=200),
        random_trades(Series.parse("bybit:ETH/USDT@agg_trade"), 300, START, 3, mean_gap_ms=700),
        Batch(
            texts,
            np.array([START + 1, START + 2_000, START + 95_000_000_000], np.int64),
            {
                "price": Decimals.of(["0.000000000000000001", "9223372036854775807", "12"]),
                "amount": Decimals.of(["1", "0", "100000000000.5"]),
            },
            np.array([b"a-1", "\u00e9 \u4e2d".encode(), b'b,"2"'], np.bytes_),
            np.array([0, 1, 0], np.uint8),
        ),
    ]


def suite_notices() -> list[Notice]:
    """Return one notice of every type that comes before the end."""
    gap = {"epoch": 1, "seq": 1, "series": "binance:BTC/USDT@trade", "from": 1, "to": 2,
           "cause": "not_fetched"}  # fmt: skip
    return [
        Notice("gap", gap),
        Notice("paused", {"clock": 1}),
        Notice("resumed", {"clock": 1}, request_id="a"),
        Notice("speed_changed", {"clock": 1, "speed": "max"}),
        Notice("skipped", {"from_seq": 1, "to_seq": 2}),
        Notice("stepped", {"count": 1, "clock": 1}),
        Notice("sought", {"epoch": 1, "clock": 1}),
        Notice("barrier", {"epoch": 1, "seq": 1, "clock": 1}),
    ]


def end_notice(ticks: int, reason: str = "finished") -> Notice:
    """Return the last notice of a session."""
    return Notice("end", {"epoch": 1, "reason": reason, "ticks": ticks, "hash": "00" * 32})


def seqs_of(blocks: Sequence[Block]) -> list[int]:
    """Return the sequence numbers of all ticks."""
    return [block.first_seq + row for block in blocks for row in range(len(block))]


def _blocks_of(stream: Sequence[SessionBlock | Mark]) -> list[SessionBlock]:
    return [item for item in stream if not isinstance(item, Mark)]


class Course:
    """What a test does while items are delivered; counts the failures."""

    def __init__(self) -> None:
        self.failures: list[PluginError] = []

    async def before(self, place: int) -> None:
        """Come before the item of this place is written for the first time."""

    async def failed(self, error: PluginError) -> None:
        """Come after a failure."""
        self.failures.append(error)
        if len(self.failures) > _MOST_FAILURES:
            raise AssertionError(f"it does not recover: {error.message}")
        await trio.sleep(0.001)


async def deliver(
    sink: Sink[Any], session: Session, items: Sequence[Block | Notice], course: Course
) -> None:
    """Write items as the core does: Retry is tried again, NotConnected is opened anew."""
    place, done = 0, False
    await course.before(0)
    while not done:
        try:
            async with sink.open(session) as writer:
                assert writer is not None, "this sink takes no blocks"
                while place < len(items):
                    try:
                        await _write(writer, items[place])
                    except Retry as error:
                        await course.failed(error)
                        continue
                    place += 1
                    await course.before(place)
            done = True
        except PluginError as error:
            await course.failed(error)


async def _write(writer: Writer, item: Block | Notice) -> None:
    if isinstance(item, Notice):
        await writer.notice(item)
    else:
        await writer.write(item)


class SinkSuite:
    """What the core relies on in every sink that is written to.

    A sink that may deliver a row twice after a failure sets `exactly_once = False`; it never loses
    one, and without failures delivers each once.
    """

    exactly_once: ClassVar[bool] = True

    @asynccontextmanager
    async def sink(self, folder: Path) -> AsyncIterator[Sink[Any]]:
        """Open the plugin under test, its destination in or named after `folder`. Override it."""
        raise NotImplementedError("override SinkSuite.sink")
        yield

    async def arrived(self, folder: Path, session_id: str) -> list[int]:
        """Return the sequence numbers of a session's ticks at the destination. Override it."""
        raise NotImplementedError("override SinkSuite.arrived")

    @asynccontextmanager
    async def broken(self, folder: Path) -> AsyncIterator[None]:
        """Make the destination fail while this is held. Override it where that can be."""
        pytest.skip("this sink's destination cannot be broken")
        yield

    async def test_it_is_usable(self, tmp_path: Path) -> None:
        async with self.sink(tmp_path) as sink:
            await sink.probe()

    @pytest.mark.parametrize("slice_ticks", [2048, 7])
    async def test_everything_arrives_in_order(self, tmp_path: Path, slice_ticks: int) -> None:
        blocks = make_blocks(suite_batches(), "s", slice_ticks=slice_ticks)
        async with self.sink(tmp_path) as sink:
            await self._deliver(sink, "s", [*blocks, end_notice(len(seqs_of(blocks)))])
            assert await self.arrived(tmp_path, "s") == seqs_of(blocks)

    async def test_notices_come_in_between(self, tmp_path: Path) -> None:
        blocks = make_blocks(suite_batches(), "s", slice_ticks=300)
        items: list[Block | Notice] = []
        for block in blocks:
            items += [block, *suite_notices()]
        async with self.sink(tmp_path) as sink:
            await self._deliver(sink, "s", [*items, end_notice(len(seqs_of(blocks)))])
            assert await self.arrived(tmp_path, "s") == seqs_of(blocks)

    async def test_a_new_epoch_begins_anew(self, tmp_path: Path) -> None:
        """After a seek numbers begin at 1 again; what came before is kept whole, or given up."""
        trades = suite_batches()[1:3]  # of which no gap mark is made, that would take a number
        early = _blocks_of(make_stream([batch[:60] for batch in trades], "s", slice_ticks=50))
        late = _blocks_of(make_stream([batch[30:] for batch in trades], "s", epoch=2))
        reset = Notice("reset", {"epoch": 2, "clock": 1, "cause": "seek"})
        snapshot = Notice("snapshot", {"epoch": 2, "clock": 1, "data": [], "gaps": []})
        end = Notice("end", {**end_notice(len(seqs_of(late))).fields, "epoch": 2})
        async with self.sink(tmp_path) as sink:
            await self._deliver(sink, "s", [*early, reset, snapshot, *late, end])
            arrived = await self.arrived(tmp_path, "s")
        assert arrived[-len(seqs_of(late)) :] == seqs_of(late)
        assert arrived[: -len(seqs_of(late))] in ([], seqs_of(early))

    @pytest.mark.parametrize("reason", ["stopped", "failed"])
    async def test_what_was_delivered_before_a_sudden_end_is_there(
        self, tmp_path: Path, reason: str
    ) -> None:
        blocks = make_blocks(suite_batches(), "s", slice_ticks=100)[:3]
        async with self.sink(tmp_path) as sink:
            await self._deliver(sink, "s", [*blocks, end_notice(300, reason)])
            assert await self.arrived(tmp_path, "s") == seqs_of(blocks)

    async def test_nothing_arrives_of_a_session_without_ticks(self, tmp_path: Path) -> None:
        async with self.sink(tmp_path) as sink:
            await self._deliver(sink, "s", [end_notice(0)])
            assert await self.arrived(tmp_path, "s") == []

    async def test_sessions_at_once_do_not_mix(self, tmp_path: Path) -> None:
        names = ["a", "b.1:x", "c-2_"]
        batches = suite_batches()
        async with self.sink(tmp_path) as sink, trio.open_nursery() as nursery:
            for at, name in enumerate(names):
                blocks = make_blocks(batches[: at + 1], name, slice_ticks=10)
                nursery.start_soon(self._deliver, sink, name, blocks)
        for at, name in enumerate(names):
            expected = sum(map(len, batches[: at + 1]))
            assert await self.arrived(tmp_path, name) == list(range(1, expected + 1))

    async def test_opened_again_it_goes_on(self, tmp_path: Path) -> None:
        blocks = make_blocks(suite_batches(), "s", slice_ticks=100)
        async with self.sink(tmp_path) as sink:
            session = suite_session("s")
            for block in blocks:  # opened anew for each, as after a failure elsewhere
                with pytest.raises(NotConnected, match="as if"):
                    await _write_and_fail(sink, session, block)
            assert await self.arrived(tmp_path, "s") == seqs_of(blocks)

    @pytest.mark.parametrize("place", [0, 3])
    async def test_a_destination_that_breaks_loses_nothing(
        self, tmp_path: Path, place: int
    ) -> None:
        blocks = make_blocks(suite_batches(), "s", slice_ticks=100)
        async with self.sink(tmp_path) as sink, AsyncExitStack() as stack:
            course = _BreaksAndMends(stack, self.broken(tmp_path), place)
            with trio.fail_after(_PATIENCE):
                await deliver(sink, suite_session("s"), blocks, course)
            assert course.failures, "nothing failed; `broken` does not break it"
            for failure in course.failures:
                assert isinstance(failure, Retry | NotConnected), failure
                assert failure.message
        arrived = await self.arrived(tmp_path, "s")
        assert list(dict.fromkeys(arrived)) == seqs_of(blocks)
        if self.exactly_once:
            assert arrived == seqs_of(blocks)

    async def test_cancelled_at_any_step_it_leaves_a_beginning(self, tmp_path: Path) -> None:
        blocks = make_blocks(suite_batches(), "s", slice_ticks=400)
        finished, step = False, 1
        while not finished:
            folder = tmp_path / str(step)
            folder.mkdir()
            written: list[Block] = []
            async with self.sink(folder) as sink:
                tasks = trio.lowlevel.current_statistics().tasks_living
                with trio.fail_after(_PATIENCE):
                    finished = await _cancelled_at(step, sink, blocks, written)
                assert trio.lowlevel.current_statistics().tasks_living == tasks
            there = await self.arrived(folder, "s")
            assert there == seqs_of(blocks)[: len(there)]
            assert len(there) >= len(seqs_of(written)), "what was delivered is lost"
            step += max(step // 8, 1)

    async def _deliver(
        self, sink: Sink[Any], session_id: str, items: Sequence[Block | Notice]
    ) -> None:
        course = Course()
        with trio.fail_after(_PATIENCE):
            await deliver(sink, suite_session(session_id), items, course)
        assert course.failures == []


async def _write_and_fail(sink: Sink[Any], session: Session, block: Block) -> None:
    async with sink.open(session) as writer:
        assert writer is not None
        await writer.write(block)
        raise NotConnected("as if")


class _BreaksAndMends(Course):
    """Breaks the destination before an item, and mends it after some failures."""

    def __init__(
        self, stack: AsyncExitStack, broken: AbstractAsyncContextManager[None], place: int
    ) -> None:
        super().__init__()
        self._stack, self._broken, self._place = stack, broken, place

    async def before(self, place: int) -> None:
        if place == self._place:
            await self._stack.enter_async_context(self._broken)

    async def failed(self, error: PluginError) -> None:
        await super().failed(error)
        if len(self.failures) == _FAILURES_BEFORE_MENDING:
            await self._stack.aclose()


class _CancelAt(trio.abc.Instrument):
    """Cancels a scope just before the n-th step of any task."""

    def __init__(self, steps: int, scope: trio.CancelScope) -> None:
        self._left = steps
        self._scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


async def _cancelled_at(
    step: int, sink: Sink[Any], blocks: Sequence[Block], written: list[Block]
) -> bool:
    """Deliver, cancelled at the n-th step; tell whether it finished before."""
    with trio.CancelScope() as scope:
        instrument = _CancelAt(step, scope)
        trio.lowlevel.add_instrument(instrument)
        try:
            async with sink.open(suite_session("s")) as writer:
                assert writer is not None
                for block in blocks:
                    await writer.write(block)
                    written.append(block)
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return not scope.cancelled_caught
