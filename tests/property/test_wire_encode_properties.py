"""Every form of encoded ticks reads back as exactly the ticks it was made of."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st
from tick_strategies import HASHED, OTHERS, batch_of, rows_of, tables

from tardisd.market.columns import SCHEMAS
from tardisd.market.series import Series
from tardisd.market.time import MILLISECOND, format_time
from tardisd.replay.merge import Mark
from tardisd.testing.blocks import SENT_MS, make_blocks, make_stream
from tardisd.wire.text import csv_header, encode_batch

numbers = {"parse_float": Decimal, "parse_int": Decimal}


def data_of(row, stamped=True):
    """Return the `data` of a tick message, numbers as Decimal."""
    series = Series.parse(row["series"])
    schema = SCHEMAS[series.data_type.kind]
    data = {
        "timestamp": Decimal(row["ts_event"] // MILLISECOND),
        "datetime": format_time(row["ts_event"]),
        "symbol": str(series.symbol),
        "exchange": series.exchange,
    }
    interval = series.data_type.interval
    if interval is not None:
        data["close_time"] = Decimal(row["ts_release"] // MILLISECOND)
        data["interval"] = str(interval)
    data |= {name: Decimal(row[name]) for name in schema.fields if name in row}
    data |= {name: row[name] for name in ("id", "side") if name in row}
    return data | ({"replay_time": Decimal(SENT_MS)} if stamped else {})


def channel_of(row):
    return row["series"].rpartition("@")[2]


def strict(pairs):
    """Return an object, none of whose keys comes twice."""
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def read(text):
    return json.loads(text, object_pairs_hook=strict, **numbers)


@given(tables(HASHED + OTHERS), st.sampled_from([1, 4, 2048]))
def test_tick_frames(table, slice_ticks):
    rows, batches = table
    done = 0
    for block in make_blocks(batches, 'an "id"', slice_ticks=slice_ticks):
        seq = block.first_seq
        text = bytes(block.encode("tick").bytes())
        while text:
            size, start = text[1], 2
            assert text[0] == 0x81
            if size == 126:
                size, start = int.from_bytes(text[2:4], "big"), 4
                assert size >= 126
            assert size != 127
            message = read(text[start : start + size])
            row = rows[done]
            assert message == {
                "type": "tick",
                "session_id": 'an "id"',
                "epoch": 1,
                "seq": seq,
                "channel": channel_of(row),
                "data": data_of(row),
            }
            text, seq, done = text[start + size :], seq + 1, done + 1
    assert done == len(rows)


@given(tables(HASHED + OTHERS), st.data())
def test_batch_rows_and_any_part_of_them(table, data):
    rows, batches = table
    done = 0
    for block in make_blocks(batches, "s", slice_ticks=data.draw(st.integers(1, 20))):
        encoded = block.encode("batch")
        assert len(encoded) == len(block)
        first = data.draw(st.integers(0, len(block)))
        last = data.draw(st.integers(first, len(block)))
        for a, b in ((0, len(block)), (first, last)):
            text = bytes(encoded.bytes(a, b)).decode()
            made = read(f"[{text[: text.rfind(',')]}]") if a < b else []
            part = rows[done + a : done + b]
            assert made == [{"channel": channel_of(row), **data_of(row)} for row in part]
        limit = data.draw(st.sampled_from([1, 300, 700, 10**9]))
        pieces = [bytes(piece) for piece in encoded.cut(limit)]
        assert b"".join(pieces) == bytes(encoded.bytes())
        one = max(len(encoded.bytes(row, row + 1)) for row in range(len(block)))
        assert all(0 < len(piece) <= max(limit, one) for piece in pieces)
        done += len(block)


@given(tables(HASHED + OTHERS), st.data())
def test_data_alone_in_tables_of_one_width(table, data):
    rows, batches = table
    made = []
    for block in make_blocks(batches, "s", slice_ticks=data.draw(st.integers(1, 20))):
        encoded = block.encode("data")
        grids = list(encoded.grids())
        assert b"".join(map(bytes, grids)) == bytes(encoded.bytes())
        made += [read(bytes(row)) for grid in grids for row in grid]
    assert made == [data_of(row) for row in rows]


@given(tables(HASHED + OTHERS))
def test_ndjson_has_no_blank_but_padding(table):
    rows, batches = table
    blocks = make_blocks(batches, "s")
    seqs = [block.first_seq + row for block in blocks for row in range(len(block))]
    text = b"".join(bytes(block.encode("ndjson").bytes()) for block in blocks)
    for form in (text, text.replace(b" ", b"")):
        made = [read(line) for line in form.splitlines()]
        assert made == [
            {"seq": seq, "channel": channel_of(row), **data_of(row)}
            for seq, row in zip(seqs, rows, strict=True)
        ]


@given(tables(HASHED + OTHERS))
def test_lookahead_is_said_of_candles_and_of_nothing_else(table):
    _, batches = table
    for item in make_stream(batches, "s", lookahead=True):
        if isinstance(item, Mark):
            continue
        for line in bytes(item.encode("ndjson").bytes()).splitlines():
            row = read(line)
            assert row.get("lookahead") == (True if "interval" in row else None)


def plain_csv(row):
    schema = SCHEMAS[Series.parse(row["series"]).data_type.kind]
    cells = [format_time(row["ts_event"])]
    cells += [row.get("id", "")] * schema.has_id
    cells += [Decimal(row[name]) if name in row else "" for name in schema.fields]
    return cells + [row.get("side", "")] * schema.has_side


@given(st.sampled_from(HASHED + OTHERS).flatmap(lambda s: st.tuples(st.just(s), rows_of(s))))
def test_csv_and_ndjson_of_plain_batches(series_and_rows):
    series, rows = series_and_rows
    batch = batch_of(series, rows)
    text = encode_batch(batch, "csv").decode()
    header, *lines = csv.reader(io.StringIO(csv_header(series).decode() + text, newline=""))
    schema = SCHEMAS[series.data_type.kind]
    assert len(header) == 1 + schema.has_id + len(schema.fields) + schema.has_side
    assert len(lines) == len(rows)
    first = 1 + schema.has_id
    for cells, row in zip(lines, rows, strict=True):
        end = first + len(schema.fields)
        assert all(" " not in cell for cell in cells[first:])
        cells[first:end] = [Decimal(cell) if cell else "" for cell in cells[first:end]]
        assert cells == plain_csv(row)
    lines = encode_batch(batch, "ndjson", first_seq=5).splitlines()
    assert [read(line) for line in lines] == [
        {"seq": 5 + at, "channel": channel_of(row), **data_of(row, stamped=False)}
        for at, row in enumerate(rows)
    ]
    assert encode_batch(batch[:0], "csv") == b""


@given(tables(HASHED + OTHERS))
def test_csv_rows_of_blocks(table):
    rows, batches = table
    text = b"".join(bytes(block.encode("csv").bytes()) for block in make_blocks(batches, "s"))
    lines = list(csv.reader(io.StringIO(text.decode(), newline="")))
    assert len(lines) == len(rows)
    for cells, row in zip(lines, rows, strict=True):
        expected = plain_csv(row)
        assert len(cells) == len(expected)
        for cell, value in zip(cells, expected, strict=True):
            if isinstance(value, Decimal):
                assert Decimal(cell.strip()) == value
            elif cell != value:
                assert cell.strip() == value.strip()
