"""A session over HTTP, line by line, at the client's pace, and what befalls those who are slow."""

from __future__ import annotations

import importlib.util
import json
import re
from hashlib import blake2b
from pathlib import Path

import pytest
import trio
import trio.testing
from http_rig import BTC, CANDLE_COUNT, DAY, START, TRADE_COUNT, TRADES, gone, running, status_of

from tardisd.market.time import HOUR
from tardisd.plugins.sessions import SessionRequest
from tardisd.replay.fanout import QueueLimits
from tardisd.replay.manager import SessionLimits
from tardisd.replay.session import ReplaySession
from tardisd.replay.timeline import Tuning
from tardisd_http import made, server, stream

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "verify_hash.py"
STREAM = b"GET /api/replay/s/stream%b HTTP/1.1\r\nHost: localhost\r\n\r\n"
TRADED = {"symbol": "BTC/USDT", "exchange": "binance", "data_type": "trade"}


def blocking(secs):
    """Return limits with which a reader that reads nothing is cut off after so long."""
    return SessionLimits(tuning=Tuning(limits=QueueLimits(max_block_secs=secs)))


def unchunked(data):
    """Return the body of an answer in chunks; it may be torn."""
    body, rest = b"", data.partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length + 2 :]
    return body


async def pass_time(clock, seconds):
    """Let so much time pass, everybody being served in between."""
    for _ in range(int(seconds)):
        clock.jump(1)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()


async def test_all_of_a_session(tmp_path):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s")
        lines = await rig.everything("s")
        first, resumed, *ticks, end = lines
        assert first == {
            "type": "subscribed",
            "session_id": "s",
            "epoch": 1,
            "seq": 0,
            "clock": 1709251200000,
        }
        assert (resumed["type"], resumed["session_id"]) == ("resumed", "s")
        assert [tick["seq"] for tick in ticks] == list(range(1, CANDLE_COUNT + 1))
        assert {tick["channel"] for tick in ticks} == {"candle_1m"}
        assert ticks[0]["symbol"] == "BTC/USDT"
        assert (end["type"], end["reason"], end["ticks"]) == ("end", "finished", CANDLE_COUNT)
        assert len(end["hash"]) == 64
        again = await rig.everything_again("s")
        assert [line["type"] for line in again] == ["subscribed", "end"]
        assert again[1] == end


