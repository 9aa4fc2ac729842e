"""A durable session ends as a plain replay, whatever it is told and whenever daemons are killed.

The model is the plain replay itself: every epoch must be a part of it that has no hole, from where
the epoch began to where it was left; a follower who honours `reset` and `snapshot`, and comes back
to each daemon with its epoch and seq, ends with the same state.
"""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import HOUR, MILLISECOND, MINUTE, SECOND, parse_time
from tardisd.plugins.sessions import Evicted, Notice, Resume
from tardisd.replay.fanout import QueueLimits
from tardisd.replay.manager import SessionLimits
from tardisd.replay.timeline import Tuning
from tardisd.testing.engine import run_engine, ticks_of
from tardisd.testing.memory import MemoryStorage

START = parse_time("2024-03-31T23:50:00Z")  # a month ends in the middle, and so does summer time
SPAN = Span(START, START + 20 * MINUTE)
TRADES = Series.parse("binance:BTC/USDT@trade")
SWAPS = Series.parse("binance:BTC/USDT:USDT@trade")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
FIVES = Series.parse("okx:BTC/USDT@candle_5m")
ALL = [TRADES, SWAPS, CANDLES, FIVES]
FIELDS = ("open", "high", "low", "close", "volume")
LIMITS = SessionLimits(
    tuning=Tuning(slice_ticks=8, limits=QueueLimits(blocking_ticks=16, lagging_ticks=40))
)


def trades(series, seconds):
    times = START + np.sort(np.asarray(seconds)) * SECOND
    ones = Decimals(np.arange(len(times)) + 1)
    sides = np.zeros(len(times), np.uint8)
    return Batch(series, times, {"price": ones, "amount": ones}, np.arange(len(times)), sides)


def candles(series, minutes):
    opens = START + np.asarray(minutes) * MINUTE
    flat = Decimals(np.arange(len(opens)) + 1)
    return Batch(series, opens, dict.fromkeys(FIELDS, flat))


async def fill(engine):
    """Store series with many equal times, and gaps that begin and end at such times."""
    spot = np.r_[np.arange(0, 1200, 7), np.full(25, 300), np.arange(20) * 60]
    half = [Span(SPAN.start, START + 6 * MINUTE), Span(START + 7 * MINUTE, SPAN.end)]
    await engine.store(trades(TRADES, spot[(spot < 360) | (spot >= 420)]), Coverage(half))
    await engine.store(trades(SWAPS, np.r_[np.arange(0, 1200, 60), 300, 300, 301]), SPAN)
    await engine.store(candles(CANDLES, [0, 1, 2, 5, 6, *range(10, 19)]), SPAN)
    await engine.store(candles(FIVES, [0, 5, 10, 15]), SPAN)


def course(listener):
    """Return what a listener heard, as (release, what), ticks and marks alike, in order."""
    found = []
    for heard in listener.heard:
        if not isinstance(heard.item, Notice):
            found += [(release, series, event) for release, series, event in ticks_of(heard.item)]
        elif heard.item.type == "gap":
            fields = heard.item.fields
            found.append((fields["from"] * MILLISECOND, "gap", fields["series"]))
    return found


async def reference(engine):
    await fill(engine)
    listener = await engine.play(ALL, SPAN, speed="max")
    return course(listener), listener.end


WHOLE, END = run_engine(reference)
TICKS = [item for item in WHOLE if item[1] != "gap"]


