"""What can be asked over HTTP: every endpoint, and every way to ask wrongly."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from http_rig import BTC, CANDLE_COUNT, DAY, running

from tardisd.plugins.analyzer import Analyzer, Answer
from tardisd.plugins.base import Context
from tardisd.replay.manager import SessionLimits
from tardisd_http import api


async def test_create_show_steer_stop(tmp_path):
    async with running(tmp_path) as rig:
        made = await rig.create(session_id="s.1", speed=100)
        assert made == {
            "type": "session_created",
            "session_id": "s.1",
            "status": "paused",
            "series": ["binance:BTC/USDT@candle_1m"],
            "start_time": 1709251200000,
            "end_time": 1709337600000,
            "speed": 100.0,
            "epoch": 1,
        }
        assert (await rig.ask("POST", "/api/replay/s.1/resume"))["type"] == "resumed"
        paused = await rig.ask("POST", "/api/replay/s.1/pause", {})
        assert (paused["type"], paused["session_id"]) == ("paused", "s.1")
        changed = await rig.ask("POST", "/api/replay/s.1/speed", {"speed": "max"})
        assert (changed["type"], changed["speed"]) == ("speed_changed", "max")
        shown = await rig.ask("GET", "/api/replay/s.1")
        assert (shown["type"], shown["status"], shown["speed"]) == ("status", "paused", "max")
        assert shown["origin"] == "http"
        listed = await rig.ask("GET", "/api/replay")
        assert [one["session_id"] for one in listed["sessions"]] == ["s.1"]
        assert await rig.ask("POST", "/api/replay/s.1/stop") == {
            "type": "stopped",
            "session_id": "s.1",
        }
        message = await rig.refused(409, "wrong_state", "POST", "/api/replay/s.1/pause")
        assert "stopped" in message


async def test_a_created_session_says_where_it_is(tmp_path):
    async with running(tmp_path) as rig:
        answer = await rig.client.post("/api/replay/create", json=BTC)
        assert answer.status_code == 201
        made = answer.json()
        assert made["status"] == "active"
        assert answer.headers["location"] == f"/api/replay/{made['session_id']}"
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("fields", "status", "code", "named"),
    [
        ({"symbol": None}, 400, "bad_request", "symbol"),
        ({"speed": 0}, 400, "bad_request", "speed"),
        ({"speed": "fast"}, 400, "bad_request", 'use a finite number above 0, or "max"'),
        ({"end_time": DAY["start_time"]}, 400, "bad_request", "end_time"),
        ({"start_time": "2024-03-01"}, 400, "bad_request", "start_time"),
        ({"series": ["binance:BTC/USDT@trade"]}, 400, "bad_request", "exchange"),
        ({"session_id": "a b"}, 400, "bad_request", "session_id"),
        ({"when_full": "wait"}, 400, "bad_request", "when_full"),
        ({"speedd": 1}, 400, "bad_request", "speedd: is not a known field"),
        ({"storage": "attic"}, 400, "bad_request", "main"),
        ({"symbol": "ETH/USDT"}, 404, "no_data", "stored"),
        ({"session_id": "taken"}, 409, "session_exists", "taken"),
    ],
)
async def test_creations_that_are_refused(tmp_path, fields, status, code, named):
    async with running(tmp_path) as rig:
        await rig.create(session_id="taken")
        asked = {**BTC, **fields}
        message = await rig.refused(status, code, "POST", "/api/replay/create", asked)
        assert named in message
        assert len(rig.sessions.list()) == 1


@pytest.mark.parametrize(
    ("content", "code", "named"),
    [
        (b"", "bad_json", "not JSON"),
        (b"{", "bad_json", "not JSON"),
        (b"\xff", "bad_json", "UTF-8"),
        (b"[]", "bad_request", "one JSON object"),
        (b"null", "bad_request", "one JSON object"),
        (b"{}", "bad_request", "start_time: is missing"),
        (b'{"speed": NaN}', "bad_request", "speed: is not a finite number"),
        (b"[" * 100_000, "bad_request", "nested"),
    ],
)
async def test_bodies_that_are_no_request(tmp_path, content, code, named):
    async with running(tmp_path) as rig:
        message = await rig.refused(400, code, "POST", "/api/replay/create", content=content)
        assert named in message


@pytest.mark.parametrize("verb", ["", "/pause", "/resume", "/stop", "/speed", "/stream"])
async def test_sessions_that_are_not_there(tmp_path, verb):
    async with running(tmp_path) as rig:
        method = "GET" if verb in ("", "/stream") else "POST"
        path = f"/api/replay/nobody{verb}"
        told = await rig.ask(method, path, {"speed": 1} if verb == "/speed" else None, 404)
        assert told["code"] == "session_not_found"
        assert told["session_id"] == "nobody"


@pytest.mark.parametrize(
    ("verb", "content", "named"),
    [
        ("pause", {"now": True}, "now: is not a known field"),
        ("speed", None, "speed: is missing"),
        ("speed", {"speed": -1}, "speed"),
        ("speed", {"speed": "quick"}, "speed"),
        ("seek", {}, "to: give either to (a time) or by"),
        ("seek", {"to": 1709251200000, "by": 1}, "to: give either to (a time) or by"),
        ("seek", {"to": "yesterday"}, "to: "),
        ("seek", {"by": 1.5}, "by: "),
        ("seek", {"by": 10**16}, "by: "),
        ("step", {"count": 2**60}, "count: "),
        ("step", {"count": "1"}, "count: "),
    ],
)
async def test_verbs_that_make_no_sense(tmp_path, verb, content, named):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s")
        path = f"/api/replay/s/{verb}"
        assert named in await rig.refused(400, "bad_request", "POST", path, content)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("?when_full=wait", "when_full"),
        ("?epoch=1", "from_seq: is missing"),
        ("?epoch=one&from_seq=1", "epoch"),
        ("?epoch=0&from_seq=1", "epoch"),
        ("?epoch=1&from_seq=-1", "from_seq"),
        ("?epoch=1&epoch=1&from_seq=1", "epoch: is given twice"),
        ("?from=1", "from: is not a known parameter"),
    ],
)
async def test_streams_that_make_no_sense(tmp_path, query, named):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s")
        path = f"/api/replay/s/stream{query}"
        assert named in await rig.refused(400, "bad_request", "GET", path)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/api/replay/s/fly", 404),
        ("GET", "/api/replay/", 404),
        ("DELETE", "/api/replay/s", 405),
        ("GET", "/api/replay/create/stream/x", 404),
        ("PUT", "/api/replay/create", 405),
        ("POST", "/health", 405),
    ],
)
async def test_places_that_are_not_there(tmp_path, method, path, status):
    async with running(tmp_path) as rig:
        assert path in await rig.refused(status, "unknown_type", method, path)


async def test_the_stored_series(tmp_path):
    async with running(tmp_path) as rig:
        told = await rig.ask("GET", "/api/series")
        assert told["truncated"] is False
        candles, trades = told["series"]
        assert (candles["series"], candles["rows"]) == ("binance:BTC/USDT@candle_1m", CANDLE_COUNT)
        assert candles["first_time"] == "2024-03-01T00:00:00.000Z"
        assert candles["coverage"] == [
            {
                "from": 1709251200000,
                "to": 1709337600000,
                "start": "2024-03-01T00:00:00.000Z",
                "end": "2024-03-02T00:00:00.000Z",
            }
        ]
        assert trades["data_type"] == "trade"
        only = await rig.ask("GET", "/api/series?data_type=trade&storage=main&symbol=BTC/USDT")
        assert [one["series"] for one in only["series"]] == [trades["series"]]
        assert (await rig.ask("GET", "/api/series?exchange=okx"))["series"] == []
        first = await rig.ask("GET", "/api/series?limit=1")
        assert ([one["rows"] for one in first["series"]], first["truncated"]) == ([1440], True)
        assert "main" in await rig.refused(400, "bad_request", "GET", "/api/series?storage=x")
        for limit in ("-1", "x", "10001", "1e3", ""):
            path = f"/api/series?limit={limit}"
            assert "limit" in await rig.refused(400, "bad_request", "GET", path)


class Echo(Analyzer):
    """Says what it was asked; with `wait` it never answers."""

    name, answers = "echo", True
    waiting = 0

    async def ask(self, question):
        if question.analysis_type == "wait":
            self.waiting += 1
            await trio.sleep_forever()
        return Answer(f"{question.analysis_type} of {len(question.ticks)}", "none")


async def test_questions_to_an_analyzer(tmp_path, monkeypatch):
    monkeypatch.setattr(api, "MAX_QUESTIONS", 1)
    async with running(tmp_path) as rig:
        path = "/api/analyze"
        await rig.refused(503, "analyzer_unavailable", "POST", path, {"tick_data": {}})
        echo = Echo(None, Context("echo", tmp_path, None))
        rig.host.analyzers = {"echo": echo}
        told = await rig.ask("POST", path, {"tick_data": {"price": 1}})
        assert (told["type"], told["content"], told["analyzer"]) == (
            "analysis",
            "pattern of 1",
            "echo",
        )
        await rig.create(session_id="s")
        async with rig.lines("s"):
            await rig.ask("POST", "/api/replay/s/step", {"count": 5})
            told = await rig.ask("POST", path, {"session_id": "s", "last": 3})
        assert (told["session_id"], told["content"]) == ("s", "pattern of 3")
        await rig.refused(400, "bad_request", "POST", path, {"last": 3})
        await rig.refused(404, "session_not_found", "POST", path, {"session_id": "x", "last": 1})
        content = b'{"tick_data":{},"analysis_type":"wait"}'
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        patient = await rig.raw(head.encode() + content)
        with trio.fail_after(20):
            while not echo.waiting:
                await trio.testing.wait_all_tasks_blocked()
            await rig.refused(503, "analyzer_unavailable", "POST", path, {"tick_data": {}})
            await patient.aclose()  # who goes asks no more
            while (await rig.client.post(path, json={"tick_data": {}})).status_code != 200:
                pass


async def test_health(tmp_path):
    async with running(tmp_path) as rig:
        assert await rig.ask("GET", "/health") == {"type": "health", "live": True, "ready": True}
        rig.host.ready = False
        told = {"type": "health", "live": True, "ready": False}
        assert await rig.ask("GET", "/health", status=503) == told
        assert await rig.ask("GET", "/health/ready", status=503) == told
        assert await rig.ask("GET", "/health/live") == {"type": "health", "live": True}


async def test_metrics(tmp_path):
    async with running(tmp_path) as rig:
        await rig.create()
        answer = await rig.client.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert 'tardisd_sessions{status="paused"} 1.0' in answer.text.splitlines()


async def test_heads_have_no_body(tmp_path):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s")
        for path in ("/health", "/api/series", "/api/replay/s/stream"):
            answer = await rig.client.head(path)
            assert (answer.status_code, answer.content) == (200, b"")


async def test_no_more_sessions_than_there_may_be(tmp_path):
    async with running(tmp_path, max_sessions=2) as rig:
        await rig.create(session_id="a")
        await rig.create()
        path = "/api/replay/create"
        assert "max_sessions" in await rig.refused(429, "too_many_sessions", "POST", path, BTC)
        await rig.ask("POST", "/api/replay/a/stop")
        await rig.create()


async def test_the_engine_has_limits_of_its_own(tmp_path):
    async with running(tmp_path, SessionLimits(max_series=1)) as rig:
        series = ["binance:BTC/USDT@trade", "binance:BTC/USDT@candle_1m"]
        asked = {"series": series, **DAY}
        await rig.refused(413, "too_large", "POST", "/api/replay/create", asked)
        asked = {"series": [f"binance:A{i}/USDT@trade" for i in range(1001)], **DAY}
        await rig.refused(413, "too_large", "POST", "/api/replay/create", asked)
