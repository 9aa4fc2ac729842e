"""Text of a file in blocks of whole lines: plain, gzip or a zip of one member; parses no cell.

Works on an open descriptor and never by name, in constant memory. Damage is a DataError.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, BinaryIO

from tardisd.errors import DataError

BLOCK_BYTES = 2**21
MAX_LINE_BYTES = 2**16
SAMPLE_BYTES = 2**16
# Real dumps compress 3- to 30-fold; a bomb made of one repeated byte reaches 1000.
MAX_RATIO = 200
RATIO_FREE_BYTES = 2**26

_BOM = b"\xef\xbb\xbf"
_DAMAGE = (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines of a file; `first_line` is the physical line number (from 1) of the first."""

    data: bytes
    first_line: int


class Source:
    """One open file as text. Use from one thread at a time."""

    unit = "line"
    floats: frozenset[str] = frozenset()

    def __init__(
        self, name: str, raw: BinaryIO, text: IO[bytes] | gzip.GzipFile, member: str | None
    ) -> None:
        self.name = name
        self.member = member
        self._raw = raw
        self._text = text
        self._rest = b""
        self._line = 1
        self._bytes = 0
        self._compressed = text is not raw

    @property
    def position(self) -> int:
        """How many bytes of the file itself have been read."""
        return self._raw.tell()

    def peek(self) -> bytes:
        """Return the first lines (up to 64 KiB), which `blocks` gives again.

        Raises DataError when the file is empty or not text.
        """
        while len(self._rest) < SAMPLE_BYTES and (data := self._read(SAMPLE_BYTES)):
            self._rest += data
        if self._rest.startswith(_BOM):
            self._rest = self._rest[len(_BOM) :]
        self._rest = _with_readable_header(self._rest)
        if not self._rest.strip():
            raise DataError("the file is empty", file=self.name)
        head = self._rest[:SAMPLE_BYTES]
        try:
            head.decode()
        except UnicodeDecodeError as error:
            if error.start < len(head) - 4:
                raise self._not_text(head, error.start) from None
        if b"\0" in head:
            raise self._not_text(head, head.index(b"\0"))
        cut = head.rfind(b"\n")
        return head if cut < 0 or len(self._rest) <= len(head) else head[: cut + 1]

    def blocks(self, skip_header: bool) -> Iterator[Block]:
        """Yield all lines, in blocks; `skip_header` leaves out the first that is not blank."""
        while True:
            data = self._read(BLOCK_BYTES)
            text = self._rest + data
            cut = text.rfind(b"\n") + 1 if data else len(text)
            text, self._rest = text[:cut], text[cut:]
            if len(self._rest) > MAX_LINE_BYTES:
                line = self._line + text.count(b"\n")
                raise DataError(
                    f"a line is longer than {MAX_LINE_BYTES} bytes; this is not a CSV file",
                    file=self.name,
                    line=line,
                )
            if b"\0" in text:
                raise self._not_text(text, text.index(b"\0"))
            while skip_header and text:
                line_end = text.find(b"\n") + 1 or len(text)
                skip_header = not text[:line_end].strip()
                self._line += 1
                text = text[line_end:]
            if text:
                block = Block(text, self._line)
                self._line += text.count(b"\n")
                yield block
            if not data:
                return

    def _read(self, size: int) -> bytes:
        try:
            data = self._text.read(size)
            while data and len(data) < size and (more := self._text.read(size - len(data))):
                data += more
        except _DAMAGE as error:
            raise DataError(
                f"the compressed file is cut off or damaged ({error}); fetch it again",
                file=self.name,
            ) from None
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", file=self.name) from None
        self._bytes += len(data)
        grown = self._bytes > RATIO_FREE_BYTES and self._bytes > MAX_RATIO * self.position
        if self._compressed and grown:
            raise DataError(
                f"expands more than {MAX_RATIO}-fold, as no dump of market data does; refused",
                file=self.name,
            )
        return data

    def _not_text(self, text: bytes, at: int) -> DataError:
        return DataError(
            "this is not a text file; import CSV, plain or in gzip or zip",
            file=self.name,
            line=self._line + text.count(b"\n", 0, at),
        )


def _with_readable_header(text: bytes) -> bytes:
    """Return the text, its first line in UTF-8 where it is in GBK, as in old Chinese dumps."""
    line, newline, rest = text.partition(b"\n")
    try:
        line.decode()
    except UnicodeDecodeError:
        try:
            header = line.decode("gbk")
        except UnicodeDecodeError:
            return text
        if rest.isascii() and header.rstrip("\r").isprintable():
            return header.encode() + newline + rest
    return text


def file_size(name: str, raw: BinaryIO) -> int:
    """Return the size in bytes; DataError when it is not a regular file that can be rewound."""
    try:
        mode = os.fstat(raw.fileno()).st_mode
        regular = stat.S_ISREG(mode)
    except (OSError, io.UnsupportedOperation):  # a file in memory has no descriptor
        regular = raw.seekable()
    if not regular:
        raise DataError(
            "is not a regular file (a pipe cannot be read twice); save it to a file first",
            file=name,
        )
    size = raw.seek(0, os.SEEK_END)
    if size == 0:
        raise DataError("the file is empty", file=name)
    return size


@contextmanager
def open_source(name: str, raw: BinaryIO) -> Iterator[Source]:
    """Open the file from its start; DataError when it is no readable plain, gzip or zip file."""
    try:
        raw.seek(0)
        magic = raw.read(4)
        raw.seek(0)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=name) from None
    if magic.startswith(b"PK"):
        with _open_member(name, raw) as (text, member):
            yield Source(name, raw, text, member)
    elif magic.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
            yield Source(name, raw, unpacked, None)
    else:
        yield Source(name, raw, raw, None)


@contextmanager
def _open_member(name: str, raw: BinaryIO) -> Iterator[tuple[IO[bytes], str]]:
    try:
        archive = zipfile.ZipFile(raw)
    except (*_DAMAGE, OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"the zip file is cut off or damaged ({error}); fetch it again", file=name
        ) from None
    with archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
        if len(members) != 1:
            found = "none" if not members else f"{len(members)} members"
            raise DataError(
                f"a zip must hold exactly one file, found {found}; unpack it and import the files",
                file=name,
            )
        if members[0].flag_bits & 0x1:
            raise DataError("the zip is encrypted; unpack it first", file=name)
        try:
            text = archive.open(members[0])
        except (*_DAMAGE, OSError, NotImplementedError) as error:
            raise DataError(
                f"the zip file cannot be read ({error}); fetch it again or unpack it", file=name
            ) from None
        with text:
            yield text, members[0].filename
