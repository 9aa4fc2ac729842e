"""Every request of the protocol and every way to get one wrong, over a real connection."""

from __future__ import annotations

import json

import msgspec
import pytest
import trio
import trio.testing
from websocket_rig import CANDLE_COUNT, DAY, running

import tardisd
from tardisd.instances import DaemonHost
from tardisd.plugins.requests import Quota
from tardisd_websocket import messages
from tardisd_websocket.requests import Requests

BTC = {"exchange": "binance", "symbol": "BTC/USDT"}
CREATE = {"type": "create_session", **BTC, **DAY}
ON = {"session_id": "a"}


@pytest.fixture
async def rig(tmp_path):
    async with running(tmp_path) as one:
        yield one


def changed(**fields):
    return json.dumps({**CREATE, **fields})


def literal(field, value):
    """A create_session with a value that is no JSON of Python's making."""
    return changed(**{field: "@"}).replace('"@"', value)


def without(field):
    return json.dumps({name: value for name, value in CREATE.items() if name != field})


# What is sent, the error's code, and what its message names.
WRONG = [
    ("", "bad_json", "JSON"),
    ("{", "bad_json", "JSON"),
    ("[1", "bad_json", "JSON"),
    ('{"type":"ping"} {}', "bad_json", "JSON"),
    ("{'type':'ping'}", "bad_json", "JSON"),
    ('{"type":"p\\x"}', "bad_json", "JSON"),
    ('{"type":"\\ud800"}', "bad_json", "JSON"),
    ("[]", "bad_request", "object"),
    ("null", "bad_request", "object"),
    ('"ping"', "bad_request", "object"),
    ("1", "bad_request", "object"),
    ("{}", "bad_request", "type"),
    ('{"type":null}', "bad_request", "type"),
    ('{"type":1}', "bad_request", "type"),
    ('{"type":"fly"}', "unknown_type", "fly"),
    ('{"type":"Ping"}', "unknown_type", "Ping"),
    ('{"type":"fly","x":null}', "unknown_type", "fly"),
    ('{"type":"seek","session_id":"a","to":1}', "bad_request", "to"),
    ('{"type":"seek","session_id":"a"}', "bad_request", "to"),
    ('{"type":"seek","session_id":"a","to":1709251200000,"by":5}', "bad_request", "to"),
    ('{"type":"seek","session_id":"a","by":0.5}', "bad_request", "by"),
    ('{"type":"seek","session_id":"a","by":null}', "bad_request", "by"),
    ('{"type":"seek","session_id":"a","by":5}', "session_not_found", "a"),
    ('{"type":"step","session_id":"a","count":"1"}', "bad_request", "count"),
    ('{"type":"step","session_id":"a"}', "session_not_found", "a"),
    ('{"type":"ack","session_id":"a","epoch":0,"seq":1}', "bad_request", "epoch"),
    ('{"type":"ack","session_id":"a","epoch":1}', "bad_request", "seq"),
    ('{"type":"ack","session_id":"a","epoch":1,"seq":1}', "session_not_found", "a"),
    ('{"type":"subscribe","session_id":"a","epoch":1}', "bad_request", "from_seq"),
    ('{"type":"subscribe","session_id":"a","from_seq":-1}', "bad_request", "from_seq"),
    ('{"type":"analyze_with_ai","tick_data":{"close":1}}', "analyzer_unavailable", "analyzer"),
    ('{"type":"analyze_with_ai","last":3}', "bad_request", "session_id"),
    ('{"type":"analyze_with_ai","session_id":"a"}', "bad_request", "tick_data"),
    ('{"type":"analyze_with_ai","session_id":"a","last":0}', "bad_request", "last"),
    ('{"type":"analyze_with_ai","tick_data":{},"analyzer":"x"}', "analyzer_unavailable", "x"),
    ('{"type":"ping","id":null}', "bad_request", "id"),
    ('{"type":"ping","id":true}', "bad_request", "id"),
    ('{"type":"ping","id":[1]}', "bad_request", "id"),
    ('{"type":"ping","id":"%s"}' % ("x" * 300), "bad_request", "id"),
    ('{"type":"ping","extra":1}', "bad_request", "extra"),
    ('{"type":"ping","ty`pe":1}', "bad_request", "ty`pe"),
    ('{"type":"pause"}', "bad_request", "session_id"),
    ('{"type":"pause","session_id":null}', "bad_request", "session_id"),
    ('{"type":"pause","session_id":7}', "bad_request", "session_id"),
    ('{"type":"pause","session_id":""}', "bad_request", "session_id"),
    ('{"type":"pause","session_id":"a b"}', "bad_request", "session_id"),
    ('{"type":"pause","session_id":"a\\n"}', "bad_request", "session_id"),
    ('{"type":"pause","session_id":"%s"}' % ("a" * 129), "bad_request", "session_id"),
    *(
        (json.dumps({"type": verb, "session_id": "nobody"}), "session_not_found", "nobody")
        for verb in ("subscribe", "unsubscribe", "pause", "resume", "stop", "status")
    ),
    (
        '{"type":"speed_change","session_id":"nobody","speed":2}',
        "session_not_found",
        "nobody",
    ),
    ('{"type":"speed_change","session_id":"a"}', "bad_request", "speed"),
    ('{"type":"subscribe","session_id":"a","epoch":1}', "bad_request", "epoch"),
    ('{"type":"subscribe","session_id":"a","epoch":null}', "bad_request", "epoch"),
    ('{"type":"subscribe","session_id":"a","delivery":"bulk"}', "bad_request", "delivery"),
    ('{"type":"subscribe","session_id":"a","when_full":"wait"}', "bad_request", "when_full"),
    *(
        (json.dumps({"type": "speed_change", **ON, "speed": "@"}).replace('"@"', text), *rest)
        for text, *rest in [
            *((value, "bad_request", "speed") for value in ("1e309", "NaN", "Infinity", "0")),
            *((value, "bad_request", "speed") for value in ("-1", "-Infinity", "-0.0", "1e-400")),
            *((value, "bad_request", "speed") for value in ("null", "true", '"fast"', "[1]")),
            ("1" + "0" * 400, "bad_request", "speed"),
            ("01", "bad_json", "JSON"),
        ]
    ),
    *((without(field), "bad_request", field) for field in ("exchange", "symbol")),
    *((without(field), "bad_request", field) for field in ("start_time", "end_time")),
    (changed(start_time=None), "bad_request", "start_time"),
    (changed(start_time="2024-03-01T00:00:00"), "bad_request", "start_time"),
    (changed(start_time="2024-02-30T00:00:00Z"), "bad_request", "start_time"),
    (changed(start_time="2024-03-01"), "bad_request", "start_time"),
    (changed(start_time="now"), "bad_request", "start_time"),
    (changed(start_time=1709251200000.5), "bad_request", "start_time"),
    (changed(start_time=0), "bad_request", "start_time"),
    (changed(end_time=10**30), "bad_request", "end_time"),
    (changed(end_time=-1), "bad_request", "end_time"),
    (literal("start_time", "1e309"), "bad_request", "start_time"),
    (literal("end_time", "NaN"), "bad_request", "end_time"),
    (changed(end_time=DAY["start_time"]), "bad_request", "end_time"),
    (changed(end_time="2024-02-01T00:00:00Z"), "bad_request", "end_time"),
    (changed(speed=0), "bad_request", "speed"),
    (literal("speed", "1e309"), "bad_request", "speed"),
    (literal("speed", "NaN"), "bad_request", "speed"),
    (changed(session_id="ä"), "bad_request", "session_id"),
    (changed(exchange="Binance!"), "bad_request", "exchange"),
    (changed(exchange=5), "bad_request", "exchange"),
    (changed(symbol="???"), "bad_request", "symbol"),
    (changed(symbol="BTC/USDT:BTC"), "bad_request", "symbol"),
    (changed(interval="1x"), "bad_request", "interval"),
    (changed(interval=""), "bad_request", "interval"),
    (changed(data_type="tirade"), "bad_request", "data_type"),
    (changed(data_type="trade", interval="1m"), "bad_request", "data_type"),
    (changed(series=["binance:BTC/USDT@trade"]), "bad_request", "exchange"),
    (json.dumps({"type": "create_session", **DAY, "series": []}), "bad_request", "series"),
    (json.dumps({"type": "create_session", **DAY, "series": "x"}), "bad_request", "series"),
    (json.dumps({"type": "create_session", **DAY, "series": ["x"]}), "bad_request", "series[0]"),
    (json.dumps({"type": "create_session", **DAY, "series": [1]}), "bad_request", "series[0]"),
    (
        json.dumps({"type": "create_session", **DAY, "series": ["binance:BTC/USDT@trade"] * 2}),
        "bad_request",
        "series[1]",
    ),
    (
        json.dumps({"type": "create_session", **DAY, "series": ["binance:BTCUSDT@trade"] * 1001}),
        "too_large",
        "series",
    ),
    (changed(start_paused="no"), "bad_request", "start_paused"),
    (changed(delivery="bulk"), "bad_request", "delivery"),
    (changed(when_full="wait"), "bad_request", "when_full"),
    (changed(on_gap="fill"), "bad_request", "on_gap"),
    (changed(release="open"), "bad_request", "release"),
    (changed(publish_delay_ms=-1), "bad_request", "publish_delay_ms"),
    (changed(publish_delay_ms=0.5), "bad_request", "publish_delay_ms"),
    (changed(ephemeral=1), "bad_request", "ephemeral"),
    (changed(storage="nowhere"), "bad_request", "storage"),
    (changed(storage=""), "bad_request", "storage"),
    *(
        (changed(**{name: value}), "bad_request", name)
        for name, value in [
            *(("loop", 1), ("loop", None), ("until", DAY["start_time"]), ("until", "soon")),
            *(("max_idle_secs", 0), ("lockstep", "yes"), ("barrier", "1m"), ("forming", True)),
            *(("durable", 1), ("derive", ["binance:BTC/USDT@trade"]), ("derive", "x")),
            *(("ack_timeout_secs", 0), ("ack_timeout_secs", 5)),
        ]
    ),
    (changed(surprise=1), "bad_request", "surprise"),
    (changed(symbol="ETH/USDT"), "no_data", "binance:BTC/USDT@candle_1m"),
    (changed(exchange="kraken", symbol="A/B"), "no_data", "kraken"),
    (
        changed(start_time="2023-01-01T00:00:00Z", end_time="2023-01-02T00:00:00Z"),
        "no_data",
        "2024-03-01",
    ),
    ('{"type":"ping","x":' + "[" * 100_000 + "]" * 100_000 + "}", "bad_request", "nested"),
]


