"""Candles built on the fly, asked for in every way: WebSocket, tardisctl, presets."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from daemon_rig import CONFIG, DAY, OPEN_MS, Daemon, running, store_candles, wait_for
from websocket_client import Received

MINUTES = "binance:BTC/USDT@candle_1m"
HOURS, FIVES = MINUTES.replace("1m", "1h"), MINUTES.replace("1m", "5m")
PRESET = f"""
[sessions.hours]
series = []
derive = ["{HOURS}", "{FIVES}"]
forming = true
start = "2024-03-01"
end = "2024-03-02"
speed = "max"
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: Any) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("derived"), CONFIG + PRESET) as one:
        store_candles(one)
        yield one


def data_of(received: Received) -> list[dict[str, Any]]:
    return [data for _, _, data in received.ticks]


def test_hours_of_minutes_that_are_not_sent(daemon: Daemon) -> None:
    with daemon.websocket() as client:
        hours = data_of(client.replay(derive=[HOURS], speed="max", **DAY))
    assert [tick["timestamp"] for tick in hours] == [
        OPEN_MS + hour * 3_600_000 for hour in range(24)
    ]
    assert all(tick["derived"] is True for tick in hours)
    assert {tick["derived_from"] for tick in hours} == {"candle_1m"}
    with daemon.websocket() as client:
        minutes = data_of(client.replay(series=[MINUTES], speed="max", **DAY))
    first = minutes[:60]
    hour = hours[0]
    assert hour["open"] == first[0]["open"]
    assert hour["high"] == max(minute["high"] for minute in first)
    assert hour["low"] == min(minute["low"] for minute in first)
    assert hour["close"] == first[-1]["close"]
    assert hour["trades"] == sum(minute["trades"] for minute in first)


def test_one_hash_by_websocket_tardisctl_and_preset(daemon: Daemon) -> None:
    with daemon.websocket() as client:
        received = client.replay(derive=[FIVES, HOURS], forming=True, speed="max", **DAY)
    assert len(received.ticks) == 24 * 12 * 5 + 24 * 60  # four and 59 forming ones, and one closed
    assert sum(tick.get("closed", True) for tick in data_of(received)) == 24 * 13
    words = ["session", "create", "--from", "2024-03-01", "--to", "2024-03-02", "--forming"]
    words += ["--derive", HOURS, "--derive", FIVES, "--speed", "144000"]
    created = daemon.json(*words, "--id", "paced")
    assert created["derive"] == [HOURS, FIVES]
    daemon.json("session", "start", "hours", "--id", "preset")
    for name in ("paced", "preset"):
        wait_for(
            lambda name=name: daemon.json("session", "show", name)["status"] == "finished",
            f"the end of {name}",
        )
        with daemon.websocket() as client:
            client.ask("subscribe", session_id=name)
            assert client.until_type("end")["hash"] == received.hash
        assert daemon.json("session", "verify", name)["equal"] is True


def test_refusals_say_what_is_stored(daemon: Daemon) -> None:
    for derive, code, text in [
        ([MINUTES], "bad_request", "is stored; ask for it in 'series'"),
        (["binance:BTC/USDT@candle_90s"], "no_data", f"stored: {MINUTES}"),
        (["binance:BTC/USDT@trade"], "bad_request", "derive: "),
    ]:
        with daemon.websocket() as client:
            reply = client.ask("create_session", derive=derive, **DAY)
        assert (reply["type"], reply["code"]) == ("error", code)
        assert text in reply["message"]
    words = ["session", "create", "--from", "2024-03-01", "--to", "2024-03-02"]
    assert "needed: trades" in daemon.ctl(*words, "--derive", HOURS.replace("BTC", "ETH"), code=1)


def test_verify_finds_one_row_that_changed_and_says_what_to_do(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        store_candles(daemon)
        with daemon.websocket() as client:
            client.replay(session_id="v", derive=[HOURS], speed="max", **DAY)
        rows = (tmp_path / "BTCUSDT-1m-2024-03-01.csv").read_text().splitlines()
        cells = rows[700].split(",")
        changed = tmp_path / "BTCUSDT-1m-2024-03-01-changed.csv"
        changed.write_text(",".join([*cells[:5], cells[5] + "1", *cells[6:]]) + "\n")
        daemon.load(changed, "BTC/USDT", "candle_1m")
        proof = daemon.ask("session.verify", session_id="v")
        assert (proof["equal"], proof["data_changed"], proof["changed"]) == (False, True, [MINUTES])
        told = daemon.start_ctl("session", "verify", "v").communicate()[0]
        assert f"{MINUTES} has changed since the session was created" in told
        daemon.ctl("series", "show", MINUTES)  # as it says
        # The same, with nobody told: a damaged file.
        with daemon.websocket() as client:
            client.replay(session_id="w", derive=[HOURS], speed="max", **DAY)
        with closing(sqlite3.connect(tmp_path / "data" / "tardisd.sqlite")) as database:
            newest = "SELECT id, data FROM chunk_data ORDER BY id DESC LIMIT 1"
            chunk, data = database.execute(newest).fetchone()
            damaged = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
            database.execute("UPDATE chunk_data SET data = ? WHERE id = ?", (damaged, chunk))
            database.commit()
        assert "`tardisctl series delete" in daemon.ctl("session", "verify", "w", code=1)
