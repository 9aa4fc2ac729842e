"""All sessions together: what is refused, how they end, what is remembered and for how long."""

from __future__ import annotations

import gc
import math
import weakref
from contextlib import asynccontextmanager

import pytest
import trio

from tardisd.errors import RequestError, StorageCorrupt, StorageError
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import HOUR, SECOND, parse_time
from tardisd.plugins.exchange import Page
from tardisd.plugins.sessions import SessionRequest
from tardisd.plugins.sink import Sink, Writer
from tardisd.replay.manager import SessionLimits
from tardisd.state import SessionRecord, State
from tardisd.testing.engine import run_engine
from tardisd.testing.memory import MemoryStorage
from tardisd.testing.sink import sink_context
from tardisd.testing.ticks import random_candles, random_trades
from tardisd.wall import wall_ns

START = parse_time("2024-03-01T00:00:00Z")
TRADES = Series.parse("binance:BTC/USDT@trade")
OTHERS = Series.parse("okx:ETH/USDT@trade")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
SPAN = Span(START, START + HOUR)


async def stored(engine, count=1000):
    await engine.store(random_trades(TRADES, count, START, mean_gap_ms=50), SPAN)
    return [TRADES]


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({"series": ()}, "bad_request", "series: at least one is needed"),
        ({"end": START}, "bad_request", "end_time: must be after start_time"),
        ({"end": START - 1}, "bad_request", "end_time: must be after start_time"),
        ({"speed": 0}, "bad_request", "speed: expected a number > 0 or 'max', found 0"),
        ({"speed": -1.0}, "bad_request", "speed: expected"),
        ({"speed": math.inf}, "bad_request", "speed: expected"),
        ({"speed": math.nan}, "bad_request", "speed: expected"),
        ({"session_id": ""}, "bad_request", "session_id: use 1 to 128 letters"),
        ({"session_id": "a b"}, "bad_request", "session_id"),
        ({"session_id": "a" * 129}, "bad_request", "session_id"),
        ({"session_id": "a\n"}, "bad_request", "session_id"),
        ({"storage": "gone"}, "bad_request", "storage: 'gone' is not one of: main"),
        ({"sinks": ("tape",)}, "bad_request", "sinks: 'tape' is not one of: none"),
        ({"series": (OTHERS,)}, "no_data", f"stored: {TRADES}"),
    ],
)
def test_requests_that_cannot_be(options, code, says):
    async def main(engine):
        await stored(engine)
        good = {"series": (TRADES,), "start": SPAN.start, "end": SPAN.end}
        with pytest.raises(RequestError) as caught:
            await engine.sessions.create(SessionRequest(**(good | options)))
        assert caught.value.code == code
        assert says in caught.value.message
        assert engine.sessions.list() == []

    run_engine(main)


def test_an_id_stays_taken_while_its_session_is_kept():
    async def main(engine):
        series = await stored(engine)
        session = await engine.create(series, SPAN, session_id="mine", speed="max")
        with pytest.raises(RequestError, match="session 'mine' exists already") as caught:
            await engine.create(series, SPAN, session_id="mine")
        assert caught.value.code == "session_exists"
        session.stop()
        with pytest.raises(RequestError, match="exists already"):
            await engine.create(series, SPAN, session_id="mine")
        await trio.sleep(599)
        assert engine.sessions.get("mine") is session
        await trio.sleep(2)
        with pytest.raises(RequestError, match="there is no session 'mine'") as caught:
            engine.sessions.get("mine")
        assert caught.value.code == "session_not_found"
        await engine.create(series, SPAN, session_id="mine")

    run_engine(main)


