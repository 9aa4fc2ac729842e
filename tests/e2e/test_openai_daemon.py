"""A daemon with an AI analyzer before a service on loopback: questions, comments, budgets, key."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from daemon_rig import CONFIG, DAY, OPEN_MS, Daemon, running, store_candles, wait_for

sys.path.append(str(Path(__file__).resolve().parents[1] / "plugins"))
from openai_rig import HANG, KEY, USAGE, AiServer, raw, says, signal

CONFIGURED = """
[analyzers.ai]
plugin = "{plugin}"
base_url = "{url}"
api_key = {{ env = "AI_KEY" }}
backoff_secs = 0.01
backoff_max_secs = 0.02
every_candles = 240
comment_type = "levels"
knowledge_cutoff = 2024-03-01T12:00:00Z
prompts = {{ levels = "Name the levels of {{symbols}}." }}

[sessions.demo]
series = ["binance:BTC/USDT@candle_1m"]
start = 2024-03-01T00:00:00Z
end = 2024-03-02T00:00:00Z
speed = "max"
start_paused = true
analyzers = ["ai"]
"""
BTC = {**DAY, "exchange": "binance", "symbol": "BTC/USDT", "speed": "max"}


def config(server, plugin="openai", **more):
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in more.items())
    text = CONFIGURED.format(url=server.url, plugin=plugin)
    text = text.replace("every_candles", f"{lines}every_candles", 1)
    quick = 'shutdown_secs = 2\nlog_level = "debug"\n\n[storages.main]'
    return CONFIG.replace("[storages.main]", quick) + text


def test_questions_comments_and_a_second_replay(tmp_path):
    with AiServer(says("It goes up.")).running_apart() as server:
        environ = {"AI_KEY": KEY}
        told = config(server)
        with running(tmp_path, told, environ=environ) as daemon:
            store_candles(daemon)
            client = daemon.websocket()
            tick = {"timestamp": OPEN_MS, "symbol": "BTC/USDT", "close": 61000.5}
            first = client.ask("analyze_with_ai", tick_data=tick, analysis_type="trend")
            assert first["type"] == "analysis"
            assert (first["analyzer"], first["model"]) == ("ai", "gpt-4.1")
            assert (first["content"], first["usage"]) == ("It goes up.", USAGE)
            assert (first["cached"], first["contaminated"]) == (False, True)
            assert client.ask("analyze_with_ai", tick_data=tick, analysis_type="trend")["cached"]
            assert len(server.asked) == 1

            refused = client.ask("analyze_with_ai", tick_data=tick, analysis_type="magic")
            assert refused["code"] == "bad_request"
            assert "anomaly, levels, pattern, signal, trend" in refused["message"]

            runs = [replayed(daemon) for _ in range(2)]
            assert len(server.asked) == 1 + 6
            assert runs[0].hash == runs[1].hash
            comments = [comments_of(run) for run in runs]
            assert [len(found) for found in comments] == [6, 6]
            for one, other in zip(*comments, strict=True):
                assert (one["cached"], other["cached"]) == (False, True)
                assert {**one, "cached": True} == other
            clocks = [one["clock"] for one in comments[0]]
            assert clocks == [OPEN_MS + at * 240 * 60_000 for at in range(1, 7)]
            assert [one.get("contaminated", False) for one in comments[0]] == [True] * 3 + [
                False
            ] * 3

            noon = "2024-03-01T12:00:00Z"
            created = client.ask("create_session", session_id="s", until=noon, **BTC)
            assert created["type"] == "session_created"
            client.until(lambda message: message["type"] == "paused")
            server.then(says(signal(as_of=noon)))
            last = client.ask("analyze_with_ai", session_id="s", last=3, analysis_type="signal")
            assert (last["type"], last["session_id"]) == ("analysis", "s"), last
            assert last["signal"]["action"] == "buy"
            lines = [line for line in server.asked[0].text.splitlines() if line.startswith("{")]
            opens = [json.loads(line)["timestamp"] for line in lines]
            assert opens == [OPEN_MS + at * 60_000 for at in (716, 717, 718)]

            server.then(raw(401, {"error": {"message": f"no such key: {KEY}"}}))
            told = client.ask("analyze_with_ai", session_id="s", last=9)
            assert told["code"] == "analyzer_unavailable"
            assert told["message"].endswith("HTTP 401 Said: no such key: ***; check api_key")
            shown = daemon.log + daemon.ctl("config", "show") + daemon.ctl("instance", "list")
            assert KEY not in shown + json.dumps(told)
            assert "api_key" in shown


def replayed(daemon: Daemon):
    """Play the preset once; return what a follower received, and forget the session."""
    daemon.ctl("session", "start", "demo")
    [session] = daemon.ask("session.list")
    follower = daemon.websocket()
    session_id = session["session_id"]
    follower.ask("subscribe", session_id=session_id, delivery="batch", when_full="block")
    follower.ask("resume", session_id=session_id)
    received = follower.receive()
    daemon.ctl("session", "remove", session_id)
    return received


def comments_of(received):
    """Return the comments without what names the session."""
    found = [one for one in received.others if one["type"] == "analysis"]
    return [{key: one[key] for key in one if key != "session_id"} for one in found]


def test_a_service_that_hangs_holds_nobody_up(tmp_path):
    with AiServer(lambda asked: [HANG]).running_apart() as server:
        told = config(server)
        with running(tmp_path, told, environ={"AI_KEY": KEY}) as daemon:
            store_candles(daemon)
            client = daemon.websocket()
            client.send("analyze_with_ai", tick_data={"close": 1})
            wait_for(lambda: len(server.asked) == 1, "the question to be asked")
            assert client.ask("ping")["type"] == "pong"  # others are answered meanwhile
            daemon.ctl("session", "start", "demo")
            [session] = daemon.ask("session.list")
            client.ask("resume", session_id=session["session_id"])
            wait_for(lambda: len(server.asked) >= 2, "a comment to be asked for")
            began = time.monotonic()
            daemon.stop()
            assert time.monotonic() - began < 60  # not the two minutes that it would wait for
        budget = tmp_path / "data" / "ai-answers.sqlite"
        assert budget.exists()


def test_a_budget_outlives_a_kill(tmp_path):
    with AiServer().running_apart() as server:
        told = config(server, "holysheep", max_requests_per_day=2)
        with running(tmp_path, told, environ={"AI_KEY": KEY}) as daemon:
            for close in (1, 2):
                client = daemon.websocket()
                assert client.ask("analyze_with_ai", tick_data={"close": close})["content"]
            daemon.kill()
            daemon.start()
            client = daemon.websocket()
            told = client.ask("analyze_with_ai", tick_data={"close": 3})
            assert told["code"] == "analyzer_unavailable"
            assert "max_requests_per_day: 2 of 2 requests" in told["message"]
            assert client.ask("analyze_with_ai", tick_data={"close": 1})["cached"]
            assert len(server.asked) == 2


def test_a_configuration_that_cannot_be_is_refused(tmp_path):
    server = AiServer()
    server.url = "https://host/v1?key=secret"
    told = config(server)
    with pytest.raises(AssertionError):
        Daemon(tmp_path, told, environ={"AI_KEY": KEY})
    log = next(tmp_path.glob("log.*")).read_text()
    assert "base_url holds more than an address; a key belongs into api_key" in log
    assert KEY not in log
