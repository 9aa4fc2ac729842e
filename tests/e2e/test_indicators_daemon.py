"""Indicators from a real daemon: over WebSocket, at any speed, from a preset, into files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from daemon_rig import CONFIG, DAY, Daemon, run, running, store_candles, wait_for

from tardisd.market.time import parse_time

MINUTES = "binance:BTC/USDT@candle_1m"
INDICATORS = """
[analyzers.ind]
plugin = "indicators"
indicators = ["sma_20", "rsi_14", "macd_12_26_9", "vwap", "doji"]

[sinks.tape]
plugin = "file"
path = "{session_id}.ndjson"
"""
PRESET = f"""
[sessions.seen]
series = ["{MINUTES}"]
start = "2024-03-01"
end = "2024-03-02"
speed = "max"
analyzers = ["ind"]
sinks = ["tape"]
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: Any) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("indicators"), CONFIG + INDICATORS + PRESET) as one:
        store_candles(one)
        yield one


def test_one_hash_at_every_speed_from_a_preset_and_in_a_file(daemon: Daemon) -> None:
    asked = {"series": [MINUTES], "analyzers": ["ind"], **DAY}
    hashes = set()
    for speed in ("max", "max", 60_000):
        with daemon.websocket() as client:
            received = client.replay(speed=speed, **asked)
        received.check_seq()
        hashes.add(received.hash)
    candles = {data["timestamp"]: data for _, _, data in received.ticks if "open" in data}
    derived = [it for it in received.ticks if "value" in it[2]]
    averages = [data for _, channel, data in derived if channel == "indicator_1m_sma_20"]
    assert len(candles) == 1440
    assert len(averages) == 1440 - 19
    closes = [candle["close"] for candle in candles.values()]
    for at, data in enumerate(averages):
        assert data["symbol"] == "BTC/USDT"
        mean = Decimal(sum(map(Decimal, closes[at : at + 20]))) / 20
        assert abs(Decimal(data["value"]) - mean) <= Decimal("0.00000001")
    daemon.json("session", "start", "seen", "--id", "preset")
    wait_for(
        lambda: daemon.json("session", "show", "preset")["status"] == "finished", "the preset's end"
    )
    with daemon.websocket() as client:
        client.ask("subscribe", session_id="preset")
        hashes.add(client.until_type("end")["hash"])
    assert len(hashes) == 1
    assert daemon.json("session", "verify", "preset")["equal"] is True
    file = daemon.folder / "data" / "preset.ndjson"
    wait_for(file.exists, "the file")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    written = [row for row in rows if "indicator" in json.dumps(row)]
    assert len(written) == len(derived)
    assert len(rows) == len(received.ticks)


def test_after_a_seek_the_rest_is_the_same(daemon: Daemon) -> None:
    asked = {"series": [MINUTES], "analyzers": ["ind"], "speed": "max", **DAY}
    with daemon.websocket() as client:
        whole = client.replay(**asked)
    with daemon.websocket() as client:
        created = client.ask("create_session", start_paused=True, **asked)
        session = created["session_id"]
        client.ask("seek", session_id=session, to="2024-03-01T18:00:00Z")
        client.ask("resume", session_id=session)
        later = client.receive()
    for received in (whole, later):
        for _, _, data in received.ticks:
            del data["replay_time"]
    assert later.ticks
    rest = whole.ticks[-len(later.ticks) :]
    assert [it[1:] for it in later.ticks] == [it[1:] for it in rest]
    assert rest[0][2]["close_time"] == parse_time("2024-03-01T18:00:00Z") // 10**6


def test_what_is_wrong_with_the_configuration_is_said(tmp_path: Any) -> None:
    config = tmp_path / "config.toml"
    text = (CONFIG + INDICATORS).replace("{folder}", str(tmp_path)).replace("rsi_14", "rsi14")
    config.write_text(text)
    told = run("tardisd", "check", "-c", config, code=None)
    assert told.returncode != 0
    assert "'rsi14' is not an indicator; did you mean 'rsi_14'?" in told.stdout + told.stderr
    assert "analyzers.ind" in told.stdout + told.stderr