async def test_the_lines_have_the_hash_that_the_end_tells(tmp_path):
    spec = importlib.util.spec_from_file_location("verify_hash", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    async with running(tmp_path) as rig:
        series = ["binance:BTC/USDT@trade", "binance:BTC/USDT@candle_1m"]
        asked = {"series": series, **DAY, "speed": "max", "start_paused": True, "session_id": "s"}
        await rig.ask("POST", "/api/replay/create", asked, 201)
        lines = await rig.everything("s")
        digest = blake2b(digest_size=32)
        for line in lines:
            if "channel" in line:
                digest.update(example.record(line["channel"], line))
        assert digest.hexdigest() == lines[-1]["hash"]


async def test_two_streams_of_one_session_are_alike(tmp_path):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s", **TRADED)
        found = []

        async def follow(started):
            async with rig.lines("s") as lines:
                mine = [await anext(lines)]
                started.set()
                async for line in lines:
                    line.pop("replay_time", None)
                    mine.append(line)
            found.append(mine)

        async with trio.open_nursery() as nursery:
            events = [trio.Event(), trio.Event()]
            for event in events:
                nursery.start_soon(follow, event)
            for event in events:
                await event.wait()
            await rig.ask("POST", "/api/replay/s/resume")
        assert found[0] == found[1]
        assert [line["type"] for line in found[0] if "type" in line] == [
            "subscribed",
            "resumed",
            "gap",
            "end",
        ]
        assert len(found[0]) == TRADE_COUNT + 4


async def test_an_old_client_gets_the_bare_lines(tmp_path):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s", **TRADED)
        raw = await rig.raw(b"GET /api/replay/s/stream HTTP/1.0\r\n\r\n")
        data = await raw.receive_some(1000)
        await rig.ask("POST", "/api/replay/s/resume")
        data += await gone(raw)
        lines = [json.loads(line) for line in data.partition(b"\r\n\r\n")[2].splitlines()]
        assert len(lines) == TRADE_COUNT + 4
        assert lines[-1]["type"] == "end"


async def test_what_others_do_comes_in_its_place(tmp_path):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s", speed=1)
        async with rig.lines("s") as lines:
            await anext(lines)
            for verb, content in [("resume", None), ("speed", {"speed": 2}), ("pause", None)]:
                await rig.ask("POST", f"/api/replay/s/{verb}", content)
            assert [(await anext(lines))["type"] for _ in range(3)] == [
                "resumed",
                "speed_changed",
                "paused",
            ]
            await rig.ask("POST", "/api/replay/s/stop")
            assert (await anext(lines))["type"] == "stopped"
            end = await anext(lines)
            assert (end["type"], end["reason"], end["ticks"]) == ("end", "stopped", 0)
            assert [line async for line in lines] == []


async def test_a_client_that_goes_is_let_go(tmp_path):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s", speed=1)
        raw = await rig.raw(STREAM % b"")
        assert status_of(await raw.receive_some(65536)) == 200
        session = rig.sessions.get("s")
        assert session.status()["subscribers"] == 1
        await raw.aclose()
        with trio.fail_after(100):
            while session.status()["subscribers"]:
                await trio.testing.wait_all_tasks_blocked()


async def test_a_client_that_breaks_off_is_no_error(tmp_path, caplog):
    async with running(tmp_path, blocking(100_000)) as rig:
        await rig.create(session_id="s", **TRADED)
        raw = await rig.raw(STREAM % b"?when_full=block", receive_buffer=4096)
        await raw.receive_some(1000)
        await rig.ask("POST", "/api/replay/s/resume")
        session = rig.sessions.get("s")
        while not session.status()["waiting_for"]:
            await trio.testing.wait_all_tasks_blocked()
        raw.socket.close()  # with much unread, which TCP tells by a reset
        with trio.fail_after(20):
            while session.status()["status"] != "finished":
                await trio.testing.wait_all_tasks_blocked()
            while rig.sink.connections > 1:
                await trio.testing.wait_all_tasks_blocked()
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_slow_client_holds_the_session_up_and_gets_everything(tmp_path, mock_clock):
    async with running(tmp_path, blocking(100_000)) as rig:
        await rig.create(session_id="s", **TRADED)
        raw = await rig.raw(STREAM % b"?when_full=block", receive_buffer=4096)
        data = await raw.receive_some(1000)
        await rig.ask("POST", "/api/replay/s/resume")
        session = rig.sessions.get("s")
        while not session.status()["waiting_for"]:
            await trio.testing.wait_all_tasks_blocked()
        assert "http client 127.0.0.1:" in session.status()["waiting_for"][0]
        assert session.status()["seq"] < TRADE_COUNT
        await rig.ask("POST", "/api/replay/s/pause")  # nothing of this is held up
        await rig.ask("POST", "/api/replay/s/resume")
        while not data.endswith(b"\r\n0\r\n\r\n"):
            data += await raw.receive_some(65536)
        lines = [json.loads(line) for line in unchunked(data).splitlines()]
        seqs = [line["seq"] for line in lines if "channel" in line]
        assert seqs == list(range(1, TRADE_COUNT + 1))
        assert lines[-1]["type"] == "end"


async def test_a_client_that_stopped_reading_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "FAREWELL_SECS", 0.3)
    async with running(tmp_path, blocking(5)) as rig:
        await rig.create(session_id="s", **TRADED)
        raw = await rig.raw(STREAM % b"?when_full=block", receive_buffer=4096)
        assert status_of(await raw.receive_some(100)) == 200
        lines = await rig.everything("s")
        assert lines[-1]["ticks"] == TRADE_COUNT
        with trio.fail_after(100):
            while rig.sink.connections > 1:  # one of the other client is kept alive
                await trio.testing.wait_all_tasks_blocked()
        received = await gone(raw)
        assert len(received) < 2_000_000
        assert not received.endswith(b"\r\n0\r\n\r\n")


async def test_a_client_that_is_too_slow_learns_it(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "FAREWELL_SECS", 100)  # it reads only after the session has ended
    limits = SessionLimits(tuning=Tuning(slice_ticks=256, limits=QueueLimits(lagging_ticks=4096)))
    async with running(tmp_path, limits) as rig:
        await rig.create(session_id="s", **TRADED)
        raw = await rig.raw(STREAM % b"?when_full=disconnect", receive_buffer=4096)
        data = await raw.receive_some(1000)
        await rig.ask("POST", "/api/replay/s/resume")
        while rig.sessions.get("s").status()["status"] == "active":
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(100):
            while not data.endswith(b"\r\n0\r\n\r\n"):
                data += await raw.receive_some(65536)
        lines = [json.loads(line) for line in unchunked(data).splitlines()]
        assert (lines[-1]["type"], lines[-1]["code"]) == ("error", "too_slow")
        seqs = [line["seq"] for line in lines if "channel" in line]
        assert seqs == list(range(1, len(seqs) + 1))
        assert 0 < len(seqs) < TRADE_COUNT


async def test_drop_oldest_announces_every_hole(tmp_path):
    limits = SessionLimits(tuning=Tuning(slice_ticks=1024, limits=QueueLimits(lagging_ticks=4096)))
    async with running(tmp_path, limits) as rig:
        await rig.create(session_id="s", **TRADED)
        raw = await rig.raw(STREAM % b"?when_full=drop_oldest", receive_buffer=4096)
        data = await raw.receive_some(1000)
        await rig.ask("POST", "/api/replay/s/resume")
        while rig.sessions.get("s").status()["status"] == "active":
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(100):
            while not data.endswith(b"\r\n0\r\n\r\n"):
                data += await raw.receive_some(65536)
        expected, skipped = 1, 0
        for line in map(json.loads, unchunked(data).splitlines()):
            if line.get("type") == "skipped":
                assert line["from_seq"] == expected
                skipped += line["to_seq"] + 1 - line["from_seq"]
                expected = line["to_seq"] + 1
            elif "channel" in line:
                assert line["seq"] == expected
                expected += 1
        assert expected == TRADE_COUNT + 1
        assert skipped > 0


