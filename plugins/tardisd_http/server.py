"""Serves connections by hypercorn's trio worker, and keeps watch over each; knows no endpoint.

hypercorn speaks HTTP well, but trusts its clients. It writes in a scope that nothing can cancel, so
one that does not read could hold up a shutdown; it leaves tasks behind when a connection breaks
while a pipelined request waits, or when a body comes that nobody reads. Hence each connection gets
a stream that can be torn from its hands, and one task looks over all of them once a second.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from tardisd.log import Log
from tardisd.plugins.listening import tune
from tardisd.plugins.sparing import SparingListener
from tardisd.supervise import attempt, describe
from tardisd_http.answers import error_body
from tardisd_http.transport import WatchedStream

HANDSHAKE_SECS = 10.0
IDLE_SECS = 15.0  # for a request's head to come, and between requests
STALL_SECS = 60.0  # for a client to take what is written to it
LOOK_SECS = 1.0
STOP_SECS = 1.5
MORE_SOCKETS = 100  # that may be told that the house is full
HEAD_BYTES = 32 * 1024

App = Callable[[Any, Any, Any], Awaitable[None]]
log = Log("tardisd.http")


class Server:
    """Connections of one sink."""

    def __init__(self, app: App, tls: ssl.SSLContext | None, max_clients: int) -> None:
        self._app = ASGIWrapper(app)
        self._tls = tls
        self._max_clients = max_clients
        self._config = _config()
        self._context = WorkerContext(None)
        self._streams: set[WatchedStream] = set()
        self._sockets = 0
        self._one_left = trio.Event()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._streams)

    @asynccontextmanager
    async def serving(self, listeners: list[SparingListener]) -> AsyncIterator[None]:
        """Serve until left; then let answers that are under way finish, for a moment."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_after)
            serve = partial(trio.serve_listeners, self._serve, listeners, handler_nursery=nursery)
            accepting = await nursery.start(_cancellable, serve)
            try:
                yield
            finally:
                accepting.cancel()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_SECS):
                    await self._context.terminated.set()  # who waits for a request goes at once
                    while self._sockets:
                        await self._one_left.wait()
                for stream in list(self._streams):
                    stream.abort()
                nursery.cancel_scope.cancel()

    async def _serve(self, socket: trio.SocketStream) -> None:
        """Serve one client. Whatever goes wrong with it stays here."""
        if self._sockets >= self._max_clients + MORE_SOCKETS:
            return  # serve_listeners closes it
        self._sockets += 1
        try:
            error = await attempt(self._until_gone, socket)
        finally:
            self._sockets -= 1
            self._one_left.set()
            self._one_left = trio.Event()
        if error is not None:
            log.debug("http client gone", reason=describe(error))

    async def _until_gone(self, socket: trio.SocketStream) -> None:
        tune(socket)
        secure = None
        if self._tls is not None:
            secure = trio.SSLStream(socket, self._tls, server_side=True, https_compatible=True)
            with trio.move_on_after(HANDSHAKE_SECS) as patience:
                await secure.do_handshake()
            if patience.cancelled_caught:
                return
        stream = WatchedStream(socket, secure)
        if len(self._streams) >= self._max_clients:
            with trio.move_on_after(HANDSHAKE_SECS):
                await stream.send_all(_FULL)
                await stream.aclose()
            return
        self._streams.add(stream)
        try:
            with stream.scope:
                state = ConnectionState({"connection": stream})
                await _Worker(self._app, self._config, self._context, state, stream).run()
        finally:
            self._streams.discard(stream)

    async def _look_after(self) -> None:
        """Drop those who hold a connection and neither ask nor take what they asked for."""
        while True:
            await trio.sleep(LOOK_SECS)
            now = trio.current_time()
            for stream in list(self._streams):
                if stream.is_stuck(now, IDLE_SECS + 2 * LOOK_SECS, STALL_SECS):
                    stream.abort()


class _Http1(H11Protocol):
    """HTTP/1.1 that stays HTTP/1.1: of HTTP/2 a client gains nothing here but ways to do harm."""

    async def _check_protocol(self, event: object) -> None:
        """Let nobody change the protocol."""


class _Worker(TCPServer):
    """hypercorn's worker for one connection, without its changes of protocol."""

    def __init__(
        self,
        app: ASGIWrapper,
        config: Config,
        context: WorkerContext,
        state: ConnectionState,
        stream: WatchedStream,
    ) -> None:
        # It needs no more of a stream than ours has.
        super().__init__(app, config, context, state, stream)  # type: ignore[arg-type]
        self._watched = stream

    async def run(self) -> None:
        """Serve until the client goes, or is sent away."""
        socket = self._watched.socket
        client, server = (
            parse_socket_addr(socket.family, address)
            for address in (socket.getpeername(), socket.getsockname())
        )
        try:
            async with TaskGroup() as tasks:
                self._task_group = tasks
                self.protocol = _Http1(  # type: ignore[assignment]
                    self.app,
                    self.config,
                    self.context,
                    tasks,
                    ConnectionState(self.state),
                    self._watched.secure,
                    client,
                    server,
                    self.protocol_send,
                )
                await self.idle_task.restart(tasks, self._idle_timeout)
                await self._read_data()
        finally:
            await self._close()


class _Quiet:
    """What hypercorn logs: little of it concerns anybody, for the application fails nowhere."""

    def __init__(self, config: Config) -> None:
        pass

    async def access(self, *args: object) -> None:
        """Log no request."""

    async def exception(self, message: str, *args: object) -> None:
        """Log what only a fault of ours brings here."""
        log.error("http request broke", error=message)

    info = debug = warning = error = critical = access


def _config() -> Config:
    config = Config()
    config.logger_class = _Quiet  # type: ignore[assignment]
    config.h11_max_incomplete_size = HEAD_BYTES
    config.keep_alive_timeout = IDLE_SECS
    config.include_server_header = False
    return config


def _full_house() -> bytes:
    body = error_body("too_many_clients", "too many clients; try again later")
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


_FULL = _full_house()


async def _cancellable(
    serve: Callable[..., object],
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await serve()  # type: ignore[misc]
