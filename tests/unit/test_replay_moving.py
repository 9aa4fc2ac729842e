"""Sessions that are moved in time, and followers who come late or come back."""

from __future__ import annotations

import json
import sqlite3
from contextlib import asynccontextmanager

import numpy as np
import pytest
import trio

from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import HOUR, MILLISECOND, MINUTE, SECOND, Interval, parse_time
from tardisd.plugins.sessions import Evicted, Notice, Resume
from tardisd.plugins.sink import Sink
from tardisd.replay.manager import SessionLimits
from tardisd.state import State
from tardisd.testing.engine import run_engine, ticks_of
from tardisd.testing.sink import sink_context
from tardisd.wall import wall_ns

START = parse_time("2024-03-01T00:00:00Z")
SPAN = Span(START, START + 10 * MINUTE)
TRADES = Series.parse("binance:BTC/USDT@trade")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")


def batches():
    """Return a trade a second, three at each full minute, and a candle a minute but one."""
    times = START + np.sort(np.r_[np.arange(600), np.arange(10) * 60, np.arange(10) * 60]) * SECOND
    ones = Decimals(np.arange(len(times)) + 100)
    trades = Batch(
        TRADES, times, {"price": ones, "amount": ones}, np.arange(len(times)),
        np.zeros(len(times), np.uint8),
    )  # fmt: skip
    opens = START + np.array([0, 1, 2, 5, 6, 7, 8, 9]) * MINUTE
    flat = Decimals(np.arange(len(opens)) + 1)
    return trades, Batch(CANDLES, opens, dict.fromkeys(FIELDS, flat))


FIELDS = ("open", "high", "low", "close", "volume")


async def fill(engine):
    trades, candles = batches()
    holes = [Span(SPAN.start, START + 4 * MINUTE), Span(START + 4 * MINUTE + 30 * SECOND, SPAN.end)]
    await engine.store(trades, Coverage(holes))
    await engine.store(candles, SPAN)


async def reference(engine):
    await fill(engine)
    return await engine.play([TRADES, CANDLES], SPAN, speed="max")


WHOLE = run_engine(reference)


def expected(release):
    """Return the ticks and marks of the whole session from a release time on."""
    return [tick for tick in WHOLE.ticks() if tick[0] >= release]


def snapshot_of(notice):
    """Return channel -> time stamp of what a snapshot tells."""
    return {row["channel"]: row["timestamp"] for row in json.loads(bytes(notice.fields["data"]))}


def newest(before):
    """Return what a snapshot must tell when everything released before a time is out."""
    found = {}
    for release, series, event in WHOLE.ticks():
        if release < before:
            found[series.partition("@")[2]] = event // MILLISECOND
    return found


def of_epoch(listener, number):
    """Return the ticks that a listener received in an epoch."""
    return [tick for block in listener.blocks if block.epoch == number for tick in ticks_of(block)]


