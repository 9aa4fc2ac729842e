"""A listener that never takes the last descriptors: storages and files need some to go on."""

from __future__ import annotations

import errno
import os
import resource

import trio

# What the daemon itself may open beside its clients: readers of the storage, files that sinks
# write, connections to venues.
SPARE_DESCRIPTORS = 128
# Of a low limit at most a quarter is spared.
SPARED_PART = 4


class SparingListener(trio.abc.Listener[trio.SocketStream]):
    """Accepts clients while more descriptors are free than are to be spared.

    Else `accept` raises OSError (EMFILE) as it would without any left, and the clients wait in the
    kernel's queue until others have gone: `trio.serve_listeners` tries again. With `first` it
    spares only half as many, so that it hears clients when others have no room left.
    """

    def __init__(self, listener: trio.SocketListener, *, first: bool = False) -> None:
        self.socket = listener.socket
        self._listener = listener
        self._parts = 2 if first else 1

    async def accept(self) -> trio.SocketStream:
        """Return the next client's stream. Raises OSError, trio.ClosedResourceError."""
        await trio.lowlevel.wait_readable(self.socket)
        # POSIX gives the lowest number that is free: all numbers below this one are taken.
        lowest = os.dup(self.socket.fileno())
        os.close(lowest)
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        spared = min(SPARE_DESCRIPTORS, most // SPARED_PART) // self._parts
        if most != resource.RLIM_INFINITY and lowest >= most - spared:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await self._listener.accept()

    async def aclose(self) -> None:
        """Stop listening."""
        await self._listener.aclose()
