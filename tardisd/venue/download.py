"""Download a file to disk in constant memory, resumed where it broke off; reads none of it.

What has come so far stays beside the target as `….part`, with the venue's validator for it, so
that a later call, even after a restart, asks only for the rest of the same version.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx
import msgspec
import trio

from tardisd.errors import PluginError, Retry
from tardisd.venue.client import Unreadable, VenueClient, final

MAX_FILE_BYTES = 16 * 2**30
_PIECE_BYTES = 2**20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Damaged(PluginError):
    """Raised when a downloaded file is not what its checksum says; it stands at `path`."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True, slots=True)
class Download:
    """A complete file: its place, size, SHA-256 and what the venue says of its version."""

    path: Path
    size: int
    sha256: str
    validator: str = ""


class _Part(msgspec.Struct):
    """What is kept beside a part: which version it is of, and how long that is."""

    validator: str
    total: int | None


async def download(
    client: VenueClient,
    path: str,
    target: Path,
    *,
    sha256: str | None = None,
    weight: int = 0,
    progress: Callable[[int, int | None], None] = lambda _done, _total: None,
) -> Download:
    """Fetch `path` into `target`, whose folder exists; nobody else may write there meanwhile.

    `progress` gets the bytes that are there and how many there will be. Raises Missing for a 404,
    Damaged when `sha256` (hex) is another, Retry when the venue stays out of reach and nothing
    more comes, PluginError for a disk that is full.
    """
    transfer = _Transfer(client, path, target, progress)
    try:
        await _fetch(transfer, weight)
        found = await trio.to_thread.run_sync(digest, transfer.part)
        if sha256 is not None and found != sha256.lower():
            damaged = transfer.part.replace(_beside(target, ".damaged"))
            transfer.forget()
            raise Damaged(
                f"{client.base_url}{path}: its SHA-256 is {found}, the venue says {sha256.lower()}",
                damaged,
            )
        size = await transfer.size()
        transfer.part.replace(target)
        transfer.note.unlink(missing_ok=True)
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else str(error)
        raise PluginError(
            f"cannot keep {target.name} in {target.parent}: {what}; free space there"
        ) from None
    return Download(target, size, found, transfer.validator)


async def _fetch(transfer: _Transfer, weight: int) -> None:
    while True:
        before = await transfer.size()
        try:
            return await transfer.client.persist(
                transfer.path, transfer.once, transfer.settle, weight=weight, limits=()
            )
        except Retry:
            if await transfer.size() <= before:  # as long as some of it comes, go on
                raise


def remove_download(target: Path) -> None:
    """Remove a file and what is left of earlier attempts at it."""
    for path in (target, _beside(target, ".part"), _beside(target, ".part.json")):
        with suppress(FileNotFoundError):
            path.unlink()


class _Transfer:
    """One file on its way."""

    def __init__(
        self,
        client: VenueClient,
        path: str,
        target: Path,
        progress: Callable[[int, int | None], None],
    ) -> None:
        self.part = _beside(target, ".part")
        self.note = _beside(target, ".part.json")
        self.validator = ""
        self.client = client
        self.path = path
        self._progress = progress
        self._total: int | None = None

    async def size(self) -> int:
        """Return how many bytes have come."""
        try:
            return (await trio.to_thread.run_sync(self.part.stat)).st_size
        except FileNotFoundError:
            return 0

    def forget(self) -> None:
        """Remove what has come."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    async def once(self) -> tuple[httpx.Response, bytes]:
        """Ask for the file, or for the rest of it, and write what comes."""
        offset, validator = await self.size(), self._known_validator()
        # Compressed on the way, it would have no length to check nor a place to go on from.
        headers = {"Accept-Encoding": "identity"}
        if offset and validator:
            headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
        async with self.client.asking(self.path, headers=headers) as answer:
            if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                self.forget()
                raise httpx.ReadError("the venue's file has become shorter")
            if answer.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
                return answer, b"".join([piece async for piece in answer.aiter_raw()])
            offset = self._begin(answer, offset)
            await self._write(answer, offset)
            return answer, b""

    async def settle(self, _body: bytes) -> None:
        """Check that all of it has come."""
        size = await self.size()
        if self._total is not None and size != self._total:
            self.forget()
            raise Unreadable(f"{size} bytes came of {self._total}")

    def _known_validator(self) -> str:
        try:
            return msgspec.json.decode(self.note.read_bytes(), type=_Part).validator
        except (OSError, msgspec.DecodeError):
            return ""

    def _begin(self, answer: httpx.Response, offset: int) -> int:
        """Make the part ready for what the answer brings; return where that begins."""
        length = answer.headers.get("content-length", "")
        self._total = int(length) if length.isdecimal() else None
        if answer.status_code == httpx.codes.PARTIAL_CONTENT:
            match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
            if match is None or int(match[1]) != offset:
                self.forget()
                raise httpx.ReadError("another part came than was asked for")
            self._total = None if match[2] == "*" else int(match[2])
        else:
            self.forget()
            offset = 0
        etag = answer.headers.get("etag", "")
        weak = etag.startswith("W/")
        self.validator = etag if etag and not weak else answer.headers.get("last-modified", "")
        self.note.write_bytes(msgspec.json.encode(_Part(self.validator, self._total)))
        if max(self._total or 0, offset) > MAX_FILE_BYTES:
            raise final(f"{answer.url}: has more than {MAX_FILE_BYTES} bytes; refused")
        return offset

    async def _write(self, answer: httpx.Response, done: int) -> None:
        with self.part.open("ab") as file:
            pieces: list[bytes] = []
            held = 0
            try:
                async for piece in answer.aiter_raw():
                    pieces.append(piece)
                    held += len(piece)
                    if held >= _PIECE_BYTES:
                        # Cancelled here, the answer would be left half read and not closed.
                        with trio.CancelScope(shield=True):
                            await trio.to_thread.run_sync(_append, file, b"".join(pieces))
                        done += held
                        pieces, held = [], 0
                        self._progress(done, self._total)
                        if done > MAX_FILE_BYTES:
                            raise final(f"{answer.url}: does not end; refused")
            finally:
                # What has come before a connection broke need not come again.
                _append(file, b"".join(pieces))
            self._progress(done + held, self._total)


def _append(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file. Blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
