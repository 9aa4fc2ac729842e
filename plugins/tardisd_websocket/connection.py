"""One client from `connected` to the end: reads requests, keeps watch, says goodbye.

It neither listens nor decides who may come in. Tasks of a connection, all in one nursery: this one
drains trio-websocket's queue, since a full queue stops pongs too; the heartbeat; per follower one
that writes ticks and one that waits for its eviction.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

import msgspec
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

import tardisd
from tardisd.errors import RequestError, TardisError
from tardisd.plugins.host import Host
from tardisd.plugins.requests import Quota
from tardisd.plugins.sessions import Sessions
from tardisd.wall import wall_ms
from tardisd_websocket.decoding import Refused, decode, error_message
from tardisd_websocket.follower import Follower
from tardisd_websocket.requests import Requests
from tardisd_websocket.stream import PING, FrameStream, text_frame

PROTOCOL = 1
HEARTBEAT_SECS = 20.0
STALL_SECS = 60.0  # how long a reply may wait for a client that does not read
CLOSE_SECS = 5.0
BACKLOG_BYTES = 64 * 1024
BACKLOG_SECS = 300.0
UNAUTHORIZED, TOO_SLOW, TOO_LARGE = 4401, 4408, 1009
GOING_AWAY = 1001
_REASON_BYTES = 123  # what a close frame can hold


async def refuse(websocket: WebSocketConnection, frames: FrameStream, why: str) -> None:
    """Tell a client that it may not come in, and close."""
    message = error_message(RequestError("unauthorized", why), None, None)
    with trio.move_on_after(CLOSE_SECS):
        await frames.send(text_frame(msgspec.json.encode(message)))
        await websocket.aclose(UNAUTHORIZED, "unauthorized")


class Connection:
    """A client that has been let in."""

    def __init__(
        self,
        websocket: WebSocketConnection,
        frames: FrameStream,
        sessions: Sessions,
        host: Host,
        quota: Quota,
        max_message_bytes: int,
    ) -> None:
        self._websocket = websocket
        self._frames = frames
        self._sessions = sessions
        self._max_message_bytes = max_message_bytes
        self._client_id = secrets.token_hex(8)
        self._requests = Requests(
            self._client_id, sessions, host, quota, frames, self._send, self._follow, self._start
        )
        self._answering = False
        self._pinging = False
        self._closing = False
        self._nursery: trio.Nursery | None = None

    async def serve(self) -> None:
        """Serve until the client goes or is sent away."""
        try:
            async with trio.open_nursery() as self._nursery:
                hello = {
                    "type": "connected",
                    "clientId": self._client_id,
                    "timestamp": wall_ms(),
                    "server": f"tardisd/{tardisd.__version__}",
                    "protocol": PROTOCOL,
                }
                await self._send(text_frame(msgspec.json.encode(hello)))
                self._nursery.start_soon(self._heartbeat)
                await self._sessions.recovered()
                await self._read()
                if not self._closing:  # else `close` waits for the client's own close frame
                    self._nursery.cancel_scope.cancel()
        finally:
            self._requests.leave()

    async def close(self, code: int, reason: str) -> None:
        """Close with a reason if the client listens, else drop it; then end `serve`."""
        if self._closing:
            return
        self._closing = True
        with trio.move_on_after(CLOSE_SECS):
            await self._websocket.aclose(code, reason[:_REASON_BYTES])
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def _read(self) -> None:
        while True:
            try:
                message = await self._websocket.get_message()
            except ConnectionClosed:
                return
            # trio-websocket counts characters; the limit is in bytes.
            size = len(message.encode() if isinstance(message, str) else message)
            if size > self._max_message_bytes:
                limit = f"message exceeds {self._max_message_bytes} bytes"
                await self.close(TOO_LARGE, limit)
                return
            self._answering = True
            await self._answer(message)
            self._answering = False

    async def _answer(self, message: str | bytes) -> None:
        try:
            if isinstance(message, bytes):
                raise Refused("bad_request", "a binary frame; send one JSON object per text frame")
            request = decode(message)
        except Refused as error:
            await self._send_error(error, error.request_id, error.session_id)
            return
        try:
            await self._requests.answer(request)
        except TardisError as error:
            session_id = getattr(request, "session_id", None)
            known = session_id if isinstance(session_id, str) else None
            await self._send_error(error, request.request_id, known)

    async def _send_error(
        self, error: TardisError, request_id: msgspec.Raw | None, session_id: str | None
    ) -> None:
        message = error_message(error, request_id, session_id)
        await self._send(text_frame(msgspec.json.encode(message)))

    async def _send(self, frame: bytes) -> None:
        with trio.move_on_after(STALL_SECS) as patience:
            await self._frames.send(frame)
        if patience.cancelled_caught:
            raise trio.BrokenResourceError("the client does not read its replies")

    def _follow(self, follower: Follower) -> None:
        assert self._nursery is not None, "requests are answered while serving"
        self._nursery.start_soon(self._run, follower)

    def _start(self, action: Callable[[], Awaitable[None]]) -> None:
        assert self._nursery is not None, "requests are answered while serving"
        self._nursery.start_soon(action)

    async def _run(self, follower: Follower) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, follower)
            await self._requests.run(follower)
            if not follower.evicted:
                nursery.cancel_scope.cancel()

    async def _watch(self, follower: Follower) -> None:
        """Send a client away that the engine has cut off, though its task be stuck in a write.

        A write that the client reads on is finished first, so that the close frame can follow.
        """
        await follower.subscription.wait_evicted()
        follower.evicted = True
        follower.leave()
        with trio.move_on_after(CLOSE_SECS):
            await follower.done.wait()
        if not follower.done.is_set():
            await self._frames.abort()
            raise trio.BrokenResourceError("the client does not read")
        if follower.dismissed:
            await self.close(GOING_AWAY, f"restart; resume with {follower.token}")
        else:
            await self.close(TOO_SLOW, f"too slow; resume with {follower.token}")

    async def _heartbeat(self) -> None:
        """Ping; drop a client from which nothing at all comes back.

        A pong stands in line behind the ticks that the client has yet to read, so a slow reader is
        late with it and no less alive. While a write waits for it, `when_full` decides; after many
        ticks at once it gets more time.
        """
        asked: float | None = None
        while True:
            await trio.sleep(HEARTBEAT_SECS)
            now = trio.current_time()
            if asked is None or self._frames.heard_at >= asked or self._is_excused():
                asked = now
                if not self._pinging:
                    assert self._nursery is not None, "the heartbeat runs in it"
                    self._nursery.start_soon(self._ping)
                continue
            backlog = self._frames.sent_since_heard >= BACKLOG_BYTES
            if now - asked >= (BACKLOG_SECS if backlog else HEARTBEAT_SECS):
                await self._frames.abort()
                raise trio.BrokenResourceError("the client does not answer pings")

    def _is_excused(self) -> bool:
        sending = any(follower.sending for follower in self._requests.followers.values())
        return sending or self._answering

    async def _ping(self) -> None:
        self._pinging = True
        await self._frames.send(PING)
        self._pinging = False
