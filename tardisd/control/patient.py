"""Write to a pipe whose reader may pause for ever, without holding a thread for ever.

A blocking write in a thread cannot be cancelled. This one looks up now and then whether anybody
still wants it; files on disk need none of it.
"""

from __future__ import annotations

import errno
import io
import os
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Event
from typing import TYPE_CHECKING, BinaryIO, cast

import trio

from tardisd.errors import TardisError

if TYPE_CHECKING:
    from typing_extensions import Buffer

LOOK_UP_EVERY_MS = 200


class PatientWriter(io.RawIOBase):
    """A raw file over a descriptor that stays its owner's; `give_up` ends a waiting write."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._given_up = Event()

    def give_up(self) -> None:
        """Let every write from now on, and the one that waits, fail with ECANCELED."""
        self._given_up.set()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Buffer, /) -> int:
        """Write some of it, waiting until there is room; raises OSError."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        while not self._given_up.is_set():
            if poll.poll(LOOK_UP_EVERY_MS):
                # A pipe that has room has room for so much; its mode is not ours to change.
                return os.write(self._descriptor, memoryview(data)[: select.PIPE_BUF])
        raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))


@asynccontextmanager
async def patient_writer(descriptor: int) -> AsyncIterator[BinaryIO]:
    """Give a file to write to in threads; cancelling the block ends a write that waits."""
    out = PatientWriter(descriptor)

    async def look_after() -> None:
        try:
            await trio.sleep_forever()
        finally:
            out.give_up()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_after)
        try:
            yield cast(BinaryIO, out)
        except (OSError, TardisError):
            # A write that was given up fails because we are cancelled, and that is what counts.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise
        nursery.cancel_scope.cancel()
