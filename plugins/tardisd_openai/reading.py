"""Bodies of requests and answers, in pieces and bounded, in ways that httpx's generators bear.

They want to be ended from within: whoever leaves one early must be cancelled, or it is left behind.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

import httpx
import trio

from .completion import DONE, Completion, Events, Nonsense

MOST_BYTES = 8 * 1024 * 1024


class Body(httpx.AsyncByteStream):
    """A body in one piece; httpx's own is a generator, left behind when sending fails."""

    def __init__(self, body: bytes) -> None:
        self._rest = [body]

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        if not self._rest:
            raise StopAsyncIteration
        return self._rest.pop()


async def each_part(
    response: httpx.Response, take: Callable[[bytes, trio.CancelScope], None]
) -> None:
    """Hand the body over in pieces until it ends or `take` cancels. Raises Nonsense.

    Nothing is raised among httpx's generators, so unpacking is done here.
    """
    unpack = _unpacker(response.headers.get("content-encoding", "identity"))
    problem: Nonsense | None = None
    size = 0
    with trio.CancelScope() as scope:
        async for part in response.aiter_raw():
            if scope.cancel_called:
                continue
            try:
                data = unpack(part)
                size += len(data)
                if size > MOST_BYTES:
                    raise Nonsense(f"more than {MOST_BYTES} bytes")
                take(data, scope)
            except Nonsense as error:
                problem = error
                scope.cancel()
    if problem is not None:
        raise problem


def _unpacker(encoding: str) -> Callable[[bytes], bytes]:
    if encoding == "identity":
        return lambda part: part
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def unpack(part: bytes) -> bytes:
        try:
            data = unpacking.decompress(part, MOST_BYTES + 1)
        except zlib.error as error:
            raise Nonsense(f"damaged content ({encoding}: {error})") from None
        if unpacking.unconsumed_tail:
            raise Nonsense(f"more than {MOST_BYTES} bytes")
        return data

    return unpack


def take_all(body: bytes, found: Completion) -> None:
    """Take in an event stream that came whole. Raises Nonsense."""
    events = Events()
    take_events(events.feed(body), found)
    take_events(events.end(), found)


def take_events(events: Iterable[object], found: Completion) -> None:
    """Take in pieces up to the end, or an error. Raises Nonsense."""
    for event in events:
        if event == DONE:
            found.done = True
        if found.done or found.error is not None:
            return
        found.take(event)


def looks_like_events(body: bytes) -> bool:
    """Tell whether a body is an event stream, whatever its head says."""
    return body.lstrip()[:5] in {b"data:", b"event", b": kee"}
