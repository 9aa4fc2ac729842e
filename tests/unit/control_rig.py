"""What the control tests share: the real server before the real engine, and raw clients."""

from __future__ import annotations

import array
import json
import os
import socket
from contextlib import asynccontextmanager

import trio

from tardisd.backfill.jobs import JobBook
from tardisd.config.load import load_config
from tardisd.control.server import serve_control
from tardisd.control.services import InstanceState, Services
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import MINUTE, parse_time
from tardisd.plugins.base import Context
from tardisd.plugins.exchange import Page
from tardisd.replay.manager import SessionLimits, SessionManager
from tardisd.state import State
from tardisd.testing.ticks import random_candles
from tardisd_sqlite.plugin import SqliteOptions, SqliteStorage

START = parse_time("2024-03-01T00:00:00Z")
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
DAY = {"start_time": "2024-03-01T00:00:00Z", "end_time": "2024-03-02T00:00:00Z"}

CONFIG = """
[daemon]
data_dir = "{folder}"
control_socket = "{folder}/control.sock"

[storages.main]
plugin = "sqlite"

[exchanges.made]
plugin = "synthetic"

[sessions.demo]
series = ["binance:BTC/USDT@candle_1m"]
start = 2024-03-01T00:00:00Z
end = 2024-03-02T00:00:00Z
speed = "max"
"""


class Rig:
    """A listening control server."""

    def __init__(self, path, services, storage, cancel):
        self.path = path
        self.services = services
        self.storage = storage
        self.stopped = trio.Event()
        self.cancel = cancel

    @asynccontextmanager
    async def client(self):
        """Connect a client that speaks raw lines."""
        one = trio.socket.socket(socket.AF_UNIX)
        await one.connect(str(self.path))
        async with trio.SocketStream(one) as stream:
            yield Client(stream)


class Client:
    """A client that speaks JSON-RPC lines, badly if the test wants it."""

    def __init__(self, stream):
        self.stream = stream
        self._bytes = b""
        self._calls = 0

    async def send(self, data):
        await self.stream.send_all(data)

    async def send_with_files(self, data, files):
        """Send bytes together with descriptors."""
        numbers = array.array("i", files)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)]
        sent = await self.stream.socket.sendmsg([data], rights)
        await self.stream.send_all(data[sent:])

    async def get(self):
        """Return the next line, or None when the server has hung up."""
        with trio.fail_after(100):
            while b"\n" not in self._bytes:
                try:
                    piece = await self.stream.receive_some()
                except trio.BrokenResourceError:
                    piece = b""
                if not piece:
                    return None
                self._bytes += piece
        line, _, self._bytes = self._bytes.partition(b"\n")
        return json.loads(line)

    def line(self, method, **params):
        """Return a request as bytes."""
        self._calls += 1
        request = {"jsonrpc": "2.0", "id": self._calls, "method": method, "params": params}
        return json.dumps(request).encode() + b"\n"

    async def ask(self, method, **params):
        """Return (answer, notifications before it)."""
        await self.send(self.line(method, **params))
        return await self.answer()

    async def answer(self):
        told = []
        while (message := await self.get()) is not None:
            if "method" not in message:
                return message, told
            told.append(message)
        raise AssertionError("the server hung up")

    async def result(self, method, **params):
        """Return the result of a call that must succeed."""
        answer, _ = await self.ask(method, **params)
        assert "error" not in answer, answer
        return answer["result"]

    async def refusal(self, method, **params):
        """Return the slug of a call that must fail."""
        answer, _ = await self.ask(method, **params)
        return answer["error"]["data"]["code"]


async def store_candles(storage, count=1440, start=START):
    """Store candles that cover just themselves."""
    batch = random_candles(CANDLES, count, start)
    await storage.append(CANDLES, Page(batch, Span(start, start + count * MINUTE)))


@asynccontextmanager
async def running(folder, *, restoring=False):
    """Hold a control server with one storage and real sessions."""
    (folder / "config.toml").write_text(CONFIG.format(folder=folder))
    config = load_config(folder / "config.toml", os.environ)
    storages = {}
    state = State(folder / "state.sqlite")
    sessions = SessionManager(storages, "main", {}, state, SessionLimits())
    context = Context("main", folder, sessions)
    storage = storages["main"] = SqliteStorage(SqliteOptions(), context)
    made = config.instances["exchange"]["made"]
    exchange = made.cls(made.options, Context("made", folder, sessions))
    exchanges = {"made": exchange}
    backfills = JobBook(storages, exchanges, state)
    stopped = trio.Event()
    restarted = []

    async def reload():
        load_config(folder / "config.toml", os.environ)
        return {"changed": []}

    async def restart(kind, name):
        restarted.append((kind, name))

    services = Services(
        config=config,
        sessions=sessions,
        storages=storages,
        backfills=backfills,
        exchanges=exchanges,
        instances=lambda: [
            InstanceState("storage", "main", "sqlite", "running"),
            InstanceState("exchange", "made", "synthetic", "running"),
        ],
        metrics=lambda: "tardisd_up 1\n",
        reload=reload,
        restart=restart,
        request_stop=stopped.set,
        spool_dir=folder,
        started_at=START,
    )
    try:
        async with (
            storage.run(),
            exchange.run(),
            backfills.run(),
            sessions.run(restoring=restoring),
            trio.open_nursery() as nursery,
        ):
            await nursery.start(serve_control, config.daemon.control_socket, services)
            rig = Rig(config.daemon.control_socket, services, storage, nursery.cancel_scope)
            rig.stopped = stopped
            rig.restarted = restarted
            yield rig
            nursery.cancel_scope.cancel()
    finally:
        state.close()
