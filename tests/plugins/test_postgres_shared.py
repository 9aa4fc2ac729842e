"""Several daemons on one database: appends take turns, leases, what a dead one leaves behind."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from postgres_rig import empty, opened, own_schema, sql

from tardisd.errors import StorageError
from tardisd.market.check import same_rows
from tardisd.market.span import Coverage, Span
from tardisd.plugins.storage import Appended
from tardisd.testing.storage_model import START
from tardisd.testing.storage_pages import CANDLES, TRADES, page_with, read
from tardisd.testing.ticks import random_trades
from tardisd_postgres import leases

pytestmark = pytest.mark.services
ROWS = 60_000

WRITER = """
import sys
from dataclasses import asdict
from pathlib import Path
import json
import trio
from postgres_rig import opened
from tardisd.plugins.storage import Appended
from test_postgres_shared import TRADES, pages_of

async def main(schema, seed):
    total = Appended()
    async with opened(schema, Path("not there")) as plugin:
        print("ready", flush=True)
        sys.stdin.readline()
        for page in pages_of(seed):
            total += await plugin.append(TRADES, page)
    print(json.dumps(asdict(total)))

trio.run(main, sys.argv[1], int(sys.argv[2]))
"""

HOLDER = """
import sys
from pathlib import Path
import trio
from postgres_rig import opened
from test_postgres_shared import TRADES

async def main(schema):
    async with opened(schema, Path("not there")) as plugin, plugin.lease(TRADES):
        print("held", flush=True)
        await trio.sleep_forever()

trio.run(main, sys.argv[1])
"""


def pages_of(seed):
    """Pages of the same rows, cut and ordered differently for every seed, some of them twice."""
    chance = random.Random(seed)
    batch = random_trades(TRADES, ROWS, START)
    times, pages, at = batch.ts_event, [], 0
    while at < len(batch):
        rows = chance.choice([10, 500, 3000])
        span = Span(int(times[at]), int(times[min(at + rows, len(batch) - 1)]) + 1)
        pages.append(page_with(batch.within(span), span))
        at += rows
    pages += chance.sample(pages, len(pages) // 5)
    chance.shuffle(pages)
    return pages


@pytest.fixture(scope="module")
def shared():
    with own_schema() as name:
        yield name


@pytest.fixture
def schema(shared):
    yield shared
    empty(shared)


@pytest.fixture
def process(request, monkeypatch):
    """Start Python with code that may import the tests' modules."""
    folder = request.path.parent
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{folder.parent}")
    started = []

    def start(code, *words):
        command = [sys.executable, "-c", code, *map(str, words)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, **pipes))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


async def test_processes_append_at_once(tmp_path, schema, process):
    async with opened(schema, tmp_path) as storage:
        writers = [process(WRITER, schema, seed) for seed in (1, 2)]
        for one in writers:
            assert await trio.to_thread.run_sync(one.stdout.readline) == "ready\n"
        for one in writers:
            one.stdin.write("go\n")
            one.stdin.flush()
        total = Appended()
        for one in writers:
            out, _ = await trio.to_thread.run_sync(one.communicate)
            assert one.returncode == 0
            total += Appended(**json.loads(out))
        batch = random_trades(TRADES, ROWS, START)
        sent = sum(len(page.batch) for seed in (1, 2) for page in pages_of(seed))
        assert total == Appended(ROWS, sent - ROWS, 0)
        assert same_rows(await read(storage, TRADES, batch.extent()), batch).all()
        assert await storage.coverage(TRADES) == Coverage([batch.extent()])
        [info] = await storage.list_series()
        assert (info.rows, info.first, info.last) == (
            ROWS, int(batch.ts_event[0]), int(batch.ts_event[-1])
        )  # fmt: skip
        changes = await storage.provenance(TRADES, 10_000)
        assert len(changes) == info.version
        assert sum(change.rows.added for change in changes) == ROWS


