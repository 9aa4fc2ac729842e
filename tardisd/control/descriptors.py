"""File descriptors that cross the control socket (SCM_RIGHTS); opens no file itself.

Whoever holds a `Descriptors` owns the files and closes them, on every path.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tardisd.control.protocol import MAX_DESCRIPTORS

ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)

Ancillary = list[tuple[int, int, bytes]]


class Descriptors:
    """Open files that came with one request, in order."""

    def __init__(self, files: Iterable[int] = (), *, too_many: bool = False) -> None:
        self._files = list(files)
        self.too_many = too_many

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[int]:
        return iter(self._files)

    def add(self, other: Descriptors) -> None:
        """Take over the files of `other`; more than a request may have are closed at once."""
        self._files += other._files
        other._files = []
        self.too_many |= other.too_many or len(self._files) > MAX_DESCRIPTORS
        if self.too_many:
            self.close()

    def close(self) -> None:
        """Close them; idempotent."""
        while self._files:
            os.close(self._files.pop())


@dataclass(frozen=True, slots=True)
class Received:
    """What one receive brought: bytes, and the files that belong to the last request in them."""

    data: bytes
    files: Descriptors


def received(data: bytes, ancillary: Ancillary, flags: int) -> Received:
    """Return what recvmsg gave; files the kernel had to cut off count as too many."""
    files: list[int] = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
            files.extend(numbers)
    descriptors = Descriptors(files, too_many=bool(flags & socket.MSG_CTRUNC))
    if descriptors.too_many:
        descriptors.close()
    return Received(data, descriptors)
