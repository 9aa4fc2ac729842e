"""One session into files; synchronous, runs in worker threads, one call at a time.

Every row gets into the files once, whatever fails. A block is cut into pieces, always the same; how
far it got (`_Progress`) is remembered over failures and reopenings, and an attempt to write the
same block again goes on from there. What a part of a file has taken it keeps until it is written,
whatever fails; what it has not taken does not count as written.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Lock, RLock

from tardisd.log import Log
from tardisd.market.time import DAY
from tardisd.plugins.sessions import Block

from .done import Done, Position
from .output import OutputFile
from .parts import Full, Part
from .pieces import Cutter, Piece

log = Log("tardisd.file")

_NUMBERS_KEPT = 10_000
# Compressed text and Parquet gather rows in memory; all files of an instance so many bytes.
MOST_BUFFERED = 64 * 2**20

PartMaker = Callable[[OutputFile, int], Part]


class Handles:
    """How many files of an instance are open, and what they buffer, of all sessions together."""

    def __init__(self, most: int, most_buffered: int = MOST_BUFFERED) -> None:
        self.most = most
        self._most_buffered = most_buffered
        self._count = 0
        self._buffered = 0
        self._lock = Lock()

    @property
    def scarce(self) -> bool:
        """Whether one should be given back before another is opened."""
        return self._count >= self.most

    @property
    def crammed(self) -> bool:
        """Whether something that is buffered should be written before more is taken."""
        return self._buffered >= self._most_buffered

    def changed(self, by: int, buffered: int = 0) -> None:
        """Take note of files opened (1) or closed (-1), and of bytes buffered or written (< 0)."""
        with self._lock:
            self._count += by
            self._buffered += buffered


@dataclass(slots=True)
class _Progress:
    """How much of a block is in the files: whole pieces, then bytes or rows of the next one.

    Rows before `start` had been taken with another block.
    """

    block: tuple[int, int, int]
    start: int
    pieces: int = 0
    offset: int = 0


class FileStream:
    """The files of one session, from its first row to the last.

    `make_part` returns a part for a new file of an epoch. With a book (`done`) the stream goes on
    where the files end that a daemon before this one has completed.
    """

    def __init__(
        self,
        root: Path,
        cutter: Cutter,
        instance: str,
        handles: Handles,
        make_part: PartMaker,
        done: Done | None = None,
    ) -> None:
        self._root = root
        self._cutter = cutter
        self._instance = instance
        self._handles = handles
        self._make_part = make_part
        self._parts: OrderedDict[str, Part] = OrderedDict()
        self._rotated: list[Part] = []
        self._numbers: dict[Path, int] = {}
        self._progress: _Progress | None = None
        self._epoch = 0
        self._day: int | None = None
        self.completed = 0  # files, so far
        self.done = done
        self.caught_up = False  # with what a daemon before this one had not completed
        #: All rows up to there were taken; and up to where files are that are to get their names.
        self.taken: Position = (0, 0) if done is None else done.upto
        self._naming_at = self.taken
        self._lock = RLock()  # completing may have been given up while its thread goes on

    @property
    def unfinished(self) -> bool:
        """Whether some file has not got its name yet."""
        return bool(self._parts or self._rotated)

    def write(self, block: Block) -> None:
        """Take all rows of the block that are not yet taken. Raises OSError."""
        with self._lock:
            self._write(block)

    def complete(self) -> None:
        """Give every file its name. Raises OSError; what could not be completed stays for later."""
        with self._lock:
            if self._parts:
                self._naming_at = self.taken
            complete = self.unfinished
            while self._parts:
                part = self._parts.popitem(last=False)[1]
                part.at = max(self.taken, (self._epoch, part.upto))
                self._rotated.append(part)
            self._settle()
            if self.done is not None and complete:
                self.done.named_all(None, self._naming_at)
            if len(self._numbers) > _NUMBERS_KEPT:  # mostly of days gone by; can be found again
                self._numbers.clear()

    def _write(self, block: Block) -> None:
        self._settle()
        mark = (block.epoch, block.first_seq, len(block))
        if self._progress is None or self._progress.block != mark:
            start, (epoch, seq) = 0, self.taken
            if self.done is not None and epoch == block.epoch:
                start = min(max(0, seq + 1 - block.first_seq), len(block))
            self._progress = _Progress(mark, start)
        if self._epoch != block.epoch:  # its sequence numbers start again: so do the files
            self.complete()
            self._epoch = block.epoch
        for number, piece in enumerate(self._pieces(block, self._progress.start)):
            if number >= self._progress.pieces:
                if piece.day != self._day:
                    self._begin_day(piece, block)
                self._write_piece(piece, self._progress)
                self._progress.pieces, self._progress.offset = number + 1, 0
        self._progress = None
        self.taken = max(self.taken, (block.epoch, block.first_seq + len(block) - 1))

    def _pieces(self, block: Block, first_row: int) -> Iterator[Piece]:
        """Return the block in pieces, without what is in files of a daemon before this one."""
        done, first = self.done, block.first_seq
        borders = [] if done is None else [seq + 1 - first for seq in done.borders(block.epoch)]
        within = (row for row in borders if first_row < row < len(block))
        for start, stop in pairwise([first_row, *within, len(block)]):
            if start == stop:
                continue
            at = (block.epoch, first + stop - 1)
            for piece in self._cutter.pieces(block, start, stop):
                if done is None or not done.has(piece.key, at):
                    yield piece

    def _begin_day(self, piece: Piece, block: Block) -> None:
        """Complete the files of the day before."""
        if piece.day is not None:
            row = int(block.release.searchsorted(piece.day * DAY))
            self.taken = max(self.taken, (block.epoch, block.first_seq + row - 1))
        self.complete()
        self._day = piece.day

    def _settle(self) -> None:
        """Give the files their names that are full, or could not get them before."""
        failed: OSError | None = None
        waiting = self._rotated.copy()
        while waiting:
            part = waiting.pop(0)
            try:
                following = self._complete(part)
            except OSError as error:
                failed = error
                with self._touching(part):
                    part.file.release()
            else:
                waiting += [] if following is None else [following]
        if failed is not None:
            raise failed

    def _write_piece(self, piece: Piece, progress: _Progress) -> None:
        while progress.offset < piece.size:
            while self._handles.crammed and self._flush_largest():
                pass
            part = self._part(piece)
            try:
                with self._touching(part):
                    progress.offset = part.take(piece, progress.offset)
                part.upto = piece.last_seq(progress.offset)
            except Full:
                self._rotate(piece.key)
            except OSError:
                if not (part.file.length or part.buffered):
                    with self._touching(part):
                        self._parts.pop(piece.key).file.discard()
                raise

    def _flush_largest(self) -> bool:
        """Write what the part with most in memory has; tell whether there was anything."""
        key, part = max(self._parts.items(), key=lambda item: item[1].buffered, default=("", None))
        if part is None or not part.buffered:
            return False
        try:
            with self._touching(part):
                part.flush()
        except Full:
            self._rotate(key)
        return True

    def _part(self, piece: Piece) -> Part:
        part = self._parts.get(piece.key)
        if part is None:
            file = OutputFile(self._root / piece.path, self._instance)
            part = self._parts[piece.key] = self._make_part(file, self._epoch)
            part.key = piece.key
        self._parts.move_to_end(piece.key)
        return part

    @contextmanager
    def _touching(self, part: Part) -> Iterator[None]:
        """Account for what the part opens and buffers meanwhile; have it a descriptor to open."""
        if not part.file.is_open and self._handles.scarce:
            for other in self._parts.values():  # the least recently used first
                if other.file.is_open:
                    other.rest()
                    self._handles.changed(-1)
                    break
        before, buffered = part.file.is_open, part.buffered
        try:
            yield
        finally:
            self._handles.changed(part.file.is_open - before, part.buffered - buffered)

    def _rotate(self, key: str) -> None:
        """End a file; what it could not write goes to its successor."""
        part = self._parts.pop(key)
        following = self._successor(part)
        if following is not None:
            self._parts[key] = following
        part.at = (self._epoch, part.upto)
        self._rotated.append(part)
        self._complete(part)
        if self.done is not None:
            self.done.named_all(None if self._cutter.one_file else key, part.at)

    def _announce(self, part: Part, path: Path, size: int) -> None:
        assert self.done is not None
        self.done.naming(part.key, part.at, path, size)

    def _successor(self, part: Part) -> Part | None:
        """Return the part that has the rows which `part` could not write, if there are any."""
        before = part.buffered
        following = part.successor(OutputFile(part.file.target, self._instance))
        following.key = part.key
        self._handles.changed(0, part.buffered + following.buffered - before)
        return following if following.buffered else None

    def _complete(self, part: Part) -> Part | None:
        """Give a rotated file its name, or raise OSError and keep it.

        Returns the part with its last rows when they did not fit; it is rotated, too.
        """
        file, following = part.file, None
        try:
            try:
                with self._touching(part):
                    part.close()
            except Full:
                following = self._successor(part)
                if following is not None:
                    following.at, part.at = part.at, (part.at[0], part.upto)
                    self._rotated.append(following)
                with self._touching(part):
                    part.close()
            announce = None if self.done is None else partial(self._announce, part)
            with self._touching(part):
                path, number = file.complete(self._numbers.get(file.target, 0), announce)
        except FileNotFoundError:
            log.error(
                "file lost", path=str(file.target), bytes=file.length,
                reason="somebody removed the temporary file or its folder",
            )  # fmt: skip
            with self._touching(part):
                file.release()
            self._handles.changed(0, -part.buffered)
        else:
            if file.length:
                self._numbers[file.target] = number + 1
                log.info("file completed", path=str(path), bytes=file.length)
        self._rotated.remove(part)
        self.completed += 1
        return following
