"""Sessions into sinks that fail: what is retried, dropped, given up, and felt by nobody else."""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace

import pytest
import trio

from tardisd.errors import NotConnected, Rejected, Retry
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import HOUR, SECOND, parse_time
from tardisd.plugins.sessions import Notice
from tardisd.plugins.sink import Sink, Writer
from tardisd.replay.manager import SessionLimits
from tardisd.replay.timeline import Tuning
from tardisd.testing.engine import run_engine
from tardisd.testing.sink import sink_context
from tardisd.testing.ticks import random_trades

START = parse_time("2024-03-01T00:00:00Z")
TRADES = Series.parse("binance:BTC/USDT@trade")
SPAN = Span(START, START + HOUR)
COUNT = 30_000
ONE_FOR_ONE = SessionLimits(tuning=Tuning(slice_ticks=500))


class Tape(Sink, Writer):
    """Keeps what it is given. `trouble(tape)` is awaited before each write, and may raise."""

    name = "tape"
    forms = ("ndjson",)

    def __init__(self, trouble=None, opening=None):
        super().__init__(Sink.Options(), sink_context(None))
        self.trouble, self.opening = trouble, opening
        self.seqs, self.skipped, self.others = [], [], []
        self.opened = self.closed = self.tries = 0
        self.busy = False

    @asynccontextmanager
    async def open(self, session):
        self.opened += 1
        if self.opening is not None:
            await self.opening(self)
        try:
            yield self
        finally:
            self.closed += 1

    async def write(self, block):
        assert not self.busy, "never concurrent"
        self.busy = True
        try:
            self.tries += 1
            if self.trouble is not None:
                await self.trouble(self)
            await trio.lowlevel.checkpoint()
            assert bytes(block.encode("ndjson").bytes()).startswith(
                b'{"seq":%d' % block.first_seq
            ) or b" " in bytes(block.encode("ndjson").bytes(0, 1))
            self.seqs += range(block.first_seq, block.first_seq + len(block))
        finally:
            self.busy = False

    async def notice(self, notice):
        if notice.type == "skipped":
            self.skipped += range(notice.fields["from_seq"], notice.fields["to_seq"] + 1)
            self.seqs += range(notice.fields["from_seq"], notice.fields["to_seq"] + 1)
        else:
            self.others.append(notice)


def trades():
    """Return trades in bursts, so that few wake-ups make many ticks."""
    batch = random_trades(TRADES, COUNT, START, mean_gap_ms=110)
    return replace(batch, ts_event=batch.ts_event - batch.ts_event % (10 * SECOND))


async def play(engine, tapes, speed=100.0, **options):
    """Replay into all tapes; return the session and what a plain follower heard."""
    await engine.store(trades(), SPAN)
    session = await engine.create([TRADES], SPAN, speed=speed, sinks=tuple(tapes), **options)
    listener = engine.listen(session)
    session.begin()
    await listener.done.wait()
    return session, listener


def states(session):
    return {sink["name"]: (sink["state"], sink["error"]) for sink in session.status()["sinks"]}


async def until_over(session):
    while {state for state, _ in states(session).values()} & {"open", "failing"}:
        await trio.sleep(0.1)


EVERYTHING = list(range(1, COUNT + 1))


def test_a_sink_gets_all_and_then_the_end():
    tape = Tape()

    async def main(engine):
        session, listener = await play(engine, ["tape"], "max")
        await until_over(session)
        assert tape.seqs == EVERYTHING == listener.seqs()
        assert [notice.type for notice in tape.others] == ["end"]
        assert tape.others[0].fields == listener.end
        assert states(session) == {"tape": ("done", None)}
        assert (tape.opened, tape.closed) == (1, 1)

    run_engine(main, sinks={"tape": tape})