@pytest.fixture
def asked_for(monkeypatch):
    """Return a list of the policies that sessions are subscribed to with."""
    policies, subscribe = [], ReplaySession.subscribe

    def noting(self, when_full, *rest, **more):
        policies.append(when_full)
        return subscribe(self, when_full, *rest, **more)

    monkeypatch.setattr(ReplaySession, "subscribe", noting)
    return policies


async def test_a_stream_is_as_patient_as_the_creation_said(tmp_path, asked_for):
    async with running(tmp_path) as rig:
        for name, fields in [("s", {}), ("t", {"when_full": "conflate"}), ("u", {})]:
            await rig.create(session_id=name, **fields)
            query = {"when_full": "disconnect"} if name == "u" else {}
            async with rig.lines(name, **query) as lines:
                await anext(lines)
        assert asked_for == ["block", "conflate", "disconnect"]


async def test_a_session_made_elsewhere_does_not_wait(tmp_path, asked_for):
    async with running(tmp_path) as rig:
        asked = SessionRequest(series=(TRADES,), start=START, end=START + HOUR, session_id="s")
        await rig.sessions.create(asked)
        async with rig.lines("s") as lines:
            await anext(lines)
        assert asked_for == ["disconnect"]


async def test_an_ephemeral_session_ends_with_its_last_stream(tmp_path):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s", speed=1, ephemeral=True)
        one, two = await rig.raw(STREAM % b""), await rig.raw(STREAM % b"")
        for raw in (one, two):
            await raw.receive_some(1000)
        await one.aclose()
        session = rig.sessions.get("s")
        while session.status()["subscribers"] > 1:
            await trio.testing.wait_all_tasks_blocked()
        assert session.status()["status"] == "paused"
        await two.aclose()
        with trio.fail_after(100):
            while session.status()["status"] != "stopped":
                await trio.testing.wait_all_tasks_blocked()


async def test_an_ephemeral_session_that_nobody_streams_ends(tmp_path, mock_clock):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s", ephemeral=True)
        await rig.create(session_id="t")
        await pass_time(mock_clock, made.ORPHAN_SECS + 20)
        assert rig.sessions.get("s").status()["status"] == "stopped"
        assert rig.sessions.get("t").status()["status"] == "paused"


async def test_the_end_reaches_streams_when_the_daemon_stops(tmp_path):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s", speed=1)
        async with rig.lines("s") as lines:
            await anext(lines)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rig.sessions.end_all)
                end = await anext(lines)
            assert (end["type"], end["reason"]) == ("end", "stopped")
            assert "shutting down" in end["message"]
        told = await rig.ask("POST", "/api/replay/create", BTC, 409)
        assert told["code"] == "wrong_state"


@pytest.mark.parametrize("reads", [True, False])
async def test_streams_of_a_durable_session_learn_that_the_daemon_stops(
    tmp_path, reads, monkeypatch
):
    monkeypatch.setattr(stream, "FAREWELL_SECS", 100)
    async with running(tmp_path, blocking(100_000)) as rig:
        await rig.create(session_id="s", durable=True, **TRADED)
        raw = await rig.raw(STREAM % b"", receive_buffer=4096)
        data = await raw.receive_some(1000)
        if not reads:  # it is in the middle of a block then
            await rig.ask("POST", "/api/replay/s/resume")
            while not rig.sessions.get("s").status()["waiting_for"]:
                await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.sessions.end_all)
            with trio.fail_after(100):
                while not data.endswith(b"\r\n0\r\n\r\n"):
                    data += await raw.receive_some(65536)
        lines = [json.loads(line) for line in unchunked(data).splitlines()]
        assert (lines[-1]["type"], lines[-1]["code"]) == ("error", "stopping")
        seqs = [line["seq"] for line in lines if "channel" in line]
        assert seqs == list(range(1, len(seqs) + 1))
        assert bool(seqs) is not reads


async def test_who_comes_back_before_sessions_are_taken_up_finds_its_own(tmp_path):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s", durable=True)
        await rig.ask("POST", "/api/replay/s/step", {"count": 3})
    async with running(tmp_path, restoring=True) as rig:
        raw = await rig.raw(STREAM % b"?epoch=1&from_seq=1")
        await rig.ask("GET", "/health")
        for _ in range(20):
            await trio.testing.wait_all_tasks_blocked()
        await rig.sessions.restore()
        data = b""
        with trio.fail_after(60):
            while not re.search(rb'"seq": *3,', data):
                data += await raw.receive_some(1000)
        assert status_of(data) == 200


async def test_a_paused_stream_stays_open(tmp_path, mock_clock):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s", speed=1)
        raw = await rig.raw(STREAM % b"")
        await raw.receive_some(1000)
        await pass_time(mock_clock, 10 * (server.IDLE_SECS + server.STALL_SECS))
        await rig.ask("POST", "/api/replay/s/stop")
        assert b'"type":"end"' in await raw.receive_some(1000)
