"""Replay stored trades into Redis at `max`, beside a client that awaits each answer.

Medians of interleaved runs against a redis-server of its own, without and with a stream. It asserts
nothing about time; it does check that everything arrived.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import tempfile
import time

import harness
import sink_rig

ROUNDS = 5


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


class Client:
    """The baseline: send one request, wait for its answer."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, *words: bytes) -> bytes:
        self._socket.sendall(command(*words))
        return self._socket.recv(65_536)


def one_by_one(port: int, rows: list[bytes], stream: bool) -> float:
    """Publish each row and await the answer; return rows per second."""
    client = Client(port)
    client.ask(b"DEL", b"replay:baseline:ticks")
    begun = time.monotonic()
    for at, row in enumerate(rows):
        if stream:
            fields = [b"epoch", b"1", b"seq", b"%d" % at, b"channel", b"trade", b"data", row]
            client.ask(b"XADD", b"replay:baseline:ticks", b"MAXLEN", b"~", b"100000", b"*", *fields)
        client.ask(b"PUBLISH", b"replay:baseline", row)
    return len(rows) / (time.monotonic() - begun)


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="trades of each of five series")
    rows = parser.parse_args().rows
    server = harness.need("redis-server", "to publish to (on Debian: apt install redis-server)")
    port = harness.free_port()
    sample = sink_rig.some_data(20_000)
    sinks_of = {"channel": "PUBLISH", "stream": "XADD and PUBLISH"}
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        words = [server, "--port", str(port), "--save", "", "--dir", folder]
        with harness.running(words, stdout=subprocess.DEVNULL):
            time.sleep(0.5)
            url = f'plugin = "redis"\nurl = "redis://127.0.0.1:{port}"'
            sinks = f"[sinks.channel]\n{url}\n[sinks.stream]\n{url}\nstream = true"
            with sink_rig.daemon(rows, sinks) as control:
                for turn in range(ROUNDS):
                    for sink, label in sinks_of.items():
                        rate = one_by_one(port, sample, sink == "stream")
                        rates.setdefault(f"awaiting each {label}", []).append(rate)
                        name = f"{sink}-{turn}"
                        ticks, seconds = sink_rig.play(control, name, rows, sink)
                        assert ticks == 5 * rows
                        rates.setdefault(f"sink redis, {label}", []).append(ticks / seconds)
                    newest = Client(port).ask(b"XREVRANGE", f"replay:{name}:ticks".encode(),
                                              b"+", b"-", b"COUNT", b"1")  # fmt: skip
                    assert b"1-%d\r\n" % (5 * rows) in newest
    results = {label: statistics.median(found) for label, found in rates.items()}
    for label in sinks_of.values():
        base = results[f"awaiting each {label}"]
        for kind in ("awaiting each ", "sink redis, "):
            rate = results[kind + label]
            print(f"{kind + label:<40} {rate:>13,.0f} ticks/s {rate / base:>6.1f}x")
    harness.save("redis", results)


if __name__ == "__main__":
    main()
