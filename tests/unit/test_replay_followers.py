"""Followers of a running session: late ones, stuck ones, and each policy for slow ones."""

from __future__ import annotations

import pytest
import trio

from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import HOUR, MINUTE, SECOND, parse_time
from tardisd.plugins.sessions import Evicted, Notice
from tardisd.replay.fanout import QueueLimits
from tardisd.replay.manager import SessionLimits
from tardisd.replay.timeline import Tuning
from tardisd.testing.engine import run_engine
from tardisd.testing.ticks import random_candles, random_trades

START = parse_time("2024-03-01T00:00:00Z")
TRADES = Series.parse("binance:BTC/USDT@trade")
OTHERS = Series.parse("okx:BTC/USDT@trade")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
COUNT = 60_000
SPAN = Span(START, START + 3 * HOUR)


async def stored(engine):
    trades = random_trades(TRADES, COUNT - 180 - 30, START, mean_gap_ms=150)
    rare = random_trades(OTHERS, 30, START, 1, mean_gap_ms=10_000)
    assert int(trades.ts_event[-1]) < SPAN.end
    await engine.store(trades, SPAN)
    await engine.store(rare, SPAN)
    await engine.store(random_candles(CANDLES, 180, START), SPAN)
    return [TRADES, OTHERS, CANDLES]


async def drain(follower):
    items = []
    try:
        while True:
            items.append(await follower.receive())
    except trio.EndOfChannel:
        return items


def account(items):
    """Return the seqs received and those announced as skipped, together in order."""
    seqs, skipped = [], []
    for item in items:
        if not isinstance(item, Notice):
            seqs += range(item.first_seq, item.first_seq + len(item))
        elif item.type == "skipped":
            gone = range(item.fields["from_seq"], item.fields["to_seq"] + 1)
            seqs += gone
            skipped += gone
    return seqs, skipped


@pytest.mark.parametrize("policy", ["drop_oldest", "conflate"])
@pytest.mark.parametrize("speed", ["max", 10_000.0])
def test_a_follower_that_drops_holds_nobody_up(policy, speed):
    async def main(engine):
        session = await engine.create(await stored(engine), SPAN, speed=speed)
        other = engine.listen(session)
        lazy = session.subscribe(policy)
        session.begin()
        await other.done.wait()
        assert other.seqs() == list(range(1, COUNT + 1))
        if speed != "max":
            assert trio.current_time() == pytest.approx(1.08, abs=0.01)
        assert lazy.queued_ticks <= 32_768
        items = await drain(lazy)
        seqs, skipped = account(items)
        assert seqs == list(range(1, COUNT + 1))
        assert len(skipped) > COUNT // 2
        assert items[-1].type == "end"
        assert items[-1].fields["hash"] == other.end["hash"]
        newest = {}
        for release, series, event in other.ticks():
            newest[series] = (release, event)
        got = {}
        for block in items:
            if not isinstance(block, Notice):
                for batch, _ in block.batches():
                    got[batch.series.text] = int(batch.ts_event[-1])
        for series, (_, event) in newest.items():
            assert policy == "drop_oldest" or got[series] == event

    run_engine(main)


def test_a_follower_that_disconnects_is_cut_off_and_holds_nobody_up():
    async def main(engine):
        session = await engine.create(await stored(engine), SPAN, speed="max")
        other = engine.listen(session)
        lazy = session.subscribe("disconnect")
        session.begin()
        await other.done.wait()
        assert other.seqs() == list(range(1, COUNT + 1))
        with pytest.raises(Evicted, match="too slow"):
            await lazy.receive()
        await lazy.wait_evicted()
        assert lazy.queued_ticks == 0
        lazy.close()

    run_engine(main)


def test_a_follower_that_disconnects_but_reads_gets_everything():
    async def main(engine):
        session = await engine.create(await stored(engine), SPAN, speed="max")
        reader = engine.listen(session, "disconnect")
        session.begin()
        await reader.done.wait()
        assert reader.evicted is None
        assert reader.seqs() == list(range(1, COUNT + 1))

    run_engine(main)


def test_one_that_blocks_and_reads_nothing_harms_only_itself_in_the_end():
    async def main(engine):
        session = await engine.create(await stored(engine), SPAN, speed="max")
        other = engine.listen(session)
        stuck = session.subscribe("block", (), "stuck")
        session.begin()
        await trio.sleep(59.9)
        assert session.status()["waiting_for"] == ["stuck"]
        assert not other.done.is_set()
        held = len(other.seqs())
        assert held <= 4096 + 8192
        await stuck.wait_evicted()
        assert trio.current_time() == pytest.approx(60)
        await other.done.wait()
        assert other.seqs() == list(range(1, COUNT + 1))
        assert session.status()["subscribers"] == 0
        with pytest.raises(Evicted, match="read nothing for 60 s"):
            await stuck.receive()

    run_engine(main)


@pytest.mark.parametrize("verbs", [0, 1, 5])
@pytest.mark.parametrize("policy", ["block", "disconnect", "drop_oldest"])
def test_a_queue_is_bounded_in_market_time(policy, verbs):
    async def main(engine):
        await stored(engine)
        session = await engine.create([CANDLES], SPAN, speed=10.0)
        stuck = session.subscribe(policy, (), "stuck")
        session.begin()
        for _ in range(verbs):
            session.change_speed(10.0)  # what is told of it stands first in the queue
        await trio.sleep(61)  # ten minutes of market time: as many candles
        status = session.status()
        if policy == "block":  # ten seconds: 100 of market time
            assert status["waiting_for"] == ["stuck"]
            assert (status["seq"], stuck.queued_ticks) == (3, 3)
            stuck.close()
            return
        assert (status["seq"], stuck.queued_ticks) == (10, 10)
        await trio.sleep(15)  # a minute: ten minutes of market time
        if policy == "disconnect":
            with pytest.raises(Evicted):
                await stuck.receive()
        else:
            assert stuck.queued_ticks < 12 == session.status()["seq"]
            stuck.close()

    run_engine(main)


