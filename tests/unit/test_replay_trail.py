"""A durable session is taken up at once; its content hash is found behind its back."""

from __future__ import annotations

import random
import sqlite3
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import trio

from tardisd.errors import RequestError, StorageError
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import MILLISECOND, MINUTE, SECOND, parse_time
from tardisd.plugins.sessions import Resume
from tardisd.replay.block import Prepared
from tardisd.replay.digest import new_digest
from tardisd.replay.manager import SessionLimits
from tardisd.replay.position import Checkpoint, Position, Progress
from tardisd.replay.trail import Trail
from tardisd.testing.engine import run_engine
from tardisd.testing.memory import MemoryStorage

START = parse_time("2024-03-01T00:00:00Z")
SPAN = Span(START, START + 10 * MINUTE)
TRADES = Series.parse("binance:BTC/USDT@trade")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
FIVES = Series.parse("binance:BTC/USDT@candle_5m")
COUNT = 60_000  # many blocks


class Gated(MemoryStorage):
    """A storage that gives no trades of the first second while its gate is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = self.failing = False
        self.asked = 0
        self._opened = trio.Event()

    def close(self) -> None:
        self.closed, self._opened = True, trio.Event()

    def open(self) -> None:
        self.closed = False
        self._opened.set()

    @asynccontextmanager
    async def _read(self, series, span):
        if series == TRADES and span.start < START + SECOND:
            self.asked += 1
            if self.failing:
                raise StorageError("the first second cannot be read")
            if self.closed:
                await self._opened.wait()
        async with super()._read(series, span) as channel:
            yield channel


async def fill(engine, price=100):
    times = START + np.arange(COUNT) // 3 * 30 * MILLISECOND  # three at a time
    amounts = Decimals(np.arange(COUNT) + price)
    trades = Batch(TRADES, times, {"price": amounts, "amount": amounts}, np.arange(COUNT),
                   np.zeros(COUNT, np.uint8))  # fmt: skip
    opens = START + np.array([0, 1, 2, 5, 6, 7, 8, 9]) * MINUTE
    fields = ("open", "high", "low", "close", "volume")
    candles = Batch(CANDLES, opens, dict.fromkeys(fields, Decimals(np.arange(8) + 1)))
    await engine.store(trades, SPAN)
    await engine.store(candles, SPAN)


async def reference(engine):
    await fill(engine)
    return await engine.play([TRADES, CANDLES], SPAN, speed="max")


WHOLE = run_engine(reference)


def unhashed(*counts):
    """Return blocks that have so many ticks, and nothing else."""
    times = [np.zeros(count, np.int64) for count in counts]
    return [Prepared("s", 1, [], [], release, {}, 1, None) for release in times]


def hash_of(ticks):
    """Return the content hash of the first ticks of the session."""
    for block in WHOLE.blocks:
        if ticks <= len(block):
            return block._whole.hash_upto(block._first + ticks).hexdigest()
        ticks -= len(block)
    raise AssertionError("there are not so many")


class Case:
    """A durable session `d` that a daemon has left in its middle, and the daemons after it."""

    def __init__(self, folder) -> None:
        self.state = folder / "state.sqlite"
        self.storage = Gated()

    def run(self, main, **options):
        return run_engine(main, state=self.state, storage=self.storage, **options)

    def leave(self, secs=4.0003, **options):
        """Play so many seconds of wall time at 60 times the market's, and be killed."""

        async def first(engine):
            await fill(engine)
            session = await engine.create([TRADES, CANDLES], SPAN, durable=True, session_id="d",
                                          **{"speed": 60.0, **options})  # fmt: skip
            session.begin()
            await trio.sleep(secs)
            session.pause()

        self.run(first)
        return self

    def place(self):
        """Return what is written down of the place."""
        with sqlite3.connect(self.state) as connection:
            [[text]] = connection.execute("SELECT place FROM sessions").fetchall()
        connection.close()
        return msgspec.json.decode(text)

    def put_place(self, place):
        with sqlite3.connect(self.state) as connection:
            connection.execute("UPDATE sessions SET place = ?", (msgspec.json.encode(place),))
        connection.close()


