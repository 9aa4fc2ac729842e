"""Rows into one file, in its format; synchronous, knows no session.

A part takes rows, all of those it says or none when it raises. What it has taken it may keep in
memory for a while: compressed text and Parquet are made of larger portions than a block. A portion
that cannot be written stays, and is written first at the next attempt. `Full` says that the file is
to end here; the rows that it took and could not write then go to its successor.
"""

from __future__ import annotations

import errno
import zlib
from abc import ABC, abstractmethod
from typing import Literal, Protocol

from tardisd.market.columns import Batch
from tardisd.wire.parquet import ParquetTable

from .output import OutputFile
from .pieces import Piece

Packing = Literal["gzip", "zstd"]

# Text is compressed in portions of so many bytes: large enough to compress well.
PORTION_BYTES = 2**20
_GZIP_LEVEL = 4
_GZIP_WRAPPED = 31
_ZSTD_LEVEL = 3
_ZSTD_WINDOW = 2**17
# A zstd frame ends with an empty block that says it is the last. It needs no state of the
# compressor: a file can be ended in order even when its last portion could not be written.
_LAST_BLOCK = b"\x01\x00\x00"
# What a Parquet footer takes: for the schema, and for every row group and column.
_FOOTER_BYTES, _GROUP_BYTES = 2000, 200
# With a limit on its size, a Parquet file has at least so many row groups before it is full.
_GROUPS_PER_FILE = 8


class Full(Exception):
    """Raised by a part that takes no more: the rest goes to the next file."""


class Part(ABC):
    """One file as rows come in. `buffered` is how many bytes of rows are only in memory.

    `key` tells whose rows these are, `upto` the number of the last one of them. When the file gets
    its name, all rows of the key up to `at` (epoch, seq) have one.
    """

    def __init__(self, file: OutputFile, most_bytes: int | None) -> None:
        self.file = file
        self.most_bytes = most_bytes
        self.key = ""
        self.upto = 0
        self.at = (0, 0)

    @property
    def buffered(self) -> int:
        """How many bytes of rows it has taken and not yet written."""
        return 0

    @abstractmethod
    def take(self, piece: Piece, start: int) -> int:
        """Take rows of the piece from `start` on; return where they end. Raises Full, OSError."""

    def flush(self) -> None:
        """Write what is buffered. Raises Full, OSError."""

    def close(self) -> None:
        """Write all that a whole file has. Raises Full, OSError; may then be called again."""

    def rest(self) -> None:
        """Give back what is not needed until rows come again."""
        self.file.release()

    @abstractmethod
    def successor(self, file: OutputFile) -> Part:
        """Return a part for the next file, with what this one took and could not write."""


class TextPart(Part):
    """Lines as they are."""

    def take(self, piece: Piece, start: int) -> int:
        """Append lines."""
        header = b"" if self.file.length else piece.header
        room = None if self.most_bytes is None else self.most_bytes - self.file.length - len(header)
        end = _lines_within(piece.lines, start, room)
        if end == start:
            if self.file.length:
                raise Full
            end = _first_line(piece.lines, start)
        _append(self.file, header + piece.lines[start:end])
        return end

    def successor(self, file: OutputFile) -> Part:
        """Return a part that begins empty."""
        return TextPart(file, self.most_bytes)


class PackedPart(Part):
    """Lines compressed portion by portion: gzip members, or the blocks of one zstd frame."""

    def __init__(self, file: OutputFile, most_bytes: int | None, packing: Packing) -> None:
        super().__init__(file, most_bytes)
        self._packing = packing
        self._portion = min(PORTION_BYTES, most_bytes or PORTION_BYTES)
        self._lines: list[bytes] = []
        self._size = 0
        self._header = b""
        self._packed: bytes | None = None
        self._written_upto = 0
        self._packer: _Packer | None = None
        self._open = False

    @property
    def buffered(self) -> int:
        """How many bytes of lines, and of what has been made of them, are only in memory."""
        return self._size + len(self._packed or b"")

    def take(self, piece: Piece, start: int) -> int:
        """Gather lines; every now and then they are compressed and written."""
        if self._packed is not None or self._size >= self._portion:
            self.flush()
        room = None if self.most_bytes is None else self._portion - self._size
        end = _lines_within(piece.lines, start, room)
        if end == start:
            end = _first_line(piece.lines, start)
        self._header = piece.header
        self._lines.append(piece.lines[start:end])
        self._size += end - start
        return end

    def flush(self) -> None:
        """Compress and append the lines gathered."""
        if not self._lines:
            return
        if self._packed is None:
            header = b"" if self.file.length else self._header
            self._packed = self._pack(b"".join([header, *self._lines]))
        size = self.file.length + len(self._packed) + len(self._end)
        if self.file.length and self.most_bytes is not None and size > self.most_bytes:
            raise Full
        _append(self.file, self._packed)
        self._lines, self._size, self._packed, self._open = [], 0, None, True
        self._written_upto = self.upto

    def close(self) -> None:
        """Write what is gathered, and end the frame."""
        self.flush()
        if self._open:
            self.file.append(self._end)
            self._open, self._packer = False, None

    def rest(self) -> None:
        """Give back the file descriptor and the compressor; a later portion begins a new frame."""
        super().rest()
        if self._packed is None:
            self._packer = None

    def successor(self, file: OutputFile) -> Part:
        """Return a part that has the lines which are not in this file."""
        following = PackedPart(file, self.most_bytes, self._packing)
        following._lines, following._size = self._lines, self._size
        following._header = self._header
        following.upto, self.upto = self.upto, self._written_upto
        self._lines, self._size, self._packed, self._packer = [], 0, None, None
        return following

    @property
    def _end(self) -> bytes:
        return _LAST_BLOCK if self._packing == "zstd" else b""

    def _pack(self, data: bytes) -> bytes:
        if self._packing == "gzip":
            member = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WRAPPED)
            return member.compress(data) + member.flush()
        import zstandard  # noqa: PLC0415

        before = b""
        if self._packer is None:
            before = self._end if self._open else b""
            # Tables for a window of 128 KiB: many files may be open, and lines of one kind need
            # no more.
            window = zstandard.ZstdCompressionParameters.from_level(
                _ZSTD_LEVEL, source_size=_ZSTD_WINDOW, write_content_size=False
            )
            self._packer = zstandard.ZstdCompressor(compression_params=window).compressobj()
        packed = self._packer.compress(data)
        return before + packed + self._packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


