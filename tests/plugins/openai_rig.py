"""What the tests of the AI analyzers share: a chat service on loopback that misbehaves on demand.

It speaks as the services do, over real sockets, and remembers what it was asked. An action is a
function from a request to what to send: byte strings, one after another, and at the end maybe HANG
(send nothing more until the client has gone) or CUT (close at once).
"""

from __future__ import annotations

import json
import queue
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio

from tardisd.config.convert import decoder
from tardisd.errors import RequestError
from tardisd.market.time import parse_time
from tardisd.plugins.analyzer import Question
from tardisd.plugins.base import Context
from tardisd_openai.options import OpenaiOptions
from tardisd_openai.plugin import OpenaiAnalyzer

KEY = "sk-tardisd-0123456789abcdef"
HANG = b"\0hang"
CUT = b"\0cut"
USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
OPEN_MS = 1_709_251_200_000  # 2024-03-01T00:00:00Z
FAST = {"backoff_secs": 0.001, "backoff_max_secs": 0.002}
CHUNK_END = b"0\r\n\r\n"


@dataclass
class Asked:
    """One request as it came in."""

    method: str
    path: str
    headers: dict
    body: dict

    @property
    def text(self):
        return self.body["messages"][-1]["content"]


def raw(status, body, kind="application/json", **headers):
    """Answer with a status and these bytes, text or JSON."""
    if not isinstance(body, str | bytes):
        body = json.dumps(body)
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(data)}", f"Content-Type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    answer = "\r\n".join([*lines, "", ""]).encode() + data
    return lambda asked: [answer]


def whole(content, finish="stop", usage=USAGE, message=None, **more):
    """Answer in one piece, even when a stream was asked for."""
    said = {"role": "assistant", "content": content} if message is None else message
    choice = {"index": 0, "message": said, "finish_reason": finish}
    fields = {"id": "hs-1", "object": "chat.completion", "model": "gpt-4.1", "choices": [choice]}
    return raw(200, {**fields, **({} if usage is None else {"usage": usage}), **more})


def event(value):
    """Return a piece of a stream."""
    return b"data: " + (value.encode() if isinstance(value, str) else json.dumps(value).encode())


def delta(content=None, finish=None, **more):
    """Return a piece of a stream that says something."""
    said = {"content": content, **more}
    return event({"model": "gpt-4.1", "choices": [{"delta": said, "finish_reason": finish}]})


def stream(*parts, end=(CHUNK_END,)):
    """Answer with an event stream in exactly these pieces of bytes, as chunks."""
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    pieces = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
    return lambda asked: [head, *pieces, *end]


def says(content, finish="stop", usage=USAGE):
    """Answer well: in pieces or whole, as was asked."""

    def act(asked):
        if not asked.body.get("stream"):
            return whole(content, finish, usage)(asked)
        half = len(content) // 2
        parts = [
            delta("", role="assistant"),
            delta(content[:half]),
            delta(content[half:]),
            delta(None, finish),
            event({"choices": [], "usage": usage}),
            event("[DONE]"),
        ]
        return stream(*(part + b"\n\n" for part in parts))(asked)

    return act


class AiServer:
    """Listens on loopback; each request gets the next action, and the last one stays."""

    def __init__(self, *actions):
        self.actions = list(actions) or [says("It goes up.")]
        self.asked = []
        self.busy = self.most_busy = 0
        self.gone = 0

    def then(self, *actions):
        """Begin anew with these actions."""
        self.actions = list(actions)
        self.asked.clear()

    @asynccontextmanager
    async def running(self):
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1")
            listeners = await nursery.start(serve)
            self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1"
            yield self
            nursery.cancel_scope.cancel()

    @contextmanager
    def running_apart(self):
        """Run it in a loop of its own, in a thread."""
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

    async def _serve(self, connection):
        async with connection:
            try:
                while (asked := await self._read(connection)) is not None:
                    if not await self._respond(connection, asked):
                        return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    async def _read(self, connection):
        data = b""
        while b"\r\n\r\n" not in data:
            more = await connection.receive_some()
            if not more:
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            more = await connection.receive_some()
            if not more:
                return None
            body += more
        return Asked(method, path, headers, json.loads(body) if body else {})

    async def _respond(self, connection, asked):
        self.asked.append(asked)
        action = self.actions.pop(0) if len(self.actions) > 1 else self.actions[0]
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            for part in action(asked):
                if part == HANG:
                    await connection.receive_some()
                if part in {HANG, CUT}:
                    self.gone += 1
                    return False
                await connection.send_all(part)
                await trio.lowlevel.checkpoint()
        finally:
            self.busy -= 1
        return True


@dataclass
class Known:
    """The sessions of a daemon that has these."""

    found: dict = field(default_factory=dict)

    def get(self, session_id):
        if session_id not in self.found:
            raise RequestError("session_not_found", f"no session {session_id!r}")
        return self.found[session_id]


def make(cls=OpenaiAnalyzer, folder=None, url="http://127.0.0.1:1/v1", name="ai", **options):
    """Return an analyzer as a configuration would make it."""
    values = {"api_key": KEY, "base_url": url, **FAST, **options}
    converted = msgspec.convert(values, OpenaiOptions, dec_hook=decoder({}))
    return cls(converted, Context(name, folder, Known()))


def candle(at=0, **more):
    """Return the `data` of a made-up candle of 1 minute."""
    opened = OPEN_MS + at * 60_000
    times = {"timestamp": opened, "close_time": opened + 60_000}
    names = {"symbol": "BTC/USDT", "exchange": "binance", "interval": "1m"}
    values = {"open": 1.5, "high": 3, "low": 1, "close": 2.25, "volume": 10 + at}
    return {**times, **names, **values, **more}


def question(count=3, kind="pattern", session_id=None, **more):
    """Return a question about candles."""
    ticks = [candle(at, replay_time=1, **more) for at in range(count)]
    return Question(ticks, kind, session_id, None)


def signal(**more):
    """Return a signal about the candles of `question()`, as a model would write it."""
    fields = {
        "symbol": "BTC/USDT",
        "as_of": "2024-03-01T00:03:00Z",
        "horizon": "hours",
        "action": "buy",
        "confidence": 0.7,
        "rationale": "it goes up",
        "evidence": ["2024-03-01T00:01:00Z"],
    }
    return json.dumps({**fields, **more})


START = parse_time("2024-03-01T00:00:00Z")