@pytest.mark.parametrize("kind", [Retry, NotConnected, ValueError])
def test_short_trouble_loses_nothing(kind):
    async def now_and_then(tape):
        if tape.tries % 7 < 2:
            raise kind("as if")

    tape = Tape(now_and_then)

    async def main(engine):
        session, _ = await play(engine, ["tape"], "max")
        await until_over(session)
        assert tape.seqs == EVERYTHING
        assert states(session) == {"tape": ("done", None)}
        assert tape.opened == tape.closed
        assert (tape.opened > 1) == (kind is not Retry)

    run_engine(main, sinks={"tape": tape}, limits=ONE_FOR_ONE)


def test_trouble_in_opening_loses_nothing():
    async def three_times(tape):
        if tape.opened <= 3:
            raise NotConnected("nobody there")

    tape = Tape(opening=three_times)

    async def main(engine):
        session, listener = await play(engine, ["tape"], "max")
        await until_over(session)
        assert tape.seqs == EVERYTHING
        assert listener.seqs() == EVERYTHING

    run_engine(main, sinks={"tape": tape})


def test_a_rejected_block_is_given_up_and_the_next_goes_on(caplog):
    async def the_third(tape):
        if tape.tries == 3:
            raise Rejected("too blue")

    tape = Tape(the_third)

    async def main(engine):
        session, _ = await play(engine, ["tape"], "max")
        await until_over(session)
        assert tape.seqs == EVERYTHING[:1000] + EVERYTHING[1500:]
        assert states(session) == {"tape": ("done", None)}

    run_engine(main, sinks={"tape": tape}, limits=ONE_FOR_ONE)
    [record] = [record for record in caplog.records if record.message == "block rejected"]
    assert record.facts["error"] == "too blue"


def test_a_failing_sink_holds_a_session_up_for_five_seconds_then_drops_and_recovers():
    async def for_twenty_seconds(tape):
        if 5 < trio.current_time() < 25:
            raise Retry("full", after=0.5)

    bad, good = Tape(for_twenty_seconds), Tape()

    async def main(engine):
        await engine.store(trades(), SPAN)
        session = await engine.create([TRADES], SPAN, speed=100.0, sinks=("bad", "good"))
        listener = engine.listen(session)
        session.begin()
        await trio.sleep(7)
        assert states(session) == {"bad": ("failing", "full"), "good": ("open", None)}
        await trio.sleep(20)
        assert states(session)["bad"] == ("open", None)
        await listener.done.wait()
        await until_over(session)
        assert good.seqs == EVERYTHING == listener.seqs() == bad.seqs
        assert bad.skipped, "what it lost is announced"
        assert good.skipped == []
        # 36 s of replay; of the 5 s of patience the queue took up the first.
        assert 36 < trio.current_time() < 36 + 5.5

    run_engine(main, sinks={"bad": bad, "good": good})


@pytest.mark.parametrize("error", [Retry("full", after=0), Retry("full", after=3.0),
                                   NotConnected("gone"), KeyError("bug")])  # fmt: skip
def test_a_sink_that_fails_forever_is_given_up_after_the_end(error):
    async def always(tape):
        raise error

    bad, good = Tape(always), Tape()

    async def main(engine):
        session, listener = await play(engine, ["bad", "good"], 1000.0)
        ended = trio.current_time()
        assert listener.end["reason"] == "finished"
        await until_over(session)
        assert trio.current_time() - ended <= 10.2
        state, text = states(session)["bad"]
        assert state == "cut_off"
        assert text.split(" at ")[0] in {"full", "gone", "KeyError: 'bug'"}
        assert states(session)["good"] == ("done", None)
        assert good.seqs == EVERYTHING == listener.seqs()
        assert bad.seqs == []
        assert bad.opened == bad.closed
        assert bad.tries < 5000, "it is not called in a loop"

    run_engine(main, sinks={"bad": bad, "good": good})


