"""Verbs that come while another one is under way; followers who come, go or fall behind then."""

from __future__ import annotations

from contextlib import asynccontextmanager

import numpy as np
import pytest
import trio

from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import MILLISECOND, MINUTE, SECOND, parse_time
from tardisd.plugins.sessions import Notice, Resume
from tardisd.replay.audience import Audience
from tardisd.replay.block import Prepared
from tardisd.replay.fanout import QueueLimits
from tardisd.replay.manager import SessionLimits
from tardisd.replay.timeline import Tuning
from tardisd.testing.engine import run_engine, ticks_of
from tardisd.testing.memory import MemoryStorage
from tardisd_websocket.follower import Follower

START = parse_time("2024-03-01T00:00:00Z")
SPAN = Span(START, START + 10 * MINUTE)
WIDE = Span(START, START + 10_000 * SECOND)
TRADES = Series.parse("binance:BTC/USDT@trade")


async def fill(engine, seconds=range(600), covered=SPAN):
    """Store a trade at each of the seconds."""
    times = START + np.array(seconds) * SECOND
    ones = Decimals(np.arange(len(times)) + 1)
    fields, ids = {"price": ones, "amount": ones}, np.arange(len(times))
    batch = Batch(TRADES, times, fields, ids, np.zeros(len(times), np.uint8))
    await engine.store(batch, covered)


async def created(engine, **options):
    session = await engine.create([TRADES], SPAN, **{"start_paused": True, **options})
    listener = engine.listen(session)
    session.begin()
    return session, listener


def told(listener, *types):
    return [notice.type for notice in listener.notices(*types)]


@pytest.mark.parametrize("count", [-1, 1, 3])
def test_a_step_waits_for_a_step_back_whose_place_is_looked_for(count):
    async def main(engine):
        await fill(engine)
        session, listener = await created(engine)
        await session.step(5).wait()
        back = session.step(-2)
        with pytest.raises(RequestError, match="another step is under way"):
            session.step(count)
        assert (await back.wait()).fields["count"] == -2
        assert (await session.step(2).wait()).fields["count"] == 2
        session.stop()
        await listener.done.wait()
        assert told(listener, "reset", "snapshot", "stepped") == [
            "stepped", "reset", "snapshot", "stepped", "stepped",
        ]  # fmt: skip

    run_engine(main)


def test_a_session_that_runs_on_is_not_set_back_by_a_step_from_before():
    async def main(engine):
        await fill(engine)
        session, _ = await created(engine)
        await session.step(5).wait()
        back = session.step(-2)
        session.resume()
        with pytest.raises(RequestError, match="the session moved meanwhile"):
            await back.wait()
        assert session.epoch == 1
        assert session.status_name == "active"
        session.pause()
        assert (await session.step(-1).wait()).fields["count"] == -1

    run_engine(main)


def test_a_step_back_is_told_after_its_snapshot_whatever_comes_meanwhile():
    async def main(engine):
        await fill(engine)
        session, listener = await created(engine)
        await session.step(5).wait()
        session.step(-2)
        while session.epoch == 1:
            await trio.sleep(0)
        session.resume()
        session.pause()
        await trio.sleep(1)
        assert told(listener)[1:] == ["reset", "resumed", "paused", "snapshot", "stepped"]

    run_engine(main)


def test_a_pause_that_was_stepped_over_does_not_come_afterwards():
    async def main(engine):
        await fill(engine)
        session, listener = await created(engine, until=START + 2 * SECOND, speed="max")
        await session.step(10).wait()
        session.resume()
        await listener.done.wait()
        assert told(listener, "paused") == []
        assert listener.end["reason"] == "finished"

    run_engine(main)


def test_a_round_of_a_loop_is_received_whole_by_one_who_is_slow():
    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES], SPAN, speed="max", loop=True)
        follower = session.subscribe("block")
        session.begin()
        rounds, hashes = {}, set()
        while len(rounds) < 4:
            await trio.sleep(0.5)  # the session is rounds ahead, until there is no room
            item = await follower.receive()
            if isinstance(item, Notice):
                hashes |= {item.fields["hash"]} if item.type == "reset" else set()
            else:
                rounds.setdefault(item.epoch, []).extend(ticks_of(item))
        session.stop()
        follower.close()
        assert [len(rounds[number]) for number in (1, 2, 3)] == [600] * 3
        assert rounds[1] == rounds[2] == rounds[3]
        assert len(hashes) == 1

    run_engine(main)


class Hesitant(MemoryStorage):
    """A storage that lets a second reader wait until `go`: it is behind meanwhile."""

    go: trio.Event

    @asynccontextmanager
    async def read(self, series, span):
        if hasattr(self, "go"):
            await self.go.wait()
        async with super().read(series, span) as batches:
            yield batches


