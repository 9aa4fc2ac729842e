"""Ticks over real sockets: order, completeness, many clients, slow ones and those who vanish."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed
from websocket_rig import CANDLE_COUNT, DAY, TRADE_COUNT, Frames, client_frame, gone, running

from tardisd.replay.fanout import QueueLimits
from tardisd.replay.manager import SessionLimits
from tardisd.replay.timeline import Tuning
from tardisd_websocket import connection

BOTH = ["binance:BTC/USDT@candle_1m", "binance:BTC/USDT@trade"]


@pytest.fixture
async def rig(tmp_path):
    async with running(tmp_path) as one:
        yield one


def flat(messages):
    """Return the ticks of `tick` or `ticks` messages as (seq, channel, data without its time)."""
    found = []
    for message in messages:
        if message["type"] == "tick":
            rows = [{"channel": message["channel"], **message["data"]}]
            first = message["seq"]
        elif message["type"] == "ticks":
            rows, first = message["data"], message["first_seq"]
        else:
            continue
        for at, row in enumerate(rows):
            row.pop("replay_time")
            found.append((first + at, row))
    return found


async def test_tick_and_batch_deliver_the_same(rig):
    async with rig.client() as one, rig.client() as other:
        await one.create(session_id="s", series=BOTH, start_paused=True, when_full="block")
        await other.ask("subscribe", session_id="s", delivery="batch", when_full="block")
        await other.send("resume", session_id="s", id="go")
        results = {}

        async def collect(name, client):
            results[name] = await client.until("end")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, "tick", one)
            nursery.start_soon(collect, "batch", other)
    ticks, batches = flat(results["tick"]), flat(results["batch"])
    marks = [message["seq"] for message in results["tick"] if message["type"] == "gap"]
    assert len(ticks) == CANDLE_COUNT + TRADE_COUNT
    assert ticks == batches
    numbers = sorted([seq for seq, _ in ticks] + marks)
    assert numbers == list(range(1, len(ticks) + len(marks) + 1))
    assert results["tick"][-1] == results["batch"][-1]
    assert results["tick"][-1]["ticks"] == len(ticks)
    sizes = [len(m["data"]) for m in results["batch"] if m["type"] == "ticks"]
    assert max(sizes) <= 1000
    assert sum(sizes) > 50 * len(sizes)


async def test_the_reply_comes_before_the_first_tick(rig):
    async with rig.client() as client:
        for at in range(8):
            reply = await client.create(id=at)
            assert (reply["type"], reply["id"]) == ("session_created", at)
            assert (await client.get())["seq"] == 1
            await client.until("end")


async def test_no_tick_between_paused_and_resumed(rig):
    async with rig.client() as client:
        # Paused at first, so that at least one pause comes before the end, however fast it goes.
        await client.create(session_id="s", data_type="trade", delivery="batch", start_paused=True)
        seen = []
        for at in range(50):
            await client.send("pause", session_id="s", id=f"p{at}")
            seen += await client.until("paused", "error")
            assert seen[-1]["id"] == f"p{at}"
            if seen[-1]["type"] == "error":
                break  # it ended before that
            assert (await client.ask("ping"))["type"] == "pong"
            assert (await client.ask("status", session_id="s"))["status"] == "paused"
            assert (await client.ask("resume", session_id="s", id=f"r{at}"))["type"] == "resumed"
        else:
            seen += await client.until("end")
    assert any(message["type"] == "paused" for message in seen)
    assert seen.pop()["type"] in {"error", "end"}
    assert len(flat(seen)) == TRADE_COUNT


async def test_nothing_follows_after_unsubscribed(rig):
    async with rig.client() as owner, rig.client() as client:
        await owner.create(session_id="s", data_type="trade", start_paused=True)
        await client.ask("subscribe", session_id="s", when_full="block")
        await owner.send("resume", session_id="s")
        await client.until("tick")
        await client.send("unsubscribe", session_id="s", id=1)
        assert (await client.until("unsubscribed"))[-1]["id"] == 1
        assert (await client.ask("ping", id=2))["id"] == 2
        assert (await owner.until("end"))[-1]["ticks"] == TRADE_COUNT


async def test_many_clients_of_one_session(rig):
    ends = []

    async def follow(ready):
        async with rig.client() as client:
            await client.ask("subscribe", session_id="s", when_full="block")
            ready.set()
            seen = await client.until("end")
            assert [seq for seq, _ in flat(seen)] == list(range(1, CANDLE_COUNT + 1))
            ends.append(seen[-1])

    async with rig.client() as owner, trio.open_nursery() as nursery:
        await owner.create(session_id="s", start_paused=True)
        followers = [trio.Event() for _ in range(20)]
        for ready in followers:
            nursery.start_soon(follow, ready)
        for ready in followers:
            await ready.wait()
        assert (await owner.ask("status", session_id="s"))["subscribers"] == 21
        await owner.send("resume", session_id="s")
        await owner.until("end")
    assert len(ends) == 20
    assert all(end == ends[0] for end in ends)


async def test_many_sessions_of_one_client(rig):
    names = [f"s{at}" for at in range(12)]
    async with rig.client() as client:
        for name in names:
            reply = await client.create(session_id=name, start_paused=True)
            assert reply["session_id"] == name
        for name in names:
            await client.send("resume", session_id=name)
        seen, ended = {name: [] for name in names}, set()
        while len(ended) < len(names):
            message = await client.get()
            seen[message["session_id"]].append(message)
            if message["type"] == "end":
                ended.add(message["session_id"])
    for messages in seen.values():
        assert [seq for seq, _ in flat(messages)] == list(range(1, CANDLE_COUNT + 1))


async def test_a_session_outlives_its_creator(rig):
    async with rig.client() as watcher:
        async with rig.client() as creator:
            await creator.create(session_id="s", start_paused=True)
            await watcher.ask("subscribe", session_id="s", when_full="block")
        await watcher.send("resume", session_id="s")
        seen = await watcher.until("end")
        assert (seen[-1]["reason"], seen[-1]["ticks"]) == ("finished", CANDLE_COUNT)


async def test_an_ephemeral_session_ends_with_its_creators_connection(rig):
    async with rig.client() as watcher:
        stream = await rig.shaken()
        await stream.send_all(client_frame(json.dumps({
            "type": "create_session", "session_id": "e", "ephemeral": True, "speed": 1,
            "exchange": "binance", "symbol": "BTC/USDT",
            "start_time": 1709251200000, "end_time": 1709337600000,
        }).encode()))  # fmt: skip
        frames = Frames(stream)
        while b"session_created" not in (await frames.get())[1]:
            pass
        await watcher.create(session_id="other", start_paused=True)
        assert (await watcher.ask("subscribe", session_id="e"))["type"] == "subscribed"
        await trio.aclose_forcefully(stream)
        end = (await watcher.until("end"))[-1]
        assert (end["session_id"], end["reason"]) == ("e", "stopped")
        assert (await watcher.ask("status", session_id="other"))["status"] == "paused"


@pytest.mark.parametrize("delivery", ["tick", "batch"])
async def test_clients_that_vanish_in_the_middle_of_a_tick(rig, delivery):
    subscribe = {"type": "subscribe", "session_id": "s", "delivery": delivery}
    async with rig.client() as owner:
        await owner.create(session_id="s", series=BOTH, start_paused=True)
        streams = []
        for _ in range(10):
            stream = await rig.shaken(receive_buffer=4096)
            await stream.send_all(client_frame(json.dumps(subscribe).encode()))
            frames = Frames(stream)
            while b"subscribed" not in (await frames.get())[1]:
                pass
            streams.append(stream)
        assert (await owner.ask("resume", session_id="s"))["type"] == "resumed"
        for stream in streams:
            await stream.receive_some(1000)
            # Unread bytes: the server gets a reset, half-way through a frame as likely as not.
            await trio.aclose_forcefully(stream)
        end = (await owner.until("end"))[-1]
        assert (end["reason"], end["ticks"]) == ("finished", CANDLE_COUNT + TRADE_COUNT)
        assert (await owner.ask("status", session_id="s"))["subscribers"] == 0


async def test_a_slow_blocking_client_misses_nothing(rig):
    async with rig.client(message_queue_size=1, receive_buffer_size=1024) as client:
        await client.create(session_id="s", data_type="trade")
        async with rig.client() as watcher:
            await held_up(watcher, "s")
        seen = await client.until("end")
        numbers = [message["seq"] for message in seen if "seq" in message]
        assert numbers == list(range(1, len(numbers) + 1))
        assert seen[-1]["ticks"] == TRADE_COUNT


async def held_up(watcher, session_id):
    """Wait until a session waits for a follower; it makes no progress any more then."""
    with trio.fail_after(100):
        while not (await watcher.ask("status", session_id=session_id))["waiting_for"]:
            await trio.sleep(0.01)


async def test_a_slow_subscriber_is_sent_away_and_told_where_to_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "CLOSE_SECS", 100)  # it reads only after the owner has it all
    limits = SessionLimits(tuning=Tuning(slice_ticks=1024, limits=QueueLimits(lagging_ticks=4096)))
    async with running(tmp_path, limits) as rig, rig.client() as owner:
        await owner.create(session_id="s", data_type="trade", start_paused=True)
        stream = await rig.shaken(receive_buffer=4096)
        await stream.send_all(client_frame(b'{"type":"subscribe","session_id":"s"}'))
        frames = Frames(stream)
        while b"subscribed" not in (await frames.get())[1]:
            pass
        await owner.send("resume", session_id="s")
        # The owner is not held up by somebody who does not read.
        assert (await owner.until("end"))[-1]["ticks"] == TRADE_COUNT
        numbers = []
        while (frame := await frames.get()) is not None:
            opcode, payload = frame
            if opcode == 8:
                break
            message = json.loads(payload)
            numbers += [message["seq"]] if message["type"] == "tick" else []
        assert int.from_bytes(payload[:2]) == 4408
        assert payload[2:].decode() == f"too slow; resume with session=s epoch=1 seq={numbers[-1]}"
        assert numbers == list(range(1, len(numbers) + 1))
        assert 0 < len(numbers) < TRADE_COUNT


async def test_a_client_that_stopped_reading_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "CLOSE_SECS", 0.3)
    limits = SessionLimits(tuning=Tuning(limits=QueueLimits(max_block_secs=5)))
    async with running(tmp_path, limits) as rig, rig.client() as owner:
        stream = await rig.shaken(receive_buffer=4096)
        subscribe = b'{"type":"subscribe","session_id":"s","when_full":"block"}'
        await owner.create(session_id="s", data_type="trade", start_paused=True, delivery="batch")
        await stream.send_all(client_frame(subscribe))
        frames = Frames(stream)
        while b"subscribed" not in (await frames.get())[1]:
            pass
        await owner.send("resume", session_id="s")
        assert (await owner.until("end"))[-1]["ticks"] == TRADE_COUNT
        with trio.fail_after(100):
            received = await gone(stream)
        assert len(received) < 2_000_000


async def test_drop_oldest_announces_every_hole(tmp_path):
    limits = SessionLimits(tuning=Tuning(slice_ticks=1024, limits=QueueLimits(lagging_ticks=4096)))
    async with running(tmp_path, limits) as rig, rig.client() as owner:
        await owner.create(session_id="s", data_type="trade", start_paused=True)
        stream = await rig.shaken(receive_buffer=4096)
        subscribe = b'{"type":"subscribe","session_id":"s","when_full":"drop_oldest"}'
        await stream.send_all(client_frame(subscribe))
        frames = Frames(stream)
        while b"subscribed" not in (await frames.get())[1]:
            pass
        await owner.send("resume", session_id="s")
        await owner.until("end")
        covered, last = [], None
        while last != "end":
            message = json.loads((await frames.get())[1])
            last = message["type"]
            if last in {"tick", "gap"}:
                covered.append((message["seq"], message["seq"]))
            elif last == "skipped":
                covered.append((message["from_seq"], message["to_seq"]))
        assert any(first < until for first, until in covered)
        assert covered[0][0] == 1
        for (_, until), (first, _) in pairwise(covered):
            assert first == until + 1


async def test_replies_get_through_between_ticks(rig):
    async with rig.client() as client:
        await client.create(session_id="s", data_type="trade")
        await client.send("ping", id="now")
        seen = await client.until("pong")
        assert seen[-1]["id"] == "now"
        assert len(seen) < TRADE_COUNT
        assert (await client.until("end"))[-1]["ticks"] == TRADE_COUNT


async def pass_time(clock, seconds):
    """Let time pass in steps, with everything done that can be done in between."""
    for _ in range(seconds // 5):
        await trio.testing.wait_all_tasks_blocked(0.01)
        clock.jump(5)
    await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_slow_reader_is_not_taken_for_a_dead_one(tmp_path, mock_clock):
    limits = SessionLimits(tuning=Tuning(limits=QueueLimits(max_block_secs=100_000)))
    async with running(tmp_path, limits) as rig:
        stream = await rig.shaken(receive_buffer=4096)
        request = {"type": "create_session", "session_id": "s", "speed": "max", **DAY}
        request |= {"series": ["binance:BTC/USDT@trade"]}
        await stream.send_all(client_frame(json.dumps(request).encode()))
        async with rig.client() as watcher:
            # Time stands still, so that nothing times out in here.
            while True:
                found = (await watcher.ask("status"))["sessions"]
                if found and found[0]["waiting_for"]:
                    break
        await pass_time(mock_clock, 400)
        frames, count = Frames(stream), 0
        while b'"type":"end"' not in (payload := (await frames.get())[1]):
            count += b'"type":"tick"' in payload
        assert count == TRADE_COUNT


@pytest.mark.parametrize(("seconds", "alive"), [(200, True), (400, False)])
async def test_after_many_ticks_a_pong_may_be_late(rig, mock_clock, seconds, alive):
    stream = await rig.shaken()
    request = {"type": "create_session", "session_id": "s", "speed": "max", **DAY}
    request |= {"series": ["binance:BTC/USDT@candle_1m"]}
    await stream.send_all(client_frame(json.dumps(request).encode()))
    async with rig.client() as watcher:
        while not rig.sessions.list() or not rig.sessions.get("s").has_ended:
            await watcher.ask("ping")
    await pass_time(mock_clock, seconds)
    received = b""
    try:
        with trio.move_on_after(1):
            mock_clock.rate = 1
            while data := await stream.receive_some(65536):
                received += data
                if alive and b"pong" in received[-100:]:
                    break
                if alive and b'"type":"end"' in received[-1000:]:
                    await stream.send_all(client_frame(b'{"type":"ping"}'))
    except trio.BrokenResourceError:
        pass
    assert (b'"type":"pong"' in received[-100:]) == alive


async def test_when_the_sink_stops_clients_are_told(tmp_path):
    async with trio.open_nursery() as nursery:
        told = trio.Event()

        async def wait_for_the_end(rig, ready):
            async with rig.client() as client:
                ready.set()
                with pytest.raises(ConnectionClosed) as closed:
                    await client.websocket.get_message()
            assert closed.value.reason.code == 1001
            told.set()

        async with running(tmp_path) as rig:
            ready = trio.Event()
            nursery.start_soon(wait_for_the_end, rig, ready)
            await ready.wait()
        with trio.fail_after(100):
            await told.wait()
