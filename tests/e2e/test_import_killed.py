"""An import that is killed leaves whole pages; importing again completes it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import tardisd_binance
import tardisd_sqlite
from tardisd.dumps import spool
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.plugins.base import Context
from tardisd.testing.memory import MemoryStorage
from tardisd.transfer.importing import import_files

SERIES = Series.parse("binance:BTC/USDT@trade")
PAGE_ROWS, ROWS = 512, 9_000
FORMATS = [format_() for format_ in tardisd_binance.tardisd_formats()]
DAY = Span(1_709_251_200 * 10**9, 1_709_337_600 * 10**9)

CHILD = """
import sys
from pathlib import Path

import trio

sys.path.insert(0, sys.argv[1])
from tardisd.dumps import spool
from test_import_killed import PAGE_ROWS, load, opened

spool.PAGE_ROWS = PAGE_ROWS


def report(step):
    if step.message == "storing":
        print(step.done, flush=True)
        sys.stdin.readline()  # go on when told to


async def main():
    async with opened(Path(sys.argv[2])) as storage:
        await load(storage, Path(sys.argv[2]), report)


trio.run(main)
"""


@asynccontextmanager
async def opened(folder: Path):
    """Open the storage in the folder."""
    [plugin] = tardisd_sqlite.tardisd_storages()
    storage = plugin(plugin.Options(), Context("main", folder, None))
    async with storage.run():
        yield storage


async def load(storage, folder: Path, report):
    with (folder / "BTCUSDT-trades-2024-03-01.csv").open("rb") as raw:
        files = [(Path(raw.name).name, raw)]
        return await import_files(
            files, SERIES, storage, FORMATS, covers=None, spool_dir=folder, progress=report
        )


async def read(storage) -> Batch:
    async with storage.read(SERIES, DAY) as batches:
        parts = [batch async for batch in batches]
    return Batch.concat(parts or [Batch.empty(SERIES)])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "PAGE_ROWS", PAGE_ROWS)
    start = DAY.start // 10**6
    (tmp_path / "BTCUSDT-trades-2024-03-01.csv").write_text(
        "".join(
            f"{n},{n % 97}.{n % 89:02d}000000,0.{n:08d},1.0,{start + n // 3},"
            f"{'True' if n % 2 else 'False'},True\n"
            for n in range(ROWS)
        )
    )
    return tmp_path


@pytest.mark.parametrize("pages", [1, 7])
async def test_what_a_killed_import_left_is_completed(folder, pages):
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            for _ in range(pages):
                done = int(child.stdout.readline())
                child.stdin.write("\n")
                child.stdin.flush()
        finally:
            child.kill()
    expected = MemoryStorage()
    await load(expected, folder, lambda _: None)
    whole = await read(expected)
    assert len(whole) == ROWS
    async with opened(folder) as storage:
        left = await read(storage)
        assert done <= len(left) < ROWS
        assert same_rows(left, whole[: len(left)]).all()
        [covered] = await storage.coverage(SERIES)
        cut = int(whole.ts_event[len(left)])
        assert covered == Span(DAY.start, cut)  # whole pages: no instant is cut in two
        assert int(left.ts_event[-1]) < cut
        result = await load(storage, folder, lambda _: None)
        assert (result.added, result.unchanged) == (ROWS - len(left), len(left))
        after = await read(storage)
        assert len(after) == ROWS
        assert same_rows(after, whole).all()
        assert await storage.coverage(SERIES) == Coverage([DAY])
        version = await storage.version(SERIES)
        result = await load(storage, folder, lambda _: None)
        assert (result.added, result.unchanged, result.revised) == (0, ROWS, 0)
        assert await storage.version(SERIES) == version
    names = {path.name for path in folder.iterdir()}  # no spool is left behind
    assert all(name.startswith(("BTCUSDT", "tardisd.sqlite")) for name in names)
