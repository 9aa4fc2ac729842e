"""The storage `postgres` and its surroundings: options, connecting, schemas, views, packaging."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import msgspec
import psycopg
import pytest
import services
import trio
from postgres_rig import opened, own_schema, own_server, plugin_of, sql

import tardisd_postgres
from tardisd.config.load import load_config
from tardisd.errors import DataError, StorageError, StorageNewer
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.plugins.secret import Secret
from tardisd.testing.storage_model import START, Row, page_of
from tardisd.testing.storage_pages import CANDLES, TRADES, page_with, read, trade
from tardisd.testing.ticks import random_candles, random_trades
from tardisd_postgres import schema as tables
from tardisd_postgres.access import Place
from tardisd_postgres.plugin import PostgresOptions

FOLDER = Path(tardisd_postgres.__file__).parent


@pytest.fixture(scope="module")
def server():
    with own_server() as one:
        yield one


@pytest.fixture
def schema():
    with own_schema() as name:
        yield name


def options(**given):
    given = {"dsn": Secret("postgresql://127.0.0.1/x"), **given}
    return PostgresOptions(**given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"schema": "My Data"}, "is not a plain name"),
        ({"schema": "pg_tardisd"}, "is not a plain name"),
        ({"pool_min": 9, "pool_max": 8}, "pool_min 9 is more than pool_max 8"),
        ({"dsn": Secret("hunter2")}, "^dsn is not a connection string; write postgresql://user"),
    ],
)
def test_bad_options_are_refused(given, told):
    with pytest.raises(ValueError, match=told):
        options(**given)


def test_a_password_is_never_shown():
    secret = "postgresql://me:hunter2@127.0.0.1:1/market"
    given = options(dsn=Secret(secret))
    assert "hunter2" not in repr(given)
    assert "hunter2" not in repr(Place(secret, "x", "x"))
    assert str(Place(secret, "x", "x")) == "PostgreSQL at 127.0.0.1:1, database market"


def test_the_readme_shows_the_sample():
    sample = (FOLDER / "sample.toml").read_text()
    assert f"```toml\n{sample}```" in (FOLDER / "README.md").read_text()


def test_the_sample_loads(tmp_path):
    text = (FOLDER / "sample.toml").read_text()
    kept = re.findall(r"^# (\[.*|[a-z_]+ = .*)$", text, re.MULTILINE)  # others are comments there
    path = tmp_path / "config.toml"
    path.write_text("\n".join(kept))
    config = load_config(path, {"HOME": str(tmp_path)})
    shown = msgspec.structs.asdict(config.instances["storage"]["shared"].options)
    assert shown["dsn"].reveal() == "postgresql://tardisd@127.0.0.1/market"
    del shown["dsn"]
    defaults = msgspec.structs.asdict(options())
    assert shown == {name: defaults[name] for name in shown}
    assert len(shown) == len(defaults) - 1


def test_without_the_driver_it_says_what_to_install():
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from tardisd.plugins.registry import Registry\n"
        "[one] = [it for it in Registry.discover().plugins if it.module == 'tardisd_postgres']\n"
        "print(one.state, one.reason)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("unavailable package psycopg is missing")
    assert done.stdout.rstrip().endswith("pip install 'tardisd[postgres]'")


async def refusal(folder, dsn, schema="tardisd_test_refused", **given):
    """Return what an instance says that cannot start: one line."""
    with pytest.raises(StorageError) as raised:
        async with plugin_of(schema, folder, dsn, **given).run():
            pass
    assert "\n" not in raised.value.message
    return raised.value.message


async def test_a_server_that_is_not_there(tmp_path):
    told = await refusal(tmp_path, "postgresql://127.0.0.1:1/market", patience_secs=0)
    assert told.startswith("PostgreSQL at 127.0.0.1:1, database market cannot be reached (")
    assert told.endswith("check dsn, and that the server runs and accepts connections there")


@pytest.mark.services
async def test_a_missing_database_or_user(tmp_path, server):
    told = await refusal(tmp_path, f"{server.dsn.removesuffix('postgres')}nothing")
    assert 'database "nothing" does not exist' in told
    assert "createdb" in told
    told = await refusal(tmp_path, server.dsn.replace("postgres@", "nobody@"))
    assert 'role "nobody" does not exist' in told
    assert "createuser" in told


@pytest.mark.services
async def test_wrong_credentials_and_too_few_rights(tmp_path, server):
    with sql("public", server.dsn) as connection:
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'right'")
        connection.execute("CREATE DATABASE closed")
    rules = server.folder / "data" / "pg_hba.conf"
    rules.write_text(f"host closed guest 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
    server.run("pg_ctl", "-s", "-D", server.folder / "data", "reload")
    closed = f"postgresql://guest:PASSWORD@127.0.0.1:{server.port}/closed"
    told = await refusal(tmp_path, closed.replace("PASSWORD", "hunter2"))
    assert "password authentication failed" in told
    assert told.endswith("check user and password in dsn")
    assert "hunter2" not in told
    told = await refusal(tmp_path, closed.replace("PASSWORD", "right"))
    assert "permission denied for database closed" in told
    assert "grant the user CREATE on the database" in told


@pytest.mark.services
async def test_a_newer_schema_is_refused(tmp_path, schema):
    async with opened(schema, tmp_path):
        pass
    with sql(schema) as connection:
        connection.execute("UPDATE tardisd_version SET version = version + 1")
    with pytest.raises(StorageNewer, match=r"knows up to \d+; upgrade tardisd or set another"):
        async with opened(schema, tmp_path):
            pass


@pytest.mark.services
async def test_tables_of_something_else_are_left_alone(tmp_path, schema):
    with psycopg.connect(services.postgres_dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.other (x int)".encode())
        with pytest.raises(StorageError, match="holds tables of something else"):
            async with opened(schema, tmp_path):
                pass
        count = "SELECT count(*) FROM pg_class WHERE relnamespace = %s::regnamespace"
        assert connection.execute(count, (schema,)).fetchone() == (1,)


@pytest.mark.services
@pytest.mark.parametrize("version", range(1, tables.VERSION))
async def test_an_older_schema_is_migrated_with_its_rows(tmp_path, schema, version, monkeypatch):
    batch = random_trades(TRADES, 100, START)
    with monkeypatch.context() as then:
        then.setattr(tables, "MIGRATIONS", tables.MIGRATIONS[:version])
        then.setattr(tables, "VERSION", version)
        async with opened(schema, tmp_path):
            pass
    with sql(schema) as connection:
        connection.execute(
            "INSERT INTO series (exchange, kind, venue_id, data_type, symbol, version, rows,"
            " first_ts, last_ts) VALUES (%s, %s, %s, %s, 'BTC/USDT', 1, 100, %s, %s)",
            (*TRADES.key, int(batch.ts_event[0]), int(batch.ts_event[-1])),
        )
        march = "FROM (1709251200000000000) TO (1711929600000000000)"
        connection.execute(
            f"CREATE TABLE trade_2024_03 PARTITION OF trade FOR VALUES {march}".encode()
        )
        rows = zip(batch.ts_event.tolist(), batch.ids.tolist(), strict=True)
        prices, amounts = (batch.fields[name].texts() for name in ("price", "amount"))
        connection.cursor().executemany(
            "INSERT INTO trade (series_id, born, ts, seq, side, price, amount)"
            " VALUES (1, 1, %s, %s, %s, %s, %s)",
            [(*row, "bs"[side], price, amount) for row, side, price, amount
             in zip(rows, batch.sides.tolist(), prices, amounts, strict=True)],
        )  # fmt: skip
    async with opened(schema, tmp_path) as storage:
        assert same_rows(await read(storage, TRADES), batch).all()
        assert (await storage.append(TRADES, page_with(batch))).unchanged == 100
        assert len(await storage.provenance(TRADES, 10)) == 1  # the coverage was new


@pytest.mark.services
async def test_daemons_may_start_at_once(tmp_path, schema):
    async def start():
        async with opened(schema, tmp_path) as storage:
            await storage.probe()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(start)


@pytest.mark.services
async def test_the_views(tmp_path, schema):
    months = Series.parse("okx:BTC/USDT:USDT@candle_1M")
    values = ("61130.98", "61200", "61000.5", "61100.000000000000000001", "12.5", None, "7")
    candle = Row(START + 1_234_567_000, None, None, values)
    async with opened(schema, tmp_path) as storage:
        await storage.append(months, page_of(months, [candle]))
        await storage.append(TRADES, page_of(TRADES, [trade(1, 5, "0.1"), trade(2, 6, side=1)]))
    with sql(schema) as connection:
        cursor = connection.execute("SELECT * FROM market_ohlcv")
        assert [column.name for column in cursor.description] == [
            "timestamp", "datetime", "symbol", "exchange", "interval",
            "open", "high", "low", "close", "volume", "quote_volume", "trades",
        ]  # fmt: skip
        connection.execute("SET timezone = 'UTC'")
        when = datetime(2024, 3, 1, 0, 0, 1, 234567, UTC)
        numbers = [None if text is None else Decimal(text) for text in values]
        [row] = cursor.fetchall()
        assert row == (
            (START + 1_234_567_000) // 10**6,
            when,
            "BTC/USDT:USDT",
            "okx",
            "1M",
            *numbers,
        )
        found = connection.execute("SELECT id, price, side FROM market_trades ORDER BY timestamp")
        assert found.fetchall() == [("5", Decimal("0.1"), "buy"), ("6", Decimal(1), "sell")]


@pytest.mark.services
async def test_ticks_are_partitioned_by_time(tmp_path, schema):
    trades = random_trades(TRADES, 3000, START, mean_gap_ms=3_000_000)  # some three months
    candles = random_candles(CANDLES, 10, START)
    async with opened(schema, tmp_path) as storage:
        await storage.append(TRADES, page_with(trades))
        await storage.append(CANDLES, page_with(candles))
        assert same_rows(await read(storage, TRADES, trades.extent()), trades).all()
        listed = {info.series: info.size_bytes for info in await storage.list_series()}
        assert listed[TRADES] > 3000 * 60
        with sql(schema) as connection:
            parts = connection.execute(
                "SELECT inhparent::regclass::text, inhrelid::regclass::text FROM pg_inherits"
                " JOIN pg_class c ON c.oid = inhrelid WHERE c.relkind = 'r'"
                " AND c.relnamespace = %s::regnamespace ORDER BY 2", (schema,),
            ).fetchall()  # fmt: skip
            months = sorted(set(trades.ts_event.view("datetime64[ns]").astype("datetime64[M]")))
            named = [("trade", f"trade_{str(one).replace('-', '_')}") for one in months]
            assert len(named) >= 3
            assert parts == [("candle", "candle_2024"), *named]
            # Somebody drops one: the rows are gone, and the next page makes it anew.
            connection.execute(f"DROP TABLE {named[0][1]}".encode())
        assert (await storage.append(TRADES, page_with(trades))).added > 0
        assert same_rows(await read(storage, TRADES, trades.extent()), trades).all()


@pytest.mark.services
async def test_what_does_not_fit_is_refused(tmp_path, schema):
    async with opened(schema, tmp_path) as storage:
        below = trade(1, 1)
        page = page_of(TRADES, [below])
        page.batch.ids[0] = -5
        with pytest.raises(DataError, match="id is below zero"):
            await storage.append(TRADES, page)
        bare = page_of(TRADES, [trade(1, 1), trade(1, 2)])
        sided = Batch(TRADES, bare.batch.ts_event, bare.batch.fields, bare.batch.ids, None)
        await storage.append(TRADES, bare)
        with pytest.raises(DataError, match="with and without a taker side"):
            await storage.append(TRADES, page_with(sided))


@pytest.mark.services
async def test_numbers_of_others_are_not_taken_for_ours(tmp_path, schema):
    async with opened(schema, tmp_path) as storage:
        await storage.append(TRADES, page_of(TRADES, [trade(1, 1), trade(2, 2)]))
        for text in (
            "'NaN'",
            "'Infinity'",
            "0.0000000000000000001",
            "1e19",
            "10000000000000000000",
        ):
            with sql(schema) as connection:
                connection.execute(f"UPDATE trade SET price = {text} WHERE seq = 2".encode())
            with pytest.raises(StorageError, match="somebody else has written it"):
                await read(storage, TRADES)


@pytest.mark.services
async def test_what_is_never_stored_is_refused(tmp_path, schema):
    derived = Series.parse("okx:BTC/USDT@indicator_sma")
    page = page_of(derived, [Row(START, None, None, ("1",))])
    async with opened(schema, tmp_path) as storage:
        with pytest.raises(DataError, match="indicator rows cannot be stored"):
            await storage.append(derived, page)
        with pytest.raises(DataError, match="indicator rows cannot be stored"):
            await storage.delete(derived, page.span)
        assert len(await read(storage, derived)) == 0
        assert await storage.last_before(derived, START) is None
