"""One subscription of one client: takes what the session delivers and writes it as frames.

It decides nothing about slow clients; the engine does, and says so by eviction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import trio

from tardisd.plugins.requests import Delivery
from tardisd.plugins.sessions import (
    Block,
    Dismissed,
    Evicted,
    Notice,
    Resume,
    Rows,
    Session,
    Subscription,
)
from tardisd_websocket.stream import PIECE_BYTES, FrameStream, frame_header, text_frame

MAX_TICKS = 1000  # in one `ticks` message
Parts = tuple[bytes | memoryview, ...]


def notice_frame(session_id: str, notice: Notice) -> bytes:
    """Return a notice as the frame of one message."""
    message: dict[str, Any] = {"type": notice.type, "session_id": session_id, **notice.fields}
    if notice.request_id is not None:
        message["id"] = notice.request_id
    return text_frame(msgspec.json.encode(message))


def pieces(rows: Rows, most: int) -> Iterator[tuple[int, int]]:
    """Return rows in runs `first <= i < last` of at most `most` rows and PIECE_BYTES, if it can be.

    Unlike `Rows.cut` it says which rows they are, so that the last seq written is known.
    """
    first, count = 0, len(rows)
    while first < count:
        last = min(first + most, count)
        while (size := len(rows.bytes(first, last))) > PIECE_BYTES and last - first > 1:
            last = first + max(1, (last - first) * PIECE_BYTES // size)
        yield first, last
        first = last


def tick_frames(block: Block) -> Iterator[tuple[int, Parts]]:
    """Return a block as `tick` messages: (last seq, whole frames), piece by piece."""
    rows = block.encode("tick")
    for first, last in pieces(rows, len(rows)):
        yield block.first_seq + last - 1, (rows.bytes(first, last),)


def ticks_frames(block: Block) -> Iterator[tuple[int, Parts]]:
    """Return a block as `ticks` messages: (last seq, the frame of one message).

    The rows are not copied: all followers send the same bytes.
    """
    rows = block.encode("batch")
    session_id = msgspec.json.encode(block.session_id)
    for first, last in pieces(rows, MAX_TICKS):
        head = b'{"type":"ticks","session_id":%b,"epoch":%d,"first_seq":%d,"data":[' % (
            session_id,
            block.epoch,
            block.first_seq + first,
        )
        data = rows.bytes(first, last)[:-1]  # each row ends in a comma; the last one has to go
        head = frame_header(len(head) + len(data) + 2) + head
        yield block.first_seq + last - 1, (head, data, b"]}")


class Follower:
    """A subscription and the task that writes what it delivers."""

    def __init__(
        self,
        session: Session,
        subscription: Subscription,
        delivery: Delivery,
        frames: FrameStream,
        resume: Resume | None = None,
    ) -> None:
        self.session = session
        self.subscription = subscription
        self.sending = False
        self.evicted = self.dismissed = False
        self.done = trio.Event()
        self._encode: Callable[[Block], Iterator[tuple[int, Parts]]] = (
            ticks_frames if delivery == "batch" else tick_frames
        )
        self._frames = frames
        self._leaving = False
        self._epoch, self._seq = (0, 0) if resume is None else (resume.epoch, resume.from_seq)
        #: What a snapshot that comes first is of.
        self._joined: tuple[int, int] | None = None
        if resume is None:
            status = session.status()
            self._joined = status["epoch"], status["seq"]
            # Until it has that, it comes back as if from before: then it gets a snapshot again.
            self._epoch = max(1, status["epoch"] - 1)

    @property
    def token(self) -> str:
        """Where the client may resume: session, epoch and the last seq written out whole."""
        return f"session={self.session.session_id} epoch={self._epoch} seq={self._seq}"

    async def run(self) -> None:
        """Write until the session ends, `leave` is called or the engine cuts it off (`evicted`)."""
        try:
            while True:
                await self._write(await self.subscription.receive())
        except trio.EndOfChannel:
            pass
        except Evicted as error:
            self.evicted, self.dismissed = True, isinstance(error, Dismissed)
        finally:
            self.subscription.close()
            self.done.set()

    def leave(self) -> None:
        """Have the task stop after the frames it is writing and what it owes in replies.

        `done` tells when.
        """
        self._leaving = True
        self.subscription.leave()

    async def _write(self, item: Block | Notice) -> None:
        if isinstance(item, Notice):
            await self._send(notice_frame(self.session.session_id, item))
            if item.fields.keys() >= {"epoch", "seq"}:  # `sought` only speaks of an epoch
                self._came_to(item.fields["epoch"], item.fields["seq"])
            elif item.type == "snapshot" and self._joined is not None:
                self._came_to(*self._joined)
            return
        for seq, parts in self._encode(item):
            if self._leaving:
                return
            await self._send(*parts)
            self._came_to(item.epoch, seq)

    def _came_to(self, epoch: int, seq: int) -> None:
        self._epoch, self._seq, self._joined = epoch, seq, None

    async def _send(self, *parts: bytes | memoryview) -> None:
        self.sending = True
        await self._frames.send(*parts)
        self.sending = False
