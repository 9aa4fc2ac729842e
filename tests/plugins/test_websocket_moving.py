"""Seek, step, loop, lockstep and resume over real sockets, as any client would use them."""

from __future__ import annotations

import random

import pytest
import trio
from websocket_rig import CANDLE_COUNT, DAY, running

FIRST = 1709251200000
MINUTE = 60_000
CANDLES, TRADES = "binance:BTC/USDT@candle_1m", "binance:BTC/USDT@trade"


@pytest.fixture
async def rig(tmp_path):
    async with running(tmp_path) as found:
        yield found


def opens(messages):
    """Return the time stamps of tick messages."""
    return [message["data"]["timestamp"] for message in messages if message["type"] == "tick"]


async def test_a_seek_tells_everybody_and_replays_from_there(rig):
    async with rig.client() as one, rig.client() as two:
        await one.create(session_id="s", start_paused=True)
        await two.ask("subscribe", session_id="s", when_full="block")
        to = FIRST + 600 * MINUTE
        reply = await one.ask("seek", session_id="s", to=to, id=7)
        assert reply == {"type": "sought", "session_id": "s", "epoch": 2, "clock": to, "id": 7}
        told = await two.get()
        assert told == {name: value for name, value in reply.items() if name != "id"}
        for client in (one, two):
            reset, snapshot = await client.get(), await client.get()
            assert reset == {
                "type": "reset", "session_id": "s", "epoch": 2, "clock": to, "cause": "seek",
                "seq": 0,
            }  # fmt: skip
            assert (snapshot["type"], snapshot["epoch"], snapshot["clock"]) == ("snapshot", 2, to)
            [row] = snapshot["data"]
            assert row["channel"] == "candle_1m"
            # The candle that closes at the target is not out yet.
            assert row["close_time"] == to - MINUTE
            assert snapshot["gaps"] == []
        await one.send("resume", session_id="s")
        for client in (one, two):
            messages = await client.until("end")
            ticks = [message for message in messages if message["type"] == "tick"]
            assert opens(ticks) == [FIRST + at * MINUTE for at in range(599, CANDLE_COUNT)]
            assert [tick["seq"] for tick in ticks] == list(range(1, len(ticks) + 1))
            assert {tick["epoch"] for tick in ticks} == {2}
            assert messages[-1]["ticks"] == len(ticks)


async def test_who_leaves_at_once_is_answered_all_that_it_asked_before(rig):
    async with rig.client() as client:
        await client.create(session_id="s", start_paused=True)
        follower = rig.sessions.get("s")._audience._present[0]
        # As if the client read nothing for a moment: what it is told stays in the queue.
        follower.held = trio.CancelScope()
        verbs = [("resume", {}), ("speed_change", {"speed": 2}), ("pause", {})]
        for number, (verb, fields) in enumerate(verbs):
            await client.send(verb, session_id="s", id=number, **fields)
        await client.send("unsubscribe", session_id="s", id="u")
        seen = await client.until("unsubscribed")
        assert [message["id"] for message in seen if "id" in message] == [0, 1, 2, "u"]


async def test_who_leaves_during_its_own_step_is_answered_when_that_is_over(rig):
    async with rig.client() as client:
        await client.create(session_id="s", series=[TRADES], start_paused=True)
        stuck = rig.sessions.get("s").subscribe("block")
        await client.send("step", session_id="s", count=10_000, id="step")
        await client.send("unsubscribe", session_id="s")
        seen = await client.until("unsubscribed")
        assert "stepped" not in [message["type"] for message in seen]
        stuck.close()
        reply = await client.get()
        assert (reply["type"], reply["id"], reply["count"]) == ("stepped", "step", 10_000)


async def test_a_seek_by_some_time_stays_inside(rig):
    async with rig.client() as client:
        await client.create(session_id="s", start_paused=True)
        for by, clock in [(5 * MINUTE, FIRST + 5 * MINUTE), (-MINUTE, FIRST + 4 * MINUTE),
                          (-(2**40), FIRST), (2**50, FIRST + CANDLE_COUNT * MINUTE)]:  # fmt: skip
            await client.send("seek", session_id="s", by=by)
            sought = (await client.until("sought"))[-1]
            assert sought["clock"] == clock
        await client.send("seek", session_id="s", to="2023-01-01T00:00:00Z")
        error = (await client.until("error"))[-1]
        assert (error["code"], error["message"][:3]) == ("bad_request", "to:")


