"""Whole months of candles through the running daemon: every row once, in order, exact, same hash.

What is expected comes from the files themselves, read with csv and Decimal, not from tardisd.
"""

from __future__ import annotations

import csv
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
from daemon_rig import MINUTE_MS, Daemon, klines, running, zipped
from websocket_client import Received

EXAMPLE = Path(__file__).parents[2] / "examples" / "verify_hash.py"
FEBRUARY_MS = 1_675_209_600_000
REAL = ("ALGO", "AVAX", "FIL", "LINK", "NEAR")
NAMES = ("open", "high", "low", "close", "volume")
Row = tuple[int, list[Decimal], Decimal, int]


@dataclass
class Stored:
    """A daemon with imported series, and what their files say."""

    daemon: Daemon
    rows: dict[str, list[Row]]
    start_ms: int
    end_ms: int

    @property
    def request(self) -> dict[str, Any]:
        """The fields of a session over everything."""
        span = {"start_time": self.start_ms, "end_time": self.end_ms}
        return {"series": list(self.rows), **span}

    def replay(self, **fields: object) -> Received:
        """Replay everything to a client of its own."""
        with self.daemon.websocket() as client:
            return client.replay(**{**self.request, **fields})


def read_zip(path: Path) -> list[Row]:
    """Return a kline archive's rows: open time, prices and volume, quote volume, trades."""
    with zipfile.ZipFile(path) as archive:
        text = archive.read(archive.namelist()[0]).decode()
    return [
        (int(row[0]), [Decimal(value) for value in row[1:6]], Decimal(row[7]), int(row[8]))
        for row in csv.reader(io.StringIO(text))
        if row[0].isdigit()
    ]


def stored(daemon: Daemon, archives: dict[str, Path], kind: str) -> Stored:
    """Import the archives; return the daemon and what it must have."""
    rows = {}
    for name, path in archives.items():
        symbol = f"{name}/USDT{kind}"
        found = rows[f"binance:{symbol}@candle_1m"] = read_zip(path)
        told = daemon.load(path, symbol, "candle_1m")
        assert f"{len(found):,} added, 0 unchanged, 0 revised" in told
        assert f"0 added, {len(found):,} unchanged" in daemon.load(path, symbol, "candle_1m")
    opens = [row[0] for one in rows.values() for row in one]
    return Stored(daemon, rows, min(opens), max(opens) + MINUTE_MS)


@pytest.fixture(scope="module", params=["real", "made"])
def market(request: Any, tmp_path_factory: Any) -> Iterator[Stored]:
    folder = tmp_path_factory.mktemp(f"acceptance-{request.param}")
    if request.param == "real":
        data = request.getfixturevalue("shared_data") / "klines" / "um"
        archives = {name: data / f"{name}USDT-1m-2023-02.zip" for name in REAL}
    else:
        archives = {
            name: zipped(
                folder / f"{name}USDT-1m-2023-02.zip",
                klines(3000, FEBRUARY_MS + at * 500 * MINUTE_MS, price=100 + at),
            )
            for at, name in enumerate(("ADA", "BTC", "XRP"))
        }
    with running(folder) as daemon:
        yield stored(daemon, archives, ":USDT" if request.param == "real" else "")


@pytest.fixture(scope="module")
def plain(market: Stored) -> Received:
    """What a session over everything delivers at most speed, tick by tick."""
    return market.replay(speed="max", delivery="tick")


def test_every_row_comes_once_in_total_order_with_its_exact_values(
    market: Stored, plain: Received
) -> None:
    plain.check_seq()
    assert plain.end is not None
    assert plain.end["reason"] == "finished"
    assert "data_changed" not in plain.end
    # Candles of one interval and venue: by release, that is the close, then by symbol.
    expected = sorted(
        (row[0] + MINUTE_MS, series.partition(":")[2].partition("@")[0], row)
        for series, rows in market.rows.items()
        for row in rows
    )
    assert len(plain.ticks) == len(expected)
    assert len(expected) in (9000, 201_600)  # generated, or the five months
    seqs = [seq for seq, _, _ in plain.ticks]
    assert seqs == sorted(seqs)
    for (_, channel, data), (close, symbol, row) in zip(plain.ticks, expected, strict=True):
        found = (data["close_time"], data["symbol"], channel, data["exchange"], data["interval"])
        assert found == (close, symbol, "candle_1m", "binance", "1m")
        values = [data[name] for name in NAMES]
        found_row = (data["timestamp"], values, data["quote_volume"], data["trades"])
        assert found_row == row


def test_the_hash_can_be_recomputed_from_the_messages_alone(plain: Received) -> None:
    record = run_path(str(EXAMPLE))["record"]
    digest = blake2b(digest_size=32)
    for _, channel, data in plain.ticks:
        digest.update(record(channel, data))
    assert digest.hexdigest() == plain.hash


@pytest.mark.parametrize(
    ("speed", "delivery"), [("max", "batch"), (1_000_000, "batch"), (1e12, "tick")]
)
def test_speed_and_delivery_change_nothing(
    market: Stored, plain: Received, speed: object, delivery: str
) -> None:
    again = market.replay(speed=speed, delivery=delivery)
    again.check_seq()
    assert again.hash == plain.hash
    assert len(again.ticks) == len(plain.ticks)
    if delivery == "batch":
        assert facts(again) == facts(plain)


def facts(received: Received) -> list[tuple[int, dict[str, Any]]]:
    """Return what was received without what differs by time and form."""
    hidden = ("replay_time", "channel")
    return [
        (seq, {name: value for name, value in data.items() if name not in hidden})
        for seq, _, data in received.ticks
    ]


def test_pauses_and_speed_changes_change_nothing(market: Stored, plain: Received) -> None:
    with market.daemon.websocket() as client, market.daemon.websocket() as other:
        client.send("create_session", session_id="steered", speed=1000, **market.request)
        assert client.get()["type"] == "session_created"
        heard: list[Received] = []
        listener = threading.Thread(target=lambda: heard.append(client.receive()))
        listener.start()
        verbs = [("speed_change", {"speed": speed}) for speed in (20_000, 0.5, 300_000, 5e6, "max")]
        for verb, fields in verbs:
            assert other.ask("pause", session_id="steered")["type"] == "paused"
            before = other.ask("status", session_id="steered")
            assert other.ask(verb, session_id="steered", **fields)["type"] == "speed_changed"
            after = other.ask("status", session_id="steered")
            assert (before["seq"], before["clock"]) == (after["seq"], after["clock"])
            assert other.ask("resume", session_id="steered")["type"] == "resumed"
        listener.join(60)
        (steered,) = heard
    steered.check_seq()
    assert steered.hash == plain.hash
    said = [message["type"] for message in steered.others]
    assert said.count("paused") == said.count("resumed") == said.count("speed_changed") == 5
