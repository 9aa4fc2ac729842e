"""Queues of followers: whatever is pushed and read, nothing vanishes without being announced."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.time import parse_time
from tardisd.plugins.sessions import Evicted, Notice
from tardisd.replay.fanout import Follower, QueueLimits, Ties
from tardisd.testing.blocks import make_blocks

START = parse_time("2024-03-01T00:00:00Z")
SERIES = [Series.parse(f"binance:{name}/USDT@trade") for name in "ABC"]
LIMITS = QueueLimits(blocking_ticks=20, lagging_ticks=30, most_items=200)


@dataclass
class Pushed:
    """What was pushed: blocks cut from one stream, gap marks with a seq of their own, verbs."""

    items: list
    newest: dict


@st.composite
def streams(draw):
    """Draw items as a session hands them out, and the last seq of each series."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=25))
    count = sum(sizes)
    ranks = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    batches = []
    for rank, series in enumerate(SERIES):
        times = START + np.flatnonzero(np.array(ranks) == rank)
        ones = Decimals(np.ones(len(times), np.int64))
        if len(times):
            fields = {"price": ones, "amount": ones}
            batches.append(Batch(series, times, fields, None, np.zeros(len(times), np.uint8)))
    blocks = make_blocks(batches)
    rows = [block.cut(at, at + 1) for block in blocks for at in range(len(block))]
    whole = blocks[0]._whole
    items, newest, seq, at = [], {}, 1, 0
    for size in sizes:
        for _ in range(draw(st.integers(0, 2))):
            if draw(st.booleans()):
                items.append(Notice("gap", {"seq": seq}))
                seq += 1
            else:
                items.append(Notice("paused", {"number": len(items)}))
        # Seqs count marks too: give the whole block the first seq that makes its rows follow on.
        part = _shifted(rows[at : at + size], seq)
        for block in part:
            items.append(block)
            for series, places in block.series_rows():
                newest[series] = block.first_seq + int(places[-1])
        seq, at = seq + size, at + size
    assert whole is not None
    return Pushed(items, newest)


def _shifted(rows, seq):
    """Return rows as blocks of neighbours, numbered from `seq` on."""
    blocks = []
    for row in rows:
        last = blocks[-1] if blocks else None
        if last is not None and last[0] is row._whole and last[2] == row._first:
            last[2] = row._last
        else:
            blocks.append([row._whole, row._first, row._last])
    made = []
    for whole, first, last in blocks:
        copy = type(whole)(
            whole.session_id, whole.epoch, whole.kinds, whole.runs, whole.release,
            {}, seq - first, whole.hash_before,
        )  # fmt: skip
        made.append(copy[first:last])
        seq += last - first
    return made


class Reader:
    """Receives from a follower and keeps account."""

    def __init__(self, follower):
        self.follower = follower
        self.seqs, self.skipped, self.verbs, self.got = [], [], [], []

    async def take(self):
        item = await self.follower.receive()
        if not isinstance(item, Notice):
            taken = range(item.first_seq, item.first_seq + len(item))
            self.seqs += taken
            self.got += taken
            assert self.follower.last_seq == taken[-1]
        elif item.type == "gap":
            self.seqs.append(item.fields["seq"])
        elif item.type == "skipped":
            taken = range(item.fields["from_seq"], item.fields["to_seq"] + 1)
            assert len(taken) > 0
            self.seqs += taken
            self.skipped += taken
        else:
            self.verbs.append(item)

    async def drain(self):
        while self.follower._queue:
            await self.take()


def run_follower(policy, pushed, reads):
    """Push everything, reading now and then; return the reader, and whether it was evicted."""
    pokes, left = [], []
    ties = Ties(LIMITS, lambda: pokes.append(1), left.append, lambda: "max")
    follower = Follower(policy, (), ties, "f")
    reader = Reader(follower)

    async def main():
        for number, item in enumerate(pushed.items):
            if left:
                break
            if isinstance(item, Notice):
                follower.notify(item)
            else:
                follower.push(item)
            if follower._evicted is None:
                weights = [
                    len(one) if not isinstance(one, Notice) else one.type == "gap"
                    for one in follower._queue
                ]
                assert follower.queued_ticks == sum(weights)
                if policy != "block":
                    assert follower.queued_ticks <= LIMITS.lagging_ticks
            for _ in range(reads[number % len(reads)] if reads else 0):
                if follower._queue:
                    await reader.take()
        if follower._evicted is not None:
            assert left == [follower]
            with pytest.raises(Evicted):
                await follower.receive()
            await follower.wait_evicted()
            return True
        await reader.drain()
        follower.notify(Notice("end"), last=True)
        assert (await follower.receive()).type == "end"
        with pytest.raises(trio.EndOfChannel):
            await follower.receive()
        return False

    return reader, trio.run(main)


def last_seq(pushed):
    item = pushed.items[-1]
    return item.first_seq + len(item) - 1


reading = st.lists(st.integers(0, 3), max_size=5)


@given(streams(), reading, st.sampled_from(["drop_oldest", "conflate"]))
def test_what_is_left_out_is_announced_in_its_place(pushed, reads, policy):
    reader, evicted = run_follower(policy, pushed, reads)
    assert not evicted
    assert reader.seqs == list(range(1, last_seq(pushed) + 1))
    verbs = [item for item in pushed.items if isinstance(item, Notice) and item.type == "paused"]
    assert reader.verbs == verbs
    if policy == "conflate":
        assert set(pushed.newest.values()) <= set(reader.got), "the newest tick of every series"
    elif reader.skipped:
        assert max(pushed.newest.values()) in reader.got


@given(streams(), reading)
def test_one_that_disconnects_gets_all_or_is_told(pushed, reads):
    reader, evicted = run_follower("disconnect", pushed, reads)
    assert reader.skipped == []
    upto = len(reader.seqs)
    assert reader.seqs == list(range(1, upto + 1))
    assert evicted or upto == last_seq(pushed)


@given(streams())
def test_one_that_blocks_has_room_until_it_is_full(pushed):
    reader, evicted = run_follower("block", pushed, [])
    assert not evicted
    assert reader.skipped == []
    assert reader.seqs == list(range(1, last_seq(pushed) + 1))


def test_skipped_notices_do_not_pile_up():
    """A conflating follower that reads nothing keeps a bounded queue however much it misses."""
    count = 30_000
    times = START + np.arange(count)
    ones = Decimals(np.ones(count, np.int64))
    batch = Batch(
        SERIES[0], times, {"price": ones, "amount": ones}, None, np.zeros(count, np.uint8)
    )
    for policy in ("conflate", "drop_oldest"):
        follower = Follower(policy, (), Ties(LIMITS, lambda: None, lambda _: None, lambda: "max"))
        for block in make_blocks([batch], slice_ticks=7):
            follower.push(block)
            assert len(follower._queue) < 20
        assert follower._evicted is None


def test_notices_alone_do_not_pile_up_without_end():
    follower = Follower("block", (), Ties(LIMITS, lambda: None, lambda _: None, lambda: "max"))
    for _ in range(LIMITS.most_items):
        follower.notify(Notice("paused"))
    assert follower._evicted is None
    follower.notify(Notice("paused"))
    assert follower._evicted is not None
    assert len(follower._queue) == 0
