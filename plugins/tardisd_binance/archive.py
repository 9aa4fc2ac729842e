"""Binance's archives: which file holds a time, when it is published, how it is fetched and kept.

Files are months or days, UTC, each with a `.CHECKSUM` beside it. A month is published some days
after it ends, a day some hours after. What a file says is believed only when its checksum is right;
a file that stays wrong is put aside for people to look at, and its time is had elsewhere.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path

import trio

from tardisd.dumps.archive import Dump, read_dump
from tardisd.errors import DataError, PluginError
from tardisd.log import Log
from tardisd.market.series import SWAP, Series
from tardisd.market.span import Span
from tardisd.market.time import DAY, HOUR, SECOND
from tardisd.plugins.format import FileFormat
from tardisd.venue.ahead import Coming, helpers
from tardisd.venue.client import Unreadable, VenueClient
from tardisd.venue.download import Damaged, download, remove_download
from tardisd.wall import wall_ns

log = Log("tardisd.binance")

MONTHLY, DAILY = "monthly", "daily"
ONLY_MONTHLY = frozenset({"3d", "1w", "1M"})
_KINDS = {"candle": "klines", "agg_trade": "aggTrades", "trade": "trades"}
# How long after its end a file may be expected. When a month has long been over and has no file,
# and so have some of its days, the others need no question.
_LAG = {MONTHLY: DAY, DAILY: 8 * HOUR}
_OLD = 40 * DAY
_FEW_DAYS = 2
_CHECKSUM = re.compile(rb"\s*([0-9a-fA-F]{64})(?:\s|$)")
_ASIDE = "refused"
_KEPT_ASIDE = 8  # files
_ABANDONED_AFTER = 7 * DAY


@dataclass(frozen=True, slots=True)
class File:
    """One file of the archives: its path at the host, and the time (ns) that it holds."""

    path: str
    span: Span
    period: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.rpartition("/")[2]


def file_at(series: Series, ts: int, period: str) -> File:
    """Return the file of a period that holds the time (ns)."""
    symbol = series.symbol.venue_id(series.exchange)
    market = "futures/um" if series.symbol.kind == SWAP else "spot"
    kind = what = _KINDS[series.data_type.kind]
    folder = f"data/{market}/{period}/{kind}/{symbol}"
    if series.data_type.interval is not None:
        what = str(series.data_type.interval).replace("M", "mo")
        folder += f"/{what}"
    moment = datetime.fromtimestamp(ts // SECOND, UTC)
    if period == MONTHLY:
        first = moment.replace(day=1, hour=0, minute=0, second=0)
        after = (first + timedelta(days=32)).replace(day=1)
        stamp = f"{first:%Y-%m}"
    else:
        first = moment.replace(hour=0, minute=0, second=0)
        after = first + timedelta(days=1)
        stamp = f"{first:%Y-%m-%d}"
    span = Span(int(first.timestamp()) * SECOND, int(after.timestamp()) * SECOND)
    return File(f"/{folder}/{symbol}-{what}-{stamp}.zip", span, period)


class Plan:
    """Which files to take for one fetch, given what turned out to be missing.

    `worth` is how much time (ns) a file must bring for it to be taken: less is had faster over
    REST.
    """

    def __init__(self, series: Series, now: int, worth: int) -> None:
        self._series = series
        self._now = now
        self._worth = worth
        self._missing: set[str] = set()
        interval = series.data_type.interval
        self._daily = interval is None or str(interval) not in ONLY_MONTHLY

    def missing(self, file: File) -> None:
        """Take note that a file is not there, or of no use."""
        self._missing.add(file.path)

    def at(self, ts: int, end: int) -> File | None:
        """Return the file to take for the time from `ts` on, up to `end` (ns) at most."""
        month, day = file_at(self._series, ts, MONTHLY), file_at(self._series, ts, DAILY)
        usable = [file for file in (month, day) if self._is_there(file, month)]
        usable = [file for file in usable if min(file.span.end, end) - ts >= self._worth]
        if len(usable) == 2 and min(month.span.end, end) - ts < month.span.length // 2:
            return day  # most of the month would be fetched for nothing
        return usable[0] if usable else None

    def next_start(self, ts: int, end: int) -> int:
        """Return the first time after `ts`, up to `end`, at which there may be a file again."""
        while ts < end:
            ts = file_at(self._series, ts, DAILY if self._daily else MONTHLY).span.end
            if ts < end and self.at(ts, end) is not None:
                return ts
        return end

    def _is_there(self, file: File, month: File) -> bool:
        if file.path in self._missing or file.span.end + _LAG[file.period] > self._now:
            return False
        if file.period == MONTHLY:
            return True
        if not self._daily:
            return False
        days = f"/{DAILY}/".join(month.path.removesuffix(".zip").rsplit(f"/{MONTHLY}/", 1))
        gone = sum(path.startswith(days) for path in self._missing) >= _FEW_DAYS
        return not (gone and month.path in self._missing and month.span.end < self._now - _OLD)


@dataclass(frozen=True, slots=True)
class Ahead:
    """A file that comes, or has come, before it is opened."""

    file: File
    folder: Path
    coming: Coming[str]


class Archive:
    """The archive host, and the folder for what comes from it."""

    def __init__(self, client: VenueClient, folder: Path, formats: Sequence[FileFormat]) -> None:
        self.client = client
        self._folder = folder
        self._formats = formats
        self._in_use: set[str] = set()

    @asynccontextmanager
    async def in_turn(self) -> AsyncIterator[Turn]:
        """Open the files of one fetch in turn."""
        turn = Turn(self)
        try:
            async with helpers() as turn.nursery:
                yield turn
        finally:
            turn.release()

    def ahead(self, file: File, nursery: trio.Nursery) -> Ahead:
        """Have a file come; it must be opened, or its folder released."""
        folder = self._folder / self._free_name(file)
        self._in_use.add(folder.name)
        coming = Coming(partial(self._fetch, file, folder / file.name))
        nursery.start_soon(coming.run)
        return Ahead(file, folder, coming)

    def release(self, ahead: Ahead) -> None:
        """Let a later fetch have what has come of a file."""
        self._in_use.discard(ahead.folder.name)

    @asynccontextmanager
    async def opened(
        self, file: File, series: Series, ahead: Ahead | None = None
    ) -> AsyncIterator[tuple[Dump, str]]:
        """Fetch, check and read a file; yield its rows and where they come from.

        Raises Missing when the host does not have it, DataError when it is damaged or wrong: then
        it has been put aside. What was downloaded is removed in the end.
        """
        folder = self._folder / self._free_name(file) if ahead is None else ahead.folder
        target = folder / file.name
        self._in_use.add(folder.name)
        try:
            if ahead is None:
                sha256 = await self._fetch(file, target)
            else:
                sha256 = await ahead.coming.outcome()
            try:
                async with read_dump(target, series, self._formats, folder) as dump:
                    source = f"{self.client.base_url}{file.path} sha256:{sha256}"
                    yield dump, source
            except DataError as error:
                await trio.to_thread.run_sync(self._put_aside, target, error.message)
                raise
            remove_download(target)
        finally:
            self._in_use.discard(folder.name)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_tidy, folder)

    async def _fetch(self, file: File, target: Path) -> str:
        """Fetch a file, once more when its checksum is wrong; return its SHA-256."""
        _make(target.parent)
        for attempt in range(2):
            expected = await self.client.read(f"{file.path}.CHECKSUM", None, _checksum, weight=0)
            if await trio.to_thread.run_sync(_digest, target) == expected:
                return expected  # it was here already when an earlier fetch was cut short
            try:
                await download(self.client, file.path, target, sha256=expected)
            except Damaged as error:
                if attempt:
                    await trio.to_thread.run_sync(self._put_aside, error.path, error.message)
                    raise DataError(error.message, file=file.name) from None
                log.warning("archive damaged", file=file.name, reason=error.message)
                error.path.unlink(missing_ok=True)
            else:
                return expected
        raise AssertionError

    def discard(self, file: File) -> None:
        """Remove what has come of a file that nobody is going to come back for. Blocks."""
        name = _folder_of(file)
        if name not in self._in_use:
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def tidy_up(self) -> None:
        """Remove what earlier runs of the daemon left, once nobody is going to come back for it."""
        for folder in self._folder.glob("*/"):
            old = wall_ns() - folder.stat().st_mtime_ns > _ABANDONED_AFTER
            if old and folder.name != _ASIDE:
                shutil.rmtree(folder, ignore_errors=True)

    def _free_name(self, file: File) -> str:
        """Return a folder's name that no other fetch uses; after a restart the same again."""
        stem = _folder_of(file)
        for number in count():
            name = f"{stem}.{number}" if number else stem
            if name not in self._in_use:
                return name
        raise AssertionError

    def _put_aside(self, path: Path, reason: str) -> None:
        """Keep a file that is wrong, and why, for people to look at; only the latest few."""
        aside = self._folder / _ASIDE
        log.warning("archive refused", file=path.name, reason=reason, kept_in=str(aside))
        name = path.name.removesuffix(".damaged")
        try:
            aside.mkdir(exist_ok=True)
            path.replace(aside / name)
            (aside / f"{name}.txt").write_text(f"{reason}\n")
            kept = sorted(aside.glob("*.txt"), key=lambda it: it.stat().st_mtime)
            for old in kept[:-_KEPT_ASIDE]:
                old.unlink()
                old.with_suffix("").unlink(missing_ok=True)
        except OSError as error:  # evidence only: the fetch goes on without
            log.warning("refused archive not kept", file=name, reason=str(error))


