"""The storage `sqlite` is killed while it writes, and has every page that it acknowledged."""

from __future__ import annotations

import random
import signal
import subprocess
import sys

import pytest
import trio

from tardisd.market.check import same_rows
from tardisd.market.span import Coverage, Span
from tardisd.testing.exchange import suite_context
from tardisd.testing.storage_model import START
from tardisd.testing.storage_pages import TRADES, page_with, read
from tardisd.testing.ticks import random_trades
from tardisd_sqlite.plugin import SqliteOptions, SqliteStorage

ROUNDS = 6

WRITER = """
import sys
from pathlib import Path
import trio
from tardisd.testing.exchange import suite_context
from tardisd_sqlite.plugin import SqliteOptions, SqliteStorage
from test_sqlite_kill import TRADES, pages_of

async def main(folder, seed, first):
    plugin = SqliteStorage(SqliteOptions(), suite_context("main", folder))
    async with plugin.run():
        for at, page in enumerate(pages_of(seed)[first:], first):
            await plugin.append(TRADES, page)
            print(at, flush=True)

trio.run(main, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""


def pages_of(seed):
    """Pages of very different sizes, some late and some overlapping: the same for every process."""
    chance = random.Random(seed)
    batch = random_trades(TRADES, 400_000, START, seed)
    times, pages, at = batch.ts_event, [], 0
    while at < len(batch):
        rows = chance.choice([1, 10, 100, 1000, 20_000])
        start = int(times[max(0, at - chance.choice([0, 0, rows // 2]))])
        span = Span(start, int(times[min(at + rows, len(batch) - 1)]) + 1)
        pages.append(page_with(batch.within(span), span))
        at += rows
    for at in range(0, len(pages) - 3, 3):
        pages[at : at + 3] = chance.sample(pages[at : at + 3], 3)
    return pages


def kill_after(acks, folder, seed, first):
    """Return how many pages were acknowledged before the process was killed."""
    command = [sys.executable, "-c", WRITER, str(folder), str(seed), str(first)]
    done = first
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            done = int(line) + 1
            if done >= first + acks:
                process.send_signal(signal.SIGKILL)  # amid the next page; read what came so far
        process.wait()
    assert process.returncode == -signal.SIGKILL
    return done


@pytest.mark.parametrize("seed", [1, 2])
async def test_what_was_acknowledged_is_there(tmp_path, seed, request, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(request.path.parent))
    chance, pages, done = random.Random(seed), pages_of(seed), 0
    for _ in range(ROUNDS):
        acks = chance.randrange(1, len(pages) // ROUNDS)
        done = await trio.to_thread.run_sync(kill_after, acks, tmp_path, seed, done)
        plugin = SqliteStorage(SqliteOptions(), suite_context("main", tmp_path))
        async with plugin.run():
            found = await read(plugin, TRADES)
            covered = await plugin.coverage(TRADES)
            # Of the page in flight either everything is there too, or nothing.
            states = {
                count: Coverage(page.span for page in pages[:count])
                for count in (done, min(done + 1, len(pages)))
            }
            done = max(count for count, state in states.items() if state == covered)
            expected = {name for page in pages[:done] for name in page.batch.ids.tolist()}
            assert set(found.ids.tolist()) == expected
            whole = random_trades(TRADES, 400_000, START, seed)
            assert same_rows(found, whole[found.ids - whole.ids[0]]).all()
            [info] = await plugin.list_series()
            assert info.rows == len(found)
            checked = plugin._access._writer.connection.execute("PRAGMA integrity_check")
            assert checked.fetchall() == [("ok",)]
            orphans = (
                "SELECT (SELECT count(*) FROM chunk_data WHERE id NOT IN (SELECT id FROM chunk)),"
                " (SELECT count(*) FROM chunk WHERE id NOT IN (SELECT id FROM chunk_data))"
            )
            assert plugin._access._writer.connection.execute(orphans).fetchone() == (0, 0)
    assert done > ROUNDS
