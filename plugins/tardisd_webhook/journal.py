"""What the outbox of a durable session has, on disk too: its parcels, and how far it has taken.

Synchronous, and never synced: it is there for a daemon that was killed, not for a machine that lost
its power. Whole files come and go by renaming, so that a kill leaves none that is half written.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tardisd.log import Log

log = Log("tardisd.webhook")

Position = tuple[int, int]
_FOLDER = re.compile(r"s=(.+)=(\d+)")
_PARCEL = re.compile(r"(\d+)-(\d+)-(\d+)")


class Journal:
    """The folder of one session; `created_at` tells it from others that had its id."""

    def __init__(self, root: Path, session_id: str, created_at: int) -> None:
        self.session_id = session_id
        self.created_at = created_at
        self._folder = root / f"s={session_id}={created_at}"
        self._complained = False

    @classmethod
    @contextmanager
    def left(cls, root: Path) -> Iterator[list[Journal]]:
        """Return those that a daemon before this one left, and hold the folder meanwhile.

        None are returned while another instance holds it: a reload swaps them, and the sessions of
        the one before go on with it.
        """
        found: list[Journal] = []
        handle = None
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            names = map(_FOLDER.fullmatch, sorted(path.name for path in root.iterdir()))
            found = [cls(root, name[1], int(name[2])) for name in names if name is not None]
        except BlockingIOError:
            pass
        except OSError as error:
            log.error("outbox not kept on disk", folder=str(root), reason=str(error))
        try:
            yield found
        finally:
            if handle is not None:
                os.close(handle)

    @property
    def exists(self) -> bool:
        """Whether a daemon before this one has left it."""
        return self._folder.is_dir()

    def begin(self) -> None:
        """Write down that nothing was taken yet."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._put("at", b"0 0\n")
        except OSError as error:
            self._complain(error)

    def load(self) -> tuple[Position, list[tuple[int, int, int, bytes]]]:
        """Return how far the outbox had taken, and its parcels: epoch, first seq, ticks, body."""
        parcels: list[tuple[int, int, int, bytes]] = []
        at = (0, 0)
        try:
            for path in self._folder.iterdir():
                if (found := _PARCEL.fullmatch(path.name)) is not None:
                    epoch, first, ticks = map(int, found.groups())
                    parcels.append((epoch, first, ticks, path.read_bytes()))
            text = (self._folder / "at").read_text().split()
            at = (int(text[0]), int(text[1]))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, IndexError) as error:
            self._complain(error)
        parcels.sort()
        ends = [(epoch, first + ticks - 1) for epoch, first, ticks, _ in parcels]
        return max([at, *ends]), parcels

    def keep(self, epoch: int, first_seq: int, ticks: int, body: bytes) -> None:
        """Write a parcel down; one that cannot be is lost when the daemon is killed."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._put(f"{epoch}-{first_seq}-{ticks}", body)
            self._put("at", f"{epoch} {first_seq + ticks - 1}\n".encode())
        except OSError as error:
            self._complain(error)

    def drop(self, epoch: int, first_seq: int, ticks: int) -> None:
        """Remove a parcel that has been dealt with."""
        try:
            (self._folder / f"{epoch}-{first_seq}-{ticks}").unlink(missing_ok=True)
        except OSError as error:
            self._complain(error)

    def end(self) -> None:
        """Remove all of it: the session has ended, and everything has been dealt with."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _put(self, name: str, data: bytes) -> None:
        fresh = self._folder / f".{name}"
        fresh.write_bytes(data)
        fresh.replace(self._folder / name)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            log.error("outbox not kept on disk", folder=str(self._folder), reason=str(error))