def test_two_requests_of_one_id_at_once():
    async def main(engine):
        series = await stored(engine)
        outcomes = []

        async def one():
            try:
                await engine.create(series, SPAN, session_id="x")
                outcomes.append("created")
            except RequestError as error:
                outcomes.append(error.code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            nursery.start_soon(one)
        assert sorted(outcomes) == ["created", "session_exists"]

    run_engine(main)


def test_there_may_be_so_many_and_not_more():
    async def main(engine):
        series = await stored(engine)
        sessions = [await engine.create(series, SPAN) for _ in range(3)]
        assert len({session.session_id for session in sessions}) == 3
        with pytest.raises(RequestError, match="3 sessions are running; the limit is 3") as caught:
            await engine.create(series, SPAN)
        assert caught.value.code == "too_many_sessions"
        sessions[1].stop()
        await engine.create(series, SPAN)
        with pytest.raises(RequestError) as caught:
            await engine.create([TRADES, OTHERS, CANDLES], SPAN)
        assert caught.value.code == "too_large"

    run_engine(main, limits=SessionLimits(max_sessions=3, max_series=2))


def test_ended_sessions_are_kept_but_not_without_bound():
    async def main(engine):
        series = await stored(engine, 10)
        for number in range(10):
            await engine.play(series, SPAN, speed="max", session_id=f"s{number}")
        kept = [session.session_id for session in engine.sessions.list()]
        assert kept == [f"s{number}" for number in range(6, 10)]

    run_engine(main, limits=SessionLimits(max_kept=4))


def test_nothing_stays_of_a_session_that_is_forgotten():
    async def main(engine):
        series = await stored(engine, 10)
        await engine.play(series, SPAN, speed="max", session_id="first")
        await trio.sleep(1)
        gone = weakref.ref(engine.sessions.get("first"))
        before = trio.lowlevel.current_statistics().tasks_living
        for number in range(50):
            await engine.play(series, SPAN, speed="max", session_id=f"s{number}")
        await trio.sleep(1)
        gc.collect()
        assert gone() is None
        # One thread more may have been busy then: it makes the encoder's tables at the start.
        assert trio.lowlevel.current_statistics().tasks_living <= before

    run_engine(main, limits=SessionLimits(max_kept=1))


class StuckSink(Sink, Writer):
    """Takes nothing until it is let."""

    name = "stuck"

    def __init__(self):
        super().__init__(Sink.Options(), sink_context(None))
        self.let = trio.Event()

    @asynccontextmanager
    async def open(self, session):
        yield self

    async def write(self, block):
        await self.let.wait()

    async def notice(self, notice):
        await self.let.wait()


def test_an_id_stays_taken_while_sinks_write_what_it_was():
    """Else two streams of one id would be written, and one session's end be taken for another's."""
    sink = StuckSink()

    async def main(engine):
        series = await stored(engine, 10)
        options = {"speed": "max", "session_id": "mine", "sinks": ("stuck",)}
        session = await engine.create(series, SPAN, **options)
        session.begin()
        await session.ended.wait()
        engine.sessions.remove("mine")
        with pytest.raises(RequestError, match="sinks still write") as caught:
            await engine.create(series, SPAN, **options)
        assert caught.value.code == "session_exists"
        assert engine.sessions.users_of(sink) == ["mine"]
        sink.let.set()
        await trio.sleep(1)
        again = await engine.create(series, SPAN, **options)
        again.begin()
        await again.ended.wait()
        await trio.sleep(1)
        assert engine.sessions.get("mine") is again
        assert not engine.sessions.users_of(sink)

    run_engine(main, sinks={"stuck": sink})


def test_a_session_removed_as_it_ends_does_not_come_back(tmp_path):
    async def main(engine):
        series = await stored(engine, 10)
        (await engine.create(series, SPAN, session_id="mine")).stop()
        engine.sessions.remove("mine")
        await trio.sleep(1)
        assert not list(engine.sessions.list())

    run_engine(main, state=tmp_path / "state.db")
    state = State(tmp_path / "state.db")
    assert not list(state.sessions())
    state.close()


@pytest.mark.parametrize("ending", ["finished", "stopped"])
def test_verbs_on_ended_sessions(ending):
    async def main(engine):
        session = await engine.create(await stored(engine), SPAN, speed="max", session_id="x")
        if ending == "finished":
            listener = engine.listen(session)
            session.begin()
            await listener.done.wait()
        else:
            session.stop()
        for verb in (
            session.pause,
            session.resume,
            session.stop,
            lambda: session.change_speed(2.0),
        ):
            with pytest.raises(RequestError) as caught:
                verb()
            assert caught.value.code == "wrong_state"
            assert caught.value.message.startswith("cannot ")
            has = "it has finished" if ending == "finished" else "it has been stopped"
            assert caught.value.message.endswith(f"session 'x': {has}")
        assert session.status()["status"] == ending
        session.begin()
        engine.sessions.remove("x")
        assert engine.sessions.list() == []

    run_engine(main)


def test_a_running_session_is_not_removed():
    async def main(engine):
        session = await engine.create(await stored(engine), SPAN, speed=1.0, session_id="x")
        session.begin()
        with pytest.raises(RequestError, match="still running; stop it first") as caught:
            engine.sessions.remove("x")
        assert caught.value.code == "wrong_state"
        with pytest.raises(RequestError, match="speed: expected"):
            session.change_speed(0.0)

    run_engine(main)


# ---- how they end


def test_a_stop_ends_it_at_once_with_what_was_delivered():
    async def main(engine):
        session = await engine.create(await stored(engine), SPAN, speed=1.0)
        listener = engine.listen(session)
        session.begin()
        await trio.sleep(10)
        session.stop()
        await listener.done.wait()
        assert trio.current_time() == pytest.approx(10)
        end = listener.end
        assert (end["reason"], end["ticks"]) == ("stopped", len(listener.ticks()))
        assert 0 < end["ticks"] < 1000
        whole = listener.blocks[-1]._whole
        assert end["hash"] == whole.hash_upto(listener.blocks[-1]._last).hexdigest()

    run_engine(main)


class Breaking(MemoryStorage):
    """Fails in the middle of the first read that gets so far."""

    def __init__(self, error, rows=300):
        super().__init__()
        self.error = error
        self.rows = rows

    @asynccontextmanager
    async def read(self, series, span):
        async with super().read(series, span) as batches, trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel(0)

            async def pump():
                left = self.rows
                with send:
                    async for batch in batches:
                        for first in range(0, len(batch), 100):
                            await send.send(batch[first : first + 100])
                            left -= 100
                            if not left:
                                raise self.error

            nursery.start_soon(pump)
            yield receive
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (StorageCorrupt("chunk 7 fails its checksum"), "chunk 7 fails its checksum"),
        (KeyError("a plugin's bug"), "internal error; the log of the daemon says more"),
    ],
)
def test_a_storage_that_fails_ends_its_session_and_no_other(error, message):
    async def main(engine):
        other = await engine.create(await stored(engine), Span(START, START + SECOND), speed=1.0)
        heard = engine.listen(other)
        other.begin()
        failing = await engine.play([TRADES], SPAN, speed="max")
        assert failing.end["reason"] == "failed"
        assert failing.end["message"] == message
        assert failing.end["ticks"] == len(failing.ticks()) <= 300
        await heard.done.wait()
        assert heard.end["reason"] == "finished"

    run_engine(main, storage=Breaking(error))


