"""A byte stream that trio-websocket and whole prebuilt frames share; knows no message.

trio-websocket does the protocol: handshake, pings, close, everything inbound. It costs 40 µs a
message outbound, so ticks come as finished frames and go past it, straight into this stream. One
lock keeps the two apart: whoever holds it writes whole frames. A write that is cancelled half-way
leaves a torn frame behind; nothing may follow it, so the stream counts as broken from then on.

A plain socket is written to directly, as long as it takes what it is given: going through trio's
scheduler twice for each piece cost more than the write itself. What does not go at once waits in
trio, as it should.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable

import trio

Transport = trio.SocketStream | trio.SSLStream[trio.SocketStream]

# Written under one hold of the lock, so that pongs and replies get in.
PIECE_BYTES = 240 * 1024
# Written without waiting, at most, before other tasks get their turn: about a millisecond's worth.
TURN_BYTES = 1024 * 1024
TURN_WRITES = 16
LINGER_SECS = 2.0
LINGER_BYTES = 64 * 1024 * 1024
_TEXT = 0x81  # FIN and opcode 1
_CLOSE = 0x88
PING = b"\x89\x00"


def frame_header(length: int) -> bytes:
    """Return the header of an unmasked text frame with `length` bytes of payload."""
    if length < 126:
        return bytes((_TEXT, length))
    if length < 65536:
        return struct.pack("!BBH", _TEXT, 126, length)
    return struct.pack("!BBQ", _TEXT, 127, length)


def text_frame(*parts: bytes | memoryview) -> bytes:
    """Return one text frame that holds `parts` in a row, copied once."""
    return b"".join((frame_header(sum(map(len, parts))), *parts))


def close_frame(code: int, reason: str) -> bytes:
    """Return a close frame; a reason that is too long is cut."""
    payload = struct.pack("!H", code) + reason.encode()[:123]
    return bytes((_CLOSE, len(payload))) + payload


class FrameStream(trio.abc.Stream):
    """The stream handed to trio-websocket; `send` is the way past it for finished frames."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = trio.Lock()
        self._closing = False
        self._reading = False
        self._turn_bytes, self._turn_writes = 0, 0
        self.broken = False
        self.farewell: Callable[[], bytes | None] = lambda: None
        self.ended = trio.Event()
        self.heard_at = trio.current_time()
        self.sent_since_heard = 0

    async def send(self, *parts: bytes | memoryview) -> None:
        """Write whole frames, given in parts; raises ClosedResourceError after a close frame.

        It is no checkpoint each time, only now and then.
        """
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            if self._closing:
                raise trio.ClosedResourceError("the WebSocket is closing")
            await self._write(*parts)
        finally:
            self._lock.release()
        self._turn_bytes += sum(map(len, parts))
        self._turn_writes += 1
        if self._turn_bytes >= TURN_BYTES or self._turn_writes >= TURN_WRITES:
            self._turn_bytes, self._turn_writes = 0, 0
            await trio.lowlevel.checkpoint()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write what trio-websocket has to say: one whole frame, or the handshake."""
        async with self._lock:
            if data and data[0] == _CLOSE:
                if self._closing:
                    return
                self._closing = True  # nothing may follow a close frame
            await self._write(data)

    async def _write(self, *parts: bytes | bytearray | memoryview) -> None:
        if self.broken:
            raise trio.BrokenResourceError("an earlier write was cut short")
        self.broken = True
        if isinstance(self._transport, trio.SocketStream):
            await self._write_directly(
                self._transport.socket, deque(memoryview(part) for part in parts)
            )
        else:
            await self._transport.send_all(b"".join(parts))
        self.broken = False
        self.sent_since_heard += sum(map(len, parts))

    async def _write_directly(
        self, socket_: trio.socket.SocketType, parts: deque[memoryview]
    ) -> None:
        while parts:
            descriptor = socket_.fileno()
            if descriptor < 0:
                raise trio.ClosedResourceError("the connection was closed")
            try:
                sent = os.writev(descriptor, parts)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(socket_)
                continue
            except OSError as error:
                raise trio.BrokenResourceError(f"cannot write: {error}") from error
            while parts and sent >= len(parts[0]):
                sent -= len(parts.popleft())
            if sent:
                parts[0] = parts[0][sent:]

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until a write would likely go through at once."""
        await self._transport.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return what has come in, and take note that the client is alive."""
        data: bytes | bytearray = b""
        self._reading = True
        try:
            data = await self._transport.receive_some(max_bytes)
        finally:
            self._reading = False
            if not data:
                self.ended.set()
        self.heard_at = trio.current_time()
        self.sent_since_heard = 0
        return data

    async def aclose(self) -> None:
        """Close; after a close frame first hear the client out, for a moment.

        Closing a socket with unread bytes in it makes TCP reset the connection, and the client
        would lose the close frame that says what was wrong. When a client breaks the protocol,
        trio-websocket closes without sending one; `farewell` is asked for it then.
        """
        ended = self.ended.is_set()
        self.ended.set()
        try:
            with trio.move_on_after(LINGER_SECS):
                await self._say_farewell()
                if self._closing and not (ended or self._reading or self.broken):
                    await self._hear_out()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client is gone already
        finally:
            self._closing = True
            with trio.move_on_after(LINGER_SECS):
                await self._transport.aclose()

    async def _say_farewell(self) -> None:
        word = self.farewell()
        if word is not None and not self._closing:
            await self.send_all(word)

    async def _hear_out(self) -> None:
        if isinstance(self._transport, trio.SocketStream):
            await self._transport.send_eof()
        left = LINGER_BYTES
        while left > 0 and (data := await self._transport.receive_some(65536)):
            left -= len(data)

    async def abort(self) -> None:
        """Drop the connection at once, whatever is in flight."""
        self.broken = self._closing = True
        self.ended.set()
        await trio.aclose_forcefully(self._transport)
