"""How far the files of a durable session are complete, for a daemon that comes after a kill.

Synchronous. Lines are appended: one before each file gets its name, one when a file that was full
has its own, and one when all that were in the making have theirs. A file that was announced counts
when it is there. Nothing is synced: it is for a daemon that was killed, not for a lack of power.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

Position = tuple[int, int]


class Done:
    """The book of one session; positions are (epoch, seq).

    When it was opened all rows up to `upto` were in complete files, and of the files of a key those
    up to `named[key]`. `resumed`: a daemon before this one has begun the book.
    """

    def __init__(self, folder: Path, session_id: str, created_at: int, root: Path) -> None:
        self._root = root
        self.upto: Position = (0, 0)
        self.named: dict[str, Position] = {}
        self._path = folder / f"s={session_id}={created_at}"
        self.resumed = self._path.exists()
        if self.resumed:
            for line in self._path.read_bytes().splitlines(keepends=True):
                with suppress(ValueError, KeyError):  # one was cut short: nothing came after it
                    self._take(json.loads(line))

    def _take(self, entry: dict[str, str | int]) -> None:
        at = (int(entry["epoch"]), int(entry["seq"]))
        if "key" not in entry:
            self.upto = at
            return
        if "path" not in entry:
            self.named[str(entry["key"])] = at
            return
        with suppress(OSError):
            if (self._root / str(entry["path"])).stat().st_size == entry["bytes"]:
                self.named[str(entry["key"])] = at

    def begin(self) -> None:
        """Open the book of a session that begins. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()

    def has(self, key: str, at: Position) -> bool:
        """Tell whether rows of a key up to there had been in complete files."""
        return at <= max(self.upto, self.named.get(key, self.upto))

    def borders(self, epoch: int) -> list[int]:
        """Return the numbers after which that changes, ascending."""
        return sorted({seq for number, seq in (self.upto, *self.named.values()) if number == epoch})

    def naming(self, key: str, at: Position, path: Path, size: int) -> None:
        """Announce a file that is about to get its name. Raises OSError."""
        name = str(path.relative_to(self._root))
        self._append({"epoch": at[0], "seq": at[1], "key": key, "path": name, "bytes": size})

    def named_all(self, key: str | None, at: Position) -> None:
        """Take note that rows of a key, or all, up to there are in files with names, for good.

        Somebody may take such a file away while the session goes on. Raises OSError.
        """
        whose = {} if key is None else {"key": key}
        self._append({"epoch": at[0], "seq": at[1], **whose})

    def forget(self) -> None:
        """Remove the book: the session has ended, and its files are complete."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _append(self, entry: dict[str, str | int]) -> None:
        with self._path.open("ab") as book:
            book.write(json.dumps(entry).encode() + b"\n")