class Regretting(MemoryStorage):
    """Finds out only in closing that what it read was wrong."""

    reads = 0

    @asynccontextmanager
    async def read(self, series, span):
        async with super().read(series, span) as batches:
            yield batches
        self.reads += 1
        if self.reads > 1:  # the first is the look whether there is anything
            raise StorageCorrupt("the last page is torn")


@pytest.mark.parametrize("attempt", range(20))
def test_an_error_in_closing_is_not_taken_for_the_end(attempt):
    """Which of two tasks trio runs first is a matter of chance: hence many times."""

    async def main(engine):
        await stored(engine)
        heard = await engine.play([TRADES], SPAN, speed="max")
        assert (heard.end["reason"], heard.end["message"]) == ("failed", "the last page is torn")

    run_engine(main, storage=Regretting())


class Refusing(MemoryStorage):
    async def coverage(self, series):
        raise StorageError("the disk is gone")


def test_a_storage_that_cannot_be_asked_is_told_to_the_client():
    async def main(engine):
        await stored(engine)
        with pytest.raises(RequestError, match=f"{TRADES}: the disk is gone") as caught:
            await engine.create([TRADES], SPAN, session_id="x")
        assert caught.value.code == "internal"
        with pytest.raises(RequestError, match="the disk is gone"):
            await engine.create([TRADES], SPAN, session_id="x")

    run_engine(main, storage=Refusing())


