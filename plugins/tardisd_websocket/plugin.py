"""The WebSocket sink: its options, its listener and the way in; one client's talk is elsewhere."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, ClassVar

import trio
from msgspec import Meta
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    WebSocketRequest,
    wrap_server_stream,
)
from wsproto.utilities import ProtocolError

from tardisd.log import Log
from tardisd.plugins.base import Context
from tardisd.plugins.listening import (
    ListeningOptions,
    open_listeners,
    tls_context,
    tune,
    url_of,
)
from tardisd.plugins.requests import Quota
from tardisd.plugins.sink import Sink
from tardisd.supervise import attempt, describe
from tardisd_websocket.connection import GOING_AWAY, Connection, refuse
from tardisd_websocket.stream import FrameStream, Transport, close_frame

HANDSHAKE_SECS = 10.0
STOP_SECS = 1.5  # who is stuck has had half of shutdown_secs already
MORE_SOCKETS = 100  # that may be in the handshake, or being told that the house is full
READ_BYTES = 16 * 1024
BREACHES = frozenset({1002, 1003, 1007})

log = Log("tardisd.websocket")


class WebSocketOptions(ListeningOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of the WebSocket sink."""

    listen: Annotated[
        str, Meta(description="Address to listen on; other than loopback needs a token")
    ] = "127.0.0.1:8001"
    max_clients: Annotated[int, Meta(ge=1, description="Clients connected at once")] = 1000
    max_sessions: Annotated[int, Meta(ge=1, description="Sessions running at once")] = 100
    max_message_bytes: Annotated[int, Meta(ge=1024, description="Longest request that is read")] = (
        1024 * 1024
    )


class WebSocketSink(Sink[WebSocketOptions]):
    """Serves sessions to WebSocket clients, which create and follow them by themselves."""

    name: ClassVar[str] = "websocket"
    Options: ClassVar[type[WebSocketOptions]] = WebSocketOptions

    def __init__(self, options: WebSocketOptions, context: Context) -> None:
        super().__init__(options, context)
        self._access = options.access()
        self._quota = Quota(context.sessions, options.max_sessions)
        self._sockets = 0
        self._connections: set[Connection] = set()
        self._address: tuple[str, int] | None = None
        self._tls: ssl.SSLContext | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on; RuntimeError while it does not run."""
        if self._address is None:
            raise RuntimeError("the WebSocket sink does not run yet")
        return self._address

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return url_of("ws" if self.options.tls_cert is None else "wss", self.address)

    def claims(self) -> frozenset[str]:
        """Return the port that it listens on."""
        return self.options.claims()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Listen until left; then tell every client that the server goes away."""
        self._tls = tls_context(self.options)
        listeners = await open_listeners(self.options.listen)
        self._address = listeners[0].socket.getsockname()[:2]
        log.info("websocket listening", instance=self.context.name, url=self.url)
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_listeners, self._serve, listeners, handler_nursery=nursery)
            accepting = await nursery.start(_cancellable, serve)
            try:
                yield
            finally:
                accepting.cancel()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_SECS):
                    await self._close_all()
                nursery.cancel_scope.cancel()
                self._address = None

    async def _serve(self, socket: trio.SocketStream) -> None:
        """Serve one client. Whatever goes wrong with it stays here."""
        if self._sockets >= self.options.max_clients + MORE_SOCKETS:
            return  # serve_listeners closes it
        self._sockets += 1
        try:
            error = await attempt(self._until_gone, socket)
        finally:
            self._sockets -= 1
        if error is not None:
            log.error("websocket client failed", error=describe(error))

    async def _until_gone(self, socket: trio.SocketStream) -> None:
        try:
            await self._welcome(socket)
        except* (
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            ConnectionClosed,
            ProtocolError,
            OSError,
        ) as gone:
            log.debug("websocket client gone", reason=repr(gone.exceptions[0]))

    async def _welcome(self, socket: trio.SocketStream) -> None:
        tune(socket)
        transport: Transport = socket
        if self._tls is not None:
            transport = trio.SSLStream(socket, self._tls, server_side=True)
        frames = FrameStream(transport)
        async with trio.open_nursery() as nursery:
            request = await self._handshake(nursery, frames)
            if request is not None:
                await self._admit(request, frames)
                await frames.aclose()
            nursery.cancel_scope.cancel()

    async def _handshake(
        self, nursery: trio.Nursery, frames: FrameStream
    ) -> WebSocketRequest | None:
        """Return the client's request; None when none came in time, or no sensible one.

        trio-websocket waits for ever when the client goes in the middle of it or sends garbage.
        """
        request: WebSocketRequest | None = None
        with trio.move_on_after(HANDSHAKE_SECS):
            async with trio.open_nursery() as race:

                async def give_up() -> None:
                    await frames.ended.wait()
                    race.cancel_scope.cancel()

                race.start_soon(give_up)
                request = await wrap_server_stream(
                    nursery,
                    frames,
                    max_message_size=self.options.max_message_bytes,
                    receive_buffer_size=READ_BYTES,
                )
                race.cancel_scope.cancel()
        return request

    async def _admit(self, request: WebSocketRequest, frames: FrameStream) -> None:
        if len(self._connections) >= self.options.max_clients:
            body = b"too many clients; try again later\n"
            await request.reject(503, extra_headers=[(b"Retry-After", b"5")], body=body)
            return
        refusal = self._access.refusal(request.path, request.headers)
        websocket = await request.accept()
        frames.farewell = partial(_farewell, websocket)
        if refusal is not None:
            await refuse(websocket, frames, refusal)
            return
        connection = Connection(
            websocket,
            frames,
            self.context.sessions,
            self.context.host,
            self._quota,
            self.options.max_message_bytes,
        )
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    async def _close_all(self) -> None:
        async with trio.open_nursery() as nursery:
            for connection in self._connections:
                nursery.start_soon(connection.close, GOING_AWAY, "the server stops")


def _farewell(websocket: WebSocketConnection) -> bytes | None:
    reason = websocket.closed
    if reason is None or reason.code not in BREACHES:
        return None
    return close_frame(reason.code, reason.reason or "")


async def _cancellable(
    serve: Callable[..., object],
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await serve()  # type: ignore[misc]
