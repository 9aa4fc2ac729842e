"""A WebSocket client for the end-to-end tests: synchronous, exact, fast enough for whole sessions.

It knows the protocol's messages and nothing of how the daemon is run.
"""

from __future__ import annotations

import base64
import json
import os
import socket
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec

DEADLINE_SECS = 120.0  # for machines under load; only a failure takes so long
_DECODER = msgspec.json.Decoder(float_hook=Decimal)


class Closed(Exception):
    """Raised when the server has closed the connection; `code` is that of its close frame."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


class WebSocket:
    """A WebSocket client on a plain socket; fast enough to read everything a session says."""

    def __init__(self, port: int, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE_SECS)
        self.socket.connect(("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            (
                "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
            ).encode()
        )
        self._buffer = b""
        self._at = 0
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        self.hello = self.get()
        assert self.hello["type"] == "connected"

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Vanish."""
        self.socket.close()

    def send_frame(self, payload: bytes, opcode: int = 1) -> None:
        """Send one frame."""
        size = len(payload)
        if size < 126:
            head = bytes([0x80 | opcode, 0x80 | size])
        elif size < 65536:
            head = bytes([0x80 | opcode, 0x80 | 126]) + size.to_bytes(2)
        else:
            head = bytes([0x80 | opcode, 0x80 | 127]) + size.to_bytes(8)
        self.socket.sendall(head + bytes(4) + payload)  # masked with zeros

    def send(self, kind: str, **fields: object) -> None:
        """Send a request."""
        self.send_frame(json.dumps({"type": kind, **fields}).encode())

    def ask(self, kind: str, **fields: object) -> dict[str, Any]:
        """Send a request with an id; return its reply, skipping what else comes before it."""
        self.send(kind, id="ask", **fields)
        return self.until(lambda message: message.get("id") == "ask")

    def get(self) -> dict[str, Any]:
        """Return the next message, numbers exact. Raises Closed."""
        while True:
            opcode, payload = self._frame()
            if opcode == 1:
                message: dict[str, Any] = _DECODER.decode(payload)
                return message
            if opcode == 8:
                self.socket.close()
                raise Closed(int.from_bytes(payload[:2]), payload[2:].decode())
            if opcode == 9:
                self.send_frame(payload, 10)

    def until(self, found: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first message that is meant, skipping others."""
        while not found(message := self.get()):
            pass
        return message

    def until_type(self, *types: str) -> dict[str, Any]:
        """Return the first message of one of the types."""
        return self.until(lambda message: message["type"] in types)

    def replay(self, **fields: object) -> Received:
        """Create a session and receive it to its end."""
        created = self.ask("create_session", **fields)
        assert created["type"] == "session_created", created
        return self.receive()

    def receive(self) -> Received:
        """Receive a session to its end."""
        received = Received()
        while received.end is None:
            received.take(self.get())
        return received

    def _frame(self) -> tuple[int, bytes]:
        head = self._take(2)
        size = head[1] & 127
        if size > 125:
            size = int.from_bytes(self._take(2 if size == 126 else 8))
        return head[0] & 15, self._take(size)

    def _take(self, count: int) -> bytes:
        while len(self._buffer) - self._at < count:
            self._buffer, self._at = self._buffer[self._at :], 0
            self._fill()
        self._at += count
        return self._buffer[self._at - count : self._at]

    def _fill(self) -> None:
        try:
            data = self.socket.recv(1 << 18)
        except (ConnectionResetError, BrokenPipeError):
            data = b""
        if not data:
            self.socket.close()
            raise Closed(None, "without a close frame")
        self._buffer += data


class Received:
    """What a follower of a session was told: its ticks by sequence number, and the rest."""

    def __init__(self) -> None:
        self.ticks: list[tuple[int, str, dict[str, Any]]] = []
        self.others: list[dict[str, Any]] = []
        self.end: dict[str, Any] | None = None

    def take(self, message: dict[str, Any]) -> None:
        """Take in a message."""
        match message["type"]:
            case "tick":
                self.ticks.append((message["seq"], message["channel"], message["data"]))
            case "ticks":
                first = message["first_seq"]
                self.ticks += [
                    (first + at, one["channel"], one) for at, one in enumerate(message["data"])
                ]
            case "end":
                self.end = message
            case _:
                self.others.append(message)

    @property
    def hash(self) -> str:
        """The content hash that `end` told."""
        assert self.end is not None
        return str(self.end["hash"])

    def check_seq(self) -> None:
        """Fail unless ticks and gap marks together count from 1 without a hole."""
        seqs = [seq for seq, _, _ in self.ticks]
        seqs += [other["seq"] for other in self.others if other["type"] == "gap"]
        assert sorted(seqs) == list(range(1, len(seqs) + 1))
        assert self.end is not None
        assert self.end["ticks"] == len(self.ticks)