async def test_wrong_requests_are_answered_and_the_connection_stays_open(rig):
    async with rig.client() as client:
        for text, code, named in WRONG:
            await client.websocket.send_message(text)
            reply = await client.get()
            assert (reply["type"], reply["code"]) == ("error", code), (text[:200], reply)
            assert named in reply["message"], (text[:200], reply)
            assert "id" not in reply, text[:200]
            assert len(reply["message"]) < 500
        assert (await client.ask("ping"))["type"] == "pong"
    assert list(rig.sessions.list()) == []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"type":"fly","id":%s}', "unknown_type"),
        ('{"type":"ping","id":%s,"x":1}', "bad_request"),
        ('{"id":%s}', "bad_request"),
        ('{"type":"pause","id":%s,"session_id":"nobody"}', "session_not_found"),
        ('{"type":"speed_change","session_id":"a","speed":1e309,"id":%s}', "bad_request"),
        ('{"type":"speed_change","session_id":"a","speed":NaN,"id":%s}', "bad_request"),
    ],
)
async def test_errors_echo_the_id(rig, text, code):
    async with rig.client() as client:
        for written in ('"x"', "1", "-2.5", "0", '""', str(2**70), '"\\u00e4\\"\\\\ 🚀"'):
            await client.websocket.send_message(text % written)
            reply = await client.get()
            assert reply["code"] == code
            assert reply["id"] == json.loads(written, parse_float=str), reply