@pytest.mark.parametrize("speed", ["max", 60.0])
@pytest.mark.parametrize("to", [0, 1, 60, 180, 181, 250, 270, 301, 600])
def test_a_seek_is_as_if_one_had_played_up_to_there(speed, to):
    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES, CANDLES], SPAN, speed=speed)
        listener = engine.listen(session)
        session.begin()
        await trio.sleep(2.0001 if speed != "max" else 0)
        at = START + to * SECOND
        if not session.has_ended:
            reply = session.seek(at)
            assert reply.type == "sought"
            assert reply.fields == {"epoch": 2, "clock": at // MILLISECOND}
        await listener.done.wait()
        assert of_epoch(listener, 2) == expected(at)
        [sought], [reset] = listener.notices("sought"), listener.notices("reset")
        [snapshot] = listener.notices("snapshot")
        assert reset.fields == {"epoch": 2, "clock": at // MILLISECOND, "cause": "seek", "seq": 0}
        assert listener.notices().index(sought) < listener.notices().index(reset)
        assert snapshot_of(snapshot) == newest(at)
        assert snapshot.fields["clock"] == at // MILLISECOND
        gaps = [gap.fields for gap in WHOLE.notices("gap")]
        open_ = [g["from"] for g in gaps if g["from"] * MILLISECOND < at < g["to"] * MILLISECOND]
        assert [gap["from"] for gap in snapshot.fields["gaps"]] == open_
        told = [gap.fields["from"] for gap in listener.notices("gap") if gap.fields["epoch"] == 2]
        assert told == [gap["from"] for gap in gaps if gap["from"] * MILLISECOND >= at]
        if to == 0:
            assert {**listener.end, "epoch": 1} == WHOLE.end
        assert listener.end["ticks"] == len(expected(at))

    run_engine(main)


def test_seeks_while_paused_stay_paused_and_leave_nothing_of_the_old_epoch():
    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES, CANDLES], SPAN, speed=10.0)
        follower = session.subscribe("block")
        session.begin()
        await trio.sleep(6)
        session.pause()
        session.seek(START + 5 * MINUTE)
        session.seek_by(-4 * MINUTE)
        await trio.sleep(100)
        types, items = [], []
        while follower._queue:
            item = await follower.receive()
            items.append(item)
            types.append(item.type if isinstance(item, Notice) else "ticks")
        assert types == ["paused", "sought", "sought", "reset", "snapshot"]
        assert items[-2].fields["epoch"] == items[-1].fields["epoch"] == 3
        assert session.status()["clock"] == (START + MINUTE) // MILLISECOND
        assert session.status()["seq"] == 0

    run_engine(main)


@pytest.mark.parametrize("to", [START - 1, SPAN.end + 1])
def test_a_seek_outside_is_refused(to):
    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES], SPAN, speed=1.0)
        session.begin()
        with pytest.raises(RequestError, match="is outside the session"):
            session.seek(to)
        assert session.epoch == 1
        session.seek_by(to - START)
        assert session.market() in {START, SPAN.end}

    run_engine(main)


@pytest.mark.parametrize("counts", [[1], [1, 1, 2, 60, 400], [7, 0, 3], [5, 10_000]])
def test_steps_deliver_exactly_the_next_ticks(counts):
    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES, CANDLES], SPAN, speed=1.0, start_paused=True)
        listener = engine.listen(session)
        session.begin()
        total = 0
        for count in counts:
            notice = await session.step(count).wait()
            taken = min(count, len(WHOLE.ticks()) - total)
            total += taken
            assert notice.fields["count"] == taken
            await trio.sleep(50)
            assert listener.ticks() == WHOLE.ticks()[:total]
            clock = WHOLE.ticks()[total - 1][0] // MILLISECOND
            assert notice.fields["clock"] == session.status()["clock"] == clock
        assert session.status()["status"] == "paused"
        session.resume()
        await listener.done.wait()
        assert listener.ticks() == WHOLE.ticks()
        assert listener.end == WHOLE.end

    run_engine(main)


@pytest.mark.parametrize("forward", [1, 3, 63, 622])
@pytest.mark.parametrize("back", [1, 61, 700])
def test_steps_back_undo_steps(forward, back):
    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES, CANDLES], SPAN, speed="max", start_paused=True)
        listener = engine.listen(session)
        session.begin()
        await session.step(forward).wait()
        notice = await session.step(-back).wait()
        at = max(0, forward - back)
        assert notice.fields["count"] == at - forward
        await trio.sleep(1)
        [reset], [snapshot] = listener.notices("reset"), listener.notices("snapshot")
        assert reset.fields["cause"] == "step"
        before = {}
        for _, series, event in WHOLE.ticks()[:at]:
            before[series.partition("@")[2]] = event // MILLISECOND
        assert snapshot_of(snapshot) == before
        session.resume()
        await listener.done.wait()
        assert of_epoch(listener, 2) == WHOLE.ticks()[at:]

    run_engine(main)


