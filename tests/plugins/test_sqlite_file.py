"""The storage `sqlite` and its file: who may open it, what damage says, what it costs."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tomllib
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import trio
from sqlite_utils import Database

from tardisd.errors import StorageCorrupt, StorageError, StorageLocked, StorageNewer
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.span import Coverage, Gap, Span
from tardisd.plugins.exchange import Page
from tardisd.plugins.storage import Appended
from tardisd.testing.exchange import suite_context
from tardisd.testing.storage_model import START
from tardisd.testing.storage_pages import ALL_TIME, TRADES, between, cut, page_with, read
from tardisd.testing.ticks import random_trades
from tardisd_sqlite import chunks, database, schema
from tardisd_sqlite.plugin import SqliteOptions, SqliteStorage

FOLDER = Path(__file__).parents[2] / "plugins" / "tardisd_sqlite"


@asynccontextmanager
async def opened(folder, **options):
    plugin = SqliteStorage(SqliteOptions(**options), suite_context("main", folder))
    async with plugin.run():
        yield plugin


async def refused(folder, error, match, **options):
    with pytest.raises(error, match=match) as caught:
        async with opened(folder, **options):
            pass
    assert type(caught.value) is error


def connect(folder, name="tardisd.sqlite"):
    return sqlite3.connect(folder / name, isolation_level=None)


def size(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def writer(storage):
    return storage._access._writer.connection


# Options


def test_the_readme_shows_the_sample():
    sample = (FOLDER / "sample.toml").read_text()
    assert f"```toml\n{sample}```" in (FOLDER / "README.md").read_text()
    full = tomllib.loads(sample.replace("# path", "path").replace("# durability", "durability"))
    options = full["storages"]["main"]
    assert options.pop("plugin") == SqliteStorage.name
    assert msgspec.convert(options, SqliteOptions) == SqliteOptions()


@pytest.mark.parametrize("bad", [{"path": " "}, {"durability": "some"}, {"file": "x"}])
def test_bad_options_are_refused(bad):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, SqliteOptions)


async def test_where_the_file_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sub").mkdir()
    for path in ("tardisd.sqlite", "sub/a.db", "~/sub/b.db", str(tmp_path / "sub" / "c.db")):
        async with opened(tmp_path, path=path) as storage:
            await storage.probe()
    names = sorted(path.name for path in tmp_path.rglob("*") if path.suffix in (".sqlite", ".db"))
    assert names == ["a.db", "b.db", "c.db", "tardisd.sqlite"]


@pytest.mark.parametrize(("durability", "level"), [("normal", 1), ("full", 2)])
async def test_durability(tmp_path, durability, level):
    async with opened(tmp_path, durability=durability) as storage:
        assert writer(storage).execute("PRAGMA synchronous").fetchone() == (level,)
        assert writer(storage).execute("PRAGMA journal_mode").fetchone() == ("wal",)


# Who may open it


async def test_a_second_owner_is_refused(tmp_path):
    async with opened(tmp_path):
        await refused(tmp_path, StorageLocked, f"in use by process {os.getpid()}")
        (tmp_path / "link").symlink_to("tardisd.sqlite")
        await refused(tmp_path, StorageLocked, "in use", path="link")
    async with opened(tmp_path):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from tardisd_sqlite import database
with database.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


async def test_the_lock_of_a_killed_owner_is_gone(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "tardisd.sqlite")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        await refused(tmp_path, StorageLocked, f"in use by process {holder.pid}; stop that daemon")
        holder.kill()
    async with opened(tmp_path):
        pass


async def test_calls_outside_of_run_are_refused(tmp_path):
    async with opened(tmp_path) as storage:
        pass
    with pytest.raises(StorageError, match="not open"):
        await storage.version(TRADES)
    with pytest.raises(StorageError, match="not open"):
        await storage.append(TRADES, page_with(random_trades(TRADES, 1, START)))


async def test_a_file_that_another_program_writes_to(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "_BUSY_SECS", 0.0)
    page = page_with(random_trades(TRADES, 10, START))
    async with opened(tmp_path) as storage:
        other = connect(tmp_path)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="another program writes to it"):
            await storage.append(TRADES, page)
        other.close()
        assert await storage.append(TRADES, page) == Appended(added=10)


async def test_places_where_no_file_can_be(tmp_path):
    (tmp_path / "folder").mkdir()
    await refused(tmp_path, StorageError, "folder .*/none does not exist", path="none/x.db")
    await refused(tmp_path, StorageError, "is a folder; set the path of a file", path="folder")
    (tmp_path / "dangling").symlink_to("/proc/none/x")
    await refused(tmp_path, StorageError, "check the path and its permissions", path="dangling")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_permissions(tmp_path):
    async with opened(tmp_path):
        pass
    (tmp_path / "tardisd.sqlite").chmod(0o400)
    await refused(tmp_path, StorageError, "check its permissions")
    tmp_path.chmod(0o500)
    try:
        await refused(tmp_path, StorageError, "check its permissions", path="new.db")
    finally:
        tmp_path.chmod(0o700)


# Versions and other files


async def test_an_older_file_is_migrated(tmp_path):
    batch = random_trades(TRADES, 100, START)
    async with opened(tmp_path) as storage:
        await storage.append(TRADES, page_with(batch))
    old = connect(tmp_path)
    tables = {table.name for table in Database(old).tables}
    for table in ("gap", "provenance", "instrument", "quarters"):  # what later versions brought
        old.execute(f"DROP TABLE {table}")
        tables.remove(table)
    old.execute("PRAGMA user_version = 1")
    old.close()
    fresh = sqlite3.connect(":memory:")
    schema.MIGRATIONS[0](Database(fresh))
    assert {table.name for table in Database(fresh).tables} == tables
    fresh.close()
    async with opened(tmp_path) as storage:
        assert same_rows(await read(storage, TRADES), batch).all()
        await storage.record_gaps(TRADES, [Gap(between(0, 1), "unknown")])
        assert writer(storage).execute("PRAGMA user_version").fetchone() == (schema.VERSION,)


async def test_a_newer_file_is_refused(tmp_path):
    async with opened(tmp_path):
        pass
    newer = connect(tmp_path)
    newer.execute(f"PRAGMA user_version = {schema.VERSION + 7}")
    newer.close()
    before = (tmp_path / "tardisd.sqlite").read_bytes()
    found = f"storage version {schema.VERSION + 7}, this tardisd knows up to {schema.VERSION}"
    await refused(tmp_path, StorageNewer, f"{found}; upgrade tardisd")
    assert (tmp_path / "tardisd.sqlite").read_bytes() == before


async def test_a_file_that_is_something_else(tmp_path):
    (tmp_path / "notes").write_text("dear diary, nothing of this is SQLite\n" * 100)
    await refused(tmp_path, StorageCorrupt, "notes is not a tardisd storage", path="notes")
    other = connect(tmp_path, "other.db")
    other.execute("CREATE TABLE mine (x)")
    other.close()
    await refused(tmp_path, StorageError, "another program's SQLite database", path="other.db")
    (tmp_path / "cut").write_bytes(b"SQLite format 3\0" + b"\1" * 50)
    await refused(tmp_path, StorageCorrupt, "cut is not a tardisd storage", path="cut")
    (tmp_path / "empty").touch()
    async with opened(tmp_path, path="empty") as storage:
        assert await storage.version(TRADES) == 0


# Damage


async def test_rows_that_fail_their_checksum(tmp_path):
    batch = random_trades(TRADES, 30_000, START)
    async with opened(tmp_path) as storage:
        for page in cut(batch, 7000):
            await storage.append(TRADES, page)
        broken, first, last, data = (
            writer(storage)
            .execute(
                "SELECT id, first_ts, last_ts, data FROM chunk JOIN chunk_data USING (id)"
                " WHERE died > 2000000000 ORDER BY first_ts LIMIT 1 OFFSET 2"
            )
            .fetchone()
        )
        bad = bytearray(data)
        bad[len(bad) // 2] ^= 1
        span = Span(first, last + 1)
        update = "UPDATE chunk_data SET data = ? WHERE id = ?"
        writer(storage).execute(update, (bytes(bad), broken))
        with pytest.raises(StorageCorrupt, match="fail their checksum") as caught:
            await read(storage, TRADES)
        assert str(TRADES) in str(caught.value)
        assert str(span) in str(caught.value)
        with pytest.raises(StorageCorrupt, match="fail their checksum"):
            await storage.last_before(TRADES, last + 1)
        with pytest.raises(StorageCorrupt, match="fail their checksum"):
            await storage.append(TRADES, page_with(batch))
        after = Span(last + 1, ALL_TIME.end)
        assert same_rows(await read(storage, TRADES, after), batch[batch.ts_event > last]).all()
        # What the message says heals it.
        await storage.delete(TRADES, span)
        await storage.append(TRADES, page_with(batch))
        assert same_rows(await read(storage, TRADES), batch).all()
        writer(storage).execute("DELETE FROM chunk_data")
        with pytest.raises(StorageCorrupt, match="are missing"):
            await read(storage, TRADES)


async def test_a_damaged_file(tmp_path):
    path = tmp_path / "tardisd.sqlite"
    async with opened(tmp_path) as storage:
        for page in cut(random_trades(TRADES, 100_000, START), 9000):
            await storage.append(TRADES, page)
    content = bytearray(path.read_bytes())
    content[8192:-4096] = os.urandom(len(content) - 8192 - 4096)
    path.write_bytes(content)
    with pytest.raises(StorageCorrupt, match="restore it from a backup"):
        async with opened(tmp_path) as storage:
            await read(storage, TRADES)


# Disk full


async def test_a_full_disk(tmp_path):
    pages = cut(random_trades(TRADES, 200_000, START), 20_000)
    async with opened(tmp_path) as storage:
        await storage.append(TRADES, pages[0])
        held = writer(storage).execute("PRAGMA page_count").fetchone()[0]
        writer(storage).execute(f"PRAGMA max_page_count = {held + 5}")
        for _ in range(3):
            with pytest.raises(StorageError, match=r"no room left .* free some disk space"):
                await storage.append(TRADES, pages[1])
        assert await storage.coverage(TRADES) == Coverage([pages[0].span])
        assert same_rows(await read(storage, TRADES), pages[0].batch).all()
        writer(storage).execute("PRAGMA max_page_count = 1000000")
        for page in pages[1:]:
            assert await storage.append(TRADES, page) == Appended(added=len(page.batch))


CRAMPED = """
import resource, signal, sys
from pathlib import Path
import trio
from tardisd.errors import StorageError
from tardisd.testing.exchange import suite_context
from tardisd.testing.storage_model import START
from tardisd.testing.storage_pages import TRADES, cut, read
from tardisd.testing.ticks import random_trades
from tardisd_sqlite.plugin import SqliteOptions, SqliteStorage

