"""What the WebSocket tests share: a sink on a real socket before the real engine, and clients."""

from __future__ import annotations

import json
import socket
from contextlib import asynccontextmanager

import trio
from trio_websocket import open_websocket_url

from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import MINUTE, SECOND, parse_time
from tardisd.plugins.base import Context
from tardisd.plugins.exchange import Page
from tardisd.replay.manager import SessionLimits, SessionManager
from tardisd.state import State
from tardisd.testing.ticks import random_candles, random_trades
from tardisd_sqlite.plugin import SqliteOptions, SqliteStorage
from tardisd_websocket.plugin import WebSocketOptions, WebSocketSink

START = parse_time("2024-03-01T00:00:00Z")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
TRADES = Series.parse("binance:BTC/USDT@trade")
CANDLE_COUNT = 1440
TRADE_COUNT = 12_000
DAY = {"start_time": "2024-03-01T00:00:00Z", "end_time": "2024-03-02T00:00:00Z"}


class Rig:
    """A running sink, its engine, and a way to connect."""

    def __init__(self, sink, sessions):
        self.sink = sink
        self.sessions = sessions
        self.streams = []

    @asynccontextmanager
    async def client(self, path="", **options):
        """Connect a client that has heard `connected`."""
        async with open_websocket_url(
            self.sink.url.rstrip("/") + path, max_message_size=2**24, **options
        ) as websocket:
            client = Client(websocket)
            client.hello = await client.get()
            try:
                yield client
            finally:
                await websocket.aclose()
                # trio-websocket leaves the socket of a client open that the server has closed.
                await trio.aclose_forcefully(websocket._stream)

    async def raw(self, receive_buffer=None):
        """Connect a bare TCP stream."""
        one = trio.socket.socket()
        if receive_buffer is not None:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await one.connect(self.sink.address)
        self.streams.append(trio.SocketStream(one))
        return self.streams[-1]

    async def shaken(self, path="/", receive_buffer=None):
        """Connect a bare TCP stream and do the WebSocket handshake by hand."""
        stream = await self.raw(receive_buffer)
        await stream.send_all(handshake(path))
        reply = b""
        while b"\r\n\r\n" not in reply:
            more = await stream.receive_some(1)  # what comes behind it is for the test
            assert more, f"closed during the handshake, after {reply!r}"
            reply += more
        assert reply.startswith(b"HTTP/1.1 101")
        return stream


class Client:
    """A WebSocket client that speaks JSON."""

    def __init__(self, websocket):
        self.websocket = websocket
        self.hello = None

    async def send(self, type_, **fields):
        await self.websocket.send_message(json.dumps({"type": type_, **fields}))

    async def get(self):
        with trio.fail_after(100):
            return json.loads(await self.websocket.get_message(), parse_float=str)

    async def until(self, *types):
        """Return what comes up to and with the first message of one of the types."""
        seen = [await self.get()]
        while seen[-1]["type"] not in types:
            seen.append(await self.get())
        return seen

    async def ask(self, type_, **fields):
        """Send a request, and return the next message."""
        await self.send(type_, **fields)
        return await self.get()

    async def create(self, **fields):
        """Create a session over a day of candles at most speed; return the reply."""
        fields = {**DAY, "speed": "max", **fields}
        if "series" not in fields:
            fields = {"exchange": "binance", "symbol": "BTC/USDT", **fields}
        return await self.ask("create_session", **fields)


def handshake(path="/", **headers):
    """Return the bytes of a client's handshake."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def client_frame(payload, opcode=1, final=True):
    """Return a client's frame, masked with zeros."""
    head = bytes([(0x80 if final else 0) | opcode])
    if len(payload) < 126:
        head += bytes([0x80 | len(payload)])
    elif len(payload) < 65536:
        head += b"\xfe" + len(payload).to_bytes(2)
    else:
        head += b"\xff" + len(payload).to_bytes(8)
    return head + bytes(4) + payload


class Frames:
    """Reads a server's frames from a bare stream."""

    def __init__(self, stream):
        self.stream = stream
        self._buffer = b""

    async def get(self):
        """Return (opcode, payload) of the next frame, or None at the end."""
        head = await self._take(2)
        if head is None:
            return None
        length = head[1] & 127
        if length > 125:
            length = int.from_bytes(await self._take(2 if length == 126 else 8))
        return head[0] & 15, await self._take(length)

    async def _take(self, count):
        while len(self._buffer) < count:
            with trio.fail_after(100):
                data = await self.stream.receive_some(65536)
            if not data:
                return None
            self._buffer += data
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken


async def gone(stream):
    """Read until the server has closed; return what came."""
    data = b""
    try:
        while more := await stream.receive_some(65536):
            data += more
    except trio.BrokenResourceError:
        pass
    return data


@asynccontextmanager
async def running(folder, limits=None, *, restoring=False, **options):
    """Run a sink before an engine with a day of candles and some trades."""
    state = State(folder / "state.sqlite")
    storage = SqliteStorage(SqliteOptions(), Context("main", folder, None))
    async with storage.run():
        candles = random_candles(CANDLES, CANDLE_COUNT, START)
        await storage.append(CANDLES, Page(candles, Span(START, START + CANDLE_COUNT * MINUTE)))
        trades = random_trades(TRADES, TRADE_COUNT, START)
        await storage.append(TRADES, Page(trades, Span(START, trades.ts_event[-1].item() + SECOND)))
        sessions = SessionManager({"main": storage}, "main", {}, state, limits or SessionLimits())
        sink = WebSocketSink(
            WebSocketOptions(**{"listen": "127.0.0.1:0", **options}),
            Context("ws", folder, sessions),
        )
        async with sessions.run(restoring=restoring), sink.run():
            rig = Rig(sink, sessions)
            try:
                yield rig
            finally:
                for stream in rig.streams:
                    stream.socket.close()
    state.close()
