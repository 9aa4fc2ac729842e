"""The dead-letter file: one line of JSON for what was not delivered. Synchronous, bounded."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class DeadLetters:
    """Appends whole lines, synced to disk; a file that is full becomes `FILE.1`."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path = path
        self._most_bytes = most_bytes

    def append(self, line: bytes) -> None:
        """Add a line, or raise OSError and add nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = self._locked()
        try:
            size = os.fstat(handle).st_size
            if size and size + len(line) >= self._most_bytes:
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
                os.close(handle)
                handle = self._locked()
                size = os.fstat(handle).st_size
            torn = bool(size) and os.pread(handle, 1, size - 1) != b"\n"  # by a crash
            data = memoryview((b"\n" if torn else b"") + line + b"\n")
            try:
                while data:
                    data = data[os.write(handle, data) :]
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)

    def _locked(self) -> int:
        """Open the file that has the name now; another process may be turning it over."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            handle = os.open(self.path, flags, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(handle), self.path.lstat()):
                    return handle
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)
