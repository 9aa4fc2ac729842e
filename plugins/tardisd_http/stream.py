"""A session as NDJSON, a line for each tick and notice; how fast it comes the engine decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

import msgspec
import trio
from starlette.responses import Response

from tardisd.plugins.sessions import Block, Dismissed, Evicted, Notice, Subscription
from tardisd_http.answers import error_body, message_of
from tardisd_http.transport import WatchedStream

NDJSON = "application/x-ndjson"
FORM = "ndjson"
PIECE_BYTES = 240 * 1024
FAREWELL_SECS = 5.0
_WHY = {
    False: ("too_slow", "too slow; go on after the last line with epoch and from_seq"),
    True: (
        "stopping",
        "the daemon stops; go on with the next one, after the last line, with epoch and from_seq",
    ),
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class SessionStream(Response):
    """The answer that goes on for as long as the session does and the client reads.

    It says `first` where it begins (`subscribed`). A client that the engine cuts off gets an
    `error` as its last line if it reads at all; else the connection is dropped.
    """

    media_type = NDJSON

    def __init__(
        self,
        first: dict[str, Any],
        subscription: Subscription,
        connection: WatchedStream,
        counted: AbstractContextManager[None],
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first = {"type": "subscribed", **first}
        self._session_id = str(first["session_id"])
        self._subscription = subscription
        self._connection = connection
        self._counted = counted
        self._evicted = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all."""
        try:
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body"})
                return
            with self._counted:
                await self._stream(receive, send, chunked=scope["http_version"] == "1.1")
        finally:
            self._subscription.close()

    async def _stream(self, receive: Receive, send: Send, *, chunked: bool) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_client_goes, receive, nursery.cancel_scope)
            nursery.start_soon(self._until_cut_off)
            await self._write(send, chunked=chunked)
            nursery.cancel_scope.cancel()

    async def _write(self, send: Send, *, chunked: bool) -> None:
        async def put(data: bytes | memoryview) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        put_piece = self._connection.send_chunk if chunked else put

        await put(_line(self._first))
        try:
            while True:  # who was cut off in the middle of a block learns it at the next `receive`
                item = await self._subscription.receive()
                if isinstance(item, Notice):
                    await put(_line(message_of(self._session_id, item)))
                else:
                    await self._deliver(item, put_piece)
        except trio.EndOfChannel:
            pass
        except Evicted as error:
            self._evicted = True
            code, text = _WHY[isinstance(error, Dismissed)]
            await put(error_body(code, text, session_id=self._session_id))
        await send({"type": "http.response.body"})

    async def _deliver(self, block: Block, put: Callable[[memoryview], Awaitable[None]]) -> None:
        for piece in block.encode(FORM).cut(PIECE_BYTES):
            if self._evicted:
                return
            await put(piece)

    async def _until_client_goes(self, receive: Receive, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._subscription.close()  # at once: the session must not wait for a write that hangs
        scope.cancel()

    async def _until_cut_off(self) -> None:
        """End a stream that the engine has cut off, though its task be stuck in a write.

        A write that the client reads on is finished first, so that the last line can follow.
        """
        await self._subscription.wait_evicted()
        self._evicted = True
        await trio.sleep(FAREWELL_SECS)
        self._connection.abort()


def _line(message: dict[str, Any]) -> bytes:
    return msgspec.json.encode(message) + b"\n"
