"""Seek, step and going on where one was, over HTTP."""

from __future__ import annotations

import random

import trio
from http_rig import CANDLE_COUNT, TRADE_COUNT, running
from test_http_stream import TRADED

NOON = "2024-03-01T12:00:00Z"
NOON_MS = 1709294400000


async def test_seek_tells_everybody(tmp_path):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s")
        async with rig.lines("s") as lines:
            await anext(lines)
            sought = await rig.ask("POST", "/api/replay/s/seek", {"to": NOON})
            assert (sought["type"], sought["epoch"], sought["clock"]) == ("sought", 2, NOON_MS)
            found = [await anext(lines)]
            while found[-1].get("type") != "snapshot":
                found.append(await anext(lines))
            assert "reset" in [line["type"] for line in found]
            back = await rig.ask("POST", "/api/replay/s/seek", {"by": -3_600_000})
            assert (back["epoch"], back["clock"]) == (3, NOON_MS - 3_600_000)
            await rig.ask("POST", "/api/replay/s/resume")
            rest = [line async for line in lines]
            seqs = [line["seq"] for line in rest if "channel" in line]
            assert len(seqs) == CANDLE_COUNT * 13 // 24 + 1  # 11:00 is released at 11:00
            assert rest[-1]["ticks"] == len(seqs)


async def test_step_answers_when_the_ticks_are_out(tmp_path):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s")
        async with rig.lines("s") as lines:
            await anext(lines)
            stepped = await rig.ask("POST", "/api/replay/s/step", {"count": 3})
            assert (stepped["type"], stepped["count"]) == ("stepped", 3)
            assert [(await anext(lines))["seq"] for _ in range(3)] == [1, 2, 3]
            assert (await anext(lines))["type"] == "stepped"
            one = await rig.ask("POST", "/api/replay/s/step")
            assert one["count"] == 1
            back = await rig.ask("POST", "/api/replay/s/step", {"count": -2})
            assert back["type"] == "stepped"
            found = [await anext(lines)]
            while found[-1].get("type") != "snapshot":
                found.append(await anext(lines))
            assert "reset" in [line.get("type") for line in found]
        await rig.ask("POST", "/api/replay/s/resume")
        told = await rig.ask("POST", "/api/replay/s/step", status=409)
        assert told["code"] == "wrong_state"


async def test_a_stream_from_the_beginning_though_it_comes_late(tmp_path):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s")
        await rig.ask("POST", "/api/replay/s/step", {"count": 1000})
        async with rig.lines("s", from_seq=0) as lines:
            first = await anext(lines)
            assert (first["type"], first["epoch"], first["seq"]) == ("subscribed", 1, 0)
            await rig.ask("POST", "/api/replay/s/resume")
            seqs = [line["seq"] async for line in lines if "channel" in line]
            assert seqs == list(range(1, CANDLE_COUNT + 1))
        async with rig.lines("s", epoch=1, from_seq=CANDLE_COUNT) as lines:
            assert [line["type"] async for line in lines] == ["subscribed", "end"]


async def test_a_client_that_keeps_losing_its_connection_gets_each_tick_once(tmp_path):
    dice = random.Random(3)
    async with running(tmp_path) as rig:
        await rig.create(session_id="s", **TRADED)
        seqs, ended, begun = [], False, False
        while not ended:
            at = {"epoch": 1, "from_seq": seqs[-1] if seqs else 0, "when_full": "disconnect"}
            async with rig.lines("s", **at) as lines:
                patience = dice.randrange(1, 4000)
                async for line in lines:
                    if not begun:
                        begun = True
                        await rig.ask("POST", "/api/replay/s/resume")
                    if "channel" in line:
                        seqs.append(line["seq"])
                    patience -= 1
                    ended = line.get("type") == "end"
                    if not patience:
                        break
        assert seqs == list(range(1, TRADE_COUNT + 1))


async def test_whoever_waits_for_a_step_may_go(tmp_path):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s", when_full="block", **TRADED)
        head = b"POST /api/replay/s/step HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15\r\n\r\n"
        stuck = await rig.raw(b"GET /api/replay/s/stream HTTP/1.1\r\nHost: localhost\r\n\r\n", 4096)
        await stuck.receive_some(100)
        raw = await rig.raw(head + b'{"count":12000}')
        session = rig.sessions.get("s")
        while not session.status()["waiting_for"]:
            await trio.testing.wait_all_tasks_blocked()
        await raw.aclose()
        with trio.fail_after(100):
            while rig.sink.connections > 2:
                await trio.testing.wait_all_tasks_blocked()
        await rig.ask("POST", "/api/replay/s/stop")