async def main(folder):
    pages = cut(random_trades(TRADES, 200_000, START), 20_000)
    plugin = SqliteStorage(SqliteOptions(), suite_context("main", folder))
    async with plugin.run():
        stored = 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
        try:
            for page in pages:
                await plugin.append(TRADES, page)
                stored += len(page.batch)
        except StorageError as error:
            print("failed:", error)
        assert len(await read(plugin, TRADES)) == stored, "half a page"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for page in pages:
            await plugin.append(TRADES, page)
        assert len(await read(plugin, TRADES)) == 200_000
    print("whole")

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
trio.run(main, Path(sys.argv[1]))
"""


async def test_a_file_that_may_not_grow(tmp_path):
    command = [sys.executable, "-c", CRAMPED, str(tmp_path)]
    done = await trio.run_process(command, capture_stdout=True)
    failed, whole = done.stdout.decode().splitlines()
    assert failed.startswith("failed: ")
    assert str(tmp_path) in failed
    assert whole == "whole"
    async with opened(tmp_path) as storage:
        assert len(await read(storage, TRADES)) == 200_000


# What it costs


async def test_a_trade_takes_few_bytes(tmp_path):
    batch = random_trades(TRADES, 1_000_000, START)
    async with opened(tmp_path) as storage:
        for page in cut(batch, 100_000):
            await storage.append(TRADES, page)
        assert size(tmp_path) < 10 * len(batch)  # with the write-ahead log
        [info] = await storage.list_series()
        assert info.size_bytes < size(tmp_path) < 2 * info.size_bytes
    assert not (tmp_path / "tardisd.sqlite-wal").exists()


async def test_many_small_pages_leave_few_chunks(tmp_path):
    batch = random_trades(TRADES, 20_000, START)
    async with opened(tmp_path) as storage:
        for page in cut(batch, 10):
            await storage.append(TRADES, page)
        count = "SELECT count(*) FROM chunk WHERE died = ?"
        assert writer(storage).execute(count, (schema.ALIVE,)).fetchone()[0] < 20
        assert writer(storage).execute("SELECT count(*) FROM chunk").fetchone()[0] < 30
        assert same_rows(await read(storage, TRADES), batch).all()
        backwards = [Page(page.batch, page.span) for page in cut(batch, 50)]
        await storage.delete(TRADES, ALL_TIME)
        for page in reversed(backwards):
            await storage.append(TRADES, page)
        assert writer(storage).execute(count, (schema.ALIVE,)).fetchone()[0] < 20


@pytest.mark.parametrize("missing", [(1000,), (2000,), (1000, 2000)])
async def test_one_page_joins_a_chunk_only_once(tmp_path, missing):
    random = random_trades(TRADES, 5000, START)
    times = START + np.arange(len(random)) * 1_000_000
    batch = Batch(TRADES, times, random.fields, random.ids, random.sides)
    numbers = np.arange(len(batch))
    stored = (numbers < 3300) & ~np.isin(numbers, missing)
    async with opened(tmp_path) as storage:
        # Three chunks, of which the last two are then made small.
        for first, last in ((0, 2000), (2000, 2900), (2900, 3300)):
            page = page_with(batch[stored & (numbers >= first) & (numbers < last)])
            await storage.append(TRADES, page)
        for first, last in ((2001, 2800), (3000, 3300)):
            await storage.delete(TRADES, Span(int(times[first]), int(times[last])))
            stored &= (numbers < first) | (numbers >= last)
        lengths = "SELECT rows FROM chunk WHERE died = ? ORDER BY first_ts"
        [_, *small] = writer(storage).execute(lengths, (schema.ALIVE,)).fetchall()
        assert len(small) == 2
        late = np.isin(numbers, missing) | (numbers >= 3300)
        await storage.append(TRADES, page_with(batch[late]))
        await storage.append(TRADES, page_with(batch[~stored & ~late]))
        assert same_rows(await read(storage, TRADES), batch).all()
        assert (await storage.list_series())[0].rows == len(batch)


async def test_a_slow_read_does_not_make_the_log_grow(tmp_path):
    batch = random_trades(TRADES, 1_000_000, START)
    pages = cut(batch, 50_000)
    log = tmp_path / "tardisd.sqlite-wal"
    async with opened(tmp_path) as storage:
        for page in pages[:2]:
            await storage.append(TRADES, page)
        async with storage.read(TRADES, ALL_TIME) as batches:
            found = [await batches.receive()]
            for page in pages[2:]:
                await storage.append(TRADES, page)
            for page in pages[:2]:
                await storage.delete(TRADES, page.span)
            assert log.stat().st_size < 5_000_000
            found += [part async for part in batches]
        kept = Batch.concat([page.batch for page in pages[:2]])
        assert same_rows(Batch.concat(found), kept).all()
        # The replaced chunks go with the next write, now that nothing reads them.
        await storage.record_gaps(TRADES, [Gap(between(0, 1), "unknown")])
        dead = "SELECT count(*) FROM chunk WHERE died < ?"
        assert writer(storage).execute(dead, (schema.ALIVE,)).fetchone() == (0,)
        orphans = "SELECT count(*) FROM chunk_data WHERE id NOT IN (SELECT id FROM chunk)"
        assert writer(storage).execute(orphans).fetchone() == (0,)


async def test_every_look_up_goes_by_an_index(tmp_path):
    statements = []
    async with opened(tmp_path) as storage:
        await storage.append(TRADES, page_with(random_trades(TRADES, 100, START)))
        connection = writer(storage)
        connection.set_trace_callback(statements.append)
        chunks.place_before(connection, 1, 1, START)
        chunks.after(connection, 1, 1, (START, -1), START + 10)
        chunks.last_before(connection, 1, START)
        chunks.cells_around(connection, 1, Span(START, START + 1))
        connection.set_trace_callback(None)
        assert len(statements) == 6
        for statement in statements:
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
            assert not any("SCAN c" in step or "ORDER BY" in step for step in plan), plan


async def test_where_rows_came_from_is_kept(tmp_path):
    page = page_with(random_trades(TRADES, 10, START))
    async with opened(tmp_path) as storage:
        await storage.append(TRADES, Page(page.batch[:6], page.span, source="first.zip"))
        await storage.append(TRADES, Page(page.batch, page.span, source="https://api"))
        await storage.append(TRADES, Page(page.batch, page.span, source="nothing new"))
        kept = writer(storage).execute(
            "SELECT version, source, start_ts, end_ts, added, unchanged, revised FROM provenance"
        )
        start, end = page.span.start, page.span.end
        assert kept.fetchall() == [
            (1, "first.zip", start, end, 6, 0, 0),
            (2, "https://api", start, end, 4, 6, 0),
        ]
        times = writer(storage).execute("SELECT stored_at FROM provenance ORDER BY id")
        first, second = (row[0] for row in times)
        assert START < first <= second


async def test_rows_with_and_without_a_side_do_not_mix(tmp_path):
    batch = random_trades(TRADES, 10, START)
    bare = Batch(TRADES, batch.ts_event + 1, batch.fields, batch.ids, None)
    later = Batch(TRADES, batch.ts_event + 10**12, batch.fields, np.arange(10), None)
    async with opened(tmp_path) as storage:
        await storage.append(TRADES, page_with(batch))
        with pytest.raises(Exception, match="taker side cannot share"):
            await storage.append(TRADES, page_with(bare))
        await storage.append(TRADES, page_with(later))
        async with storage.read(TRADES, ALL_TIME) as batches:
            found = [part async for part in batches]
        assert [part.sides is None for part in found] == [False, True]