def closed(case):
    """Close the gate for the next daemon."""
    case.storage.close()
    case.storage.asked = 0
    return case


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


async def play_on(engine, session, seq):
    """Return what a follower hears who has had everything up to `seq`, when it is at the end."""
    listener = engine.listen_from(session, Resume(1, seq), "block")
    session.change_speed("max")
    session.resume()
    await listener.done.wait()
    return listener


def test_a_session_is_there_at_once_whatever_lies_before(case, monkeypatch):
    monkeypatch.setattr("tardisd.replay.position.CHECKPOINT_TICKS", 2000)
    case.leave()
    seq = case.place()["seq"]
    assert 20_000 < seq < 30_000

    async def second(engine):
        session = engine.sessions.get("d")
        late = engine.listen(session)
        back = engine.listen_from(session, Resume(1, seq - 100))
        await trio.sleep(0.1)
        assert [one.type for one in late.notices()] == ["snapshot"]
        assert back.seqs() == list(range(seq - 99, seq + 1))
        await session.step(5).wait()
        session.resume()
        await trio.sleep(1)
        session.pause()
        reached = session.status()["seq"]
        assert reached > seq + 5000
        assert back.seqs() == list(range(seq - 99, reached + 1))
        assert late.seqs() == list(range(seq + 1, reached + 1))
        assert case.storage.closed  # the beginning was asked for, and did not come
        assert case.storage.asked
        await session.step(-4).wait()
        await trio.sleep(0.1)  # else what it is told of the step is void when it hears of the seek
        session.seek(START + 8 * MINUTE)
        await trio.sleep(0.1)
        assert (session.epoch, len(late.notices("snapshot"))) == (3, 3)

    closed(case).run(second)


@pytest.mark.parametrize("dice", range(6))
def test_the_rest_and_the_hash_are_the_same_wherever_it_was_killed(case, dice):
    dice = random.Random(dice)
    case.leave(dice.uniform(0.2, 5))

    async def again(engine):
        session = engine.sessions.get("d")
        session.resume()
        await trio.sleep(dice.uniform(0.01, 1.5))
        session.pause()

    for _ in range(3):  # so it is also killed before the hash has been found
        if dice.random() < 0.5:
            case.storage.close()
        before = case.place()["seq"]
        case.run(again)
        case.storage.open()
        assert case.place()["seq"] >= before

    async def last(engine):
        seq = dice.randrange(case.place()["seq"])
        listener = await play_on(engine, engine.sessions.get("d"), seq)
        assert listener.seqs() == list(range(seq + 1, len(WHOLE.seqs()) + 1))
        assert listener.ticks() == WHOLE.ticks()[-len(listener.ticks()) :]
        assert listener.end == WHOLE.end
        assert not listener.notices("reset")

    case.run(last)


def test_the_hash_can_be_had_wherever_the_session_is(case):
    case.leave(1.0003)

    async def second(engine):
        session = engine.sessions.get("d")
        for secs in (None, 0.0, 0.7, 0.0, 0.7, 0.7, 6.0, 0.0):
            if secs == 0.0:
                await session.step(3).wait()
            elif secs is not None:
                session.resume()
                await trio.sleep(secs)
                session.pause()
            proof = await session.verify()
            assert proof["equal"]
            assert proof["hash"] == hash_of(session.ticks)
        assert session._course.progress.trail is None  # its own blocks carry the hash on
        seq = session.status()["seq"]
        assert (await play_on(engine, session, seq)).end == WHOLE.end

    case.run(second)