class ParquetPart(Part):
    """Rows of one series as row groups, and a footer at the end."""

    def __init__(
        self, file: OutputFile, most_bytes: int | None, codec: str, about: dict[str, str]
    ) -> None:
        super().__init__(file, most_bytes)
        self._codec = codec
        self._about = about
        self._pending: list[bytes] = []
        self._table: ParquetTable | None = None
        self._closed = False

    @property
    def buffered(self) -> int:
        """How many bytes of rows, and of row groups made of them, are only in memory."""
        waiting = 0 if self._table is None else self._table.waiting_bytes
        return waiting + (sum(map(len, self._pending)) if self._due else 0)

    def take(self, piece: Piece, start: int) -> int:
        """Gather rows; they are written when there are enough for a row group."""
        batch = piece.columns
        assert batch is not None
        if self._table is None:
            self._table = ParquetTable(
                batch.series,
                lambda data: self._pending.append(bytes(data)),
                codec=self._codec,
                numbered=True,
                about=self._about,
            )
        self._drain()
        table, end = self._table, len(batch)
        if self.most_bytes is not None:
            most, width = self.most_bytes // _GROUPS_PER_FILE, _row_bytes(batch)
            if table.waiting_rows and table.waiting_bytes + width > most:
                self.flush()
            footer = _FOOTER_BYTES + (table.groups + 1) * len(table.names) * _GROUP_BYTES
            begun = table.waiting_rows or not table.groups
            if not begun and self.file.length + most + footer > self.most_bytes:
                raise Full
            end = min(end, start + max((most - table.waiting_bytes) // width, 1))
        table.add(batch[start:end], piece.seqs[start:end])
        return end

    def flush(self) -> None:
        """Make a row group of the rows gathered, and append it."""
        self._drain()
        if self._table is not None and self._table.waiting_rows:
            self._table.write_group()
        self._drain()

    def close(self) -> None:
        """Write what is gathered, and the footer."""
        if not self._closed and self._table is not None:
            self._table.finish()
            self._closed = True
        self._drain()

    def successor(self, file: OutputFile) -> Part:
        """Return a part that begins empty: rows once taken stay in their file."""
        return ParquetPart(file, self.most_bytes, self._codec, self._about)

    @property
    def _due(self) -> bool:
        return len(self._pending) > 1  # not the magic number alone: no file for four bytes

    def _drain(self) -> None:
        if self._due:
            self.file.append(b"".join(self._pending))
            self._pending.clear()


class _Packer(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self, mode: int, /) -> bytes: ...


def _append(file: OutputFile, data: bytes) -> None:
    """Append to the file. Raises Full when it is as large as a file may be, else OSError."""
    try:
        file.append(data)
    except OSError as error:
        if error.errno == errno.EFBIG and file.length:
            raise Full from None
        raise


def _lines_within(lines: bytes, start: int, room: int | None) -> int:
    """Return where the last whole line ends that fits in `room` bytes; `start` when none does."""
    if room is None or len(lines) - start <= room:
        return len(lines)
    return max(lines.rfind(b"\n", start, start + max(room, 0)) + 1, start)


def _first_line(lines: bytes, start: int) -> int:
    return lines.index(b"\n", start) + 1


def _row_bytes(batch: Batch) -> int:
    """Return about how many bytes a row takes in memory, rather more than less."""
    ids = 0 if batch.ids is None else 4 + max(batch.ids.dtype.itemsize, 20)
    return 32 + ids + 17 * len(batch.schema.fields)