@pytest.mark.parametrize("when_full", ["block", "drop_oldest", "conflate", "disconnect"])
def test_the_round_of_a_loop_that_one_is_catching_up_with_is_received_whole_or_missed(when_full):
    storage = Hesitant()
    limits = QueueLimits(max_block_secs=1000.0)

    async def main(engine):
        await fill(engine, range(10_000), WIDE)
        session = await engine.create([TRADES], WIDE, speed=1000.0, loop=True)
        first = engine.listen(session)
        session.begin()
        await trio.sleep(9.5)
        storage.go = trio.Event()
        back = engine.listen_from(session, Resume(1, 100), when_full)
        await trio.sleep(2)
        waits = session.status()["epoch"] == 1
        storage.go.set()
        await trio.sleep(2)
        session.stop()
        await back.done.wait()
        assert waits == (when_full == "block")
        if when_full == "disconnect":
            assert "round" in back.evicted
            return
        before = back.heard[: [heard.item.type if isinstance(heard.item, Notice) else ""
                               for heard in back.heard].index("reset")]  # fmt: skip
        if when_full == "block":
            seqs = [seq for one in before for seq in seqs_of(one.item)]
            assert seqs == list(range(101, 10_001))
        else:
            [skipped] = [one.item for one in before]
            assert skipped.fields == {"from_seq": 101, "to_seq": 10_000}
        first.follower.close()

    run_engine(main, storage=storage, limits=SessionLimits(tuning=Tuning(limits=limits)))


class SeekWhenReady(trio.abc.Instrument):
    """Seeks when a task is about to run for the nth time."""

    def __init__(self, name, nth, seek):
        self.name, self.left, self.seek = name, nth, seek

    def task_scheduled(self, task):
        if self.name in task.name:
            self.left -= 1
            if not self.left:
                self.seek()


@pytest.mark.parametrize("nth", range(1, 8))
def test_a_seek_leaves_nothing_of_what_is_being_caught_up_with(nth):
    async def main(engine):
        await fill(engine, range(10_000), WIDE)
        session = await engine.create([TRADES], WIDE, speed=1000.0)
        session.begin()
        await trio.sleep(9.5)
        instrument = SeekWhenReady("CatchUp.run", nth, lambda: session.seek(START + 9000 * SECOND))
        trio.lowlevel.add_instrument(instrument)
        back = engine.listen_from(session, Resume(1, 100), "block")
        await back.done.wait()
        trio.lowlevel.remove_instrument(instrument)
        if instrument.left > 0:
            assert nth > 1, "nobody caught up"
            return  # it had caught up before
        [at] = [at for at, heard in enumerate(back.heard)
                if isinstance(heard.item, Notice) and heard.item.type == "reset"]  # fmt: skip
        seqs = [
            seq
            for heard in back.heard[at:]
            if not isinstance(heard.item, Notice)
            for seq in seqs_of(heard.item)
        ]
        assert seqs == list(range(1, 1001))

    run_engine(main)


class Shielded(MemoryStorage):
    """A storage that asks in a thread, as those on disk do: a cancellation is heard later."""

    async def version(self, series):
        return await trio.to_thread.run_sync(lambda: self._find(series).version)


@pytest.mark.parametrize("revised", [False, True])
def test_who_comes_back_when_data_have_changed_gets_all_or_is_told(revised):
    async def main(engine):
        await fill(engine, range(10_000), WIDE)
        session = await engine.create([TRADES], WIDE, speed=1000.0)
        session.begin()
        await trio.sleep(9.5)
        if revised:
            await engine.storage.delete(TRADES, Span(START + 50 * SECOND, START + 60 * SECOND))
        else:  # what is behind the session's end is none of its business
            await fill(engine, range(10_000, 10_100), Span(WIDE.end, WIDE.end + 100 * SECOND))
        for _ in range(2):
            back = engine.listen_from(session, Resume(1, 100))
            await trio.sleep(0.1)
            if not revised:
                assert back.seqs()[:9000] == list(range(101, 9101))
                continue
            assert back.done.is_set()
            assert back.evicted is None
            [error] = back.notices()
            assert (error.type, error.fields["code"]) == ("error", "wrong_state")
            assert "subscribe without from_seq" in error.fields["message"]
        assert session.status()["subscribers"] == (0 if revised else 2)
        session.stop()

    run_engine(main)


@pytest.mark.parametrize("nth", range(1, 10))
def test_a_seek_just_before_the_end_is_no_end(nth):
    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES], SPAN, speed="max")
        listener = engine.listen(session)

        def seek():
            if not session.has_ended:
                session.seek(START + MINUTE)

        instrument = SeekWhenReady("Lifetime.run", nth, seek)
        trio.lowlevel.add_instrument(instrument)
        session.begin()
        await listener.done.wait()
        trio.lowlevel.remove_instrument(instrument)
        assert (listener.end["epoch"], listener.end["ticks"]) in [(1, 600), (2, 540)]

    run_engine(main, storage=Shielded())


def seqs_of(block):
    return range(block.first_seq, block.first_seq + len(block))


@pytest.mark.parametrize("when_full", ["drop_oldest", "conflate"])
def test_rounds_of_a_loop_do_not_pile_up(when_full):
    audience = Audience(QueueLimits(most_items=100), lambda: None, lambda: "max")
    asleep = audience.make(when_full, (), "", False)
    audience.join(asleep)
    for epoch in range(2, 1000):
        audience.go_round(Notice("reset", {"epoch": epoch, "seq": 0}), 0)
        audience.tell(Notice("snapshot", {"epoch": epoch}))
        assert len(asleep._queue) < 60
    assert len(audience) == 1