def test_steps_need_a_pause_and_bounds():
    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES], SPAN, speed=1.0)
        session.begin()
        with pytest.raises(RequestError, match="pause it to step"):
            session.step(1)
        session.pause()
        with pytest.raises(RequestError, match="at most 100000"):
            session.step(-100_001)
        stuck = session.subscribe("block")
        stepping = session.step(100_000)
        with pytest.raises(RequestError, match="another step is under way"):
            session.step(1)
        session.resume()
        assert (await stepping.wait()).fields["count"] == 0
        stuck.close()

    run_engine(main)


def test_a_loop_begins_again_with_the_same():
    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES, CANDLES], SPAN, speed=600.0, loop=True)
        listener = engine.listen(session)
        session.begin()
        await trio.sleep(3.5)
        session.stop()
        await listener.done.wait()
        for number in (1, 2, 3):
            assert of_epoch(listener, number) == WHOLE.ticks()
        resets = listener.notices("reset")
        assert [reset.fields["epoch"] for reset in resets] == [2, 3, 4]
        assert {reset.fields["cause"] for reset in resets} == {"loop"}
        assert {reset.fields["hash"] for reset in resets} == {WHOLE.end["hash"]}
        assert [snapshot_of(one) for one in listener.notices("snapshot")] == [{}, {}, {}]

    run_engine(main)


def test_a_pause_holds_at_the_end_of_a_round_in_which_nothing_came():
    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES], SPAN, speed="max", loop=True)
        session.begin()
        session.seek(SPAN.end)
        await trio.sleep(0.05)
        session.pause()
        epoch = session.epoch
        with trio.fail_after(0.01):  # it is between two rounds, and answers all the same
            assert (await session.step(1).wait()).fields["count"] == 0
        await trio.sleep(1)
        assert (session.epoch, session.market()) == (epoch, SPAN.end)
        session.change_speed(600.0)  # else it goes round and round before any time has passed
        session.resume()
        await trio.sleep(1)
        assert session.epoch > epoch
        session.stop()

    run_engine(main)


@pytest.mark.parametrize("speed", ["max", 60.0])
def test_it_pauses_by_itself(speed):
    async def main(engine):
        await fill(engine)
        until = START + 3 * MINUTE
        session = await engine.create([TRADES, CANDLES], SPAN, speed=speed, until=until)
        listener = engine.listen(session)
        session.begin()
        await trio.sleep(60)
        assert session.status()["status"] == "paused"
        assert session.status()["clock"] == until // MILLISECOND
        assert listener.ticks() == [tick for tick in WHOLE.ticks() if tick[0] < until]
        [paused] = listener.notices("paused")
        assert paused.fields == {"clock": until // MILLISECOND, "cause": "until"}
        session.resume()
        await listener.done.wait()
        assert listener.end == WHOLE.end

    run_engine(main)


def test_a_step_that_finds_nothing_leaves_time_where_it_is():
    """It had gone to `until`, which then held no more."""

    async def main(engine):
        await fill(engine)
        until = SPAN.end - 1
        session = await engine.create([TRADES], SPAN, start_paused=True, until=until)
        session.begin()
        await session.step(10_000).wait()
        before = session.market()
        assert before < until
        assert (await session.step(1).wait()).fields["count"] == 0
        assert session.market() == before
        session.resume()
        await trio.sleep(60)
        assert (session.status()["status"], session.market()) == ("paused", until)

    run_engine(main)


def test_idle_time_is_jumped():
    async def main(engine):
        times = START + np.array([0, 1, 3600, 3601]) * SECOND
        ones = Decimals(np.ones(4, np.int64))
        sides = np.zeros(4, np.uint8)
        batch = Batch(TRADES, times, {"price": ones, "amount": ones}, np.arange(4), sides)
        span = Span(START, START + 2 * HOUR)
        await engine.store(batch, span)
        listener = await engine.play([TRADES], span, speed=1.0, max_idle_secs=5.0)
        arrivals = [at for at, _ in listener.arrivals()]
        assert arrivals == pytest.approx([0, 1, 6, 7], abs=0.01)
        assert trio.current_time() == pytest.approx(12, abs=0.01)

    run_engine(main)


@pytest.mark.parametrize("after", [0, 1, 62, 63, 64, 300, 500])
def test_who_comes_late_gets_a_snapshot_and_the_rest(after):
    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES, CANDLES], SPAN, speed="max", start_paused=True)
        session.begin()
        if after:
            await session.step(after).wait()
        late = engine.listen(session, "disconnect")
        session.resume()
        await late.done.wait()
        assert late.ticks() == WHOLE.ticks()[after:]
        assert late.end == WHOLE.end
        before = {}
        for _, series, event in WHOLE.ticks()[:after]:
            before[series.partition("@")[2]] = event // MILLISECOND
        assert [snapshot_of(one) for one in late.notices("snapshot")] == [before][:after]
        assert not after or isinstance(late.heard[0].item, Notice)

    run_engine(main)


