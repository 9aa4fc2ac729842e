"""Large stores and many sessions: seek and pause in 100 million rows, memory of 1,000 sessions.

It asserts nothing about time or memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crowd
import harness
import replay

from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import MILLISECOND, SECOND
from tardisd.testing.ticks import random_trades

SERIES = [Series.of("bench", f"S{at:02d}/USDT", "trade") for at in range(20)]
SESSIONS, RUNNING = 1000, 100
FOLLOWED = SERIES[:5]


def filled(rows: int) -> tuple[Path, Span]:
    """Return a store of so many rows in all, and the span they cover."""
    each = rows // len(SERIES)
    span = Span(replay.START, replay.START + each * SECOND // 10)

    def make(series: Series) -> Batch:
        return random_trades(series, each, replay.START, SERIES.index(series)).within(span)

    return crowd.store(f"scale-{rows}", SERIES, make, span), span


class Client:
    """A blocking WebSocket client, good enough for a bench."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._socket.sendall(
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while self._file.readline() != b"\r\n":
            pass

    def send(self, **message: Any) -> None:
        """Send a request."""
        text = json.dumps(message).encode()
        size = bytes([0x80 | len(text)]) if len(text) < 126 else b"\xfe" + len(text).to_bytes(2)
        self._socket.sendall(b"\x81" + size + bytes(4) + text)

    def messages(self) -> Iterator[dict[str, Any]]:
        """Return messages as they come."""
        while True:
            opcode, size = self._file.read(2)
            if size > 125:
                size = int.from_bytes(self._file.read(2 if size == 126 else 8))
            payload = self._file.read(size)
            if opcode == 0x81:
                yield json.loads(payload)

    def until(self, *types: str) -> dict[str, Any]:
        """Return the next message of one of these types."""
        for message in self.messages():
            if message["type"] in types:
                return message
            if message["type"] in {"error", "end"}:
                raise SystemExit(f"bench: {message}")
        raise AssertionError("messages end only by an error")


def seeks(
    port: int, span: Span, count: int, name: str = "seeker", **options: Any
) -> tuple[list[float], list[float], list[float]]:
    """Seek here and there, and pause; return times (ms) to snapshot, first tick, and `paused`."""
    client, draw = Client(port), random.Random(7)
    client.send(**crowd.request(name, FOLLOWED, span, speed=1000, **options))
    client.until("session_created")
    snapshots, ticks, pauses = [], [], []
    for _ in range(count):
        to = draw.randrange(span.start + SECOND, span.end - 3600 * SECOND) // MILLISECOND
        begun = time.monotonic()
        client.send(type="seek", session_id=name, to=to)
        client.send(type="resume", session_id=name)
        client.until("snapshot")
        snapshots.append((time.monotonic() - begun) * 1e3)
        client.until("tick")
        ticks.append((time.monotonic() - begun) * 1e3)
        begun = time.monotonic()
        client.send(type="pause", session_id=name)
        client.until("paused")
        pauses.append((time.monotonic() - begun) * 1e3)
    client.send(type="stop", session_id=name)
    return snapshots, ticks, pauses


def many(port: int, pid: int, span: Span, speed: int | str) -> dict[str, int]:
    """Open sessions, let some of them run; return memory before, when open, and when they run."""
    client = Client(port)
    begun = harness.memory(pid)
    for at in range(SESSIONS):
        client.send(**crowd.request(f"{speed}-{at}", [SERIES[at % len(SERIES)]], span, speed=speed))
        client.until("session_created")
    time.sleep(2)  # what they read ahead is part of what they cost
    opened = harness.memory(pid)
    for at in range(RUNNING):
        client.send(type="resume", session_id=f"{speed}-{at}")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        next(client.messages())
    return {
        "begun": begun,
        "opened": opened,
        "running": harness.memory(pid),
        "peak": harness.peak_memory(pid),
    }


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--seeks", type=int, default=50)
    asked = parser.parse_args()
    store, span = filled(asked.rows)
    with tempfile.TemporaryDirectory() as name:
        port = harness.free_port()
        config = replay.configure(store, Path(name), port)
        limit = f"max_sessions = {SESSIONS + 1}\n"
        config.write_text(config.read_text().replace("[daemon]\n", f"[daemon]\n{limit}") + limit)
        with harness.daemon(config) as (child, _):
            snapshots, ticks, pauses = seeks(port, span, asked.seeks)
        derive = [f"{FOLLOWED[0]}".replace("@trade", f"@candle_{name}") for name in ("1h", "1d")]
        with harness.daemon(config):
            _, built, _ = seeks(port, span, asked.seeks, "builder", derive=derive, forming=True)
        with harness.daemon(config) as (child, _):
            memory = many(port, child.pid, span, 1)
        with harness.daemon(config) as (child, _):
            hurried = many(port, child.pid, span, "max")
    rows: list[crowd.Row] = []
    for label, found, wanted in [
        ("snapshot after a seek", snapshots, "< 100 ms"),
        ("first tick after a seek", ticks, "< 100 ms"),
        ("  with hours and days built of a series", built, "< 100 ms"),
        ("paused", pauses, "< 20 ms"),
    ]:
        rows += [
            (f"{label}, median", f"{statistics.median(found):.1f} ms", ""),
            (f"{label}, worst of {asked.seeks}", f"{max(found):.1f} ms", wanted),
        ]
    rows += [
        (f"memory, {SESSIONS:,} sessions open", f"{memory['opened'] / 2**20:.0f} MiB", ""),
        (f"memory, {RUNNING} of them running", f"{memory['running'] / 2**20:.0f} MiB", ""),
        ("  peak", f"{memory['peak'] / 2**20:.0f} MiB", "< 1024 MiB"),
        ("  peak at max", f"{hurried['peak'] / 2**20:.0f} MiB", "< 1024 MiB"),
    ]
    crowd.table(f"{asked.rows:,} rows stored; {os.cpu_count()} cores", rows)
    times = {"snapshots_ms": snapshots, "first_ticks_ms": ticks, "built_ms": built}
    used = {"memory": memory, "memory_at_max": hurried}
    harness.save("scale", {**times, "pauses_ms": pauses, **used})


if __name__ == "__main__":
    main()