async def test_errors_name_the_session_that_was_meant(rig):
    async with rig.client() as client:
        reply = await client.ask("pause", session_id="nobody")
        assert reply["session_id"] == "nobody"
        reply = await client.ask("pause", session_id="nobody", x=1)
        assert (reply["code"], reply["session_id"]) == ("bad_request", "nobody")


async def test_binary_frames_are_refused(rig):
    async with rig.client() as client:
        await client.websocket.send_message(b'{"type":"ping","id":1}')
        reply = await client.get()
        assert (reply["type"], reply["code"]) == ("error", "bad_request")
        assert "binary" in reply["message"]
        assert (await client.ask("ping"))["type"] == "pong"


async def test_hello_and_ping(rig):
    async with rig.client() as client, rig.client() as other:
        hello = client.hello
        assert set(hello) == {"type", "clientId", "timestamp", "server", "protocol"}
        assert hello["type"] == "connected"
        assert hello["server"] == f"tardisd/{tardisd.__version__}"
        assert hello["protocol"] == 1
        assert isinstance(hello["clientId"], str)
        assert hello["clientId"] != other.hello["clientId"]
        pong = await client.ask("ping", id="p")
        assert set(pong) == {"type", "timestamp", "id"}
        assert pong["id"] == "p"
        assert hello["timestamp"] <= pong["timestamp"] < hello["timestamp"] + 60_000