@pytest.mark.parametrize("seq", [0, 63, 300, 624])
@pytest.mark.parametrize("when", ["running", "ended"])
@pytest.mark.parametrize("recent", [10, 8192])
def test_who_comes_back_gets_all_that_it_has_missed(seq, when, recent, monkeypatch):
    monkeypatch.setattr("tardisd.replay.position.RECENT_TICKS", recent)
    monkeypatch.setattr("tardisd.replay.position.CHECKPOINT_TICKS", 50)

    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES, CANDLES], SPAN, speed=60.0)
        first = engine.listen(session)
        session.begin()
        await trio.sleep(5 if when == "running" else 60)
        released = session.status()["seq"]
        if seq > released:
            with pytest.raises(RequestError, match="was not delivered yet"):
                session.subscribe("block", (), "", Resume(1, seq))
            return
        back = [engine.listen_from(session, Resume(1, seq), policy)
                for policy in ("block", "disconnect", "drop_oldest")]  # fmt: skip
        await first.done.wait()
        for one in back:
            await one.done.wait()
            assert one.seqs() == list(range(seq + 1, len(WHOLE.seqs()) + 1))
            assert one.end == WHOLE.end
            assert not one.notices("snapshot", "reset")
            ticks = len(one.ticks())
            assert one.ticks() == WHOLE.ticks()[len(WHOLE.ticks()) - ticks :]

    run_engine(main)


@pytest.mark.parametrize("when", ["running", "ended"])
@pytest.mark.parametrize("policy", ["disconnect", "drop_oldest", "conflate"])
def test_who_comes_back_after_long_is_not_too_slow(policy, when):
    """What was missed is more than may wait for one that lags: it had come back to be cut off."""

    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES, CANDLES], SPAN, speed=1.0)
        engine.listen(session)
        session.begin()
        await trio.sleep(300 if when == "running" else 700)
        assert session.has_ended == (when == "ended")
        back = engine.listen_from(session, Resume(1, 5), policy)
        await back.done.wait()
        assert back.evicted is None
        assert back.seqs() == list(range(6, len(WHOLE.seqs()) + 1))
        assert back.end == WHOLE.end

    run_engine(main)


def test_who_comes_back_and_reads_nothing_is_cut_off():
    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES, CANDLES], SPAN, speed=1.0)
        listener = engine.listen(session)
        session.begin()
        await trio.sleep(300)
        back = session.subscribe("disconnect", (), "", Resume(1, 5))
        await trio.sleep(100)
        assert session.status()["subscribers"] == 1
        with pytest.raises(Evicted):
            await back.receive()
        await listener.done.wait()
        assert listener.end == WHOLE.end

    run_engine(main)


def test_who_comes_back_after_a_seek_begins_anew():
    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES, CANDLES], SPAN, speed=60.0)
        session.begin()
        await trio.sleep(3)
        at = START + 6 * MINUTE
        session.seek(at)
        back = engine.listen_from(session, Resume(1, 50), "block")
        await back.done.wait()
        assert [one.type for one in back.notices()][:2] == ["reset", "snapshot"]
        assert back.ticks() == expected(at)
        with pytest.raises(RequestError, match="epoch: 3 has not begun"):
            session.subscribe("block", (), "", Resume(3, 0))

    run_engine(main)


