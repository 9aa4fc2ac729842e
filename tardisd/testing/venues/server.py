"""A small HTTP/1.1 server on loopback that can also misbehave; knows no venue."""

from __future__ import annotations

import gzip
import io
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qsl, unquote

import h11
import trio

_CHUNK = 256 * 1024
_MAX_REQUEST = 64 * 1024
_IDLE_SECS = 600.0


@dataclass(frozen=True, slots=True)
class Request:
    """One GET or HEAD; `query` is as it was sent, `params` the last value of each name."""

    method: str
    path: str
    query: str
    params: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def target(self) -> str:
        """Path and query as one text."""
        return f"{self.path}?{self.query}" if self.query else self.path


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back: a body in memory or a file, and how far the sending gets."""

    body: bytes | Path = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    compress: bool = False
    stop_after: int | None = None
    reset: bool = False
    stall_after: int | None = None
    stall_secs: float = 0.0


def dumped(value: object) -> bytes:
    """Return JSON without blanks."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


Handler = Callable[[Request], Awaitable[Answer]]


@asynccontextmanager
async def serve(handlers: Mapping[str, Handler]) -> AsyncIterator[dict[str, str]]:
    """Serve each handler at a loopback port of its own; yield their URLs by the same names.

    What the body raises comes out as it is, not in a group.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            urls = {}
            for name, handler in handlers.items():
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                port = listeners[0].socket.getsockname()[1]
                urls[name] = f"http://127.0.0.1:{port}"
                talk = partial(_converse, handler=handler)
                await nursery.start(trio.serve_listeners, talk, listeners)
            try:
                yield urls
            except BaseException as error:
                failure = error
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if failure is not None and group.exceptions == (failure,):
            raise failure from None
        raise


async def _converse(stream: trio.SocketStream, handler: Handler) -> None:
    """Answer the requests of one connection; a client that goes away ends it."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_REQUEST)
    try:
        async with stream:
            while True:
                with trio.move_on_after(_IDLE_SECS) as idle:
                    request = await _read_request(stream, connection)
                if idle.cancelled_caught or request is None:
                    return
                if not await _send(stream, connection, request, await handler(request)):
                    return
                connection.start_next_cycle()
    except (trio.BrokenResourceError, h11.RemoteProtocolError):
        return


async def _read_request(stream: trio.SocketStream, connection: h11.Connection) -> Request | None:
    found = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(_MAX_REQUEST))
        elif isinstance(event, h11.Request):
            found = event
        elif isinstance(event, h11.EndOfMessage) and found is not None:
            path, _, query = found.target.decode("ascii").partition("?")
            return Request(
                found.method.decode("ascii"),
                unquote(path),
                query,
                dict(parse_qsl(query, keep_blank_values=True)),
                {name.decode("ascii"): value.decode("latin-1") for name, value in found.headers},
            )
        elif isinstance(event, h11.ConnectionClosed):
            return None


async def _send(
    stream: trio.SocketStream, connection: h11.Connection, request: Request, answer: Answer
) -> bool:
    """Send an answer as far as it says; return whether the connection is still good."""
    answer, start, size = _prepared(request, answer)
    head = h11.Response(
        status_code=answer.status,
        reason=HTTPStatus(answer.status).phrase.encode(),
        headers=[
            *answer.headers.items(),
            ("Date", formatdate(usegmt=True)),
            ("Content-Length", str(size)),
        ],
    )
    if answer.stall_secs and answer.stall_after is None:
        await trio.sleep(answer.stall_secs)
    if answer.reset and answer.stop_after is None:
        _reset(stream)
        return False
    await stream.send_all(connection.send(head) or b"")
    if request.method != "HEAD" and not await _send_body(stream, connection, answer, start, size):
        return False
    await stream.send_all(connection.send(h11.EndOfMessage()) or b"")
    return connection.our_state is h11.DONE


async def _send_body(
    stream: trio.SocketStream, connection: h11.Connection, answer: Answer, start: int, size: int
) -> bool:
    body = answer.body
    source = io.BytesIO(body) if isinstance(body, bytes) else body.open("rb")
    limit = size if answer.stop_after is None else min(answer.stop_after, size)
    stall = -1 if answer.stall_after is None else min(answer.stall_after, size)
    sent = 0
    with source:
        source.seek(start)
        while True:
            if sent == stall:
                await trio.sleep(answer.stall_secs)
            if sent >= limit:
                break
            room = min(_CHUNK, limit - sent, stall - sent if sent < stall else _CHUNK)
            if isinstance(body, bytes):
                part = source.read(room)
            else:
                part = await trio.to_thread.run_sync(source.read, room)
            await stream.send_all(connection.send(h11.Data(data=part)) or b"")
            sent += len(part)
    if answer.stop_after is None:
        return True
    if answer.reset:
        _reset(stream)
    return False


def _prepared(request: Request, answer: Answer) -> tuple[Answer, int, int]:
    """Return the answer with its encoding and range settled, where its body starts, and its size.

    Only files have ranges; only bodies in memory are compressed, when both sides want it.
    """
    headers = {"Content-Type": "application/octet-stream", **answer.headers}
    body = answer.body
    if isinstance(body, bytes):
        if answer.compress and "gzip" in request.headers.get("accept-encoding", ""):
            body = gzip.compress(body, 1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        return replace(answer, headers=headers, body=body), 0, len(body)
    size = body.stat().st_size
    headers["Accept-Ranges"] = "bytes"
    wanted = _range(request, answer.status, headers, size)
    if wanted is None:
        return replace(answer, headers=headers), 0, size
    start, end = wanted
    if start >= size:
        headers["Content-Range"] = f"bytes */{size}"
        return replace(answer, headers=headers, body=b"", status=416), 0, 0
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return replace(answer, headers=headers, status=206), start, end - start


def _range(
    request: Request, status: int, headers: Mapping[str, str], size: int
) -> tuple[int, int] | None:
    """Return the part of a file that is asked for; None when all of it is."""
    text = request.headers.get("range", "")
    condition = request.headers.get("if-range")
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", text)
    if match is None or status != HTTPStatus.OK:
        return None
    if condition is not None and condition not in (
        headers.get("ETag"),
        headers.get("Last-Modified"),
    ):
        return None
    first, last = match.groups()
    if not first:
        return max(size - int(last or 0), 0), size
    return int(first), min(int(last) + 1, size) if last else size


def _reset(stream: trio.SocketStream) -> None:
    """Close with RST: the client finds its connection reset."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()