async def test_create_session_by_symbol(rig):
    async with rig.client() as client:
        reply = await client.create(id=1, session_id="one", speed=100)
        assert reply == {
            "type": "session_created",
            "id": 1,
            "session_id": "one",
            "status": "active",
            "series": ["binance:BTC/USDT@candle_1m"],
            "start_time": 1709251200000,
            "end_time": 1709337600000,
            "speed": "100.0",
            "epoch": 1,
        }
        reply = await client.create(session_id="one")
        assert (reply["code"], reply["session_id"]) == ("session_exists", "one")


async def test_defaults_of_create_session(rig):
    async with rig.client() as client:
        reply = await client.ask("create_session", **BTC, **DAY)
        assert reply["speed"] == "100.0"
        assert reply["status"] == "active"
        assert reply["series"] == ["binance:BTC/USDT@candle_1m"]
        assert "id" not in reply
        other = await client.ask("create_session", **BTC, **DAY, start_paused=True)
        assert other["session_id"] != reply["session_id"]
        assert other["status"] == "paused"


async def test_create_session_takes_all_ways_to_say_what(rig):
    async with rig.client() as client:
        for fields, series in [
            ({"symbol": "BTCUSDT"}, ["binance:BTC/USDT@candle_1m"]),
            ({"interval": "1m"}, ["binance:BTC/USDT@candle_1m"]),
            ({"data_type": "trade"}, ["binance:BTC/USDT@trade"]),
            ({"data_type": "candle_1m"}, ["binance:BTC/USDT@candle_1m"]),
            (
                {"series": ["binance:BTC/USDT@trade", "binance:BTCUSDT@candle_1m"]},
                ["binance:BTC/USDT@candle_1m", "binance:BTC/USDT@trade"],
            ),
            ({"start_time": 1709251200000, "end_time": 1709254800000}, None),
            ({"start_time": "2024-03-01T01:00:00.5+01:00"}, None),
            ({"loop": False, "lockstep": False, "forming": False, "durable": False}, None),
            ({"publish_delay_ms": 250, "on_gap": "skip", "release": "open-lookahead"}, None),
            ({"ephemeral": True, "storage": "main", "when_full": "drop_oldest"}, None),
        ]:
            reply = await client.create(start_paused=True, **fields)
            assert reply["type"] == "session_created", (fields, reply)
            assert series is None or sorted(reply["series"]) == series