class State:
    """What a follower knows who honours `reset` and `snapshot`: the newest tick of each series."""

    def __init__(self):
        self.epochs = {}
        self.newest = {}
        self.seq = 0
        self.epoch = 1
        self.ended = None
        #: Whether it has something to go on with; who is cut off before that comes anew.
        self.has_begun = False

    def take(self, item, market):
        if not isinstance(item, Notice) or item.type in {"gap", "reset", "snapshot", "end"}:
            self.has_begun = True
        if not isinstance(item, Notice):
            assert item.epoch == self.epoch
            assert item.first_seq == self.seq + 1, "a hole, or a double"
            self.seq += len(item)
            for release, series, event in ticks_of(item):
                assert release <= market, "a tick before its time"
                self.newest[series] = event
                self.epochs.setdefault(self.epoch, []).append((release, series, event))
        elif item.type == "gap":
            assert item.fields["seq"] == self.seq + 1
            self.seq += 1
            what = (item.fields["from"] * MILLISECOND, "gap", item.fields["series"])
            self.epochs.setdefault(self.epoch, []).append(what)
        elif item.type == "reset":
            assert item.fields["epoch"] > self.epoch
            self.epoch, self.seq, self.newest = item.fields["epoch"], item.fields["seq"], {}
        elif item.type == "snapshot":
            assert item.fields["epoch"] == self.epoch
            for row in json.loads(bytes(item.fields["data"])):
                name = f"{row['exchange']}:{row['symbol']}@{row['channel']}"
                self.newest[name] = row["timestamp"] * MILLISECOND
        elif item.type == "end":
            self.ended = item.fields


def state_at(count):
    """Return the newest tick of each series when `count` ticks of the whole are out."""
    return {series: event for _, series, event in TICKS[:count]}


class Client:
    """A follower that reads by itself, goes when told to, and comes back where it was."""

    def __init__(self, session, nursery, policy="block", state=None):
        self.session, self.nursery, self.policy = session, nursery, policy
        self.state = state or State()
        self.comes_back = state is not None
        self.follower = None
        self.done = trio.Event()

    def come(self):
        resume = Resume(self.state.epoch, self.state.seq) if self.comes_back else None
        if not self.comes_back:
            self.state.has_begun = not self.session._course.has_begun  # else a snapshot comes first
        self.comes_back = True
        self.follower = self.session.subscribe(self.policy, (), "", resume)
        if resume is None:
            self.state.epoch = self.session.epoch
            self.state.seq = self.session.status()["seq"]
        self.nursery.start_soon(self.read, self.follower)

    def go(self):
        self.follower.close()

    async def read(self, follower):
        try:
            while follower is self.follower:
                item = await follower.receive()
                if follower is self.follower:
                    self.state.take(item, self.session.market())
        except trio.EndOfChannel:
            if follower is self.follower and self.state.ended is not None:
                self.done.set()
        except Evicted as error:
            raise AssertionError(f"evicted: {error}") from None


speeds = st.sampled_from(["max", 0.01, 1.0, 10.0, 60.0, 1000.0, 33.3])
moments = st.one_of(
    st.integers(0, 1200).map(lambda second: second * SECOND),
    st.sampled_from([0, 300 * SECOND, 300 * SECOND + 1, 360 * SECOND, 420 * SECOND, 1200 * SECOND]),
)
actions = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.001, 0.5, 1.0, 7.0, 59.0])),
    st.tuples(st.just("pause")),
    st.tuples(st.just("resume")),
    st.tuples(st.just("speed"), speeds),
    st.tuples(st.just("seek"), moments),
    st.tuples(st.just("seek_by"), st.integers(-900, 900).map(lambda second: second * SECOND)),
    st.tuples(st.just("step"), st.sampled_from([1, 2, 3, 17, 200, -1, -2, -30, -1000])),
    st.tuples(st.just("join"), st.sampled_from(["block", "block", "drop_oldest"])),
    st.tuples(st.just("go"), st.integers(0, 3)),
    st.tuples(st.just("come"), st.integers(0, 3)),
)


