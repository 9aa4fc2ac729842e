"""Clients that send nonsense, stall or vanish: a clear answer to each, and harm to nobody else.

All of it happens to one daemon while a witness follows a paced session, which must get every tick;
in the end there is no traceback in the daemon's log.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from daemon_rig import DAY, OPEN_MS, Daemon, Witness, run, running, store_candles, wait_for
from websocket_client import Closed, WebSocket

SERIES = "binance:BTC/USDT@candle_1m"
ROWS = 1440
LARGE = 50_000
HOUR: dict[str, Any] = {
    "exchange": "binance",
    "symbol": "BTC/USDT",
    "start_time": OPEN_MS,
    "end_time": OPEN_MS + 3_600_000,
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: Any) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("bad-clients")) as one:
        store_candles(one, ROWS)
        store_candles(one, LARGE, ("ETH",))
        yield one  # leaving checks the log


@pytest.fixture
def witness(daemon: Daemon) -> Iterator[Witness]:
    """Yield a session whose follower must lose nothing, whatever the test does meanwhile."""
    one = Witness(daemon, series=[SERIES], speed=600, **DAY)
    yield one
    received = one.finish(daemon)
    assert received.end is not None
    assert received.end["reason"] == "finished"
    assert len(received.ticks) == ROWS


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        (b"", "bad_json", "not JSON"),
        (b"{", "bad_json", "not JSON"),
        (b"\x00", "bad_json", "not JSON: JSON is malformed"),
        (b'{"type":"ping"}{"type":"ping"}', "bad_json", "trailing characters"),
        (b"[]", "bad_request", "one JSON object"),
        (b"null", "bad_request", "one JSON object"),
        (b"[" * 5000, "bad_request", "nested too deeply"),
        (b"{}", "bad_request", "type: is missing"),
        (b'{"type":1}', "bad_request", "type: use a string"),
        (b'{"type":"png"}', "unknown_type", "'png' is not a request; use one of create_session"),
        (b'{"type":"ping","x":1}', "bad_request", "x: is not a known field"),
        (b'{"type":"ping","id":{}}', "bad_request", "id: use a string or a number"),
        (b'{"type":"pause"}', "bad_request", "session_id: is missing"),
        (b'{"type":"pause","session_id":"?"}', "bad_request", "session_id: use 1 to 128"),
        (b'{"type":"pause","session_id":"who"}', "session_not_found", "no session 'who'"),
        (b'{"type":"subscribe","session_id":"who"}', "session_not_found", "no session 'who'"),
        (b'{"type":"speed_change","session_id":"w","speed":0}', "bad_request", "speed: "),
        (b'{"type":"speed_change","session_id":"w","speed":-3}', "bad_request", "speed: "),
        (b'{"type":"speed_change","session_id":"w","speed":1e309}', "bad_request", "speed: "),
        (b'{"type":"speed_change","session_id":"w","speed":NaN}', "bad_request", "speed: "),
        (b'{"type":"speed_change","session_id":"w","speed":"fast"}', "bad_request", "speed: "),
        (b'{"type":"speed_change","session_id":"w","speed":true}', "bad_request", "speed: "),
    ],
)
def test_a_request_that_is_none(daemon: Daemon, text: bytes, code: str, part: str) -> None:
    with daemon.websocket() as client:
        client.send_frame(text)
        answer = client.get()
        assert (answer["type"], answer["code"]) == ("error", code)
        assert part in answer["message"]
        assert client.ask("ping")["type"] == "pong"


@pytest.mark.parametrize(
    ("fields", "code", "parts"),
    [
        ({"start_time": "yesterday"}, "bad_request", ("start_time: 'yesterday' is not a time",)),
        ({"start_time": "2024-03-01T00:00:00"}, "bad_request", ("no time zone", "'Z'")),
        ({"start_time": "2024-02-30T00:00:00Z"}, "bad_request", ("day is out of range",)),
        ({"start_time": -5}, "bad_request", ("outside 2009..2100",)),
        ({"start_time": 10**30}, "bad_request", ("outside 2009..2100",)),
        ({"start_time": 1.5}, "bad_request", ("start_time: ", "integer milliseconds")),
        ({"start_time": None}, "bad_request", ("start_time: ", "null")),
        ({"end_time": OPEN_MS}, "bad_request", ("end_time: is not after start_time",)),
        ({"end_time": "9999-12-31T23:59:59Z"}, "bad_request", ("end_time: ",)),
        ({"speed": 0}, "bad_request", ("speed: ", "a finite number above 0")),
        ({"speed": -1}, "bad_request", ("speed: ", "a finite number above 0")),
        ({"speed": float("inf")}, "bad_request", ("speed: ", "finite number")),
        ({"speed": float("nan")}, "bad_request", ("speed: ", "finite number")),
        ({"speed": "fast"}, "bad_request", ("speed: ", '"max"')),
        ({"symbol": "?"}, "bad_request", ("symbol: '?' is not a symbol",)),
        ({"symbol": "A" * 5000}, "bad_request", ("symbol: ", "write it as BTC/USDT")),
        ({"interval": "7x"}, "bad_request", ("interval: '7x'",)),
        ({"series": [SERIES]}, "bad_request", ("exchange: does not go together with series",)),
        ({"colour": "red"}, "bad_request", ("colour: is not a known field",)),
        ({"session_id": "a b"}, "bad_request", ("session_id: use 1 to 128",)),
        ({"storage": "attic"}, "bad_request", ("storage: 'attic' is not one of: main",)),
        ({"when_full": "explode"}, "bad_request", ("when_full: ", '"drop_oldest"')),
        ({"start_paused": "yes"}, "bad_request", ("start_paused: ",)),
        ({"lockstep": "yes"}, "bad_request", ("lockstep: expected bool",)),
        ({"symbol": "XRP/USDT"}, "no_data", ("XRP/USDT@candle_1m: it is not stored", SERIES)),
        (
            {"start_time": "2022-01-01T00:00:00Z", "end_time": "2022-01-02T00:00:00Z"},
            "no_data",
            ("2022-01-01T00", f"stored: {SERIES} 2024-03-01T00:00:00.000Z..2024-03-02T00"),
        ),
    ],
)
def test_a_session_that_cannot_be(
    daemon: Daemon, fields: dict[str, Any], code: str, parts: tuple[str, ...]
) -> None:
    with daemon.websocket() as client:
        before = client.ask("status")["sessions"]
        client.send("create_session", id=7, **{**HOUR, **fields})
        answer = client.get()
        assert (answer["type"], answer["id"], answer["code"]) == ("error", 7, code)
        for part in parts:
            assert part in answer["message"], answer
        assert len(answer["message"]) < 400
        assert len(client.ask("status")["sessions"]) == len(before)


def test_an_id_that_is_taken(daemon: Daemon, witness: Witness) -> None:
    with daemon.websocket() as client:
        answer = client.ask("create_session", session_id=witness.session_id, **HOUR)
        assert answer["code"] == "session_exists"
        assert witness.session_id in answer["message"]


def test_frames_that_are_too_large_or_no_text(daemon: Daemon, witness: Witness) -> None:
    with daemon.websocket() as client:
        client.send_frame(b"\x00\x01", opcode=2)
        assert "binary" in client.get()["message"]
        with pytest.raises((Closed, OSError)) as refused:  # it may close while we still send
            send_ten_megabytes(client)
        assert getattr(refused.value, "code", 1009) == 1009
    with daemon.websocket() as client:
        client.socket.sendall(b"\x85\x80\0\0\0\0")  # no such opcode
        with pytest.raises(Closed):
            client.until_type("never")


def send_ten_megabytes(client: WebSocket) -> None:
    client.send_frame(b'{"type":"ping","id":"' + b"x" * 10_000_000 + b'"}')
    client.get()


def test_thousands_of_connects(daemon: Daemon, witness: Witness) -> None:
    address = ("127.0.0.1", daemon.port)
    for at in range(2000):
        with socket.create_connection(address, 30) as one:
            if at % 4 == 0:
                one.sendall(b"GET / HTTP/1.1\r\n")
            elif at % 4 == 1:
                one.sendall(b"\xff\x00 nonsense\r\n\r\n")
            elif at % 4 == 2:  # reset instead of close
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for _ in range(100):
        daemon.websocket().close()
    with daemon.websocket() as client:
        assert client.ask("ping")["type"] == "pong"


def test_clients_that_vanish_or_read_nothing(daemon: Daemon, witness: Witness) -> None:
    eth = {"series": ["binance:ETH/USDT@candle_1m"], "start_time": OPEN_MS}
    whole = {**eth, "end_time": OPEN_MS + LARGE * 60_000, "speed": "max"}
    for at in range(10):
        client = daemon.websocket(receive_buffer=4096)
        client.ask("create_session", session_id=f"orphan-{at}", **whole)
        client.get()
        client.close()  # in the middle of a tick
    for at in range(10):  # sessions outlive their creators
        state = wait_for(partial(ended, daemon, f"orphan-{at}"), "the orphan's end")
        assert (state["status"], state["seq"]) == ("finished", LARGE)
    half_open = [socket.create_connection(("127.0.0.1", daemon.port)) for _ in range(50)]
    creator = daemon.websocket(receive_buffer=4096)
    creator.ask("create_session", session_id="stuck", **whole)
    follower = daemon.websocket(receive_buffer=4096)
    assert follower.ask("subscribe", session_id=witness.session_id)["type"] == "subscribed"
    state = wait_for(lambda: blocked(daemon), "the session to wait for its creator")
    assert len(state["waiting_for"]) == 1
    with daemon.websocket() as client:  # another session of the same ticks goes on
        assert len(client.replay(**whole, delivery="batch").ticks) == LARGE
    received = creator.receive()  # it lost nothing by waiting
    received.check_seq()
    assert len(received.ticks) == LARGE
    for half in half_open:
        half.close()


def ended(daemon: Daemon, session_id: str) -> Any:
    with daemon.websocket() as client:
        state = client.ask("status", session_id=session_id)
        return state if state["status"] in ("finished", "stopped", "failed") else None


def blocked(daemon: Daemon) -> Any:
    with daemon.websocket() as client:
        state = client.ask("status", session_id="stuck")
        return state if state["waiting_for"] else None


def test_a_follower_that_is_too_slow_is_sent_away(daemon: Daemon) -> None:
    whole = {"series": ["binance:ETH/USDT@candle_1m"], "start_time": OPEN_MS}
    whole |= {"end_time": OPEN_MS + LARGE * 60_000, "start_paused": True, "speed": "max"}
    with daemon.websocket() as creator, daemon.websocket(receive_buffer=4096) as slow:
        creator.ask("create_session", session_id="fast", **whole)
        slow.ask("subscribe", session_id="fast")
        creator.send("resume", session_id="fast")
        assert len(creator.receive().ticks) == LARGE
        with pytest.raises(Closed) as closed:
            slow.until_type("end")
        assert closed.value.code in (4408, None)
        if closed.value.code:
            assert "too slow; resume with session=fast epoch=1 seq=" in closed.value.reason


def test_a_control_client_that_sends_garbage(daemon: Daemon, witness: Witness) -> None:
    lines = {
        b"garbage": "bad_json",
        b"\x00\xff": "bad_json",
        b"{}": "bad_request",
        b"[]": "bad_request",
        b'{"jsonrpc":"2.0","id":1,"method":"nope"}': "unknown_method",
        b'{"jsonrpc":"2.0","id":1,"method":"session.show"}': "bad_request",
        b'{"jsonrpc":"2.0","id":1,"method":"session.show","params":{"x":5}}': "bad_request",
        b"x" * 3_000_000: "too_large",
    }
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(daemon.socket))
        answers = client.makefile("rb")
        for line, code in lines.items():
            client.sendall(line + b"\n")
            assert json.loads(answers.readline())["error"]["data"]["code"] == code
        client.sendall(b'{"jsonrpc":"2.0","id":2,"method":"daemon.hello"}\n')
        assert json.loads(answers.readline())["result"]["protocol"] == 1
    crowd = [socket.socket(socket.AF_UNIX) for _ in range(200)]
    for one in crowd:
        one.connect(str(daemon.socket))
        one.sendall(b'{"jsonrpc":"2.0","id":1,')
    for one in crowd:
        one.close()
    status = ["tardisctl", "--socket", daemon.socket, "status"]
    wait_for(lambda: run(*status, code=None).returncode == 0, "an answer")
    assert daemon.json("status")["pid"] == daemon.process.pid


def test_many_clients_ask_at_the_same_time(daemon: Daemon, witness: Witness) -> None:
    answers: list[Any] = []

    def ask(at: int) -> None:
        with daemon.websocket() as client:
            answers.append(client.replay(**HOUR, session_id=f"many-{at}", speed="max").hash)

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 30
    assert len(set(answers)) == 1


def test_the_log_has_no_traceback(daemon: Daemon, tmp_path: Path) -> None:
    assert daemon.process.poll() is None
    daemon.check_log()
