"""A byte stream that trio-websocket and whole prebuilt frames share; knows no message.

trio-websocket does the protocol: handshake, pings, close, everything inbound. It costs 40 µs a
message outbound, so ticks come as finished frames and go past it, straight into this stream. One
lock keeps the two apart: whoever holds it writes whole frames. A write that is cancelled half-way
leaves a torn frame behind; nothing may follow it, so the stream counts as broken from then on.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    Transport = trio.SocketStream | trio.SSLStream[trio.SocketStream]

PIECE_BYTES = 256 * 1024  # written under one hold of the lock, so that pongs and replies get in
SEND_BUFFER_BYTES = 128 * 1024  # a pause reaches a slow client soon when little is in flight
NOT_SENT_BYTES = 128 * 1024
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


def tune(stream: trio.SocketStream) -> None:
    """Set the socket's options: little in flight, large writes, no delay."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_BYTES)


class FrameStream(trio.abc.Stream):
    """The stream handed to trio-websocket; `send` is the way past it for finished frames."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = trio.Lock()
        self._closing = False
        self._reading = False
        self.broken = False
        self.ended = trio.Event()
        self.heard_at = trio.current_time()
        self.sent_since_heard = 0

    async def send(self, frames: bytes | memoryview) -> None:
        """Write whole frames; raises ClosedResourceError after a close frame has gone out."""
        async with self._lock:
            if self._closing:
                raise trio.ClosedResourceError("the WebSocket is closing")
            await self._write(frames)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write what trio-websocket has to say: one whole frame, or the handshake."""
        async with self._lock:
            if data and data[0] == _CLOSE:
                self._closing = True  # nothing may follow a close frame
            await self._write(data)

    async def _write(self, data: bytes | bytearray | memoryview) -> None:
        if self.broken:
            raise trio.BrokenResourceError("an earlier write was cut short")
        self.broken = True
        await self._transport.send_all(data)
        self.broken = False
        self.sent_since_heard += len(data)

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
        would lose the close frame that says what was wrong.
        """
        linger = self._closing and not self._reading and not self.ended.is_set()
        self._closing = True
        self.ended.set()
        try:
            if linger and not self.broken:
                with trio.move_on_after(LINGER_SECS):
                    await self._hear_out()
        finally:
            with trio.move_on_after(LINGER_SECS):
                await self._transport.aclose()

    async def _hear_out(self) -> None:
        try:
            if isinstance(self._transport, trio.SocketStream):
                await self._transport.send_eof()
            left = LINGER_BYTES
            while left > 0 and (data := await self._transport.receive_some(65536)):
                left -= len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            pass  # gone already, or closed by another task: nothing left to hear

    async def abort(self) -> None:
        """Drop the connection at once, whatever is in flight."""
        self.broken = self._closing = True
        self.ended.set()
        await trio.aclose_forcefully(self._transport)
