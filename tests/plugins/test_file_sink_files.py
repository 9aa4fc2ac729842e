"""The file sink's own promises: templates, rotation, names that are taken, CSV, leftovers."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
import tomllib
from decimal import Decimal
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardisd.errors import PluginError
from tardisd.market.columns import SCHEMAS, Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.time import DAY, parse_time
from tardisd.testing.blocks import make_blocks, make_stream
from tardisd.testing.sink import Course, deliver, sink_context, suite_batches, suite_session
from tardisd.testing.ticks import random_candles, random_trades
from tardisd_file.plugin import FileOptions, FileSink
from tardisd_file.template import PathTemplate, safe_name, safe_symbol

FOLDER = Path(__file__).resolve().parents[2] / "plugins" / "tardisd_file"
MIDNIGHT = parse_time("2024-03-01T00:00:00Z")
TRADES = Series.parse("binance:BTC/USDT@trade")


def sink_in(folder, **options):
    return FileSink(msgspec.convert(options, FileOptions), sink_context(folder, "files"))


async def write(folder, blocks, session_id="s", **options):
    sink = sink_in(folder, **options)
    async with sink.run():
        await deliver(sink, suite_session(session_id), blocks, Course())


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def seqs(path):
    return [json.loads(line)["seq"] for line in path.read_text().splitlines()]


# ---- options and templates


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"path": "x.parquet", "format": "parquet"}, "lacks {symbol} and {data_type}"),
        ({"path": "x", "compression": "bzip2"}, "bzip2"),
        ({"path": "x", "compression": "lz4"}, "is for parquet; ndjson takes 'gzip' or 'zstd'"),
        ({"path": "x.ndjson.gz"}, "set compression = 'gzip', or leave .gz out"),
        ({"path": "x.zst", "compression": "gzip"}, "set compression = 'zstd'"),
        (
            {"path": "{symbol}{data_type}.gz", "format": "parquet", "compression": "gzip"},
            "parquet is compressed inside",
        ),
        ({"path": "{symbol}.csv", "format": "csv"}, "lacks {data_type}"),
        ({"path": "all.csv", "format": "csv"}, "lacks {symbol} and {data_type}"),
        ({"path": "{sybmol}.ndjson"}, "unknown placeholder; use {session_id}, {epoch}"),
        ({"path": "{symbol!r}.ndjson"}, "unknown placeholder"),
        ({"path": "{date:%Y}.ndjson"}, "unknown placeholder"),
        ({"path": "{}.ndjson"}, "unknown placeholder"),
        ({"path": "{symbol.__class__}"}, "unknown placeholder"),
        ({"path": "{symbol"}, "brace without its pair"),
        ({"path": "}x"}, "brace without its pair"),
        ({"path": "a/../b/{symbol}"}, "must not contain '..'"),
        ({"path": "{symbol}/.."}, "must not contain '..'"),
        ({"path": "folder/"}, "names no file"),
        ({"path": ""}, "names no file"),
        ({"path": "a\0b"}, "names no file"),
        ({"path": "x", "rotate_bytes": 0}, ">= 1"),
        ({"path": "x", "rotate": "hour"}, "hour"),
        ({"format": "ndjson"}, "path"),
    ],
)
def test_options_are_refused_with_a_reason(options, says):
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(options, FileOptions)
    assert says in str(caught.value)


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@given(ANY_TEXT | st.sampled_from([".", "..", "../..", "/", "/etc/passwd", "", ".hidden", "a/b"]))
def test_no_value_leaves_its_component(value):
    template = PathTemplate("/base/{session_id}/{symbol}/x-{data_type}.ndjson")
    for safe in (safe_name, safe_symbol):
        made = safe(value)
        assert made
        assert made[0] != "."
        assert not set(made) & set("/\0\n")
        assert len(made.encode()) <= 80
        filled = template.fill(dict.fromkeys(template.fields, value))
        path = template.root(Path("/elsewhere")) / filled
        assert Path(os.path.normpath(path)) == path
        assert path.parents[2] == Path("/base")


@given(ANY_TEXT, ANY_TEXT)
def test_different_values_stay_different(left, right):
    if left != right:
        assert safe_name(left) != safe_name(right)
        assert safe_symbol(left) != safe_symbol(right)


def test_symbols_read_well():
    assert safe_symbol("BTC/USDT") == "BTC-USDT"
    assert safe_symbol("BTC/USDT:USDT") == "BTC-USDT_USDT"
    assert safe_symbol("A-B/C_D") == "A%2DB-C%5FD"


def test_relative_paths_lie_in_the_data_folder(tmp_path):
    assert PathTemplate("a/b/{symbol}").root(tmp_path) == tmp_path / "a" / "b"
    assert PathTemplate("x.ndjson").root(tmp_path) == tmp_path
    assert PathTemplate("/{symbol}").root(tmp_path) == Path("/")
    assert PathTemplate("/a{{1}}/{symbol}").root(tmp_path) == Path("/a{1}")
    assert PathTemplate("~/x").root(tmp_path) == Path.home()


def test_the_readme_shows_the_sample():
    sample = (FOLDER / "sample.toml").read_text()
    assert f"```toml\n{sample}```" in (FOLDER / "README.md").read_text()
    bare = tomllib.loads(sample)["sinks"]["files"]
    full = tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", sample, flags=re.MULTILINE))
    full = full["sinks"]["files"]
    assert (bare.pop("plugin"), full.pop("plugin")) == ("file", "file")
    msgspec.convert(bare, FileOptions)
    msgspec.convert(full, FileOptions)
    assert set(full) == set(FileOptions.__struct_fields__)


# ---- names and rotation


async def test_rows_are_the_data_of_ticks(tmp_path):
    blocks = make_blocks(suite_batches(), "s")
    await write(tmp_path, blocks, path="{session_id}.ndjson")
    text = (tmp_path / "s.ndjson").read_text()
    assert " " not in text
    rows = [json.loads(line, parse_float=Decimal) for line in text.splitlines()]
    frames = b"".join(bytes(block.encode("batch").bytes()) for block in blocks)
    expected = json.loads(b"[" + frames.rstrip(b", ") + b"]", parse_float=Decimal)
    assert [{k: v for k, v in row.items() if k != "seq"} for row in rows] == expected
    assert [row["seq"] for row in rows] == list(range(1, len(expected) + 1))
    assert "\u00e9 \u4e2d" in {row.get("id") for row in rows}


async def test_files_are_rotated_by_size_between_lines(tmp_path):
    blocks = make_blocks(suite_batches(), "s", slice_ticks=700)
    await write(tmp_path, blocks, path="x.ndjson", rotate_bytes=10_000)
    count = len(names(tmp_path))
    parts = [tmp_path / ("x.ndjson" if not n else f"x.{n}.ndjson") for n in range(count)]
    assert count > 10
    assert all(5_000 < part.stat().st_size <= 10_000 for part in parts[:-1])
    assert [seq for part in parts for seq in seqs(part)] == list(
        range(1, sum(map(len, blocks)) + 1)
    )


async def test_a_line_larger_than_a_file_may_be_has_one_of_its_own(tmp_path):
    blocks = make_blocks([random_trades(TRADES, 5, MIDNIGHT)], "s")
    await write(tmp_path, blocks, path="x.ndjson", rotate_bytes=1)
    assert len(names(tmp_path)) == 5
    assert seqs(tmp_path / "x.4.ndjson") == [5]


@pytest.mark.parametrize("rotate", [{"path": "{date}.ndjson"}, {"path": "x", "rotate": "day"}])
async def test_days_end_by_release_time(tmp_path, rotate):
    candles = random_candles(Series.parse("binance:BTC/USDT@candle_1h"), 72, MIDNIGHT - 3600)
    blocks = make_blocks([candles, random_trades(TRADES, 3000, MIDNIGHT, mean_gap_ms=60_000)], "s")
    await write(tmp_path, blocks, **rotate)
    files = names(tmp_path)
    assert len(files) == 4
    if rotate["path"] == "x":
        assert files == ["x", "x.1", "x.2", "x.3"]
    first = MIDNIGHT // DAY
    for number, name in enumerate(files):
        for line in (tmp_path / name).read_text().splitlines():
            row = json.loads(line)
            released = row.get("close_time", row["timestamp"])
            assert released * 1_000_000 // DAY == first + number


async def test_a_days_files_are_complete_when_the_next_one_begins(tmp_path):
    early = make_blocks([random_trades(TRADES, 10, MIDNIGHT - DAY)], "s")
    sink = sink_in(tmp_path, path="{symbol}/{date}.ndjson")
    async with sink.run(), sink.open(suite_session("s")) as writer:
        await writer.write(early[0])
        assert all("part" in name for name in names(tmp_path))
        later = make_blocks([random_trades(TRADES, 10, MIDNIGHT)], "s")
        await writer.write(later[0])
        assert "BTC-USDT/2024-02-29.ndjson" in names(tmp_path)
        assert "BTC-USDT/2024-03-01.ndjson" not in names(tmp_path)
    assert len(names(tmp_path)) == 2


async def test_existing_files_stay_what_they_are(tmp_path):
    (tmp_path / "s.ndjson").write_text("mine")
    (tmp_path / "s.2.ndjson").mkdir()
    blocks = make_blocks([random_trades(TRADES, 10, MIDNIGHT)], "s")
    await write(tmp_path, blocks, path="{session_id}.ndjson")
    await write(tmp_path, blocks, path="{session_id}.ndjson")
    assert (tmp_path / "s.ndjson").read_text() == "mine"
    assert seqs(tmp_path / "s.1.ndjson") == seqs(tmp_path / "s.3.ndjson") == list(range(1, 11))
    assert len(names(tmp_path)) == 3


async def test_a_dangling_link_is_not_written_through(tmp_path):
    (tmp_path / "s.ndjson").symlink_to(tmp_path / "elsewhere")
    await write(tmp_path, make_blocks([random_trades(TRADES, 3, MIDNIGHT)], "s"), path="s.ndjson")
    assert not (tmp_path / "elsewhere").exists()
    assert seqs(tmp_path / "s.1.ndjson") == [1, 2, 3]


async def test_a_new_epoch_begins_new_files(tmp_path):
    batch = random_trades(TRADES, 5, MIDNIGHT)
    first, second = (make_stream([batch], "s", epoch=epoch) for epoch in (1, 2))
    await write(tmp_path, [*first, *second], path="x.ndjson")
    assert seqs(tmp_path / "x.ndjson") == seqs(tmp_path / "x.e2.ndjson") == [1, 2, 3, 4, 5]


async def test_few_files_are_open_however_many_there_are(tmp_path):
    batches = [
        random_trades(Series.parse(f"binance:C{n}/USDT@trade"), 50, MIDNIGHT, n) for n in range(40)
    ]
    blocks = make_blocks(batches, "s", slice_ticks=200)
    sink = sink_in(tmp_path, path="{symbol}.ndjson", max_open_files=3)
    open_before = len(os.listdir("/proc/self/fd"))
    async with sink.run(), sink.open(suite_session("s")) as writer:
        for block in blocks:
            await writer.write(block)
            assert len(os.listdir("/proc/self/fd")) <= open_before + 3
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert len(names(tmp_path)) == 40
    rows = sorted(seq for name in names(tmp_path) for seq in seqs(tmp_path / name))
    assert rows == list(range(1, 2001))


async def test_file_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        blocks = make_blocks([random_trades(TRADES, 1, MIDNIGHT)], "s")
        await write(tmp_path, blocks, path="a/x.ndjson")
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "x.ndjson").stat().st_mode & 0o777 == 0o640


# ---- CSV


def batch_rows(batch):
    """Return the rows of a batch as its CSV has them."""
    schema = SCHEMAS[batch.series.data_type.kind]
    blank = [None] * len(batch)
    columns = [batch.fields[n].texts() if n in batch.fields else blank for n in schema.fields]
    if schema.has_id:
        ids = [i.decode() if isinstance(i, bytes) else str(i) for i in batch.ids.tolist()]
        columns.insert(0, ids)
    if schema.has_side:
        columns.append([("buy", "sell")[side] for side in batch.sides.tolist()])
    return [
        [ts, *("" if value is None else value for value in row)]
        for ts, *row in zip(batch.ts_event.tolist(), *columns, strict=True)
    ]


def read_csv(path, batch):
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    schema = SCHEMAS[batch.series.data_type.kind]
    ids, sides = ["id"] * schema.has_id, ["side"] * schema.has_side
    assert header == ["datetime", *ids, *schema.fields, *sides]
    first, last = 1 + schema.has_id, 1 + schema.has_id + len(schema.fields)
    for row in rows:
        row[0] = parse_time(row[0])
        row[first:last] = [cell and f"{Decimal(cell).normalize():f}" for cell in row[first:last]]
    return rows


def normal(rows, batch):
    first = 1 + batch.schema.has_id
    last = first + len(batch.schema.fields)
    for row in rows:
        row[first:last] = [cell and f"{Decimal(cell).normalize():f}" for cell in row[first:last]]
    return rows


@pytest.mark.parametrize("slice_ticks", [2048, 11])
async def test_csv_files_hold_one_series_exactly(tmp_path, slice_ticks):
    batches = suite_batches()
    blocks = make_blocks(batches, "s", slice_ticks=slice_ticks)
    await write(tmp_path, blocks, path="{exchange}/{symbol}-{data_type}.csv", format="csv")
    assert names(tmp_path) == [
        "binance/BTC-USDT-candle_1m.csv",
        "binance/BTC-USDT-trade.csv",
        "bybit/ETH-USDT-agg_trade.csv",
        "okx/DOGE-USDT_USDT-trade.csv",
    ]
    for batch, name in zip(batches, [0, 1, 2, 3], strict=True):
        path = tmp_path / names(tmp_path)[name]
        assert read_csv(path, batch) == normal(batch_rows(batch), batch)


async def test_ids_with_line_ends_and_blanks_survive_in_csv(tmp_path):
    ids = [b"a b", b"  ", b"c\nd", b'"', b"\xee\x80\x80 x", b""]
    fields = {name: Decimals(np.arange(6), 1) for name in ("price", "amount")}
    times = MIDNIGHT + np.arange(6)
    batch = Batch(TRADES, times, fields, np.array(ids, np.bytes_), np.zeros(6, np.uint8))
    await write(tmp_path, make_blocks([batch], "s"), path="{symbol}{data_type}.csv", format="csv")
    [name] = names(tmp_path)
    assert read_csv(tmp_path / name, batch) == normal(batch_rows(batch), batch)


async def test_series_of_one_name_do_not_share_a_csv_file(tmp_path):
    pair = [random_trades(Series.parse(f"{e}:BTC/USDT@trade"), 9, MIDNIGHT) for e in ("a", "b")]
    blocks = make_blocks(pair, "s", slice_ticks=3)
    await write(tmp_path, blocks, path="{symbol}-{data_type}.csv", format="csv")
    assert names(tmp_path) == ["BTC-USDT-trade.1.csv", "BTC-USDT-trade.csv"]
    for name in names(tmp_path):
        assert len((tmp_path / name).read_text().splitlines()) == 10


async def test_every_part_of_a_csv_file_has_its_header(tmp_path):
    blocks = make_blocks([random_trades(TRADES, 100, MIDNIGHT)], "s")
    options = {"path": "{symbol}-{data_type}.csv", "format": "csv", "rotate_bytes": 500}
    await write(tmp_path, blocks, **options)
    files = names(tmp_path)
    assert len(files) > 5
    for name in files:
        assert (tmp_path / name).stat().st_size <= 500
        assert (tmp_path / name).read_text().startswith("datetime,id,price,amount,side\n2024-")


# ---- leftovers


async def test_only_its_own_leftovers_are_removed(tmp_path):
    mine = [".x.ndjson.part-files-0123456789ab", ".y.part-files-ba9876543210"]
    others = [
        ".x.ndjson.part-other-0123456789ab",
        ".x.ndjson.part-files-2-0123456789ab",
        ".x.ndjson.part-files-0123456789",
        "x.ndjson.part-files-0123456789ab",
        "x.ndjson",
    ]
    for folder in (tmp_path / "out" / "s1", tmp_path / "out" / "s2", tmp_path / "out"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in mine + others:
            (folder / name).write_text("half a ro")
    async with sink_in(tmp_path, path="out/{session_id}/x.ndjson").run():
        pass
    for folder in ("s1", "s2"):
        assert names(tmp_path / "out" / folder) == sorted(others)
    assert (tmp_path / "out" / mine[0]).exists(), "that folder is none of its folders"


async def test_what_a_process_still_holds_is_no_leftover(tmp_path):
    held = tmp_path / ".x.part-files-0123456789ab"
    with held.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        async with sink_in(tmp_path, path="x").run():
            assert held.exists()
    async with sink_in(tmp_path, path="x").run():
        assert not held.exists()


async def test_two_instances_in_one_folder_leave_each_other_alone(tmp_path):
    blocks = make_blocks([random_trades(TRADES, 10, MIDNIGHT)], "s")
    first = sink_in(tmp_path, path="x.ndjson")
    async with first.run(), first.open(suite_session("s")) as writer:
        for block in blocks:
            await writer.write(block)
        async with sink_in(tmp_path, path="x.ndjson").run():  # the same name: a second daemon
            pass
    assert seqs(tmp_path / "x.ndjson") == list(range(1, 11))


# ---- probing


async def test_probing_leaves_nothing(tmp_path):
    sink = sink_in(tmp_path, path="a/b/x.ndjson")
    async with sink.run():
        await sink.probe()
    assert names(tmp_path) == []


async def test_a_file_where_a_folder_should_be_is_told(tmp_path):
    (tmp_path / "a").write_text("")
    sink = sink_in(tmp_path, path="a/x.ndjson")
    async with sink.run():
        with pytest.raises(PluginError, match="a file stands where path needs a folder"):
            await sink.probe()
