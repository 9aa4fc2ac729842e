"""The strategy of `examples/` makes the same trades at any speed, in lockstep and not."""

from __future__ import annotations

import importlib.util
import json
from decimal import Decimal
from pathlib import Path

import pytest
import trio
from daemon_rig import Daemon

from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import MINUTE, parse_time
from tardisd.plugins.sessions import Notice
from tardisd.testing.engine import run_engine
from tardisd.testing.ticks import random_candles

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "strategy.py"
CONFIG = """
[daemon]
data_dir = "{folder}/data"
control_socket = "{folder}/control.sock"

[storages.main]
plugin = "sqlite"

[sinks.ws]
plugin = "websocket"
listen = "127.0.0.1:0"
"""
SERIES = Series.parse("synthetic:BTC/USDT@candle_1m")
START = parse_time("2024-03-01T00:00:00Z")
COUNT = 600


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("strategy", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def candles_csv(path):
    """Write the candles as plain OHLCV, and return them."""
    batch = random_candles(SERIES, COUNT, START)
    names = ("open", "high", "low", "close", "volume")
    columns = [batch.fields[name].texts() for name in names]
    lines = ["timestamp,open,high,low,close,volume"]
    for at, row in enumerate(zip(*columns, strict=True)):
        lines.append(",".join([str((START + at * MINUTE) // 1_000_000), *row]))
    path.write_text("\n".join(lines) + "\n")
    return batch


def test_it_has_thirty_lines():
    assert sum(bool(line.strip()) for line in EXAMPLE.read_text().splitlines()) <= 30


def virtual_trades(example, batch):
    """Return the trades at 1x, in virtual time: ten hours pass in a moment."""

    async def main(engine):
        await engine.store(batch)
        session = await engine.create([SERIES], Span(START, START + COUNT * MINUTE), speed=1.0)
        closes, trades, follower = [], [], session.subscribe("block", ("batch",))
        session.begin()
        try:
            while True:
                item = await follower.receive()
                if not isinstance(item, Notice):
                    text = bytes(item.encode("batch").bytes()).rstrip(b",")
                    for row in json.loads(b"[" + text + b"]", parse_float=Decimal):
                        example.on_candle(row, closes, trades)
        except trio.EndOfChannel:
            assert trio.current_time() == pytest.approx(COUNT * 60, abs=1)
            return trades

    return run_engine(main)


def test_the_trades_are_the_same_however_it_is_played(example, tmp_path):
    batch = candles_csv(tmp_path / "candles.csv")
    wanted = virtual_trades(example, batch)
    assert len(wanted) > 10
    daemon = Daemon(tmp_path, CONFIG)
    try:
        daemon.load(tmp_path / "candles.csv", "BTC/USDT", "candle_1m", "--exchange", "synthetic")
        span = {"start_time": "2024-03-01T00:00:00Z", "end_time": "2024-03-01T10:00:00Z"}
        request = {"series": [SERIES.text], **span}
        ends = []
        for more in (
            {"speed": 10_000}, {"speed": "max"}, {"speed": "max", "lockstep": True},
            {"speed": 100_000, "lockstep": True, "barrier": "5m"},
        ):  # fmt: skip
            url = f"ws://127.0.0.1:{daemon.port}"
            trades, end = trio.run(example.run, url, request | more)
            assert trades == wanted, more
            ends.append(end)
        assert {end["reason"] for end in ends} == {"finished"}
        assert len({end["hash"] for end in ends}) == 1
    finally:
        daemon.close()