def test_data_that_changed_meanwhile_is_said():
    async def main(engine):
        await stored(engine)
        session = await engine.create([TRADES], SPAN, speed=100.0)
        same = await engine.create([TRADES], Span(START, START + SECOND), speed=1.0)
        listeners = [engine.listen(session), engine.listen(same)]
        session.begin()
        same.begin()
        await listeners[1].done.wait()
        assert "data_changed" not in listeners[1].end
        more = random_trades(TRADES, 1, START + 2 * HOUR, first_id=5)
        await engine.storage.append(TRADES, Page(more, more.extent()))
        await listeners[0].done.wait()
        assert listeners[0].end["data_changed"] is True
        assert listeners[0].end["reason"] == "finished"

    run_engine(main)


def test_the_same_data_gives_the_same_session_however_it_is_run():
    speeds = ["max", 1.0, 3333.0]

    async def main(engine):
        await stored(engine, 5000)
        await engine.store(random_candles(CANDLES, 60, START), SPAN)
        runs = [await engine.play([CANDLES, TRADES], SPAN, speed=speed) for speed in speeds]
        runs.append(await engine.play([TRADES, CANDLES, TRADES], SPAN, speed="max"))
        assert len({run.end["hash"] for run in runs}) == 1
        assert all(run.ticks() == runs[0].ticks() for run in runs)
        assert all(run.seqs() == list(range(1, 5061)) for run in runs)
        assert runs[0].blocks[0].session_id != runs[1].blocks[0].session_id

    run_engine(main)


