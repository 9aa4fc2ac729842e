"""Many clients of one session: one that stalls among others, one that is slow as can be."""

from __future__ import annotations

import json

import pytest
import trio
from websocket_rig import CANDLE_COUNT, client_frame, running

CANDLES, TRADES = "binance:BTC/USDT@candle_1m", "binance:BTC/USDT@trade"


@pytest.fixture
async def rig(tmp_path):
    async with running(tmp_path) as found:
        yield found


async def test_one_that_stalls_among_many_costs_the_others_nothing(rig):
    async with rig.client() as owner, trio.open_nursery() as nursery:
        await owner.create(session_id="s", series=[CANDLES, TRADES], start_paused=True)
        stalled = await rig.shaken(receive_buffer=1)
        request = {"type": "subscribe", "session_id": "s", "when_full": "disconnect"}
        await stalled.send_all(client_frame(json.dumps(request).encode()))
        ends, hashes = [], []

        async def follow(batch):
            async with rig.client() as client:
                delivery = "batch" if batch else "tick"
                await client.ask("subscribe", session_id="s", when_full="block", delivery=delivery)
                ready.append(client)
                messages = await client.until("end")
                count = sum(
                    len(one["data"]) if one["type"] == "ticks" else one["type"] == "tick"
                    for one in messages
                )
                ends.append(count)
                hashes.append(messages[-1]["hash"])
                # A close that crosses a ping breaks trio-websocket's client: let it sleep instead.
                await trio.sleep_forever()

        ready = []
        for number in range(24):
            nursery.start_soon(follow, number % 2)
        with trio.fail_after(60):
            while len(ready) < 24:
                await trio.sleep(0.01)
        status = (await owner.ask("status", session_id="s"))["subscribers"]
        assert status == 26
        await owner.send("resume", session_id="s")
        end = (await owner.until("end"))[-1]
        with trio.fail_after(60):
            while len(ends) < 24:
                await trio.sleep(0.01)
        assert set(ends) == {end["ticks"]}
        assert set(hashes) == {end["hash"]}
        nursery.cancel_scope.cancel()


async def test_one_that_reads_a_byte_at_a_time_gets_everything(rig):
    async with rig.client() as owner:
        await owner.create(session_id="s", start_paused=True, end_time="2024-03-01T00:20:00Z")
        stream = await rig.shaken(receive_buffer=1)
        request = {"type": "subscribe", "session_id": "s", "when_full": "block"}
        await stream.send_all(client_frame(json.dumps(request).encode()))
        await owner.send("resume", session_id="s")
        assert (await owner.until("end"))[-1]["ticks"] == 20
        data = bytearray()
        while b'"type":"end"' not in data:
            data += await stream.receive_some(1)
        assert data.count(b'"type":"tick"') == 20
    assert CANDLE_COUNT > 20
