"""Who may lose ticks is told of each that it loses, and what it gets is what all others get.

That holds under any verbs, rounds of a loop, pauses at `until` and jumps of the machine's clock:
numbers have no hole that is not told of, and one number of an epoch is one tick, for everybody. A
follower that blocks is among them; a jump in time may void what others had read already.
"""

from __future__ import annotations

import numpy as np
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import HOUR, MINUTE, SECOND, parse_time
from tardisd.plugins.sessions import Evicted, Notice
from tardisd.replay.fanout import QueueLimits
from tardisd.replay.manager import SessionLimits
from tardisd.replay.timeline import Tuning
from tardisd.testing.engine import run_engine, ticks_of

START = parse_time("2024-03-31T00:50:00Z")
SPAN = Span(START, START + 20 * MINUTE)
SERIES = [Series.parse(f"{venue}:BTC/USDT@trade") for venue in ("binance", "bybit", "okx")]
LIMITS = SessionLimits(
    tuning=Tuning(slice_ticks=8, limits=QueueLimits(blocking_ticks=16, lagging_ticks=24))
)


async def fill(engine):
    """Store trades of which many share their instants, and a gap."""
    for number, series in enumerate(SERIES):
        seconds = np.sort(np.r_[np.arange(0, 1200, 5 + number), np.full(9, 300), 300, 600])
        seconds = seconds[(seconds < 400) | (seconds >= 460)]
        ones, sides = Decimals(np.arange(len(seconds)) + 1), np.zeros(len(seconds), np.uint8)
        fields, ids = {"price": ones, "amount": ones}, np.arange(len(seconds))
        batch = Batch(series, START + seconds * SECOND, fields, ids, sides)
        covered = [Span(SPAN.start, START + 400 * SECOND), Span(START + 460 * SECOND, SPAN.end)]
        await engine.store(batch, Coverage(covered))


class Reader:
    """Reads an item every `pause` seconds; keeps what each number of each epoch was."""

    def __init__(self, session, policy, pause):
        self.session, self.policy, self.pause = session, policy, pause
        self.follower = session.subscribe(policy, (), policy)
        self.epoch, self.seq = session.epoch, self.follower.last_seq
        self.had, self.lost = {}, set()
        self.evicted, self.done = False, trio.Event()

    async def read(self):
        try:
            while True:
                self.take(await self.follower.receive())
                await trio.sleep(self.pause)
        except trio.EndOfChannel:
            pass
        except Evicted:
            self.evicted = True
        self.done.set()

    def take(self, item):
        if not isinstance(item, Notice):
            assert item.epoch == self.epoch
            assert item.first_seq == self.seq + 1, "a hole that nobody told of, or a double"
            assert item.last_release <= self.session.market() or item.epoch < self.session.epoch
            for tick in ticks_of(item):
                self.seq += 1
                self.had[self.epoch, self.seq] = tick
        elif item.type == "gap":
            assert item.fields["seq"] == self.seq + 1
            self.seq += 1
            self.had[self.epoch, self.seq] = (item.fields["series"], item.fields["from"])
        elif item.type == "skipped":
            first, last = item.fields["from_seq"], item.fields["to_seq"]
            assert first == self.seq + 1 <= last
            self.lost.update((self.epoch, seq) for seq in range(first, last + 1))
            self.seq = last
        elif item.type == "reset":
            assert item.fields["epoch"] > self.epoch
            self.epoch, self.seq = item.fields["epoch"], item.fields["seq"]


policies = st.sampled_from(["drop_oldest", "conflate", "disconnect"])
pauses = st.sampled_from([0.0, 1.0, 300.0])
speeds = st.sampled_from([1.0, 10.0, 60.0, 1000.0, 33.3])
actions = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.001, 0.5, 7.0, 59.0])),
    st.tuples(st.just("jump"), st.sampled_from([0.2, 3.0, 3600.0])),
    st.tuples(st.just("pause")),
    st.tuples(st.just("resume")),
    st.tuples(st.just("change_speed"), speeds),
    st.tuples(st.just("seek"), st.integers(0, 1200).map(lambda n: START + n * SECOND)),
    st.tuples(st.just("step"), st.sampled_from([1, 17, -1, -30])),
    st.tuples(st.just("join"), policies, pauses),
    st.tuples(st.just("go"), st.integers(0, 3)),
)


@settings(max_examples=60)
@given(
    st.lists(actions, max_size=20),
    speeds,
    st.booleans(),
    st.none() | st.integers(1, 1200).map(lambda n: START + n * SECOND),
    st.lists(st.tuples(policies, pauses), min_size=1, max_size=3),
)
def test_what_is_lost_is_told_and_the_rest_is_the_same(steps, speed, loop, until, readers):
    async def main(engine):
        await fill(engine)
        session = await engine.create(SERIES, SPAN, speed=speed, loop=loop, until=until)
        blocking = Reader(session, "block", 0.0)
        lossy = [Reader(session, *reader) for reader in readers]
        async with trio.open_nursery() as nursery:
            for one in [blocking, *lossy]:
                nursery.start_soon(one.read)
            session.begin()
            for action, *arguments in steps:
                try:
                    if action == "wait":
                        await trio.sleep(*arguments)
                    elif action == "jump":  # as after a suspension, or a machine that hung
                        trio.lowlevel.current_clock().jump(*arguments)
                    elif action == "step":
                        await session.step(*arguments).wait()
                    elif action == "join" and not session.has_ended:
                        lossy.append(Reader(session, *arguments))
                        nursery.start_soon(lossy[-1].read)
                    elif action == "go":
                        lossy[arguments[0] % len(lossy)].follower.close()
                    elif action != "join":
                        getattr(session, action)(*arguments)
                except RequestError as error:
                    if error.code != "wrong_state":
                        raise
            if not session.has_ended:  # long enough for who reads slowly to lose something
                session.change_speed(20.0)
                session.resume()
                await trio.sleep(40)
            if not session.has_ended:
                session.stop()
            with trio.fail_after(200 * HOUR / SECOND):
                for one in [blocking, *lossy]:
                    await one.done.wait()
        truth = {}
        for one in [blocking, *lossy]:
            for place, what in one.had.items():
                assert truth.setdefault(place, what) == what
            assert not one.lost & set(one.had)
            assert not one.lost or one.policy in {"drop_oldest", "conflate"}
            assert not one.evicted or one.policy == "disconnect"

    run_engine(main, limits=LIMITS)