async def test_one_holds_a_lease_and_others_wait(tmp_path, schema, monkeypatch):
    monkeypatch.setattr(leases, "POLL_SECS", 0.01)
    order = []
    async with opened(schema, tmp_path) as one, opened(schema, tmp_path / "other") as two:

        async def wait():
            async with two.lease(TRADES):
                order.append("two")

        async def hold(nursery):
            async with one.lease(TRADES), two.lease(CANDLES):  # other series are free
                nursery.start_soon(wait)
                await trio.sleep(0.1)
                order.append("one")

        async with trio.open_nursery() as nursery:
            await hold(nursery)
        assert order == ["one", "two"]
        with sql(schema) as beside:
            assert beside.execute("SELECT DISTINCT owner FROM lease").fetchall() == [(None,)]


async def test_a_dead_daemon_loses_its_lease(tmp_path, schema, process, monkeypatch):
    monkeypatch.setattr(leases, "POLL_SECS", 0.01)
    async with opened(schema, tmp_path) as storage:
        holder = process(HOLDER, schema)
        assert await trio.to_thread.run_sync(holder.stdout.readline) == "held\n"
        holder.send_signal(signal.SIGKILL)
        await trio.to_thread.run_sync(holder.wait)
        with trio.move_on_after(0.1) as scope:
            await storage._leases._wait(TRADES)
        assert scope.cancelled_caught
        with sql(schema) as beside:  # as if the time had passed
            beside.execute("UPDATE lease SET expires_at = clock_timestamp() - interval '1 second'")
        async with storage.lease(TRADES):
            pass


async def test_a_daemon_that_is_started_anew_has_its_leases(tmp_path, schema):
    async with opened(schema, tmp_path) as one, opened(schema, tmp_path / "other") as other:
        assert await one._access.write(lambda link: one._leases._take(TRADES, link)) is None
        taken = await other._access.write(lambda link: other._leases._take(TRADES, link))
        assert taken == one._leases._owner
    async with opened(schema, tmp_path) as again, again.lease(TRADES):
        assert again._leases._owner == taken
    (tmp_path / f"{schema}.owner").write_text("another-machine:0123\n")
    async with opened(schema, tmp_path) as moved:
        assert moved._leases._owner not in (taken, "another-machine:0123")


async def test_a_lease_that_others_took_ends_the_block(tmp_path, schema):
    async with opened(schema, tmp_path, lease_secs=3) as storage:
        storage._leases._secs = 0.05

        async def robbed():
            async with storage.lease(TRADES):
                with sql(schema) as beside:
                    beside.execute("UPDATE lease SET owner = 'somebody else'")
                await trio.sleep_forever()

        with pytest.raises(StorageError, match="ran out and another daemon took it"):
            await robbed()
        with sql(schema) as beside:  # it is theirs
            assert beside.execute("SELECT owner FROM lease").fetchall() == [("somebody else",)]


async def test_a_late_lease_that_nobody_took_is_renewed(tmp_path, schema):
    async with opened(schema, tmp_path) as storage, storage.lease(TRADES):
        with sql(schema) as beside:
            beside.execute("UPDATE lease SET expires_at = clock_timestamp() - interval '1 hour'")
            assert await storage._leases._renewed(TRADES)
            late = beside.execute("SELECT count(*) FROM lease WHERE expires_at < now()")
            assert late.fetchone() == (0,)


async def test_a_lease_that_is_being_taken_is_skipped(tmp_path, schema):
    """Nobody waits for a row that another transaction has locked."""
    async with opened(schema, tmp_path) as storage:
        async with storage.lease(TRADES):
            pass
        with sql(schema) as beside, beside.transaction():
            beside.execute("SELECT 1 FROM lease FOR UPDATE")
            with trio.fail_after(30):
                assert (
                    await storage._access.write(lambda link: storage._leases._take(TRADES, link))
                    == "None"
                )


async def test_what_the_caller_raises_passes_a_lease(tmp_path: Path, schema):
    async with opened(schema, tmp_path) as storage:
        with pytest.raises(KeyError, match="mine"):
            async with storage.lease(TRADES):
                raise KeyError("mine")
        async with storage.lease(TRADES):
            pass