class Play:
    """A session, those who follow it, and the verbs of a test."""

    def __init__(self, session, nursery, states=(None,)):
        self.session, self.nursery = session, nursery
        self.clients = [Client(session, nursery, state=state) for state in states]
        self.away = set()

    async def act(self, action, *arguments):
        session = self.session
        try:
            if action == "wait":
                await trio.sleep(*arguments)
            elif action == "seek":
                session.seek(START + arguments[0])
            elif action == "step":
                before = session.status()["seq"]
                notice = await session.step(*arguments).wait()
                count = notice.fields["count"]
                assert abs(count) <= abs(arguments[0])
                if arguments[0] > 0:
                    assert session.status()["ticks"] >= count >= 0
                    assert session.status()["seq"] >= before + count
            elif action == "join" and not session.has_ended:
                # One that may lose ticks is not looked at; it must only not disturb the others.
                if arguments[0] == "block":
                    self.clients.append(Client(session, self.nursery))
                    self.clients[-1].come()
                else:
                    session.subscribe(*arguments)
            elif action in {"go", "come"} and not self.clients:
                pass
            elif action == "go":
                client = self.clients[arguments[0] % len(self.clients)]
                if client.state.has_begun and client not in self.away:
                    client.go()
                    self.away.add(client)
            elif action == "come":
                client = self.clients[arguments[0] % len(self.clients)]
                if client in self.away:
                    self.away.discard(client)
                    client.come()
            elif action != "join":
                name = "change_speed" if action == "speed" else action
                getattr(session, name)(*arguments)
        except RequestError as error:
            if error.code != "wrong_state":  # it has ended, or is not paused
                raise


@settings(max_examples=60)
@given(
    st.lists(st.lists(actions, max_size=7), min_size=2, max_size=4),
    speeds,
    st.sampled_from(["mark", "skip"]),
    st.booleans(),
)
def test_any_order_of_moves_and_kills_ends_with_the_same_state(parts, speed, on_gap, changing):
    """Each part is played by a daemon of its own; all but the last are killed at its end."""
    storage, states = MemoryStorage(), [None]

    async def one(engine, steps, number):
        if number == 0:
            await fill(engine)
            session = await engine.create(
                ALL, SPAN, speed=speed, on_gap=on_gap, durable=True, session_id="d"
            )
        else:
            session = engine.sessions.get("d")
            assert session.has_ended or session._course.is_silent <= changing
        async with trio.open_nursery() as nursery:
            play = Play(session, nursery, states)
            for client in play.clients:
                client.come()
            session.begin()
            for step in steps:
                await play.act(*step)
            if number == len(parts) - 1:
                for client in play.away:
                    client.come()
                if not session.has_ended:
                    session.change_speed("max")
                    session.resume()
                with trio.fail_after(20 * HOUR / SECOND):
                    for client in play.clients:
                        await client.done.wait()
                end = session.end_notice.fields
                for client in play.clients:
                    check(client.state, end)
                assert (await session.verify())["equal"]
            states[:] = [one.state for one in play.clients if one.state.has_begun]
            nursery.cancel_scope.cancel()

    with TemporaryDirectory() as folder:
        for number, steps in enumerate(parts):
            main = partial(one, steps=steps, number=number)
            state = Path(folder, "state.sqlite")
            run_engine(main, limits=LIMITS, storage=storage, state=state)
            if changing:  # then what was released is gone through before it goes on
                storage._kept[TRADES.key].version += 1


def check(state, end):
    assert state.ended == end
    assert state.newest == state_at(len(TICKS))
    for number, items in state.epochs.items():
        where = WHOLE.index(items[0])
        part = WHOLE[where : where + len(items)]
        # Ticks of one time and series look alike: then the part may begin at any of them.
        while part != items and where < len(WHOLE):
            where = WHOLE.index(items[0], where + 1)
            part = WHOLE[where : where + len(items)]
        assert part == items, number
    last = state.epochs.get(end["epoch"], [])
    if end["ticks"] == len(TICKS):
        assert end["hash"] == END["hash"]
    assert end["ticks"] >= sum(item[1] != "gap" for item in last)


def test_the_reference_has_what_it_takes():
    assert [item[0] for item in TICKS] == sorted(item[0] for item in TICKS)
    equal = [a[0] for a, b in pairwise(TICKS) if a[0] == b[0]]
    assert len(equal) > 60
    assert sum(item[1] == "gap" for item in WHOLE) >= 4
    assert END["ticks"] == len(TICKS)