def test_verify_and_the_end_wait_for_the_hash_and_nothing_else_does(case):
    closed(case.leave())

    async def second(engine):
        session, proofs = engine.sessions.get("d"), []

        async def verify():
            proofs.append(await session.verify())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(verify)
            session.resume()
            await trio.sleep(1)
            session.pause()
            listener = engine.listen_from(session, Resume(1, session.status()["seq"]))
            session.change_speed("max")
            session.resume()
            await trio.sleep(100)
            assert session.status()["status"] == "finished"
            assert session.status()["waiting_for"] == ["content hash"]
            assert listener.seqs()[-1] == len(WHOLE.seqs())
            assert not listener.done.is_set()
            with pytest.raises(RequestError, match="finished"):
                session.pause()
            other = await engine.play([CANDLES], SPAN, speed="max")
            assert other.end["reason"] == "finished"
            assert not proofs
            case.storage.open()
        await listener.done.wait()
        assert listener.end == WHOLE.end
        assert session.status()["waiting_for"] == []
        assert proofs[0]["equal"]
        assert (await session.verify())["equal"]

    case.run(second)


def test_stop_answers_at_once_and_the_end_has_the_hash(case):
    closed(case.leave())

    async def second(engine):
        session = engine.sessions.get("d")
        session.resume()
        await trio.sleep(0.5)
        session.pause()
        ticks = session.ticks
        listener = engine.listen_from(session, Resume(1, session.status()["seq"]))
        assert session.stop().type == "stopped"
        await trio.sleep(100)
        assert session.status()["status"] == "stopped"
        assert not listener.done.is_set()
        for verb in (session.resume, session.stop, lambda: session.seek(START)):
            with pytest.raises(RequestError, match="stopped"):
                verb()
        case.storage.open()
        await listener.done.wait()
        assert (listener.end["reason"], listener.end["ticks"]) == ("stopped", ticks)
        assert listener.end["hash"] == hash_of(ticks)

    case.run(second)


@pytest.mark.parametrize("orderly", [True, False])
def test_a_daemon_that_ends_first_tells_no_hash(case, orderly):
    closed(case.leave())

    async def second(engine):
        session = engine.sessions.get("d")
        listener = engine.listen_from(session, Resume(1, session.status()["seq"]))
        session.stop()
        await trio.sleep(1)
        if orderly:
            await engine.sessions.end_all()
            await listener.done.wait()
            assert trio.current_time() < 7
            assert (listener.end["reason"], listener.end["hash"]) == ("stopped", "")
            assert "it was not found in time" in listener.end["message"]

    async def third(engine):
        session = engine.sessions.get("d")
        assert session.status()["status"] == "stopped"
        with pytest.raises(RequestError, match="content hash of session 'd' is not known"):
            await session.verify()

    case.run(second, limits=SessionLimits(drain_secs=5))
    case.storage.open()
    case.run(third)


def test_a_daemon_that_is_stopped_meanwhile_keeps_the_place(case):
    closed(case.leave())
    before = case.place()

    async def second(engine):
        await trio.sleep(3)
        await engine.sessions.end_all()
        assert trio.current_time() < 4

    case.run(second)
    assert case.place() == before
    case.storage.open()

    async def third(engine):
        assert (await play_on(engine, engine.sessions.get("d"), before["seq"])).end == WHOLE.end

    case.run(third)


def with_holes():
    """Return trades, some at once, that stop for a minute, and candles, some of them missing."""
    seconds = np.sort(np.r_[np.arange(150), np.arange(210, 600), np.arange(10) * 60 + 1])
    amounts = Decimals(np.arange(len(seconds)) + 1)
    trades = Batch(TRADES, START + seconds * SECOND, {"price": amounts, "amount": amounts},
                   np.arange(len(seconds)), np.zeros(len(seconds), np.uint8))  # fmt: skip
    opens = START + np.array([0, 1, 4, 5, 6, 7, 8, 9]) * MINUTE
    fields = ("open", "high", "low", "close", "volume")
    return trades, Batch(CANDLES, opens, dict.fromkeys(fields, Decimals(np.arange(8) + 1)))


