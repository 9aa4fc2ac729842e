"""A venue's host of dump files: fetch one, read it as a whole, remove it; knows no venue's names.

For hosts that publish no checksums: that all of a file has come shows in its length and in what its
packing says of itself, and it is read, and checked, to its end before it gives any row. A file in
which something is wrong is fetched once more; if it stays wrong, it is put aside for people.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from itertools import count
from pathlib import Path

import trio

from tardisd.dumps.archive import Dump, read_dump
from tardisd.errors import DataError, PluginError
from tardisd.log import Log
from tardisd.market.series import Series
from tardisd.market.time import DAY
from tardisd.plugins.format import FileFormat
from tardisd.venue.client import VenueClient
from tardisd.venue.download import digest, download, remove_download
from tardisd.wall import wall_ns

log = Log("tardisd.dumps")

_ASIDE = "refused"
_KEPT_ASIDE = 8  # files
_ABANDONED_AFTER = 7 * DAY
_TRIES = 2


class DumpHost:
    """One host, and the folder for what comes from it, which is this instance's own."""

    def __init__(self, client: VenueClient, folder: Path, formats: Sequence[FileFormat]) -> None:
        self.client = client
        self._folder = folder
        self._formats = formats
        self._in_use: set[str] = set()

    @asynccontextmanager
    async def opened(
        self, path: str, series: Series, *, contract_size: Decimal | None = None
    ) -> AsyncIterator[tuple[Dump, str]]:
        """Fetch and read a file; yield its rows, and where they come from for the record.

        What came before a restart is used. Raises Missing when the host does not have the file,
        DataError when it is wrong, PluginError or RequestError when it cannot be had or kept.
        """
        name = self._free_name(path)
        target = self._folder / name / path.rpartition("/")[2]
        self._in_use.add(name)
        try:
            try:
                await trio.to_thread.run_sync(_make, target.parent)
                async with AsyncExitStack() as held:
                    dump, source = await self._read(held, path, target, series, contract_size)
                    yield dump, source
                await trio.to_thread.run_sync(remove_download, target)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(_remove_when_empty, target.parent)
        finally:
            self._in_use.discard(name)

    async def _read(
        self,
        held: AsyncExitStack,
        path: str,
        target: Path,
        series: Series,
        contract_size: Decimal | None,
    ) -> tuple[Dump, str]:
        for attempt in range(1, _TRIES + 1):
            if await trio.to_thread.run_sync(target.exists):
                sha256 = await trio.to_thread.run_sync(digest, target)
            else:
                sha256 = (await download(self.client, path, target)).sha256
            source = f"{self.client.base_url}{path} sha256:{sha256}"
            try:
                dump = await held.enter_async_context(
                    read_dump(
                        target, series, self._formats, target.parent, contract_size=contract_size
                    )
                )
            except DataError as error:
                log.warning(
                    "dump is wrong", file=target.name, reason=error.message, attempt=attempt
                )
                if attempt == _TRIES:
                    await trio.to_thread.run_sync(self._put_aside, target, error.message)
                    raise
                await trio.to_thread.run_sync(remove_download, target)
            else:
                return dump, source
        raise AssertionError

    def discard(self, path: str) -> None:
        """Remove what has come of a file that nobody is going to come back for. Blocks."""
        name = _folder_of(path)
        if name not in self._in_use:
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def tidy_up(self) -> None:
        """Remove what earlier runs left, once nobody is going to come back for it. Blocks."""
        for folder in self._folder.glob("*/"):
            old = wall_ns() - folder.stat().st_mtime_ns > _ABANDONED_AFTER
            if old and folder.name != _ASIDE:
                shutil.rmtree(folder, ignore_errors=True)

    def _free_name(self, path: str) -> str:
        """Return a folder's name that no other fetch uses; after a restart the same again."""
        stem = _folder_of(path)
        names = (f"{stem}.{number}" if number else stem for number in count())
        return next(name for name in names if name not in self._in_use)

    def _put_aside(self, path: Path, reason: str) -> None:
        """Keep a file that is wrong, and why; only the latest few."""
        aside = self._folder / _ASIDE
        try:
            aside.mkdir(exist_ok=True)
            path.replace(aside / path.name)
            (aside / f"{path.name}.txt").write_text(f"{reason}\n")
            kept = sorted(aside.glob("*.txt"), key=lambda it: it.stat().st_mtime)
            for old in kept[:-_KEPT_ASIDE]:
                old.unlink()
                old.with_suffix("").unlink(missing_ok=True)
        except OSError as error:  # evidence only: what is wrong is told all the same
            log.warning("wrong dump not kept", file=path.name, reason=str(error))
            path.unlink(missing_ok=True)


def _folder_of(path: str) -> str:
    return path.strip("/").replace("/", "_")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PluginError(
            f"cannot make the folder {folder} for downloads: {error.strerror}; free space there"
        ) from None


def _remove_when_empty(folder: Path) -> None:
    """Remove a folder unless a download waits in it to be resumed."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