@pytest.mark.parametrize("late", [0, 1, 9], ids=["at once", "soon", "at the end"])
def test_who_was_cut_off_before_the_snapshot_of_a_jump_gets_it(late):
    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES, CANDLES], SPAN, speed=60.0)
        session.begin()
        await trio.sleep(3)
        at = START + 6 * MINUTE
        session.seek(at)
        await trio.sleep(late)
        back = engine.listen_from(session, Resume(2, 0), "block")
        await back.done.wait()
        [snapshot] = back.notices("snapshot")
        assert back.heard[0].item is snapshot
        assert snapshot.fields["clock"] == at // MILLISECOND
        assert snapshot_of(snapshot) == newest(at)
        assert back.ticks() == expected(at)

    run_engine(main)


@pytest.mark.parametrize("barrier", [None, "1m"])
@pytest.mark.parametrize("speed", ["max", 100.0])
def test_lockstep_waits_for_every_acknowledgement(barrier, speed):
    async def main(engine):
        await fill(engine)
        interval = None if barrier is None else Interval.parse(barrier)
        session = await engine.create(
            [TRADES, CANDLES], SPAN, speed=speed, lockstep=True, barrier=interval
        )
        follower = session.subscribe("block", (), "slow", None, lockstep=True)
        watcher = engine.listen(session)
        session.begin()
        seen, barriers = [], 0
        try:
            while True:
                item = await follower.receive()
                if not isinstance(item, Notice):
                    seen += ticks_of(item)
                elif item.type == "barrier":
                    barriers += 1
                    clock = item.fields["clock"] * MILLISECOND
                    assert seen == [tick for tick in WHOLE.ticks() if tick[0] <= clock]
                    await trio.sleep(0.5)
                    assert session.status()["waiting_for"] == ["slow"]
                    assert session.market() <= clock
                    session.acknowledge(follower, 1, item.fields["seq"])
        except trio.EndOfChannel:
            pass
        await watcher.done.wait()
        assert seen == WHOLE.ticks() == watcher.ticks()
        assert watcher.end == WHOLE.end
        assert not watcher.notices("barrier")
        releases = {tick[0] for tick in WHOLE.ticks()}
        if barrier is not None:
            releases = {interval.ceil(release) for release in releases}
        assert barriers == len(releases)

    run_engine(main)


def test_who_does_not_acknowledge_is_cut_off():
    async def main(engine):
        await fill(engine)
        session = await engine.create(
            [TRADES], SPAN, speed="max", lockstep=True, ack_timeout_secs=7.0
        )
        silent = session.subscribe("block", (), "silent", None, lockstep=True)
        watcher = engine.listen(session)
        session.begin()
        await silent.wait_evicted()
        assert trio.current_time() == pytest.approx(7, abs=0.01)
        await watcher.done.wait()
        assert len(watcher.ticks()) == len(batches()[0])

    run_engine(main)


def test_a_durable_session_goes_on_where_it_was(tmp_path):
    state = tmp_path / "state.sqlite"
    kept = {}

    async def first(engine):
        await fill(engine)
        kept["storage"] = engine.storage
        session = await engine.create(
            [TRADES, CANDLES], SPAN, speed=60.0, durable=True, session_id="d"
        )
        kept["before"] = engine.listen(session)
        session.begin()
        await trio.sleep(4.0001)
        kept["seq"], kept["clock"] = session.status()["seq"], session.status()["clock"]
        await engine.sessions.end_all()
        await kept["before"].done.wait()
        assert "goes on after its restart" in kept["before"].evicted

    run_engine(first, state=state)

    async def second(engine):
        session = engine.sessions.get("d")
        status = session.status()
        assert status["status"] == "paused"
        assert status["clock"] == kept["clock"]
        back = engine.listen_from(session, Resume(1, 100), "block")
        ahead = engine.listen_from(session, Resume(1, 400), "block")
        await trio.sleep(30)
        assert session.status()["seq"] == kept["seq"]
        assert back.seqs() == list(range(101, kept["seq"] + 1))
        assert ahead.seqs() == []
        session.resume()
        await back.done.wait()
        await ahead.done.wait()
        assert back.seqs() == list(range(101, len(WHOLE.seqs()) + 1))
        assert ahead.seqs() == list(range(401, len(WHOLE.seqs()) + 1))
        assert back.end == ahead.end == WHOLE.end

    run_engine(second, state=state, storage=kept["storage"], limits=SessionLimits())