@pytest.mark.parametrize("ticks", [1, 62, 63, 64, 121, 125, 150, 153, 154, 155, 156, 157, 158, 220])
@pytest.mark.parametrize("moves", [(), ("seek",), ("step",)])
def test_nothing_is_lost_or_told_twice_wherever_it_stood(case, ticks, moves):
    """Also among ticks of one time and gap marks, in epochs that began in the middle."""
    options = {"on_gap": "skip", "derive": (FIVES,), "forming": True}
    kept = {}

    async def first(engine):
        trades, candles = with_holes()
        holes = [Span(SPAN.start, START + 150 * SECOND), Span(START + 210 * SECOND, SPAN.end)]
        await engine.store(trades, Coverage(holes))
        await engine.store(candles, SPAN)
        for name in ("whole", "d"):
            session = await engine.create(
                [TRADES, CANDLES], SPAN, durable=True, session_id=name, start_paused=True,
                speed="max", **options,
            )  # fmt: skip
            session.begin()
            if "seek" in moves:
                session.seek(START + MINUTE + SECOND)
            if "step" in moves:
                await session.step(100).wait()
                await session.step(-37).wait()
            if name == "whole":
                kept["whole"] = engine.listen(session)
                session.resume()
                await kept["whole"].done.wait()
            else:
                await session.step(ticks).wait()
                kept["seq"], kept["clock"] = session.status()["seq"], session.market()

    async def second(engine):
        session = engine.sessions.get("d")
        assert not session._course.is_silent
        assert (session.status()["seq"], session.market()) == (kept["seq"], kept["clock"])
        whole = kept["whole"]
        listener = engine.listen_from(session, Resume(session.epoch, kept["seq"]), "block")
        await session.step(1).wait()
        session.resume()
        await listener.done.wait()
        rest = [seq for seq in whole.seqs() if seq > kept["seq"]]
        assert listener.seqs() == rest
        assert listener.ticks() == whole.ticks()[-len(listener.ticks()) :]
        assert listener.end == whole.end

    case.run(first)
    case.run(second)


def test_a_seek_leaves_the_hash_of_the_epoch_before_alone(case):
    closed(case.leave())

    async def second(engine):
        session = engine.sessions.get("d")
        await trio.sleep(1)
        trail = session._course.progress.trail
        session.seek(START + 9 * MINUTE)
        await trail.reached(COUNT)  # returns because nobody looks for it any more
        assert trail.error is not None
        session.change_speed("max")
        session.resume()
        await session.ended.wait()
        assert session.end_notice.fields["hash"] == (await session.verify())["hash"]

    case.run(second)


def test_a_round_of_a_loop_ends_with_its_hash(case):
    closed(case.leave(loop=True))

    async def second(engine):
        session = engine.sessions.get("d")
        listener = engine.listen_from(session, Resume(1, session.status()["seq"]))
        session.change_speed("max")
        session.resume()
        await trio.sleep(10)
        assert listener.seqs()[-1] == len(WHOLE.seqs())
        assert not listener.notices("reset")
        session.change_speed(1.0)
        case.storage.open()
        while not listener.notices("reset"):
            await trio.sleep(1)
        [reset] = listener.notices("reset")
        fields = (reset.fields["cause"], reset.fields["ticks"], reset.fields["hash"])
        assert fields == ("loop", WHOLE.end["ticks"], WHOLE.end["hash"])

    case.run(second)


def test_other_data_of_the_same_version_are_found_out(case):
    case.leave()
    kept = case.storage._find(TRADES)
    ones = Decimals(np.ones(COUNT, np.int64))
    kept.batch = replace(kept.batch, fields={"price": ones, "amount": ones})

    async def second(engine):
        session = engine.sessions.get("d")
        seq = session.status()["seq"]
        listener = engine.listen_from(session, Resume(1, seq))
        await trio.sleep(10)
        [reset] = listener.notices("reset")
        assert (reset.fields["epoch"], session.epoch) == (2, 2)
        assert len(listener.notices("snapshot")) == 1
        session.change_speed("max")
        session.resume()
        await listener.done.wait()
        assert listener.end["epoch"] == 2
        assert listener.ticks()[-1] == WHOLE.ticks()[-1]

    case.run(second)


