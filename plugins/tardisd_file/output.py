"""One file in the making: a temporary name, bytes that are kept or taken back, a name at the end.

Synchronous; knows nothing of ticks. Bytes go to `.name.part-<instance>-<random>` in the target's
folder. `length` is what has been written for good: a write that fails leaves it as it was, and
whatever lies behind it is overwritten or cut off. The name is given by a hard link, which fails
when the name is taken, so that an existing file is never overwritten.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from .template import numbered, safe_name

_TOKEN = 6
_NAME_BYTES = 80
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class OutputFile:
    """A file that gets its name, or the next free number of it, when it is complete."""

    def __init__(self, target: Path, instance: str) -> None:
        self.target = target
        self.length = 0
        mark = f".part-{safe_name(instance)}-{secrets.token_hex(_TOKEN)}"
        name = target.name.encode()[:_NAME_BYTES].decode(errors="ignore")
        self._temporary = target.with_name(f".{name}{mark}")
        self._handle: int | None = None
        self._made = False
        self._named: Path | None = None

    @property
    def is_open(self) -> bool:
        """Whether it takes a file descriptor now."""
        return self._handle is not None

    def append(self, data: bytes | bytearray) -> None:
        """Add all of `data`, or raise OSError and add nothing."""
        handle = self._opened()
        view, place = memoryview(data), self.length
        try:
            while view:
                written = os.pwrite(handle, view, place)
                view, place = view[written:], place + written
        except OSError:
            with suppress(OSError):  # frees the space; `complete` cuts in any case
                os.ftruncate(handle, self.length)
            raise
        self.length = place

    def release(self) -> None:
        """Give the file descriptor back; the next call opens the file again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def complete(
        self, number: int, announce: Callable[[Path, int], None] | None = None
    ) -> tuple[Path, int]:
        """Give the file its name, or the first free number from `number` on.

        `announce` is called before, with the path and the size. Returns the path and its number.
        After an OSError it may be called again. An empty file is removed.
        """
        if not self.length:
            self.discard()
            return self.target, number
        if self._named is None:
            handle = self._opened()
            os.ftruncate(handle, self.length)
            os.fsync(handle)
            while True:
                path = Path(numbered(str(self.target), number))
                if announce is not None and not os.path.lexists(path):
                    announce(path, self.length)
                if self._link(path):
                    break
                number += 1
            self._named = path
        self.release()
        self._temporary.unlink(missing_ok=True)
        _sync_folder(self.target.parent)
        return self._named, number

    def discard(self) -> None:
        """Remove what there is of it."""
        self.release()
        if self._made:
            self._temporary.unlink(missing_ok=True)
            self._made = False

    def _opened(self) -> int:
        if self._handle is None:
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
            if not self._made:
                self.target.parent.mkdir(parents=True, exist_ok=True)
                flags |= os.O_CREAT | os.O_EXCL
            self._handle = os.open(self._temporary, flags, 0o666)
            self._made = True
            with suppress(OSError):  # not every file system locks
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self._handle

    def _link(self, path: Path) -> bool:
        """Give the file a name; tell whether it was free."""
        try:
            os.link(self._temporary, path, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:  # a file system without links: take the name first, then replace our own file
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
            except FileExistsError:
                return False
            self._temporary.replace(path)
        return True


def remove_leftovers(folders: Iterator[Path], instance: str) -> list[Path]:
    """Remove the instance's temporary files that no process holds; return those removed."""
    pattern = re.compile(
        rf"\..*\.part-{re.escape(safe_name(instance))}-[0-9a-f]{{{2 * _TOKEN}}}", re.DOTALL
    )
    removed = []
    for folder in folders:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if pattern.fullmatch(entry.name)]
            removed += [path for path in found if _remove_unless_held(path)]
    return removed


def _remove_unless_held(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # not every file system locks
    finally:
        os.close(handle)
    path.unlink(missing_ok=True)
    return True


def _sync_folder(folder: Path) -> None:
    """Make the new name last; as far as the file system knows how to sync a folder."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