async def test_steps_forward_and_back(rig):
    async with rig.client() as client, rig.client() as other:
        await client.create(session_id="s", start_paused=True)
        await client.send("step", session_id="s", id="a")
        messages = await client.until("stepped")
        assert opens(messages) == [FIRST]
        assert messages[-1] == {
            "type": "stepped", "session_id": "s", "count": 1, "clock": FIRST + MINUTE, "id": "a",
        }  # fmt: skip
        stepped = await other.ask("step", session_id="s", count=9, id="b")
        assert (stepped["type"], stepped["count"], stepped["id"]) == ("stepped", 9, "b")
        assert len(opens(await client.until("stepped"))) == 9
        await client.send("step", session_id="s", count=-4)
        messages = await client.until("stepped")
        assert [message["type"] for message in messages] == ["reset", "snapshot", "stepped"]
        assert messages[0]["cause"] == "step"
        assert messages[1]["data"][0]["timestamp"] == FIRST + 5 * MINUTE
        assert messages[2]["count"] == -4
        await client.send("resume", session_id="s")
        ticks = await client.until("end")
        assert opens(ticks)[0] == FIRST + 6 * MINUTE
        assert (await client.ask("step", session_id="s"))["code"] == "wrong_state"
        await client.create(session_id="t", speed=1)
        await client.send("step", session_id="t", id=5)
        error = (await client.until("error"))[-1]
        assert (error["code"], error["id"]) == ("wrong_state", 5)
        await client.send("pause", session_id="t")
        await client.send("step", session_id="t", count=10**9)
        assert (await client.until("error"))[-1]["code"] == "too_large"


async def test_a_client_that_is_cut_off_again_and_again_misses_nothing(rig):
    """The connection is dropped at random points, and taken up with epoch and seq each time."""
    dice = random.Random(7)
    async with rig.client() as owner:
        # Somebody who reads everything tells what there is.
        fields = {"series": [CANDLES, TRADES], "session_id": "s", "when_full": "block"}
        await owner.create(**fields, speed=30_000)
        truth = []
        async with trio.open_nursery() as nursery:

            async def read_all():
                truth.extend(await owner.until("end"))

            nursery.start_soon(read_all)
            heard, seq, rounds = [], 0, 0
            while not heard or heard[-1]["type"] != "end":
                rounds += 1
                async with rig.client() as client:
                    reply = await client.ask(
                        "subscribe", session_id="s", epoch=1, from_seq=seq, when_full="block"
                    )
                    assert (reply["type"], reply["seq"]) == ("subscribed", seq)
                    for _ in range(dice.choice([1, 2, 10, 300])):
                        message = await client.get()
                        heard.append(message)
                        seq = message.get("seq", seq)
                        if message["type"] == "end":
                            break
        assert rounds > 20
        ticks = [message for message in heard if message["type"] in {"tick", "gap"}]
        wanted = [message for message in truth if message["type"] in {"tick", "gap"}]
        for message in ticks + wanted:
            message.get("data", {}).pop("replay_time", None)
        assert ticks == wanted
        assert heard[-1] == truth[-1]


async def test_lockstep_waits_for_acks(rig):
    async with rig.client() as client, rig.client() as watcher:
        await client.create(session_id="s", lockstep=True, start_paused=True)
        await watcher.ask("subscribe", session_id="s", lockstep=False, when_full="block")
        await client.send("resume", session_id="s")
        assert (await client.get())["type"] == "resumed"
        for number in range(1, CANDLE_COUNT + 1):
            tick, barrier = await client.get(), await client.get()
            assert (tick["seq"], barrier["seq"]) == (number, number)
            assert barrier == {
                "type": "barrier", "session_id": "s", "epoch": 1, "seq": number,
                "clock": tick["data"]["close_time"],
            }  # fmt: skip
            if number == 3:
                status = await client.ask("status", session_id="s")
                assert len(status["waiting_for"]) == 1
                assert status["seq"] == 3
                error = await client.ask("ack", session_id="s", epoch=1, seq=4)
                assert error["code"] == "bad_request"
                error = await client.ask("ack", session_id="s", epoch=2, seq=1)
                assert (error["code"], error["message"][:6]) == ("bad_request", "epoch:")
                assert (await watcher.ask("ack", session_id="t", epoch=1, seq=1))["type"]
            await client.send("ack", session_id="s", epoch=1, seq=number)
        assert (await client.get())["type"] == "end"


async def test_loop_until_and_idle(rig):
    async with rig.client() as client:
        until = FIRST + 10 * MINUTE
        end = FIRST + 20 * MINUTE
        reply = await client.create(
            session_id="s", loop=True, until=until, end_time=end, max_idle_secs=0.01, speed=1
        )
        assert reply["type"] == "session_created"
        messages = await client.until("paused")
        assert len(opens(messages)) == 9
        assert messages[-1]["clock"] == until
        await client.send("resume", session_id="s")
        messages = await client.until("reset")
        assert (messages[-1]["cause"], messages[-1]["ticks"]) == ("loop", 20)
        messages = await client.until("paused")
        assert messages[0]["type"] == "snapshot"
        assert opens(messages) == [FIRST + at * MINUTE for at in range(9)]
        await client.send("stop", session_id="s")
        assert (await client.until("end"))[-1]["reason"] == "stopped"


async def test_options_that_do_not_go_together(rig):
    async with rig.client() as client:
        for fields, named in [
            ({"ephemeral": True, "durable": True}, "durable"),
            ({"barrier": "fortnight", "lockstep": True}, "barrier"),
            ({"until": DAY["start_time"]}, "until"),
        ]:
            error = await client.create(**fields)
            assert error["code"] == "bad_request"
            assert error["message"].startswith(f"{named}:")
