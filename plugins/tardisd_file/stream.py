"""One session into files; synchronous, runs in worker threads, one call at a time.

Every row gets into the files once, whatever fails. A block is cut into pieces, always the same; how
far it got (`_Progress`) is remembered over failures and reopenings, and an attempt to write the
same block again goes on from there. What a failed write left behind does not count as written.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, RLock

from tardisd.log import Log
from tardisd.plugins.sessions import Block

from .output import OutputFile
from .pieces import Cutter, Piece

log = Log("tardisd.file")

_NUMBERS_KEPT = 10_000


class Handles:
    """How many files of an instance are open, of all sessions together."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._count = 0
        self._lock = Lock()

    @property
    def scarce(self) -> bool:
        """Whether one should be given back before another is opened."""
        return self._count >= self.most

    def changed(self, by: int) -> None:
        """Take note of files opened (1) or closed (-1)."""
        with self._lock:
            self._count += by


@dataclass(slots=True)
class _Progress:
    """How much of a block is in the files: whole pieces, then bytes of the next one."""

    block: tuple[int, int, int]
    pieces: int = 0
    offset: int = 0


class FileStream:
    """The files of one session, from its first row to the last."""

    def __init__(
        self,
        root: Path,
        cutter: Cutter,
        instance: str,
        rotate_bytes: int | None,
        handles: Handles,
    ) -> None:
        self._root = root
        self._cutter = cutter
        self._instance = instance
        self._rotate_bytes = rotate_bytes
        self._handles = handles
        self._files: OrderedDict[str, OutputFile] = OrderedDict()
        self._rotated: list[OutputFile] = []
        self._numbers: dict[Path, int] = {}
        self._progress: _Progress | None = None
        self._epoch: int | None = None
        self._day: int | None = None
        self._lock = RLock()  # completing may have been given up while its thread goes on

    @property
    def unfinished(self) -> bool:
        """Whether some file has not got its name yet."""
        return bool(self._files or self._rotated)

    def write(self, block: Block) -> None:
        """Append all rows of the block that are not yet in the files. Raises OSError."""
        with self._lock:
            self._write(block)

    def complete(self) -> None:
        """Give every file its name. Raises OSError; what could not be completed stays for later."""
        with self._lock:
            while self._files:
                self._rotated.append(self._files.popitem(last=False)[1])
            self._settle()
            if len(self._numbers) > _NUMBERS_KEPT:  # mostly of days gone by; can be found again
                self._numbers.clear()

    def _write(self, block: Block) -> None:
        self._settle()
        mark = (block.epoch, block.first_seq, len(block))
        if self._progress is None or self._progress.block != mark:
            self._progress = _Progress(mark)
        if self._epoch != block.epoch:  # its sequence numbers start again: so do the files
            self.complete()
            self._epoch = block.epoch
        for number, piece in enumerate(self._cutter.pieces(block)):
            if number >= self._progress.pieces:
                self._write_piece(piece, self._progress)
                self._progress.pieces, self._progress.offset = number + 1, 0
        self._progress = None

    def _settle(self) -> None:
        """Give the files their names that are full, or could not get them before."""
        failed: OSError | None = None
        for file in self._rotated.copy():
            try:
                self._complete(file)
            except OSError as error:
                failed = error
                self._release(file)
        if failed is not None:
            raise failed

    def _write_piece(self, piece: Piece, progress: _Progress) -> None:
        if piece.day != self._day:
            self.complete()
            self._day = piece.day
        while progress.offset < len(piece.lines):
            file = self._file(piece)
            header = b"" if file.length else piece.header
            end = self._room(piece, progress.offset, file.length + len(header))
            if end == progress.offset:
                self._rotate(piece.key)
                continue
            try:
                self._append(file, header + piece.lines[progress.offset : end])
            except OSError as error:
                if not file.length:
                    self._files.pop(piece.key)
                    self._release(file)
                    file.discard()
                elif error.errno == errno.EFBIG:  # as large as a file may be: go on in the next
                    self._rotate(piece.key)
                    continue
                raise
            progress.offset = end

    def _room(self, piece: Piece, start: int, length: int) -> int:
        """Return where to cut the lines, so that the file ends up within its size if it can."""
        if self._rotate_bytes is None or length + len(piece.lines) - start <= self._rotate_bytes:
            return len(piece.lines)
        room = max(self._rotate_bytes - length, 0)
        end = piece.lines.rfind(b"\n", start, start + room) + 1
        if end:
            return end
        if length > len(piece.header):
            return start
        return piece.lines.index(b"\n", start) + 1  # one line alone is larger than a file may be

    def _file(self, piece: Piece) -> OutputFile:
        file = self._files.get(piece.key)
        if file is None:
            file = self._files[piece.key] = OutputFile(self._root / piece.path, self._instance)
        self._files.move_to_end(piece.key)
        return file

    def _append(self, file: OutputFile, data: bytes) -> None:
        if not file.is_open and self._handles.scarce:
            for other in self._files.values():  # the least recently used first
                if other.is_open:
                    self._release(other)
                    break
        before = file.is_open
        try:
            file.append(data)
        finally:
            self._handles.changed(file.is_open - before)

    def _release(self, file: OutputFile) -> None:
        before = file.is_open
        file.release()
        self._handles.changed(file.is_open - before)

    def _rotate(self, key: str) -> None:
        file = self._files.pop(key)
        self._rotated.append(file)
        self._complete(file)

    def _complete(self, file: OutputFile) -> None:
        """Give a rotated file its name, or raise OSError and keep it."""
        before = file.is_open
        try:
            path, number = file.complete(self._numbers.get(file.target, 0))
        except FileNotFoundError:
            log.error(
                "file lost", path=str(file.target), bytes=file.length,
                reason="somebody removed the temporary file or its folder",
            )  # fmt: skip
            file.release()
        else:
            if file.length:
                self._numbers[file.target] = number + 1
                log.info("file completed", path=str(path), bytes=file.length)
        finally:
            self._handles.changed(file.is_open - before)
        self._rotated.remove(file)
