"""Binary COPY of the storage `postgres`: a real server gives back exactly what was sent to it."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
import services
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tick_strategies import HASHED, OTHERS, batch_of, rows_of

from tardisd.errors import StorageCorrupt
from tardisd.market.columns import SCHEMAS
from tardisd.market.match import in_order
from tardisd.market.series import Series
from tardisd.testing import storage_model
from tardisd_postgres import ticks
from tardisd_postgres.access import Place
from tardisd_postgres.binary import HEADER, TRAILER, Reader
from tardisd_postgres.rows import TABLES, first_seq, places

SERIES = [*HASHED, *OTHERS, Series.parse("okx:BTC/USDT@book_snapshot")]


@pytest.fixture(scope="module")
def connection():
    with Place(services.postgres_dsn(), "pg_temp", "test").connect() as one:
        for table in TABLES.values():
            columns = ", ".join(f'"{name}" {form}' for name, form in table.columns)
            one.execute(
                f"CREATE TEMP TABLE {table.name} (series_id int, born int, {columns})".encode()
            )
        yield one


def test_every_kind_that_is_stored_has_a_table():
    """One that is new, or has a new column, needs a migration too; then change this."""
    assert set(TABLES) == set(SCHEMAS) - {"indicator"}
    columns = ", ".join(f"{name}: {table.read_names}" for name, table in TABLES.items())
    assert blake2b(columns.encode(), digest_size=8).hexdigest() == "2230716b28a845ae"


@pytest.mark.services
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_rows_come_back_exactly(connection, data):
    series = data.draw(st.sampled_from(SERIES))
    batch = in_order(batch_of(series, data.draw(rows_of(series))))
    table = TABLES[series.data_type.kind]
    seq = first_seq(table, batch)
    if seq is not None:  # no two rows have one key
        assume(len(set(zip(batch.ts_event.tolist(), seq.tolist(), strict=True))) == len(batch))
    connection.execute(f"TRUNCATE {table.name}".encode())
    ticks.copy_in(connection, table, 7, 3, batch, seq)
    query = f"SELECT {table.read_names} FROM {table.name} WHERE series_id = 7 AND born = 3"
    messages = ticks.copy_out(connection, f"{query} ORDER BY {table.key}")
    rows = table.decoded(series, messages)
    assert storage_model.rows_of(rows.whole()) == storage_model.rows_of(batch)
    if rows.seq is not None:
        assert rows.seq.tolist() == seq.tolist()
    if len(messages) > 2:
        last = table.place_of(messages[-2], 0)
        assert last == (int(batch.ts_event[-1]), 0 if seq is None else int(seq[-1]))


@pytest.mark.services
@pytest.mark.parametrize(
    ("text", "scale"),
    [("0", 0), ("0.0000", 4), ("9999.9999", 4), ("10000.0001", 4), ("-0.000000000000000001", 18),
     ("9223372036854775807.999999999999999999", 18), ("-9223372036854775807", 0),
     ("123456789012345678", 0), ("0.123456789012345678", 18), ("1000000000000", 0)],
)  # fmt: skip
def test_numbers_are_what_the_server_reads(connection, text, scale):
    """The server's own reading of the text, not only ours, is what was stored."""
    series = Series.parse("okx:BTC/USDT:USDT@funding")
    row = storage_model.Row(storage_model.START, None, None, (text,))
    table = TABLES["funding"]
    connection.execute(b"TRUNCATE funding")
    batch = storage_model.batch_of(series, [row, row])
    ticks.copy_in(connection, table, 1, 1, batch, places(batch.ts_event))
    found = connection.execute("SELECT rate = %s::numeric, rate::text FROM funding", (text,))
    assert {equal for equal, _ in found.fetchall()} == {True}
    # And so is a number that somebody else has written, with digits as the server keeps them.
    connection.execute(b"UPDATE funding SET rate = %s::numeric", (text,))
    query = f"SELECT {table.read_names} FROM funding ORDER BY ts, seq"
    rows = table.decoded(series, ticks.copy_out(connection, query))
    assert rows.batch.fields["rate"].texts() == batch.fields["rate"].texts()


@pytest.mark.parametrize("messages", [[], [b"x"], [HEADER], [TRAILER], [HEADER + b"x", b"y"]])
def test_what_is_no_copy_is_refused(messages):
    with pytest.raises(StorageCorrupt, match="not in binary COPY format"):
        Reader(messages)


def test_places_count_within_an_instant():
    times = np.array([1, 1, 2, 5, 5, 5])
    assert places(times).tolist() == [0, 1, 0, 0, 1, 2]