async def test_verbs_of_somebody_who_does_not_follow(rig):
    async with rig.client() as creator, rig.client() as other:
        await creator.create(session_id="s", start_paused=True, speed=1)
        for verb, fields, answer in [
            ("resume", {}, "resumed"),
            ("pause", {}, "paused"),
            ("speed_change", {"speed": 0.5}, "speed_changed"),
            ("speed_change", {"speed": "max"}, "speed_changed"),
        ]:
            reply = await other.ask(verb, session_id="s", id=verb, **fields)
            assert (reply["type"], reply["id"]) == (answer, verb)
            assert reply["session_id"] == "s"
            assert isinstance(reply["clock"], int)
            told = await creator.get()
            assert told == {name: value for name, value in reply.items() if name != "id"}
        assert reply["speed"] == "max"
        reply = await other.ask("stop", session_id="s", id=9)
        assert reply == {"type": "stopped", "session_id": "s", "id": 9}
        end = (await creator.until("end"))[-1]
        assert (end["reason"], end["ticks"]) == ("stopped", 0)
        for verb in ("pause", "resume", "stop"):
            reply = await other.ask(verb, session_id="s", id=verb)
            assert (reply["code"], reply["id"], reply["session_id"]) == ("wrong_state", verb, "s")


async def test_verbs_of_a_follower_are_answered_once_and_in_order(rig):
    async with rig.client() as client:
        await client.create(session_id="s", start_paused=True)
        assert (await client.ask("pause", session_id="s", id=1))["id"] == 1
        assert (await client.ask("resume", session_id="s", id=2))["id"] == 2
        seen = await client.until("end")
        assert [message["seq"] for message in seen[:-1]] == list(range(1, CANDLE_COUNT + 1))
        assert (seen[-1]["reason"], seen[-1]["ticks"]) == ("finished", CANDLE_COUNT)


async def test_stop_answers_the_follower_then_ends(rig):
    async with rig.client() as client:
        await client.create(session_id="s", start_paused=True)
        await client.send("stop", session_id="s", id="x")
        assert await client.get() == {"type": "stopped", "session_id": "s", "id": "x"}
        assert (await client.get())["type"] == "end"
        assert (await client.ask("ping"))["type"] == "pong"


async def test_status(rig):
    fields = {"session_id", "status", "series", "start_time", "end_time", "clock", "speed"}
    fields |= {"achieved_speed", "seq", "epoch", "subscribers", "lag_ms", "waiting_for"}
    async with rig.client() as client:
        assert await client.ask("status", id=1) == {"type": "status", "id": 1, "sessions": []}
        await client.create(session_id="a", start_paused=True)
        await client.create(session_id="b", start_paused=True)
        one = await client.ask("status", session_id="b", id=2)
        assert (one["type"], one["id"], one["session_id"]) == ("status", 2, "b")
        assert set(one) >= fields
        assert (one["status"], one["subscribers"], one["seq"]) == ("paused", 1, 0)
        listed = (await client.ask("status"))["sessions"]
        assert [state["session_id"] for state in listed] == ["a", "b"]
        assert all(set(state) >= fields for state in listed)


