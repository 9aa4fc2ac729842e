"""The storage `postgres` when the server goes away: nothing lost, nothing twice, reads go on."""

from __future__ import annotations

import random
from types import SimpleNamespace

import psycopg
import pytest
import services
import trio
from postgres_rig import (
    Proxy,
    empty,
    held,
    opened,
    own_schema,
    own_server,
    plugin_of,
    sql,
    terminate,
    used,
)

from tardisd.errors import StorageError
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.span import Coverage, Span
from tardisd.plugins.storage import Appended
from tardisd.testing.engine import run_engine
from tardisd.testing.memory import MemoryStorage
from tardisd.testing.storage_model import START, Draw, Model, joined, rows_of
from tardisd.testing.storage_pages import ALL_TIME, CANDLES, TEXT_IDS, TRADES, cut, page_with, read
from tardisd.testing.ticks import random_candles, random_trades
from tardisd_postgres import access, catalogue, pins, reading, ticks
from tardisd_postgres.words import is_lost

pytestmark = pytest.mark.services
ROWS = 40_000


@pytest.fixture(scope="module")
def server():
    with own_server() as one:
        yield one


@pytest.fixture(scope="module")
def shared():
    with own_schema() as name:
        yield name


@pytest.fixture
def schema(shared):
    yield shared
    empty(shared)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(access, "_FIRST_WAIT_SECS", 0.01)
    monkeypatch.setattr(access, "_MOST_WAIT_SECS", 0.05)


async def in_thread(function, *args):
    await trio.to_thread.run_sync(function, *args)


async def until(condition):
    while not condition():
        await trio.sleep(0.005)


def amid_copy(monkeypatch, trouble):
    """Have `trouble` happen once, when the first piece of a page has been sent."""
    encode, left = ticks.encode, [trouble]

    def troubled(*args):
        for at, piece in enumerate(encode(*args)):
            yield piece
            if at == 1 and left:
                left.pop()()

    monkeypatch.setattr(ticks, "encode", troubled)


