"""What the webhook tests share: an HTTP server that fails in every way, and remembers."""

from __future__ import annotations

import hashlib
import hmac
import json
import queue
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio

from tardisd.config.convert import decoder
from tardisd.market.series import Series
from tardisd.market.time import parse_time
from tardisd.testing.blocks import make_blocks
from tardisd.testing.sink import sink_context
from tardisd.testing.ticks import random_trades
from tardisd_webhook.options import WebhookOptions
from tardisd_webhook.plugin import WebhookSink

START = parse_time("2024-03-01T00:00:00Z")
SECRET = "hush"
FAST = {"backoff_secs": 0.001, "backoff_max_secs": 0.01, "breaker_failures": 1000,
        "batch_ms": 3_600_000, "max_attempts": 10_000, "patience_secs": 0}  # fmt: skip


def make_sink(url, folder, name="hook", **options):
    values = {"url": url, "secret": SECRET, **FAST, **options}
    converted = msgspec.convert(values, WebhookOptions, dec_hook=decoder({}))
    return WebhookSink(converted, sink_context(folder, name))


def blocks_of(count, slice_ticks=100, name="s"):
    batch = random_trades(Series.parse("binance:BTC/USDT@trade"), count, START, 7)
    return make_blocks([batch], name, slice_ticks=slice_ticks)


def answer(status=200, body=b"", **headers):
    """Return the bytes of an answer."""
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Request:
    """One request as it came in."""

    at: float
    headers: dict
    body: bytes

    @property
    def key(self):
        return self.headers["idempotency-key"]

    @property
    def content(self):
        return json.loads(self.body)

    def seqs(self):
        first = self.content["first_seq"]
        return list(range(first, first + len(self.content["ticks"])))


@dataclass
class HookServer:
    """Listens on loopback. `behave(number, request)` returns what to do with a request.

    That is the bytes to answer, or one of: `late` (take it, but let the client wait in vain),
    That is the bytes to answer, or one of: `late` (take it, but let the client wait),
    does not end), `hang` (forget it).
    """

    behave: object = lambda number, request: answer()
    requests: list = field(default_factory=list)
    taken: dict = field(default_factory=dict)
    broken: bool = False
    busy: int = 0

    @asynccontextmanager
    async def running(self):
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1")
            listeners = await nursery.start(serve)
            port = listeners[0].socket.getsockname()[1]
            self.url = f"http://127.0.0.1:{port}/hook?token=t0ps3cret"
            yield self
            nursery.cancel_scope.cancel()

    @contextmanager
    def running_apart(self):
        """Run it in a loop of its own, in a thread, so that its tasks are not the test's."""
        started = queue.Queue()

        async def main():
            with trio.CancelScope() as scope:
                async with self.running():
                    started.put((trio.lowlevel.current_trio_token(), scope))
                    await trio.sleep_forever()

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(trio.run, main)
            token, scope = started.get(timeout=30)
            try:
                yield self
            finally:
                token.run_sync_soon(scope.cancel)
                done.result(30)

    async def _serve(self, stream):
        async with stream:
            try:
                while (request := await self._read(stream)) is not None:
                    if not await self._respond(stream, request):
                        return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    async def _read(self, stream):
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some()
            if not more:
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        assert lines[0] == "POST /hook?token=t0ps3cret HTTP/1.1"
        fields = (line.split(": ", 1) for line in lines[1:])
        headers = {name.lower(): value for name, value in fields}
        while len(body) < int(headers["content-length"]):
            more = await stream.receive_some()
            if not more:
                return None
            body += more
        return Request(trio.current_time(), headers, body)

    async def _respond(self, stream, request):
        self._check(request)
        self.requests.append(request)
        assert self.busy == 0, "two requests at once"
        self.busy += 1
        action = b"" if self.broken else self.behave(len(self.requests), request)
        self.busy -= 1
        if isinstance(action, bytes) and action:
            if action.startswith(b"HTTP/1.1 2"):
                self.taken.setdefault(request.key, request)
            await stream.send_all(action)
            return b"Connection: close" not in action
        if action == "late":
            self.taken.setdefault(request.key, request)
        if action == "cut":
            await stream.send_all(b"HTTP/1.1 20")
        if action == "drip":
            self.taken.setdefault(request.key, request)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx")
        if action in {"late", "hang", "drip"}:
            await stream.receive_some()  # until the client has had enough
        if action == "reset":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def _check(self, request):
        parts = dict(part.split("=") for part in request.headers["x-tardisd-signature"].split(","))
        signed = hmac.new(SECRET.encode(), f"{parts['t']}.".encode() + request.body, hashlib.sha256)
        assert parts["v1"] == signed.hexdigest()
        content = request.content
        assert list(content) == ["session_id", "epoch", "first_seq", "ticks"]
        assert request.key == f"{content['session_id']}:{content['epoch']}:{content['first_seq']}"
        earlier = self.taken.get(request.key)
        assert earlier is None or earlier.body == request.body

    def seqs(self, name="s"):
        """Return the numbers of all ticks that were taken, each key once, as they came."""
        taken = [one for one in self.taken.values() if one.content["session_id"] == name]
        return [seq for one in taken for seq in one.seqs()]