async def test_subscribe_and_unsubscribe(rig):
    async with rig.client() as creator, rig.client() as other:
        await creator.create(session_id="s", start_paused=True)
        reply = await other.ask("unsubscribe", session_id="s", id=0)
        assert (reply["code"], reply["id"]) == ("wrong_state", 0)
        reply = await other.ask("subscribe", session_id="s", id=1)
        assert reply == {
            "type": "subscribed",
            "session_id": "s",
            "epoch": 1,
            "seq": 0,
            "clock": 1709251200000,
            "id": 1,
        }
        reply = await other.ask("subscribe", session_id="s", id=2)
        assert (reply["code"], reply["id"]) == ("wrong_state", 2)
        assert await other.ask("unsubscribe", session_id="s", id=3) == {
            "type": "unsubscribed",
            "session_id": "s",
            "id": 3,
        }
        assert (await other.ask("status", session_id="s"))["subscribers"] == 1
        reply = await other.ask("subscribe", session_id="s", id=4)
        assert reply["type"] == "subscribed"
        await creator.send("resume", session_id="s")
        assert (await other.get())["type"] == "resumed"
        assert [m["seq"] for m in (await other.until("end"))[:-1]][-1] == CANDLE_COUNT


async def test_an_ended_session_says_so_to_those_who_come_late(rig):
    async with rig.client() as creator, rig.client() as late:
        await creator.create(session_id="s")
        end = (await creator.until("end"))[-1]
        reply = await late.ask("subscribe", session_id="s")
        assert (reply["type"], reply["seq"]) == ("subscribed", CANDLE_COUNT)
        assert await late.get() == end
        assert (await late.ask("unsubscribe", session_id="s"))["code"] == "wrong_state"


async def test_who_joins_in_the_middle_gets_what_follows(rig):
    async with rig.client() as creator, rig.client() as late:
        await creator.create(session_id="s", speed=36_000)
        await creator.until("tick")
        await creator.send("pause", session_id="s")
        seen = [message["seq"] for message in await creator.until("paused") if "seq" in message]
        last = max(seen, default=1)
        reply = await late.ask("subscribe", session_id="s")
        assert reply["seq"] == last
        await late.send("speed_change", session_id="s", speed="max")
        await late.send("resume", session_id="s")
        ticks = [message for message in await late.until("end") if message["type"] == "tick"]
        assert [tick["seq"] for tick in ticks] == list(range(last + 1, CANDLE_COUNT + 1))


async def test_too_many_sessions(tmp_path):
    async with running(tmp_path, max_sessions=2) as rig, rig.client() as client:
        await client.create(session_id="a", start_paused=True)
        await client.create(session_id="b", start_paused=True)
        reply = await client.create(id=3)
        assert (reply["code"], reply["id"]) == ("too_many_sessions", 3)
        await client.send("stop", session_id="a")
        await client.until("end")
        assert (await client.create())["type"] == "session_created"


async def test_verbs_are_answered_though_the_subscription_has_just_ended(rig, nursery):
    """As when what was missed cannot be had, and its `error` is still on its way."""
    sent = []

    async def send(frame):
        sent.append(json.loads(frame[frame.index(b"{") :]))

    requests = Requests(
        "c", rig.sessions, DaemonHost({}, None), Quota(rig.sessions, 10), None, send,
        lambda follower: None, nursery.start_soon,
    )  # fmt: skip
    created = msgspec.convert({**CREATE, **BTC, "session_id": "s"}, messages.CreateSession)
    await requests.answer(created)
    requests.followers["s"].subscription.fail(ValueError("gone"), "what was missed")
    for number, (kind, fields) in enumerate(
        [("pause", {}), ("step", {"count": 0}), ("seek", {"by": 0}), ("resume", {}), ("stop", {})]
    ):
        text = json.dumps({"type": kind, "id": number, "session_id": "s", **fields})
        await requests.answer(msgspec.json.decode(text, type=messages.SUPPORTED[kind]))
        with trio.fail_after(30):
            while sent[-1].get("id") != number:
                await trio.testing.wait_all_tasks_blocked()
    assert [message["type"] for message in sent] == [
        *("session_created", "paused", "stepped", "sought", "resumed", "stopped")
    ]
