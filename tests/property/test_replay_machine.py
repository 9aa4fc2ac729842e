"""Any order of verbs, followers, stalls and losses, against a model of the semantics.

Every rule acts on a live session, of random series with many equal times; after each, what is seen
of the session must be what the model says, and every follower must know what a plain replay up to
there would have told it. What a follower is told is compared, item by item, with the model's list.
"""

from __future__ import annotations

import json
import os
import sys
from decimal import Decimal
from unittest import mock

import numpy as np
import pytest
import trio
from driven_engine import DrivenEngine
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from replay_model import CANDLES, END, LENGTH, MINUTE, SECOND, START, Model, draw_data
from small_reads import SmallReads

from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.plugins.sessions import Evicted, Notice, Resume
from tardisd.replay import position
from tardisd.replay.fanout import QueueLimits
from tardisd.replay.manager import SessionLimits
from tardisd.replay.timeline import Tuning

CHAOS = bool(os.environ.get("TARDISD_CHAOS"))
VERBS = {"paused", "resumed", "speed_changed", "sought", "stepped", "stopped"}
SPAN = Span(START, END)
LIMITS = SessionLimits(
    tuning=Tuning(slice_ticks=8, limits=QueueLimits(blocking_ticks=16, lagging_ticks=40))
)


def as_batch(name, rows):
    """Return the model's rows as the engine wants them."""
    series = Series.parse(name)
    times = np.array([row["ts_event"] for row in rows], np.int64)
    if name in CANDLES:
        names = ("open", "high", "low", "close", "volume")
        fields = {one: Decimals.of([row[one] for row in rows]) for one in names}
        return Batch(series, times, fields)
    fields = {one: Decimals.of([row[one] for row in rows]) for one in ("price", "amount")}
    ids = np.array([int(row["id"]) for row in rows])
    sides = np.array([row["side"] == "sell" for row in rows], np.uint8)
    return Batch(series, times, fields, ids, sides)


def ticks_in(block):
    """Return which tick each row of a block is, in order."""
    found = [()] * len(block)
    for batch, seqs in block.batches():
        ids = [None] * len(batch) if batch.ids is None else map(str, batch.ids.tolist())
        for seq, ts, venue_id in zip(seqs, batch.ts_event.tolist(), ids, strict=True):
            found[seq - block.first_seq] = (batch.series.text, ts, venue_id)
    return found


class Client:
    """A follower that honours what it is told, may stall, and may go and come back."""

    def __init__(self, machine, policy):
        self.machine, self.session, self.policy = machine, machine.session, policy
        self.follower = None
        self.present, self.stalled = False, None
        self.epoch, self.seq = 0, 0
        self.newest, self.gaps = {}, set()
        #: Whether it was told what its epoch began with; if not, it must come anew.
        self.has_snapshot = False
        self.end = None
        #: It came anew when all was over, and is told of the end alone.
        self.late = False

    def come(self):
        """Follow, from where it was if it knows where that was."""
        knows = self.follower and (self.has_snapshot or not self.seq)
        resume = Resume(self.epoch, self.seq) if knows else None
        self.follower = self.session.subscribe(self.policy, (), "", resume)
        if resume is None:
            self.late = self.session.has_ended
            self.epoch, self.seq = self.session.epoch, self.follower.last_seq
            self.newest, self.gaps, self.has_snapshot = {}, set(), not self.seq
        self.present = True
        self.machine.engine._nursery.start_soon(self.read, self.follower)

    def go(self):
        """Follow no more; what is under way is lost."""
        self.present = False
        self.go_on()
        self.follower.close()

    def stall(self):
        """Read nothing more."""
        if self.stalled is None:
            self.stalled = trio.Event()

    def go_on(self):
        """Read again."""
        if self.stalled is not None:
            self.stalled.set()
        self.stalled = None

    async def read(self, follower):
        try:
            while True:
                while self.stalled is not None and follower is self.follower:
                    await self.stalled.wait()
                item = await follower.receive()
                if follower is not self.follower or not self.present:
                    return
                if isinstance(item, Notice):
                    self.hear(item.type, item.fields)
                else:
                    self.take(item)
        except trio.EndOfChannel:
            assert self.end is not None or not self.present, "it ended without `end`"
        except Evicted:
            if follower is self.follower:
                self.present = False
        if follower is self.follower:
            self.present = False

    def take(self, block):
        """Take ticks, each of which must be the one that the model has in that place."""
        assert block.epoch == self.epoch
        assert block.first_seq == self.seq + 1, "a hole, or a double"
        if block.epoch == self.session.epoch:
            assert block.last_release <= self.session.market(), "a tick before its time"
        base = self.machine.model.bases.get(self.epoch, 0)
        items = self.machine.model.items[base + self.seq : base + self.seq + len(block)]
        told = ticks_in(block)
        assert told == [item.what for item in items]
        assert block.release.tolist() == [item.release for item in items]
        self.newest.update((what[0], what) for what in told)
        self.seq += len(block)

    def hear(self, type_, fields):
        """Take a notice."""
        if type_ == "gap":
            assert (fields["epoch"], fields["seq"]) == (self.epoch, self.seq + 1)
            base = self.machine.model.bases.get(self.epoch, 0)
            self.gaps.add(gap_of(fields))
            assert gap_of(fields) == self.machine.model.items[base + self.seq].what
            self.seq += 1
        elif type_ == "skipped":
            assert self.policy in {"drop_oldest", "conflate"}
            assert fields["from_seq"] == self.seq + 1 <= fields["to_seq"]
            self.seq = fields["to_seq"]
        elif type_ == "reset":
            assert fields["epoch"] > self.epoch
            self.epoch, self.seq = fields["epoch"], fields["seq"]
            self.newest, self.gaps, self.has_snapshot = {}, set(), False
        elif type_ == "snapshot":
            assert fields["epoch"] == self.epoch
            self.has_snapshot = True
            for row in json.loads(bytes(fields["data"]), parse_float=Decimal):
                self.look_up(row)
            self.gaps |= {gap_of(gap) for gap in fields["gaps"]}
        elif type_ == "end":
            self.end = fields
        else:
            assert type_ in VERBS

    def look_up(self, row):
        """Take a row of a snapshot, which must be a tick that the model has, value and all."""
        name = f"{row['exchange']}:{row['symbol']}@{row['channel']}"
        what = (name, row["timestamp"] * 10**6, row.get("id"))
        tick = next(one.tick for one in self.machine.model.items if one.what == what)
        for one in {"price", "amount", "close", "volume"} & set(tick):
            assert row[one] == Decimal(tick[one])
        self.newest[name] = what