def test_a_sink_that_recovers_after_the_end_gets_what_is_left():
    async def until_late(tape):
        if trio.current_time() < 6:
            raise NotConnected("gone")

    tape = Tape(until_late)

    async def main(engine):
        await engine.store(random_trades(TRADES, 1000, START, mean_gap_ms=1), SPAN)
        session = await engine.create([TRADES], SPAN, speed="max", sinks=("tape",))
        session.begin()
        await until_over(session)
        assert session.has_ended
        assert tape.seqs == EVERYTHING[:1000]
        assert tape.others[-1].type == "end"

    run_engine(main, sinks={"tape": tape})


def test_a_sink_that_hangs_is_cut_off_and_let_go():
    async def forever(tape):
        if tape.tries == 2:
            await trio.sleep_forever()

    bad, good = Tape(forever), Tape()

    async def main(engine):
        session, listener = await play(engine, ["bad", "good"], "max")
        assert 60 <= trio.current_time() < 61, "the queue's own limit"
        assert good.seqs == EVERYTHING == listener.seqs()
        await until_over(session)
        assert states(session)["bad"][0] == "cut_off"
        assert bad.closed == 1
        assert not bad.busy

    run_engine(main, sinks={"bad": bad, "good": good}, limits=ONE_FOR_ONE)


def test_a_sink_that_hangs_at_the_end_is_cut_off_too():
    async def forever(tape):
        await trio.sleep_forever()

    tape = Tape(forever)

    async def main(engine):
        await engine.store(random_trades(TRADES, 100, START, mean_gap_ms=1), SPAN)
        session = await engine.create([TRADES], SPAN, speed="max", sinks=("tape",))
        session.begin()
        await session.ended.wait()
        await until_over(session)
        assert trio.current_time() <= 121
        assert states(session)["tape"][0] == "cut_off"

    run_engine(main, sinks={"tape": tape})


def test_a_sink_whose_followers_come_by_themselves_is_done_at_once():
    class Server(Tape):
        def open(self, session):
            self.opened += 1
            return nullcontext()

    server = Server()

    async def main(engine):
        session, listener = await play(engine, ["server"], "max")
        assert states(session) == {"server": ("done", None)}
        assert listener.seqs() == EVERYTHING
        assert session.status()["waiting_for"] == []
        assert server.opened == 1

    run_engine(main, sinks={"server": server})


def test_one_that_cannot_be_left_is_opened_again():
    class Sticky(Tape):
        @asynccontextmanager
        async def open(self, session):
            async with super().open(session) as writer:
                yield writer
            if self.opened < 3:
                raise NotConnected("could not complete")

    sticky = Sticky()

    async def main(engine):
        session, _ = await play(engine, ["sticky"], "max")
        await until_over(session)
        assert states(session) == {"sticky": ("done", None)}
        assert sticky.opened == 3
        assert sticky.seqs == EVERYTHING

    run_engine(main, sinks={"sticky": sticky})


def test_notices_reach_a_sink_in_their_place():
    tape = Tape()

    async def main(engine):
        await engine.store(random_trades(TRADES, 1000, START, mean_gap_ms=100), SPAN)
        session = await engine.create([TRADES], SPAN, speed=10.0, sinks=("tape",))
        session.begin()
        await trio.sleep(2)
        session.pause()
        await trio.sleep(2)
        seen = len(tape.seqs)
        assert 0 < seen < 1000
        assert [notice.type for notice in tape.others] == ["paused"]
        session.change_speed("max")
        session.resume()
        await until_over(session)
        assert [n.type for n in tape.others] == ["paused", "speed_changed", "resumed", "end"]
        assert all(isinstance(notice, Notice) for notice in tape.others)

    run_engine(main, sinks={"tape": tape})


def test_the_same_complaint_is_not_logged_again_and_again(caplog):
    async def always(tape):
        raise Retry("full", after=0.1)

    tape = Tape(always)

    async def main(engine):
        session, _ = await play(engine, ["tape"], 500.0)
        await until_over(session)

    run_engine(main, sinks={"tape": tape})
    events = [record.message for record in caplog.records]
    assert tape.tries > 50
    assert events.count("sink failed") == 1
    assert events.count("sink cut off") == 1