class Rechunked(MemoryStorage):
    """Reads in batches of another size."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    @asynccontextmanager
    async def read(self, series, span):
        async with super().read(series, span) as batches, trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel(0)

            async def pump():
                with send:
                    async for batch in batches:
                        for first in range(0, len(batch), self.rows):
                            await send.send(batch[first : first + self.rows])

            nursery.start_soon(pump)
            yield receive
            nursery.cancel_scope.cancel()


def test_how_a_storage_cuts_its_batches_changes_nothing():
    async def main(engine):
        await stored(engine, 3000)
        await engine.store(random_trades(OTHERS, 2000, START, mean_gap_ms=80), SPAN)
        await engine.store(random_candles(CANDLES, 60, START), SPAN)
        heard = await engine.play([CANDLES, TRADES, OTHERS], SPAN, speed="max")
        assert heard.seqs() == list(range(1, 5061))
        return heard.end["hash"], heard.ticks()

    runs = [run_engine(main, storage=Rechunked(rows)) for rows in (17, 1000, 8192)]
    assert runs[0] == runs[1] == runs[2]


def test_charts_may_look_ahead_when_they_say_so():
    async def main(engine):
        await stored(engine, 10)
        await engine.store(random_candles(CANDLES, 60, START), SPAN)
        heard = await engine.play([CANDLES, TRADES], SPAN, speed=60.0, release="open-lookahead")
        candles = [(at, release) for at, release in heard.arrivals()]
        assert min(at for at, _ in candles) == 0
        assert [r for r, s, e in heard.ticks() if s == CANDLES.text] == [
            e for _, s, e in heard.ticks() if s == CANDLES.text
        ]
        assert b'"lookahead":true' in bytes(heard.blocks[0].encode("tick").bytes())

    run_engine(main)


# ---- what is remembered


def test_a_restart_knows_what_was(tmp_path):
    path = tmp_path / "state.sqlite"

    async def before(engine):
        await stored(engine)
        heard = await engine.play([TRADES], SPAN, speed="max", session_id="done", origin="test")
        running = await engine.create([TRADES], SPAN, speed=1.0, session_id="running")
        running.begin()
        await trio.sleep(3)
        return heard.end

    async def after(engine):
        sessions = {session.session_id: session for session in engine.sessions.list()}
        assert set(sessions) == {"done", "running"}
        done = sessions["done"].status()
        assert (done["status"], done["ticks"], done["origin"]) == ("finished", 1000, "test")
        assert done["series"] == [TRADES.text]
        follower = sessions["done"].subscribe("block")
        assert (await follower.receive()).fields == end
        assert sessions["running"].status()["status"] == "stopped"
        told = (await sessions["running"].subscribe("block").receive()).fields
        assert told["message"] == "the daemon is shutting down"
        with pytest.raises(RequestError, match="exists already"):
            await engine.create([TRADES], SPAN, session_id="done")
        with pytest.raises(RequestError, match="it has finished"):
            sessions["done"].resume()
        await trio.sleep(601)
        assert engine.sessions.list() == []

    end = run_engine(before, state=path)
    storage = MemoryStorage()
    run_engine(after, state=path, storage=storage)

    async def later(engine):
        assert engine.sessions.list() == []

    run_engine(later, state=path)


def test_a_crash_is_told_as_a_restart(tmp_path):
    path = tmp_path / "state.sqlite"
    state = State(path)
    request = {"series": [TRADES.text], "start": START, "end": SPAN.end, "speed": 1.0,
               "on_gap": "mark", "origin": "test"}  # fmt: skip
    old = wall_ns() - 3600 * 10**9
    state.put(SessionRecord("crashed", request, old, "active"))
    state.put(SessionRecord("long-ago", request, old, "finished", old, {"epoch": 1, "ticks": 1}))
    state.close()

    async def main(engine):
        [session] = engine.sessions.list()
        assert session.session_id == "crashed"
        end = (await session.subscribe("block").receive()).fields
        assert (end["reason"], end["message"]) == ("stopped", "the daemon was restarted")

    run_engine(main, state=path)
    state = State(path)
    assert [record.session_id for record in state.sessions()] == ["crashed"]
    state.close()


def test_sessions_go_on_when_they_cannot_be_written_down(tmp_path, caplog):
    """A full disk under the daemon's own state is nobody's end."""
    path = tmp_path / "state.sqlite"

    async def main(engine):
        engine.sessions._state._connection.execute("PRAGMA query_only = ON")
        await stored(engine)
        heard = await engine.play([TRADES], SPAN, speed="max", session_id="x")
        assert heard.end["reason"] == "finished"
        await trio.sleep(601)
        assert engine.sessions.list() == []

    run_engine(main, state=path)
    events = [record.message for record in caplog.records]
    assert events.count("session not written down") == 2
    assert events.count("session not forgotten") == 1


def test_the_end_of_all_sessions_waits_for_those_who_read():
    async def main(engine):
        await stored(engine, 30_000)
        session = await engine.create([TRADES], SPAN, speed="max")
        follower = session.subscribe("block")
        session.begin()
        await trio.sleep(1)
        seqs = []

        async def read_slowly():
            try:
                while True:
                    item = await follower.receive()
                    seqs.append(getattr(item, "first_seq", item))
                    await trio.sleep(1)
            except trio.EndOfChannel:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_slowly)
            await engine.sessions.end_all()
            assert seqs[-1].type == "end"
            assert seqs[-1].fields["message"] == "the daemon is shutting down"
        with pytest.raises(RequestError):
            await engine.create([TRADES], SPAN)

    run_engine(main)


def test_the_end_of_all_sessions_does_not_wait_forever():
    async def main(engine):
        await stored(engine, 30_000)
        session = await engine.create([TRADES], SPAN, speed="max")
        session.subscribe("block")
        session.begin()
        await trio.sleep(1)
        before = trio.current_time()
        await engine.sessions.end_all()
        assert trio.current_time() - before == pytest.approx(5)

    run_engine(main)