def test_one_that_blocks_and_reads_a_little_is_kept():
    limits = SessionLimits(tuning=Tuning(limits=QueueLimits(blocking_ticks=100, max_block_secs=5)))

    async def main(engine):
        session = await engine.create(await stored(engine), SPAN, speed=100.0)
        slow = session.subscribe("block", (), "slow")
        session.begin()
        for _ in range(20):
            await trio.sleep(4.9)
            await slow.receive()
        assert session.status()["subscribers"] == 1
        await trio.sleep(5.2)
        with pytest.raises(Evicted):
            await slow.receive()

    run_engine(main, limits=limits)


def test_a_pause_reaches_a_session_that_waits_for_a_follower():
    async def main(engine):
        session = await engine.create(await stored(engine), SPAN, speed=1000.0)
        stuck = session.subscribe("block", (), "stuck")
        session.begin()
        await trio.sleep(20)
        assert session.status()["waiting_for"] == ["stuck"]
        notice = session.pause()
        clock = session.status()["clock"]
        assert notice.fields["clock"] == clock
        before = []
        while not isinstance(item := await stuck.receive(), Notice):
            before.append(item)
        assert item.type == "paused"
        await trio.sleep(100)
        assert stuck.queued_ticks == 0, "nothing comes while it is paused"
        assert session.status()["clock"] == clock
        assert before[-1].last_release <= clock * 1_000_000 + 999_999
        session.resume()
        items = [*before, *await drain(stuck)]
        assert account(items)[0] == list(range(1, COUNT + 1))

    run_engine(main)


def test_one_that_comes_late_follows_from_the_next_tick():
    async def main(engine):
        session = await engine.create(await stored(engine), SPAN, speed=1000.0)
        first = engine.listen(session)
        session.begin()
        await trio.sleep(5)
        seq = session.status()["seq"]
        late = session.subscribe("block")
        assert late.last_seq == seq
        items = await drain(late)
        assert account(items)[0] == list(range(seq + 1, COUNT + 1))
        await first.done.wait()
        assert items[-1] == first.notices("end")[0]

    run_engine(main)


def test_one_that_comes_after_the_end_is_told_of_it():
    async def main(engine):
        heard = await engine.play(await stored(engine), SPAN, speed="max", session_id="x")
        late = engine.sessions.get("x").subscribe("disconnect")
        assert [item.fields for item in await drain(late)] == [heard.end]
        with pytest.raises(trio.EndOfChannel):
            await late.receive()

    run_engine(main)


def test_the_one_who_asks_hears_its_own_id_and_the_others_do_not():
    async def main(engine):
        session = await engine.create(await stored(engine), SPAN, speed=1.0, start_paused=True)
        asker, other = session.subscribe("block"), session.subscribe("block")
        session.begin()
        returned = [
            session.resume(asker, "r1"),
            session.pause(asker, 7),
            session.change_speed(5.0, asker, "r3"),
            session.stop(asker, "r4"),
        ]
        assert [notice.request_id for notice in returned] == ["r1", 7, "r3", None]
        heard = [notice for notice in await drain(asker) if isinstance(notice, Notice)]
        assert [(n.type, n.request_id) for n in heard] == [
            ("resumed", "r1"),
            ("paused", 7),
            ("speed_changed", "r3"),
            ("stopped", "r4"),
            ("end", None),
        ]
        heard = [notice for notice in await drain(other) if isinstance(notice, Notice)]
        assert [(n.type, n.request_id) for n in heard] == [
            ("resumed", None),
            ("paused", None),
            ("speed_changed", None),
            ("stopped", None),
            ("end", None),
        ]

    run_engine(main)


def test_leaving_while_waiting():
    async def main(engine):
        session = await engine.create(await stored(engine), SPAN, speed=1.0)
        follower = session.subscribe("block")
        async with trio.open_nursery() as nursery:

            async def wait():
                with pytest.raises(trio.EndOfChannel):
                    await follower.receive()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            follower.close()
        assert session.status()["subscribers"] == 0

    run_engine(main)


def test_encodings_are_made_ahead_only_for_those_who_ask():
    async def main(engine):
        await stored(engine)
        session = await engine.create([TRADES], Span(START, START + MINUTE), speed="max")
        plain = engine.listen(session)
        framed = session.subscribe("block", ("tick", "ndjson"))
        session.begin()
        await plain.done.wait()
        whole = plain.blocks[0]._whole
        assert sorted(whole._encoded) == ["ndjson", "tick"]
        framed.close()

    run_engine(main)


def test_the_clock_at_the_end_is_the_end():
    async def main(engine):
        series = await stored(engine)
        for speed in ("max", 1e6):
            session = await engine.create(series, SPAN, speed=speed)
            listener = engine.listen(session)
            session.begin()
            await listener.done.wait()
            status = session.status()
            assert status["status"] == "finished"
            assert status["clock"] * 1_000_000 == SPAN.end
            assert (status["ticks"], status["seq"]) == (COUNT, COUNT)
            assert SPAN.end - listener.arrivals()[-1][1] < 10 * MINUTE
            assert SECOND

    run_engine(main)