def test_what_verbs_did_to_a_durable_session_is_written_down_at_once(tmp_path):
    path = tmp_path / "state.sqlite"

    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES], SPAN, speed=10.0, durable=True, session_id="d")
        session.begin()
        other = State(path)

        def noted():
            [record] = other.sessions()
            place = record.place
            return place["seq"], place["clock"], place["speed"]

        try:
            await trio.sleep(2.53)
            session.pause()
            seq = session.status()["seq"]
            assert noted() == (seq, session.market(), 10.0)
            session.change_speed("max")
            assert noted() == (seq, session.market(), "max")
            await session.step(5).wait()
            assert noted() == (seq + 5, session.market(), "max")
            await session.step(-2).wait()
            assert noted() == (0, session.market(), "max")
        finally:
            other.close()

    run_engine(main, state=path)


def test_a_durable_session_that_had_released_nothing_begins_as_it_would_have(tmp_path):
    state, kept = tmp_path / "state.sqlite", {}

    async def first(engine):
        await fill(engine)
        kept["storage"] = engine.storage
        await engine.create([TRADES, CANDLES], SPAN, speed="max", durable=True, session_id="d")

    async def second(engine):
        session = engine.sessions.get("d")
        listener = engine.listen_from(session, Resume(1, 0), "block")
        session.resume()
        await listener.done.wait()
        assert listener.ticks() == WHOLE.ticks()
        assert listener.end == WHOLE.end

    run_engine(first, state=state)
    run_engine(second, state=state, storage=kept["storage"])


@pytest.mark.parametrize("change", ["none", "behind", "before", "fewer"])
def test_a_durable_session_whose_data_changed_meanwhile_begins_a_new_epoch(tmp_path, change):
    state, kept = tmp_path / "state.sqlite", {}

    async def first(engine):
        await fill(engine)
        kept["storage"] = engine.storage
        session = await engine.create([TRADES, CANDLES], SPAN, speed=60.0, durable=True,
                                      session_id="d")  # fmt: skip
        session.begin()
        await trio.sleep(4.0001)
        session.pause()
        kept["seq"] = session.status()["seq"]

    async def second(engine):
        session = engine.sessions.get("d")
        early = engine.listen_from(session, Resume(1, 100), "block")
        ahead = engine.listen_from(session, Resume(1, kept["seq"] + 30), "block")
        session.resume()
        await early.done.wait()
        await ahead.done.wait()
        for one, seq in ((early, 100), (ahead, kept["seq"] + 30)):
            assert one.end.get("data_changed", False) == (change != "none")
            if change in {"none", "behind"}:
                assert one.end["ticks"] == WHOLE.end["ticks"] - (change == "behind")
                assert one.seqs()[0] == seq + 1
                assert not one.notices("reset")
                continue
            [reset] = one.notices("reset")
            assert (reset.fields["epoch"], one.end["epoch"]) == (2, 2)
            assert of_epoch(one, 1) == []
            assert of_epoch(one, 2) == [t for t in WHOLE.ticks() if t[0] >= AT]
            assert one.notices("snapshot")

    AT = START + 240_006 * MILLISECOND
    run_engine(first, state=state)
    spans = {
        "behind": Span(START + 599 * SECOND, START + 600 * SECOND),
        "before": Span(START + 10 * SECOND, START + 11 * SECOND),
        "fewer": Span(START, START + 240 * SECOND),
    }
    if change != "none":
        trio.run(kept["storage"].delete, TRADES, spans[change])
    run_engine(second, state=state, storage=kept["storage"])


class Deaf(Sink):
    """A sink that follows no session."""

    name = "deaf"

    @asynccontextmanager
    async def open(self, session):
        yield None


