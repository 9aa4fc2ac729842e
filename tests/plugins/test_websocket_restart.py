"""Clients that come back before a daemon has taken up the sessions of the one before it."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from websocket_rig import DAY, running

BTC = {"exchange": "binance", "symbol": "BTC/USDT", **DAY}


async def left_behind(folder):
    """Have a durable session of a daemon that goes."""
    async with running(folder) as rig, rig.client() as client:
        await client.create(session_id="d", durable=True, start_paused=True)
        await client.ask("step", session_id="d", count=5)


async def test_who_comes_back_at_once_finds_its_session(tmp_path):
    await left_behind(tmp_path)
    async with running(tmp_path, restoring=True) as rig, rig.client() as client:
        await client.send("subscribe", session_id="d", epoch=1, from_seq=3, id=1)
        await client.send("create_session", session_id="d", **BTC, id=2)
        await client.send("status", id=3)
        for _ in range(20):
            await trio.testing.wait_all_tasks_blocked()
        await rig.sessions.restore()
        messages = [await client.get() for _ in range(5)]
        replies = {message["id"]: message for message in messages if "id" in message}
        assert replies[1]["type"] == "subscribed"
        assert replies[2]["code"] == "session_exists"
        assert [one["session_id"] for one in replies[3]["sessions"]] == ["d"]
        assert [message["seq"] for message in messages if message["type"] == "tick"] == [4, 5]


async def test_a_storage_that_is_away_keeps_nobody_waiting_for_long(tmp_path, autojump_clock):
    """What is to be taken up may need it; other sessions do not."""
    async with running(tmp_path, restoring=True) as rig:
        since = trio.current_time()
        await rig.sessions.recovered()
        assert trio.current_time() - since == pytest.approx(10)
        await rig.sessions.restore()
        await rig.sessions.recovered()
        assert trio.current_time() - since == pytest.approx(10)