def test_a_storage_that_is_away_for_a_moment_is_asked_again(case):
    case.leave()
    case.storage.failing = True

    async def second(engine):
        session = engine.sessions.get("d")
        while case.storage.asked < 3:
            await trio.sleep(0.1)
        case.storage.failing = False
        assert (await play_on(engine, session, session.status()["seq"])).end == WHOLE.end

    case.storage.asked = 0
    case.run(second)


def test_a_hash_that_cannot_be_had_is_told_at_the_end(case):
    case.leave()
    case.storage.failing = True

    async def second(engine):
        session = engine.sessions.get("d")
        listener = await play_on(engine, session, session.status()["seq"])
        assert listener.seqs()[-1] == len(WHOLE.seqs())
        assert (listener.end["reason"], listener.end["hash"]) == ("failed", "")
        assert "the first second cannot be read" in listener.end["message"]

    case.run(second)


@pytest.mark.parametrize("known", ["hash", "no hash"])
def test_a_place_of_an_older_daemon_is_gone_through(case, known):
    case.leave()
    place = case.place()
    ticks = place["ticks"]
    for name in ("ticks", "hash_ticks", "milestones"):
        del place[name]
    place["at"] = None
    place["hash"] = hash_of(ticks) if known == "hash" else None
    case.put_place(place)

    async def second(engine):
        session = engine.sessions.get("d")
        assert session._course.is_silent
        listener = await play_on(engine, session, place["seq"])
        assert listener.end == WHOLE.end
        assert not listener.notices("reset")

    case.run(second)


def test_the_place_tells_a_hash_of_what_was_out(case):
    case.leave()
    place = case.place()
    assert 0 < place["hash_ticks"] <= place["ticks"] < place["seq"] + 1
    assert place["hash"] == hash_of(place["hash_ticks"])


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_change_is_found_by_what_the_hash_is_of(case, where):
    """What is told of the hash is older than the place: only what it is of is compared."""
    case.leave()
    place = case.place()
    last = START + place["hash_ticks"] // 3 * 30 * MILLISECOND
    span = Span(last - SECOND, last) if where == "before" else Span(SPAN.end - SECOND, SPAN.end)
    trio.run(case.storage.delete, TRADES, span)

    async def second(engine):
        session = engine.sessions.get("d")
        listener = await play_on(engine, session, place["seq"])
        assert listener.end["data_changed"]
        assert listener.end["epoch"] == (2 if where == "before" else 1)
        assert len(listener.notices("reset")) == (where == "before")

    case.run(second)


def test_milestones_are_near_for_their_age_and_stay_when_taken_up():
    progress = Progress(Position(START))
    places = [Checkpoint(seq, seq, Position(START + seq)) for seq in range(0, 1_000_000, 1000)]
    progress.take_up(Checkpoint(999_500, 999_500, Position(START)), places[1:], Trail(1))
    kept = progress.milestones()
    assert len(kept) <= 20
    for seq in range(0, 999_500, 97):
        found = max([0, *(one.seq for one in kept if one.seq <= seq)])
        assert seq - found <= max(1000, 2 * (999_500 - seq))
    again = Progress(Position(START))
    again.take_up(Checkpoint(999_500, 999_500, Position(START)), kept, Trail(1))
    assert again.milestones() == kept


def test_a_trail_keeps_only_what_may_be_asked_for():
    trail, blocks = Trail(25), unhashed(10, 10, 10, 10)
    trail.add(blocks[0], 15)
    trail.add(blocks[1], 15)
    assert [before for before, _ in trail._kept] == [10]
    trail.add(blocks[2], 15)
    trail.add(blocks[3], 31)
    assert [before for before, _ in trail._kept] == [30]


def test_a_trail_hands_the_hash_to_the_block_that_comes_next_and_to_no_other():
    trail = Trail(10)
    assert trail.join(10, 20) is None  # it is made without a hash, and so the next one will ask
    assert not trail.give(10, new_digest())
    assert trail.wanted == 20
    assert trail.give(20, new_digest())
    assert trail.join(20, 30) is not None
