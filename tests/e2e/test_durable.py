"""A durable session outlives kill -9 of its daemon; clients that come back miss nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_rig import Daemon
from websocket_client import Closed, WebSocket

SERIES = ["synthetic:BTC/USDT@candle_1m", "synthetic:BTC/USDT@trade"]
SPAN = ["--from", "2024-03-01", "--to", "2024-03-01T06:00:00Z"]
CONFIG = """
[daemon]
data_dir = "{folder}/data"
control_socket = "{folder}/control.sock"

[storages.main]
plugin = "sqlite"

[exchanges.synthetic]
plugin = "synthetic"

[sinks.ws]
plugin = "websocket"
listen = "127.0.0.1:0"
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    one = Daemon(tmp_path, CONFIG)
    try:
        one.ctl("backfill", "run", *SERIES, *SPAN, "--wait")
        yield one
    finally:
        one.close()


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without the time at which it was sent."""
    data = message.get("data")
    if isinstance(data, dict):
        data.pop("replay_time", None)
    return message


def upto_the_end(client: WebSocket) -> list[dict[str, Any]]:
    """Return all messages up to and with `end`."""
    found = [plain(client.get())]
    while found[-1]["type"] != "end":
        found.append(plain(client.get()))
    return found


def whole_and_durable(daemon: Daemon) -> tuple[list[dict[str, Any]], WebSocket]:
    """Play a session to its end, and begin a durable one `d` of the same; return what was heard.

    The client that is returned as well has heard nothing yet of the durable one.
    """
    request = {
        "series": SERIES, "start_time": "2024-03-01T00:00:00Z", "end_time": "2024-03-01T06:00:00Z",
    }  # fmt: skip
    whole = daemon.websocket()
    whole.send("create_session", **request, session_id="whole", speed="max")
    truth = upto_the_end(whole)
    client = daemon.websocket()
    client.send("create_session", **request, session_id="d", durable=True, speed=20_000)
    return truth, client


def test_kills_in_the_middle_of_a_session_cost_nobody_anything(daemon: Daemon) -> None:
    dice = random.Random(3)
    truth, client = whole_and_durable(daemon)
    assert truth.pop(0)["type"] == "session_created"
    heard = [client.get()]
    assert heard.pop()["type"] == "session_created"
    kills = 0
    while kills < 4:
        for _ in range(dice.choice([1, 40, 700, 2500])):
            heard.append(plain(client.get()))
        daemon.kill()
        daemon.disconnect()
        kills += 1
        daemon.start()
        status = daemon.ask("session.show", session_id="d")
        assert status["status"] == "paused"
        client = daemon.websocket()
        client.send("subscribe", session_id="d", epoch=1, from_seq=heard[-1]["seq"],
                    when_full="block")  # fmt: skip
        reply = client.get()
        assert (reply["type"], reply["epoch"]) == ("subscribed", 1)
        client.send("resume", session_id="d")
        # What was missed may come before the answer, for the session is at most a second behind.
        while (message := client.get())["type"] != "resumed":
            heard.append(plain(message))
    client.send("speed_change", session_id="d", speed="max")
    heard += [one for one in upto_the_end(client) if one["type"] != "speed_changed"]
    assert [one["seq"] for one in heard[:-1]] == [one["seq"] for one in truth[:-1]]
    for one in (*heard, *truth):
        one.pop("session_id", None)
    assert heard == truth
    proof = daemon.json("session", "verify", "d")
    assert (proof["equal"], proof["hash"]) == (True, truth[-1]["hash"])


def left_in_the_middle(daemon: Daemon) -> tuple[dict[str, Any], int]:
    """Kill the daemon in the middle of a session `d`; return the end of a whole one, and a seq."""
    truth, client = whole_and_durable(daemon)
    heard = [client.get() for _ in range(3000)]
    client.ask("pause", session_id="d")
    daemon.kill()
    daemon.disconnect()
    return truth[-1], heard[-1]["seq"]


def test_data_that_are_added_meanwhile_cost_nobody_anything(daemon: Daemon) -> None:
    end, seq = left_in_the_middle(daemon)
    daemon.start()
    daemon.ctl("backfill", "run", *SERIES, "--from", "2024-03-01T06:00:00Z", "--to",
               "2024-03-01T07:00:00Z", "--wait")  # fmt: skip
    daemon.kill()
    daemon.start()
    client = daemon.websocket()
    client.send("subscribe", session_id="d", epoch=1, from_seq=seq, when_full="block")
    client.send("speed_change", session_id="d", speed="max")
    client.send("resume", session_id="d")
    heard = upto_the_end(client)
    seqs = [one["seq"] for one in heard if one["type"] in {"tick", "gap"}]
    assert seqs[0] == seq + 1
    assert seqs == list(range(seq + 1, seqs[-1] + 1))
    assert (heard[-1]["hash"], heard[-1]["ticks"]) == (end["hash"], end["ticks"])
    assert heard[-1]["data_changed"]


def test_a_session_that_is_stopped_at_once_after_a_kill_tells_its_hash(daemon: Daemon) -> None:
    _, seq = left_in_the_middle(daemon)
    daemon.start()
    client = daemon.websocket()
    client.send("subscribe", session_id="d", epoch=1, from_seq=seq, when_full="block")
    client.send("stop", session_id="d")
    end = upto_the_end(client)[-1]
    assert end["reason"] == "stopped"
    proof = daemon.json("session", "verify", "d")
    assert (proof["equal"], proof["hash"], proof["ticks"]) == (True, end["hash"], end["ticks"])


def test_who_follows_when_the_daemon_stops_is_told_where_to_go_on(daemon: Daemon) -> None:
    client = daemon.websocket()
    client.ask("create_session", series=SERIES[:1], session_id="d", durable=True, speed=600,
               start_time="2024-03-01T00:00:00Z", end_time="2024-03-01T06:00:00Z")  # fmt: skip
    seq = client.until_type("tick")["seq"]
    daemon.process.terminate()
    seqs = [seq]

    def read_on() -> None:
        while True:
            seqs.append(client.get().get("seq", seqs[-1]))

    with pytest.raises(Closed) as closed:
        read_on()
    assert closed.value.code == 1001
    assert closed.value.reason == f"restart; resume with session=d epoch=1 seq={seqs[-1]}"
    daemon.check_exit()


def test_a_session_that_is_not_durable_has_been_stopped(daemon: Daemon) -> None:
    daemon.ctl("session", "create", "--series", SERIES[0], *SPAN, "--id", "s", "--speed", "1")
    daemon.kill()
    daemon.start()
    status = daemon.ask("session.show", session_id="s")
    assert status["status"] == "stopped"
    client = daemon.websocket()
    client.send("subscribe", session_id="s")
    assert client.get()["type"] == "subscribed"
    assert "restarted" in client.get()["message"]
