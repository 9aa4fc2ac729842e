"""The stream that hypercorn reads from and writes to: watched, and to be torn from its hands."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import trio

LINGER_SECS = 1.0
LINGER_BYTES = 4 * 1024 * 1024
CLOSE_SECS = 1.0
# A peer that vanished without a word, while nothing is sent to it, is noticed by the kernel.
KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))

Secure = trio.SSLStream[trio.SocketStream]


class WatchedStream:
    """A client's connection. `scope` is cancelled by `abort`."""

    def __init__(
        self, base: trio.SocketStream, transport: trio.SocketStream | Secure | None = None
    ) -> None:
        base.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE:
            if hasattr(socket, name):
                base.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.scope = trio.CancelScope()
        self._requests = 0
        self._base = base
        self._transport = transport or base
        self._touched = trio.current_time()
        self._sending_since: float | None = None
        self._receiving: trio.CancelScope | None = None
        self._ended = False
        self._closing = False

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket, for the addresses of both ends."""
        return self._base.socket

    @property
    def secure(self) -> bool:
        """Whether it is under TLS."""
        return self._transport is not self._base

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request while the block lasts."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            self._leave_if_done()

    def _leave_if_done(self) -> None:
        if self._ended and not self._requests:
            self.abort()

    def is_stuck(self, now: float, idle_secs: float, stall_secs: float) -> bool:
        """Tell whether the client has kept us waiting for too long."""
        if self._sending_since is not None:
            return now - self._sending_since >= stall_secs
        return not self._requests and now - self._touched >= idle_secs

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write; raises BrokenResourceError or ClosedResourceError when the client is gone."""
        with self._writing():
            await self._transport.send_all(data)

    async def send_chunk(self, data: memoryview) -> None:
        """Write a chunk of an answer past hypercorn, which would copy it twice.

        Only for an answer in chunks whose head has been written, by the task that writes it. A
        write that is cancelled leaves a torn chunk behind, so the connection is dropped.
        """
        parts: list[bytes | memoryview] = [b"%x\r\n" % len(data), data, b"\r\n"]
        sent = 0
        with self._writing():
            try:
                if not self.secure:
                    sent = await _send_some(self._base, parts)
                for part in parts:
                    if sent < len(part):
                        await self._transport.send_all(part[sent:] if sent else part)
                    sent = max(0, sent - len(part))
            except trio.Cancelled:
                self.abort()
                raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._closing:
            raise trio.ClosedResourceError("the connection is closing")
        self._sending_since = trio.current_time()
        try:
            yield
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._ended = True  # a reader that waits behind a pipelined request does not see it
            raise
        finally:
            self._sending_since = None
            self._touched = trio.current_time()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return what has come in; ClosedResourceError when `aclose` came between.

        A client that has gone and waits for no answer is done with: hypercorn would keep it until
        it has been idle for long enough.
        """
        if self._closing:
            raise trio.ClosedResourceError("the connection is closing")
        data: bytes | bytearray = b""
        self._receiving = trio.CancelScope()
        try:
            with self._receiving:
                data = await self._transport.receive_some(max_bytes)
        finally:
            if not data and not self._closing:
                self._ended = True
                self._leave_if_done()
        if self._receiving.cancelled_caught:
            raise trio.ClosedResourceError("the connection is closing")
        self._touched = trio.current_time()
        return data

    async def aclose(self) -> None:
        """Close; first hear the client out, for a moment, or TCP would take the answer back."""
        if self._closing:
            return
        self._closing = True
        if self._receiving is not None:
            self._receiving.cancel()
        try:
            if not self._ended and not self.secure:
                with trio.move_on_after(LINGER_SECS):
                    await self._hear_out()
            with trio.move_on_after(CLOSE_SECS):
                await self._transport.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            pass  # the client is gone already
        finally:
            self.abort()  # else hypercorn waits until the connection has been idle for long enough

    async def _hear_out(self) -> None:
        await self._base.send_eof()
        left = LINGER_BYTES
        while left > 0 and (data := await self._base.receive_some(65536)):
            left -= len(data)

    def abort(self) -> None:
        """Drop the connection at once, whatever is in flight, and end its tasks."""
        self._closing = self._ended = True
        self._base.socket.close()
        self.scope.cancel()


async def _send_some(stream: trio.SocketStream, parts: list[bytes | memoryview]) -> int:
    """Write as much as goes at once, in one call; return how many bytes that was."""
    try:
        return await stream.socket.sendmsg(parts)
    except OSError as error:
        raise trio.BrokenResourceError("the client is gone") from error