def _folder_of(file: File) -> str:
    return file.path.strip("/").replace("/", "_")


class Turn:
    """The files of one fetch, one after the other; each comes while the one before is read."""

    nursery: trio.Nursery

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._next: Ahead | None = None

    @asynccontextmanager
    async def opened(
        self, file: File, following: File | None, series: Series
    ) -> AsyncIterator[tuple[Dump, str]]:
        """Open a file as the archive does, and have the following one come meanwhile."""
        ahead, self._next = self._next, None
        if ahead is not None and ahead.file != file:
            await ahead.coming.stop()
            self._archive.release(ahead)
            ahead = None
        async with self._archive.opened(file, series, ahead) as found:
            if following is not None:
                self._next = self._archive.ahead(following, self.nursery)
            yield found

    def release(self) -> None:
        """Leave what has come of the next file to a later fetch."""
        if self._next is not None:
            self._archive.release(self._next)


def _checksum(body: bytes) -> str:
    match = _CHECKSUM.match(body)
    if match is None:
        raise Unreadable(f"no SHA-256 stands in the checksum file, but {body[:80]!r}")
    return match[1].decode().lower()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PluginError(
            f"cannot keep downloads in {folder.parent}: {error.strerror}; check the data_dir"
        ) from None


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _tidy(folder: Path) -> None:
    """Remove a folder unless a download waits in it to be resumed."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