def gap_of(fields):
    return ("gap", fields["series"], fields["from"], fields["to"])


speeds = st.sampled_from(["max", 0.01, 0.5, 1.0, 10.0, 33.3, 60.0, 1000.0])
paces = st.sampled_from([0.01, 1.0, 10.0, 33.3, 60.0, 1000.0])
moments = st.one_of(
    st.integers(0, 20).map(lambda minute: START + minute * MINUTE),
    st.integers(0, 1200).map(lambda second: START + second * SECOND),
    st.sampled_from([START + 1, END - 1, END, START + 600 * SECOND + 1]),
)
policies = st.sampled_from(["block", "block", "disconnect", "drop_oldest", "conflate"])
few = st.integers(0, 5)


def is_open(machine):
    return not machine.model.ended


def is_paused(machine):
    return is_open(machine) and machine.model.low.paused


def is_running(machine):
    return is_open(machine) and not machine.model.low.paused


class Replay(RuleBasedStateMachine):
    """A session, its followers, and the model of it."""

    def __init__(self):
        super().__init__()
        self.storage = SmallReads(7)
        self.patches = []
        self.driven = DrivenEngine(storage=self.storage, limits=LIMITS)
        self.engine = self.driven.engine
        self.clients, self.model, self.session = [], None, None
        self.steps, self.going_back = None, None

    # ---- how a rule acts

    def act(self, function, *arguments, secs=0.0):
        """Do something, let time pass, and compare what there is to see."""

        async def job():
            result = function(*arguments) if function else None
            await self.driven.advance(secs)
            return result

        result = self.driven.call(job)
        self.model.pass_time(secs, self.is_held)
        self.driven.call(self.look)
        return result

    @property
    def is_held(self):
        """Whether somebody may hold the session up."""
        blocking = any(one.present and one.stalled is not None for one in self.clients)
        return self.storage.is_held or blocking

    async def look(self):
        """Compare what is seen of the session, and what its followers know, with the model."""
        session, model = self.session, self.model
        status = session.status()
        name = status["status"]
        assert name in {"active", "paused", "finished"}
        market, seq = session.market(), status["seq"]
        assert session.epoch == status["epoch"]
        self.look_at_steps()
        model.see(market, session.epoch, seq, name == "paused", session.has_ended, self.is_held)
        if self.steps is not None and self.steps[0]._done.is_set():
            await self.check_steps()
        for queue in status["queues"]:
            if queue["when_full"] == "block":  # the session waits for those that block
                assert queue["queued_ticks"] < 16 + 8
        if self.is_held or self.going_back is not None:
            return
        for client in self.clients:
            if client.present:
                assert (client.epoch, client.seq) == (model.epoch, seq)
                if client.policy != "drop_oldest":
                    assert client.newest == model.newest()
                if client.policy in {"block", "disconnect"}:
                    gaps = {gap for gap in client.gaps if gap[3] * 10**6 > model.market}
                    assert gaps == model.open_gaps()

    def look_at_steps(self):
        """Have the model take a step back once it was made."""
        if self.going_back is not None and self.session.epoch > self.model.epoch:
            steps, (place, market, taken) = self.going_back
            assert steps.taken == taken
            self.model.step_back(place, market)
            self.going_back = None

    async def check_steps(self):
        """A step forward that is over has let through what there was, or was ended by a verb."""
        steps, begin, count, is_cut = self.steps
        notice = await steps.wait()
        items = self.model.items[begin : self.model.index]
        told = sum(item.tick is not None for item in items)
        if not is_cut:
            assert notice.fields["count"] == told == count
        self.model.steps_over()
        self.steps = None

    def verb(self, name, *arguments, **options):
        """Use a verb of the session, which is refused when it has ended."""
        if not self.model.ended:
            return self.act(getattr(self.session, name), *arguments, **options)
        with pytest.raises(RequestError, match="it has finished"):
            self.driven.call(trio_call(getattr(self.session, name), *arguments))
        return None

    # ---- rules

    @initialize(
        seed=st.integers(0, 10_000),
        speed=speeds,
        paused=st.booleans(),
        loop=st.sampled_from([False, False, True]),
        until=st.none() | moments.filter(lambda moment: moment > START),
        skips=st.booleans(),
        recent=st.sampled_from([5, 500]),
    )
    def begin(self, seed, speed, paused, loop, until, skips, recent):
        # Who comes back is served from memory, or from the storage, and not always from its begin.
        for name, value in (("RECENT_TICKS", recent), ("CHECKPOINT_TICKS", 20)):
            self.patches.append(mock.patch.object(position, name, value))
            self.patches[-1].start()
        data = draw_data(seed)
        if loop and speed == "max":
            speed = 1000.0  # it would never come to rest
        self.model = Model(data, speed, paused, loop, until, skips)

        async def job():
            for name, one in data.stored.items():
                holes = [] if one["hole"] is None or name in CANDLES else [Span(*one["hole"])]
                covered = Coverage([SPAN])
                for hole in holes:
                    covered = covered.subtract(hole)
                await self.engine.store(as_batch(name, one["rows"]), covered)
            series = [Series.parse(name) for name in data.stored]
            self.session = await self.engine.create(
                series, SPAN, speed=speed, start_paused=paused, loop=loop, until=until,
                on_gap="skip" if skips else "mark",
            )  # fmt: skip
            self.clients.append(Client(self, "block"))
            self.clients[0].come()
            self.session.begin()

        self.driven.call(job)
        self.act(None)

    @rule(secs=st.sampled_from([0.0005, 0.5, 1.0, 7.0, 19.7, 59.0]) | st.floats(0.001, 30))
    def wait(self, secs):
        self.act(None, secs=secs)

    @precondition(is_running)
    @rule(minutes=st.integers(1, 8) | st.floats(0.01, 3))
    def pass_market_time(self, minutes):
        speed = self.model.speed
        self.act(None, secs=1.0 if speed == "max" else minutes * 60 / speed)

    @rule()
    def pause(self):
        self.cut_steps()
        if not self.model.ended:
            self.model.pause()
        self.verb("pause")

    @rule()
    def resume(self):
        self.cut_steps()
        self.void_step_back()
        if not self.model.ended:
            self.model.resume()
        self.verb("resume")

    @rule(speed=speeds)
    def change_speed(self, speed):
        if self.model.loop and speed == "max":
            speed = 0.01
        if not self.model.ended:
            self.model.change_speed(speed)
        self.verb("change_speed", speed)

    @rule(to=moments)
    def seek(self, to):
        self.jump("seek", to, to)

    @rule(by=st.integers(-900, 900) | st.integers(-LENGTH // SECOND, LENGTH // SECOND))
    def seek_by(self, by):
        to = min(max(self.model.market + by * SECOND, START), END)
        self.jump("seek_by", by * SECOND, to)

    def jump(self, name, argument, to):
        self.cut_steps()
        self.void_step_back()
        if not self.model.ended:
            self.model.seek(to)
        self.verb(name, argument)

    @precondition(is_paused)
    @rule(count=st.sampled_from([1, 2, 3, 9, 17, 200]))
    def step(self, count):
        if self.is_stepping():
            return
        begin = self.model.index
        taken = self.model.step_on(count)

        async def job():
            self.steps = (self.session.step(count), begin, taken, False)

        self.driven.call(job)
        self.act(None)

    @precondition(is_paused)
    @rule(count=st.sampled_from([1, 2, 3, 9, 30, 1000]))
    def step_back(self, count):
        if self.is_stepping():
            return
        there = self.model.place_back(count)

        async def job():
            self.going_back = (self.session.step(-count), there)

        self.driven.call(job)
        self.act(None)

    def is_stepping(self):
        """Whether a step is under way; another one is refused then."""
        if self.steps is None and self.going_back is None:
            return False
        with pytest.raises(RequestError, match="another step is under way"):
            self.driven.call(trio_call(self.session.step, 1))
        return True

    def cut_steps(self):
        """A step forward that is under way ends early."""
        if self.steps is not None:
            self.steps = (*self.steps[:3], True)

    def void_step_back(self):
        """A step back that is under way will not be made; who asked for it is told so."""
        if self.going_back is not None:
            steps, _ = self.going_back
            self.going_back = None
            self.void = steps

    @precondition(lambda self: is_open(self) and len(self.clients) < 6)
    @rule(policy=policies)
    def join(self, policy):
        self.clients.append(Client(self, policy))
        self.act(self.clients[-1].come)

    @rule(which=few)
    def go(self, which):
        client = self.clients[which % len(self.clients)]
        if client.present:
            self.act(client.go)

    @precondition(lambda self: any(not one.present for one in self.clients))
    @rule(which=few)
    def come(self, which):
        away = [one for one in self.clients if not one.present]
        client = away[which % len(away)]
        if client.end is None:
            client.go_on()
            self.act(client.come)
            assert client.present or client.end, "cut off on its way in"

    @rule(which=few)
    def stall(self, which):
        client = self.clients[which % len(self.clients)]
        if client.present:
            self.act(client.stall)

    @precondition(lambda self: any(one.stalled is not None for one in self.clients))
    @rule()
    def go_on(self):
        for client in self.clients:
            self.act(client.go_on)

    @precondition(lambda self: not self.storage.is_held)
    @rule()
    def hold_storage(self):
        self.act(self.storage.hold)

    @precondition(lambda self: self.storage.is_held)
    @rule()
    def let_storage(self):
        self.act(self.storage.let)

    @rule(ahead=st.booleans())
    def come_back_from_where_nobody_was(self, ahead):
        epoch, seq = self.session.epoch + ahead, self.session.status()["seq"] + (not ahead)
        with pytest.raises(RequestError, match=r"has not begun|was not delivered"):
            self.driven.call(trio_call(self.session.subscribe, "block", (), "", Resume(epoch, seq)))

    @precondition(lambda self: not self.storage.is_held and self.going_back is None)
    @rule()
    def verify(self):
        self.check_hash()

    def check_hash(self):
        proof = self.driven.call(self.session.verify)
        released = self.model.released()
        assert proof["equal"], proof
        assert (proof["ticks"], proof["hash"]) == (len(released), self.model.content_hash())

    # ---- the end

    def teardown(self):
        try:
            if self.session is not None and sys.exc_info()[0] is None:  # else nothing can be said
                self.play_to_the_end()
        finally:
            self.driven.close()
            for patch in self.patches:
                patch.stop()

    def play_to_the_end(self):
        """Have everybody back, and let the session come to its end."""
        self.act(self.storage.let)
        for client in self.clients:
            self.act(client.go_on)
        if self.steps is not None or self.going_back is not None:
            raise AssertionError("a step never came to its end")
        for client in self.clients:
            if not client.present and client.end is None:
                self.act(client.come)
        if self.model.loop:
            self.pause()
            self.check_hash()
            self.driven.call(trio_call(self.session.stop))
            self.driven.call(self.driven.settle)
        else:
            self.change_speed("max")
            self.resume()
            if not self.model.ended:  # it has paused at `until`
                self.resume()
            assert self.model.ended
            assert self.model.index == len(self.model.items)
        end = self.session.end_notice.fields
        assert (end["ticks"], end["hash"]) == (
            len(self.model.released()), self.model.content_hash(),
        )  # fmt: skip
        for client in self.clients:
            assert client.end == end
            if client.policy == "block" and not client.late:
                assert client.newest == self.model.newest()


def trio_call(function, *arguments):
    """Return an async function that calls a sync one, inside the loop."""

    async def call():
        return function(*arguments)

    return call


Replay.TestCase.settings = settings(
    max_examples=2000 if CHAOS else 100,
    stateful_step_count=60 if CHAOS else 30,
    suppress_health_check=list(HealthCheck),
)
TestReplay = Replay.TestCase
