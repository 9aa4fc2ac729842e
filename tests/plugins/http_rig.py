"""What the HTTP tests share: a sink on a real socket before the real engine, and ways to ask."""

from __future__ import annotations

import json
import socket
import ssl
from contextlib import asynccontextmanager
from urllib.parse import urlencode

import h11
import httpx
import trio

from tardisd.instances import DaemonHost
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import MINUTE, SECOND, parse_time
from tardisd.metrics import exposition
from tardisd.plugins.base import Context
from tardisd.plugins.exchange import Page
from tardisd.plugins.host import Board
from tardisd.replay.manager import SessionLimits, SessionManager
from tardisd.state import State
from tardisd.testing.ticks import random_candles, random_trades
from tardisd_http.plugin import HttpOptions, HttpSink
from tardisd_sqlite.plugin import SqliteOptions, SqliteStorage

START = parse_time("2024-03-01T00:00:00Z")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
TRADES = Series.parse("binance:BTC/USDT@trade")
CANDLE_COUNT = 1440
TRADE_COUNT = 12_000
DAY = {"start_time": "2024-03-01T00:00:00Z", "end_time": "2024-03-02T00:00:00Z"}
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to read the trusted ones takes 30 ms a test
BTC = {"exchange": "binance", "symbol": "BTC/USDT", **DAY}


class Rig:
    """A running sink, its engine, and ways to ask."""

    def __init__(self, sink, sessions, host, board, folder):
        self.sink = sink
        self.sessions = sessions
        self.host = host
        self.board = board
        self.folder = folder
        self.client = None
        self.tls = None
        self.streams = []

    async def ask(self, method, path, content=None, status=200, **options):
        """Send a request; return the JSON of the answer, which must have the status."""
        if content is not None:
            options["json" if isinstance(content, dict) else "content"] = content
        answer = await self.client.request(method, path, **options)
        assert answer.status_code == status, (answer.status_code, answer.text)
        return answer.json() if answer.content else None

    async def refused(self, status, code, method, path, content=None, **options):
        """Send a request that must be refused; return the message."""
        told = await self.ask(method, path, content, status, **options)
        assert (told["type"], told["code"]) == ("error", code), told
        return told["message"]

    async def create(self, **fields):
        """Create a session over a day of candles at most speed, paused; return the answer."""
        fields = {**BTC, "speed": "max", "start_paused": True, **fields}
        return await self.ask("POST", "/api/replay/create", fields, 201)

    @asynccontextmanager
    async def lines(self, session_id, **query):
        """Stream a session; yield an iterator of its lines as JSON."""
        stream = await self.raw()
        if self.tls is not None:
            stream = trio.SSLStream(stream, self.tls, server_hostname="127.0.0.1")
        lines = Lines(stream)
        try:
            await lines.ask(f"/api/replay/{session_id}/stream?{urlencode(query)}")
            yield lines
        finally:
            await trio.aclose_forcefully(stream)

    async def everything(self, session_id, **query):
        """Resume a paused session and return all lines of a stream of it."""
        found = []
        async with self.lines(session_id, **query) as lines:
            async for line in lines:
                if not found:
                    await self.ask("POST", f"/api/replay/{session_id}/resume")
                found.append(line)
        return found

    async def everything_again(self, session_id, **query):
        """Return all lines of a stream of a session that has ended or runs by itself."""
        async with self.lines(session_id, **query) as lines:
            return [line async for line in lines]

    async def raw(self, data=b"", receive_buffer=None):
        """Connect a bare TCP stream, and send something."""
        one = trio.socket.socket()
        if receive_buffer is not None:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await one.connect(self.sink.address)
        stream = trio.SocketStream(one)
        self.streams.append(stream)
        await stream.send_all(data)
        return stream


class Lines:
    """Reads an answer line by line, as JSON."""

    def __init__(self, stream):
        self._stream = stream
        self._connection = h11.Connection(h11.CLIENT)
        self._buffer = b""

    async def ask(self, path):
        headers = [("Host", "localhost")]
        request = h11.Request(method="GET", target=path, headers=headers)
        data = self._connection.send(request) + self._connection.send(h11.EndOfMessage())
        await self._stream.send_all(data)
        answer = await self._event()
        assert answer.status_code == 200
        assert dict(answer.headers)[b"content-type"] == b"application/x-ndjson"

    async def _event(self):
        with trio.fail_after(100):
            while (event := self._connection.next_event()) is h11.NEED_DATA:
                self._connection.receive_data(await self._stream.receive_some(65536))
        return event

    def __aiter__(self):
        return self

    async def __anext__(self):
        while b"\n" not in self._buffer:
            event = await self._event()
            if isinstance(event, h11.EndOfMessage):
                assert not self._buffer
                raise StopAsyncIteration
            self._buffer += event.data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line, parse_float=str)


async def gone(stream):
    """Read until the server has closed; return what came."""
    data = b""
    try:
        while more := await stream.receive_some(65536):
            data += more
    except trio.BrokenResourceError:
        pass
    return data


def status_of(data):
    """Return the status of a raw answer, or None when there is none."""
    head = data.split(b"\r\n")[0].split()
    return int(head[1]) if len(head) > 1 else None


@asynccontextmanager
async def running(folder, limits=None, client=None, *, restoring=False, **options):
    """Run a sink before an engine with a day of candles and some trades."""
    state = State(folder / "state.sqlite")
    storage = SqliteStorage(SqliteOptions(), Context("main", folder, None))
    async with storage.run():
        candles = random_candles(CANDLES, CANDLE_COUNT, START)
        await storage.append(CANDLES, Page(candles, Span(START, START + CANDLE_COUNT * MINUTE)))
        trades = random_trades(TRADES, TRADE_COUNT, START)
        await storage.append(TRADES, Page(trades, Span(START, trades.ts_event[-1].item() + SECOND)))
        sessions = SessionManager({"main": storage}, "main", {}, state, limits or SessionLimits())
        board = Board()
        host = DaemonHost(
            {"main": storage},
            "main",
            metrics=lambda: exposition([session.status() for session in sessions.list()]),
            ready=True,
        )
        sink = HttpSink(
            HttpOptions(**{"listen": "127.0.0.1:0", **options}),
            Context("http", folder, sessions, host=host, board=board),
        )
        async with sessions.run(restoring=restoring), sink.run():
            rig = Rig(sink, sessions, host, board, folder)
            rig.tls = (client or {}).get("verify")
            try:
                ways = {"timeout": 30, "trust_env": False, "verify": NO_TLS, **(client or {})}
                async with httpx.AsyncClient(base_url=sink.url, **ways) as rig.client:
                    yield rig
            finally:
                for stream in rig.streams:
                    stream.socket.close()
    state.close()
