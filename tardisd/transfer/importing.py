"""Import files into a storage: all of them are read and checked first, then stored page by page.

Nothing is stored of files in which anything is wrong. Blocking work runs in threads, reading and
parsing side by side, and so do loading and storing pages.

Rows need not be sorted: each block is, and pages are cut out of all blocks by time (see `spool`),
so that what is stored is in order whatever the file's own order was.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO

import trio

from tardisd.dumps.intake import Intake, overlap
from tardisd.dumps.source import file_size
from tardisd.dumps.spool import open_spool
from tardisd.errors import RequestError
from tardisd.market.decimals import check_decimal
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.plugins.exchange import Page
from tardisd.plugins.format import FileFormat
from tardisd.plugins.storage import Appended, Storage
from tardisd.progress import Progress

_FOREVER = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True)
class FileResult:
    """One imported file: its format's name, its rows, the first and last event time (ns).

    `notes` say what was not as exact in the file as it is kept.
    """

    name: str
    format: str
    rows: int
    first: int
    last: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import changed, in rows; `rows` counts all rows of all files, repeats included."""

    added: int
    unchanged: int
    revised: int
    rows: int
    files: list[FileResult]


async def import_files(
    files: Sequence[tuple[str, BinaryIO]],
    series: Series,
    storage: Storage,  # type: ignore[type-arg]
    formats: Sequence[FileFormat],
    *,
    covers: Span | None,
    contract_size: str | None = None,
    spool_dir: Path,
    progress: Callable[[Progress], None],
) -> ImportResult:
    """Check all files (name, open descriptor), then store their rows and what they cover.

    `covers` says which span is complete, in the place of what file names state. `contract_size` is
    how much of the base asset one contract is, for files that count contracts; the default is what
    the storage knows of the instrument. Raises RequestError when it is no number, DataError
    naming the file and line, and then nothing is stored; StorageError or PluginError when storing
    fails: whole pages remain, and importing again completes them.
    """
    size = await _contract_size(series, storage, contract_size)
    with open_spool(series, spool_dir) as spool:
        intake = Intake(series, spool, formats, size)
        sizes = [file_size(name, raw) for name, raw in files]
        for at, (name, raw) in enumerate(files):
            before = Progress(sum(sizes[:at]), sum(sizes), "bytes", f"reading {name}")
            await intake.read(name, raw, before, progress)
        parts = await trio.to_thread.run_sync(intake.check, progress)
        known = intake.known(covers)
        stored = Appended()
        done = 0
        source = f"import {', '.join(name for name, _ in files)}"[:200]

        def pages() -> Generator[Page, None, None]:
            for at, part in enumerate(parts):
                start = _FOREVER[0] if at == 0 else part.start
                stop = _FOREVER[1] if at == len(parts) - 1 else part.stop
                yield intake.page(part, known.intersect(Span(start, stop)), source)

        async def store(page: Page) -> None:
            nonlocal stored, done
            stored += await storage.append(series, page)
            done += len(page.batch)
            progress(Progress(done, spool.count, "rows", "storing"))

        await overlap(pages(), store)
    results = [
        FileResult(
            reader.name,
            reader.recipe.format_name,
            reader.rows,
            reader.finish().start,
            reader.last,
            reader.notes,
        )
        for reader in intake.readers
    ]
    rows = sum(result.rows for result in results)
    return ImportResult(stored.added, stored.unchanged, stored.revised, rows, results)


async def _contract_size(
    series: Series,
    storage: Storage,  # type: ignore[type-arg]
    given: str | None,
) -> Decimal | None:
    """Return the size of one contract: what was given, else what is known, else None."""
    if given is None:
        instrument = await storage.instrument(series)
        given = None if instrument is None else instrument.extra.get("contract_size")
        if given is None:
            return None
    try:
        size = check_decimal(given)
    except ValueError as error:
        raise RequestError("bad_request", f"contract_size: {given[:40]!r} is {error}") from None
    if size <= 0:
        raise RequestError("bad_request", f"contract_size: {given[:40]!r} is not above zero")
    return size