async def test_the_server_is_killed_amid_copy(tmp_path, server, monkeypatch):
    batch = random_trades(TRADES, ROWS, START)
    first, second = cut(batch, ROWS // 2)[:2]
    async with (
        opened("killed_amid_copy", tmp_path, server.dsn) as storage,
        trio.open_nursery() as nursery,
    ):
        assert await storage.append(TRADES, first) == Appended(len(first.batch))
        amid_copy(monkeypatch, server.stop)

        async def revive():
            await until(lambda: storage._access._away_since is not None)
            await in_thread(server.start)

        nursery.start_soon(revive)
        assert await storage.append(TRADES, second) == Appended(len(second.batch))
        assert same_rows(await read(storage, TRADES), batch).all()
        assert await storage.coverage(TRADES) == Coverage([first.span, second.span])
        assert await storage.version(TRADES) == 2
        assert len(await storage.provenance(TRADES, 10)) == 2


async def test_a_read_goes_on_when_the_server_is_back(tmp_path, server, monkeypatch):
    monkeypatch.setattr(reading, "READ_ROWS", 1000)
    batch = random_trades(TRADES, ROWS, START)
    async with opened("read_goes_on", tmp_path, server.dsn) as storage:
        for page in cut(batch, ROWS // 2):
            await storage.append(TRADES, page)
        async with storage.read(TRADES, ALL_TIME) as batches:
            found = [await batches.receive() for _ in range(3)]
            await in_thread(server.stop)
            got = trio.Event()

            async def rest():
                found.extend([one async for one in batches])
                got.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(rest)
                await until(lambda: storage._access._away_since is not None)
                assert not got.is_set()
                await in_thread(server.start)
        assert same_rows(Batch.concat(found), batch).all()


async def test_a_call_gives_up_after_its_patience(tmp_path, server):
    async with opened("patience", tmp_path, server.dsn, patience_secs=0) as storage:
        await in_thread(server.stop)
        try:
            with pytest.raises(StorageError, match=r"cannot be reached \(.*check dsn, and that"):
                await storage.coverage(TRADES)
            with trio.move_on_after(0.05) as scope:  # a read waits for ever, and is left at once
                await read(storage, TRADES)
            assert scope.cancelled_caught
        finally:
            await in_thread(server.start)
        assert await storage.coverage(TRADES) == Coverage()


@pytest.mark.parametrize("place", ["lock", "cover", "forget_gaps", "update", "note", "copy"])
async def test_a_connection_is_lost_amid_an_append(tmp_path, schema, place, monkeypatch):
    batch = random_trades(TRADES, ROWS, START)
    async with opened(schema, tmp_path) as storage:
        with sql(schema) as beside:
            lost = []

            def lose():
                lost.append(place)
                terminate(beside, schema)

            if place == "copy":
                amid_copy(monkeypatch, lose)
            else:
                plain = getattr(catalogue, place)

                def troubled(*args, **options):
                    result = plain(*args, **options)
                    if not lost:
                        lose()
                    return result

                monkeypatch.setattr(catalogue, place, troubled)
            assert await storage.append(TRADES, page_with(batch)) == Appended(ROWS)
        assert lost == [place]
        assert same_rows(await read(storage, TRADES), batch).all()
        assert await storage.version(TRADES) == 1
        assert await storage.append(TRADES, page_with(batch)) == Appended(unchanged=ROWS)


@pytest.mark.parametrize("after", [True, False], ids=["committed", "not committed"])
async def test_a_commit_without_an_answer(tmp_path, schema, after):
    batch = random_candles(CANDLES, 500, START)
    with Proxy(services.postgres_dsn(), after=after, cut=10**9).running() as proxy:
        async with opened(schema, tmp_path, proxy.dsn) as storage:
            await storage.append(CANDLES, page_with(batch[:100]))
            proxy._cut = proxy.commits + 1
            appended = await storage.append(CANDLES, page_with(batch[50:]))
            assert proxy.commits >= proxy._cut
            assert appended == Appended(added=400, unchanged=50)
            assert await storage.version(CANDLES) == 2
            assert len(await storage.provenance(CANDLES, 10)) == 2
            assert same_rows(await read(storage, CANDLES), batch).all()


async def test_a_read_survives_lost_connections(tmp_path, schema, monkeypatch):
    monkeypatch.setattr(reading, "READ_ROWS", 2000)
    batch = random_trades(TRADES, ROWS, START)
    async with opened(schema, tmp_path) as storage:
        await storage.append(TRADES, page_with(batch))
        with sql(schema) as beside:
            async with storage.read(TRADES, ALL_TIME) as batches:
                found = []
                async for one in batches:
                    found.append(one)
                    await in_thread(terminate, beside, schema)
        assert len(found) > 10
        assert same_rows(Batch.concat(found), batch).all()


async def test_rows_that_a_read_still_wants_are_kept_aside(tmp_path, schema, monkeypatch):
    monkeypatch.setattr(reading, "READ_ROWS", 1000)
    batch = random_trades(TRADES, 10_000, START)
    count = "SELECT (SELECT count(*) FROM trade), (SELECT count(*) FROM trade_replaced)"
    async with opened(schema, tmp_path) as storage, opened(schema, tmp_path) as other:
        await storage.append(TRADES, page_with(batch))
        with sql(schema) as beside:
            async with storage.read(TRADES, ALL_TIME) as batches:
                found = [await batches.receive()]
                assert await other.delete(TRADES, ALL_TIME) == 10_000
                assert beside.execute(count).fetchone() == (0, 10_000)
                found += [one async for one in batches]
            assert same_rows(Batch.concat(found), batch).all()
            # The next removal finds no reader, and clears away.
            await other.append(TRADES, page_with(batch[:10]))
            await other.delete(TRADES, ALL_TIME)
            assert beside.execute(count).fetchone() == (0, 0)


async def test_a_reader_that_waits_gets_its_locks_back(tmp_path, schema, monkeypatch):
    """A paced session asks for no rows for hours, and others find the lost server first."""
    monkeypatch.setattr(reading, "READ_ROWS", 1000)
    monkeypatch.setattr(pins, "LOOK_SECS", 0.01)
    batch = random_trades(TRADES, ROWS, START)
    async with opened(schema, tmp_path) as storage, opened(schema, tmp_path) as other:
        await storage.append(TRADES, page_with(batch))
        with sql(schema) as beside:
            async with storage.read(TRADES, ALL_TIME) as batches:
                found = [await batches.receive()]
                for _ in range(3):
                    terminate(beside, schema)
                    await storage.coverage(TRADES)
                    with trio.fail_after(60):
                        await until(lambda: held(beside, schema))
                assert await other.delete(TRADES, ALL_TIME) == ROWS
                found += [one async for one in batches]
            assert same_rows(Batch.concat(found), batch).all()


async def test_a_read_whose_rows_are_gone_says_so(tmp_path, schema, monkeypatch):
    """Its locks were lost with a connection, and somebody deletes before it notices."""
    monkeypatch.setattr(reading, "READ_ROWS", 1000)
    monkeypatch.setattr(pins, "LOOK_SECS", 3600)
    batch = random_trades(TRADES, ROWS, START)
    async with opened(schema, tmp_path) as storage:
        await storage.append(TRADES, page_with(batch))

        async def interrupted(beside):
            async with storage.read(TRADES, ALL_TIME) as batches:
                await batches.receive()
                storage._pins._connection.close()
                await until(lambda: not held(beside, schema))
                await storage.delete(TRADES, Span(int(batch.ts_event[-1]), ALL_TIME.end))
                return [one async for one in batches]

        told = "were replaced or deleted while"
        with sql(schema) as beside, pytest.raises(StorageError, match=told):
            await interrupted(beside)


async def test_more_reads_than_connections(tmp_path, schema):
    batch = random_trades(TRADES, 20_000, START)
    async with opened(schema, tmp_path, pool_min=2, pool_max=3) as storage:
        await storage.append(TRADES, page_with(batch))
        streams = []
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                send, receive = trio.open_memory_channel(0)

                async def hold(send=send):
                    async with storage.read(TRADES, ALL_TIME) as batches, send:
                        async for one in batches:
                            await send.send(one)

                nursery.start_soon(hold)
                streams.append(receive)
            heads = [await stream.receive() for stream in streams]  # all are open at once
            with sql(schema) as beside:  # the server takes a moment to notice closed ones
                await until(lambda: used(beside, schema) <= 3)
            for head, stream in zip(heads, streams, strict=True):
                found = [head, *[one async for one in stream]]
                assert same_rows(Batch.concat(found), batch).all()


async def test_cancelled_calls_give_everything_back(tmp_path, schema):
    batch = random_trades(TRADES, 5000, START)
    async with opened(schema, tmp_path, pool_min=2, pool_max=4) as storage:
        await storage.append(TRADES, page_with(batch))
        for at in range(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, storage, TRADES)
                nursery.start_soon(storage.append, TRADES, page_with(batch))
                nursery.start_soon(storage.delete, TEXT_IDS, ALL_TIME)
                for _ in range(at):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert storage._access._threads.borrowed_tokens == 0
        assert not storage._pins._readers
        with sql(schema) as beside:
            await until(lambda: not held(beside, schema))
        assert same_rows(await read(storage, TRADES), batch).all()


def test_a_session_is_the_same_over_any_storage(tmp_path, schema):
    trades, candles = random_trades(TRADES, 5000, START), random_candles(CANDLES, 50, START)
    span = Span(START, int(trades.ts_event[-1]) + 1)

    async def play(engine):
        for batch in (trades, candles):
            await engine.store(batch)
        heard = await engine.play([TRADES, CANDLES], span, speed="max")
        return heard.end["hash"], heard.end["ticks"]

    async def play_here(engine):
        async with engine.storage.run():
            return await play(engine)

    plugin = plugin_of(schema, tmp_path)
    limiters = (plugin._access._threads, plugin._pins._thread)
    expected = run_engine(play, storage=MemoryStorage())
    assert run_engine(play_here, storage=plugin, limiters=limiters) == expected
    assert expected[1] > 5000


def test_locks_of_schemas_differ():
    assert pins.lock_class("one") != pins.lock_class("two")
    assert all(-(2**31) <= pins.lock_class(str(at)) < 2**31 for at in range(100))


@pytest.mark.parametrize("series", [TRADES, CANDLES, TEXT_IDS], ids=str)
async def test_like_the_model_while_connections_are_cut(tmp_path, schema, series):
    chance = random.Random(3)
    draw, model = Draw(series, chance), Model(series)

    async def cut_now_and_then():
        with sql(schema) as beside:
            while True:
                await trio.sleep(chance.random() * 0.1)
                await in_thread(terminate, beside, schema)

    async with opened(schema, tmp_path) as storage, trio.open_nursery() as nursery:
        nursery.start_soon(cut_now_and_then)
        for _ in range(25):
            match chance.choices(["append", "delete", "gap"], [8, 1, 1])[0]:
                case "append":
                    page = draw.page()
                    assert await storage.append(series, page) == model.append(page)
                case "delete":
                    span = draw.span()
                    assert await storage.delete(series, span) == model.delete(span)
                case "gap":
                    gaps = [draw.gap()]
                    await storage.record_gaps(series, gaps)
                    model.record_gaps(gaps)
            assert rows_of(await read(storage, series)) == model.read(ALL_TIME)
            assert await storage.coverage(series) == model.coverage
            assert joined(await storage.gaps(series)) == model.gaps
        nursery.cancel_scope.cancel()


def test_what_no_server_has_said_is_a_loss():
    """The library may fail to send before it knows that the connection is broken."""
    whole = SimpleNamespace(broken=False)
    assert is_lost(psycopg.OperationalError("sending query failed: terminating connection"), whole)
    assert not is_lost(psycopg.errors.UndefinedTable("no such table"), whole)
    assert not is_lost(psycopg.errors.DiskFull("no space left"), whole)
    assert is_lost(psycopg.errors.AdminShutdown("terminating connection"), whole)