def test_a_gap_that_is_over_is_not_told_to_one_who_comes_late():
    async def main(engine):
        gap = Span(START + MINUTE, START + 2 * MINUTE)
        holes = [Span(SPAN.start, gap.start), Span(gap.end, SPAN.end)]
        await fill(engine, range(60), Coverage(holes))
        session, listener = await created(engine, speed=60.0)
        session.resume()
        for minutes, ends in ((1.5, [gap.end // MILLISECOND]), (2.5, [])):
            await trio.sleep_until(minutes + 0.0001)
            late = engine.listen(session)
            await trio.sleep(0.01)
            [snapshot] = late.notices("snapshot")
            assert [one["to"] for one in snapshot.fields["gaps"]] == ends
        session.stop()
        await listener.done.wait()

    run_engine(main)


class Stuck(MemoryStorage):
    """A storage that answers no more once it is `stuck`."""

    stuck = False

    async def last_before(self, series, before):
        if self.stuck:
            await trio.sleep_forever()
        return await super().last_before(series, before)


def test_nothing_is_read_for_those_who_have_gone():
    storage = Stuck()

    async def main(engine):
        await fill(engine)
        session, _ = await created(engine)
        await session.step(5).wait()
        nursery = engine.sessions._nursery
        before = len(nursery.child_tasks)
        storage.stuck = True
        followers = [session.subscribe("disconnect") for _ in range(50)]
        await trio.sleep(1)
        assert len(nursery.child_tasks) == before + len(followers)
        for follower in followers:
            follower.close()
        await trio.sleep(1)
        assert len(nursery.child_tasks) == before
        storage.stuck = False
        late = engine.listen(session)
        await trio.sleep(1)
        assert told(late) == ["snapshot"]

    run_engine(main, storage=storage)


def test_a_session_whose_hash_is_lost_fails_and_ends(monkeypatch):
    async def main(engine):
        await fill(engine)
        session, listener = await created(engine, speed="max")

        def lost(block, row):
            raise MemoryError

        monkeypatch.setattr(Prepared, "hash_upto", lost)
        session.resume()
        await listener.done.wait()
        assert listener.end["reason"] == "failed"
        assert "internal error" in listener.end["message"]
        assert listener.end["hash"] == ""

    run_engine(main)


class Paper:
    """Takes the frames of a client."""

    async def send(self, *parts):
        await trio.lowlevel.checkpoint()


def test_the_place_to_come_back_to_is_never_in_the_wrong_epoch():
    """Whatever a client has been told last, what its token brings is all that it lacks."""

    async def main(engine):
        await fill(engine)
        session, _ = await created(engine)
        await session.step(50).wait()
        early = Follower(session, session.subscribe("disconnect"), "tick", Paper())
        assert early.token.endswith("epoch=1 seq=0")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(early.run)
            await trio.sleep(1)  # it has had a snapshot
            assert early.token.endswith("epoch=1 seq=50")
            await session.step(7).wait()
            await trio.sleep(1)
            assert early.token.endswith("epoch=1 seq=57")
            await early._write(Notice("sought", {"epoch": 2, "clock": 0}))
            assert early.token.endswith("epoch=1 seq=57")
            session.seek(START + MINUTE)
            await trio.sleep(1)
            assert early.token.endswith("epoch=2 seq=0")
            await session.step(3).wait()
            late = Follower(session, session.subscribe("disconnect"), "tick", Paper())
            again = engine.listen_from(session, Resume(1, 0))  # what the token of `late` says
            assert late.token.endswith("epoch=1 seq=0")
            await trio.sleep(1)
            assert told(again) == ["reset", "snapshot"]
            back = session.subscribe("disconnect", resume=Resume(2, 2))
            assert Follower(session, back, "tick", Paper(), Resume(2, 2)).token.endswith(
                "epoch=2 seq=2"
            )
            session.stop()

    run_engine(main)


class Away(MemoryStorage):
    """A storage whose reads give nothing while its server is not `back`."""

    def __init__(self):
        super().__init__()
        self.back = trio.Event()
        self.back.set()

    @asynccontextmanager
    async def read(self, series, span):
        async with super().read(series, span) as batches, trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel(0)

            async def pump():
                with send:
                    await self.back.wait()
                    async for batch in batches:
                        await send.send(batch)

            nursery.start_soon(pump)
            yield receive
            nursery.cancel_scope.cancel()


def test_status_tells_of_a_storage_that_is_waited_for():
    storage = Away()

    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES], SPAN, speed="max")
        listener = engine.listen(session)
        storage.back = trio.Event()
        session.begin()
        await trio.sleep(0.5)
        assert session.status()["waiting_for"] == []
        await trio.sleep(1)
        assert session.status()["waiting_for"] == ["storage"]
        storage.back.set()
        await listener.done.wait()
        assert listener.end["reason"] == "finished"
        assert session.status()["waiting_for"] == []

    run_engine(main, storage=storage)