def test_a_durable_session_waits_for_a_daemon_that_has_all_it_needs(tmp_path):
    state, kept = tmp_path / "state.sqlite", {}
    sinks = {"deaf": Deaf(Sink.Options(), sink_context(None))}

    async def first(engine):
        await fill(engine)
        kept["storage"] = engine.storage
        session = await engine.create(
            [TRADES], SPAN, speed=60.0, durable=True, session_id="d", sinks=("deaf",)
        )
        session.begin()
        await trio.sleep(4.0001)

    async def without(engine):
        session = engine.sessions.get("d")
        end = (await session.subscribe("block").receive()).fields
        assert end["reason"] == "stopped"
        assert "could not be taken up again: sinks: 'deaf' is not one of" in end["message"]
        await trio.sleep(3600)
        assert engine.sessions.list() == [session]

    async def second(engine):
        status = engine.sessions.get("d").status()
        assert (status["status"], status["clock"]) == ("paused", START // MILLISECOND + 240_006)

    async def dropped(engine):
        engine.sessions.remove("d")

    async def gone(engine):
        assert engine.sessions.list() == []

    run_engine(first, state=state, sinks=sinks)
    for _ in range(2):
        run_engine(without, state=state, storage=kept["storage"])
        run_engine(second, state=state, storage=kept["storage"], sinks=sinks)
    run_engine(without, state=state, storage=kept["storage"])
    run_engine(dropped, state=state, storage=kept["storage"])
    run_engine(gone, state=state, storage=kept["storage"], sinks=sinks)


@pytest.mark.parametrize("column", ["place", "request", "end"])
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"epoch":"x","series":7}'])
def test_a_damaged_record_is_no_other_sessions_trouble(tmp_path, column, text):
    state, kept = tmp_path / "state.sqlite", {}

    async def first(engine):
        await fill(engine)
        kept["storage"] = engine.storage
        for name in ("sound", "damaged"):
            await engine.create([TRADES], SPAN, durable=True, session_id=name)

    async def second(engine):
        found = {one.session_id: one.status()["status"] for one in engine.sessions.list()}
        assert found.pop("sound") == "paused"
        assert found == {"place": {"damaged": "stopped"}, "request": {}}.get(column, found)

    run_engine(first, state=state)
    connection = sqlite3.connect(state)
    with connection:
        connection.execute(
            f"UPDATE sessions SET {column} = ?, ended_at = ? WHERE session_id = 'damaged'",
            (text, wall_ns() if column == "end" else None),
        )
    connection.close()
    run_engine(second, state=state, storage=kept["storage"])


def test_a_jump_of_a_durable_session_is_written_down_before_anybody_hears_of_it(tmp_path):
    path = tmp_path / "state.sqlite"

    async def main(engine):
        await fill(engine)
        session = await engine.create([TRADES], SPAN, speed=1.0, durable=True, session_id="d")
        session.begin()
        await trio.sleep(0.5)
        session.seek(START + 5 * MINUTE)
        other = State(path)
        try:
            [record] = other.sessions()
        finally:
            other.close()
        assert (record.place["epoch"], record.place["seq"]) == (2, 0)
        assert record.place["begin"]["release"] == START + 5 * MINUTE

    run_engine(main, state=path)


def test_a_session_that_ended_before_a_restart_can_be_verified_and_caught_up(tmp_path):
    state, kept = tmp_path / "state.sqlite", {}

    async def first(engine):
        await fill(engine)
        kept["storage"] = engine.storage
        session = await engine.create([TRADES, CANDLES], SPAN, speed="max", session_id="e")
        listener = engine.listen(session)
        session.begin()
        await listener.done.wait()

    async def second(engine):
        session = engine.sessions.get("e")
        proof = await session.verify()
        assert (proof["equal"], proof["hash"]) == (True, WHOLE.end["hash"])
        back = engine.listen_from(session, Resume(1, 300), "block")
        await back.done.wait()
        assert back.seqs() == list(range(301, len(WHOLE.seqs()) + 1))
        assert back.end == WHOLE.end

    run_engine(first, state=state)
    run_engine(second, state=state, storage=kept["storage"])
