"""Replay stored trades into a webhook at `max`, beside a client that POSTs each tick with httpx.

The receiver is a small server in a process of its own that answers 200 to everything; medians of
interleaved runs. It asserts nothing about time; it does check that everything arrived.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

import harness
import httpx
import sink_rig
import trio

ROUNDS = 5
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


async def answer(stream: trio.SocketStream, counts: dict[str, int]) -> None:
    """Count ticks by session without parsing: each has one channel."""
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some(1 << 20)
            if not more:
                return
            data += more
        head, _, data = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        parts = [data]
        have = len(data)
        while have < length:
            parts.append(await stream.receive_some(1 << 20))
            have += len(parts[-1])
        body = b"".join(parts)
        name = head.partition(b"Idempotency-Key: ")[2].partition(b":")[0].decode()
        counts[name] = counts.get(name, 0) + body.count(b'{"channel":')
        data = body[length:]
        await stream.send_all(OK)


def receive(pipe: Connection) -> None:
    """Serve until the parent has had enough; tell the port first, and counts when asked."""

    async def main() -> None:
        counts: dict[str, int] = {}
        async with trio.open_nursery() as nursery:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(
                trio.serve_listeners, lambda stream: answer(stream, counts), [listener]
            )
            pipe.send(listener.socket.getsockname()[1])
            while (name := await trio.to_thread.run_sync(pipe.recv)) is not None:
                pipe.send(counts.get(name, 0))
            nursery.cancel_scope.cancel()

    trio.run(main)


def one_by_one(url: str, rows: list[bytes]) -> float:
    """POST each row and await the answer; return rows per second."""

    async def main() -> float:
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(headers=headers, trust_env=False) as client:
            begun = time.monotonic()
            for row in rows:
                (await client.post(url, content=row)).raise_for_status()
            return len(rows) / (time.monotonic() - begun)

    return trio.run(main)


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="trades of each of five series")
    rows = parser.parse_args().rows
    here, there = multiprocessing.get_context("spawn").Pipe()
    receiver = multiprocessing.get_context("spawn").Process(target=receive, args=(there,))
    receiver.start()
    url = f"http://127.0.0.1:{here.recv()}/"
    sample = sink_rig.some_data(1_000)
    rates: dict[str, list[float]] = {}
    sinks = "".join(
        f'[sinks.by{size}]\nplugin = "webhook"\nurl = "{url}"\nsecret = "s"\nbatch_ticks = {size}\n'
        for size in (500, 5000)
    )
    with sink_rig.daemon(rows, sinks) as control:
        for turn in range(ROUNDS):
            rates.setdefault("httpx, one POST a tick", []).append(one_by_one(url, sample))
            for size in (500, 5000):
                name = f"{size}-{turn}"
                ticks, seconds = sink_rig.play(control, name, rows, f"by{size}")
                here.send(name)
                assert ticks == 5 * rows == here.recv()
                label = f"sink webhook, batches of {size}"
                rates.setdefault(label, []).append(ticks / seconds)
    here.send(None)
    receiver.join(10)
    results = {label: statistics.median(found) for label, found in rates.items()}
    base = results["httpx, one POST a tick"]
    for label, rate in results.items():
        print(f"{label:<40} {rate:>13,.0f} ticks/s {rate / base:>6.0f}x")
    harness.save("webhook", results)


if __name__ == "__main__":
    main()
