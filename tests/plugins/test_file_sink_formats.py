"""The file sink's compressed and Parquet files, as other programs read them."""

from __future__ import annotations

import csv
import io
import json
import random
import resource
import signal
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import hash_reference
import msgspec
import numpy as np
import pyarrow
import pyarrow.dataset
import pyarrow.parquet
import pytest
import zstandard
from file_reading import in_ns, in_order, rows_in, rows_of, text_of

import tardisd_csv
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import DAY, MINUTE, parse_time
from tardisd.plugins.sessions import Notice
from tardisd.testing.blocks import make_blocks, make_stream
from tardisd.testing.engine import run_engine
from tardisd.testing.memory import MemoryStorage
from tardisd.testing.sink import Course, deliver, sink_context, suite_batches, suite_session
from tardisd.testing.ticks import random_candles, random_trades
from tardisd.transfer.importing import import_files
from tardisd_file import parts, stream
from tardisd_file.plugin import FileOptions, FileSink

MIDNIGHT = parse_time("2024-03-01T00:00:00Z")
TRADES = Series.parse("binance:BTC/USDT@trade")
PACKINGS = {"gzip": ".gz", "zstd": ".zst"}
PARQUET = {"path": "{exchange}/{symbol}-{data_type}.parquet", "format": "parquet"}
HIVE = "exchange={exchange}/symbol={symbol}/type={data_type}/date={date}/{session_id}.parquet"


def sink_in(folder, **options):
    return FileSink(msgspec.convert(options, FileOptions), sink_context(folder, "files"))


async def write(folder, items, session_id="s", **options):
    sink = sink_in(folder, **options)
    async with sink.run():
        await deliver(sink, suite_session(session_id), items, Course())


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- compressed text


@pytest.mark.parametrize("packing", PACKINGS)
async def test_a_compressed_file_is_the_plain_one_compressed(tmp_path, packing, monkeypatch):
    monkeypatch.setattr(parts, "PORTION_BYTES", 20_000)
    blocks = make_blocks(suite_batches(), "s", slice_ticks=100)
    await write(tmp_path, blocks, path="plain.ndjson")
    await write(tmp_path, blocks, path="packed.ndjson", compression=packing)
    packed = tmp_path / f"packed.ndjson{PACKINGS[packing]}"
    assert text_of(packed) == (tmp_path / "plain.ndjson").read_text()
    assert packed.stat().st_size < (tmp_path / "plain.ndjson").stat().st_size / 3
    assert len(names(tmp_path)) == 2


async def test_zstd_is_one_frame_for_readers_that_read_but_one(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PORTION_BYTES", 5_000)
    blocks = make_blocks(suite_batches(), "s", slice_ticks=100)
    await write(tmp_path, blocks, path="x.ndjson", compression="zstd")
    with (tmp_path / "x.ndjson.zst").open("rb") as raw:
        text = zstandard.ZstdDecompressor().stream_reader(raw).read()
    assert len(text.splitlines()) == sum(map(len, blocks))


@pytest.mark.parametrize("packing", PACKINGS)
async def test_compressed_csv_has_its_header_in_every_part(tmp_path, packing):
    batch = random_trades(TRADES, 3000, MIDNIGHT)
    options = {"path": "{symbol}-{data_type}.csv", "format": "csv", "compression": packing}
    await write(tmp_path, make_blocks([batch], "s"), rotate_bytes=6_000, **options)
    files = names(tmp_path)
    assert len(files) > 2
    assert f"BTC-USDT-trade.1.csv{PACKINGS[packing]}" in files
    ids = []
    for number in range(len(files)):
        name = f"BTC-USDT-trade{f'.{number}' if number else ''}.csv{PACKINGS[packing]}"
        assert (tmp_path / name).stat().st_size <= 6_000
        header, *rows = csv.reader(io.StringIO(text_of(tmp_path / name)))
        assert header == ["datetime", "id", "price", "amount", "side"]
        ids += [int(row[1]) for row in rows]
    assert ids == batch.ids.tolist()


@pytest.mark.parametrize("packing", PACKINGS)
async def test_portions_and_rotation_split_nothing_and_double_nothing(
    tmp_path, packing, monkeypatch
):
    monkeypatch.setattr(parts, "PORTION_BYTES", 3_000)
    blocks = make_blocks(suite_batches(), "s", slice_ticks=37)
    await write(tmp_path, blocks, path="x.ndjson", compression=packing, rotate_bytes=5_000)
    files = [tmp_path / name for name in names(tmp_path)]
    assert len(files) > 5
    assert all(path.stat().st_size <= 5_000 for path in files)
    assert [row["seq"] for row in rows_in(tmp_path)] == list(range(1, sum(map(len, blocks)) + 1))


def test_the_suffix_is_added_once():
    options = [
        {"path": "x.ndjson", "compression": "gzip"},
        {"path": "x.ndjson.gz", "compression": "gzip"},
        {"path": "x.ndjson", "compression": "none"},
        {"path": "{symbol}{data_type}.parquet", "format": "parquet", "compression": "zstd"},
    ]
    suffixes = [msgspec.convert(one, FileOptions).suffix for one in options]
    assert suffixes == [".gz", "", "", ""]


# ---- Parquet


def exact(batch):
    """Return the rows of a batch as Parquet has them, numbers as exact decimals."""
    columns = {"datetime": batch.ts_event.tolist()}
    if batch.schema.has_id:
        ids = batch.ids.tolist()
        columns["id"] = [i.decode() if isinstance(i, bytes) else str(i) for i in ids]
    for name in batch.schema.fields:
        texts = batch.fields[name].texts() if name in batch.fields else [None] * len(batch)
        columns[name] = [text and Decimal(text) for text in texts]
    if batch.schema.has_side:
        columns["side"] = [("buy", "sell")[side] for side in batch.sides.tolist()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize("codec", [None, "zstd", "gzip", "snappy", "lz4", "none"])
async def test_parquet_is_exact_and_numbered(tmp_path, codec):
    batches = suite_batches()
    blocks = make_blocks(batches, "s", slice_ticks=111)
    await write(tmp_path, blocks, **PARQUET, compression=codec)
    seqs = []
    for batch in batches:
        series = batch.series
        name = f"{str(series.symbol).replace('/', '-').replace(':', '_')}-{series.data_type}"
        path = tmp_path / series.exchange / f"{name}.parquet"
        rows = rows_of(path)
        seqs += [row.pop("seq") for row in rows]
        assert rows == exact(batch)
        file = pyarrow.parquet.ParquetFile(path)
        about = file.schema_arrow.metadata
        assert about[b"series"].decode() == series.text
        assert (about[b"session_id"], about[b"epoch"]) == (b"s", b"1")
        expected = {None: "ZSTD", "none": "UNCOMPRESSED"}.get(codec, (codec or "").upper())
        assert file.metadata.row_group(0).column(0).compression == expected
    assert sorted(seqs) == list(range(1, sum(map(len, batches)) + 1))


async def test_a_hive_tree_is_one_dataset(tmp_path):
    """As any reader of Hive partitions has it: names and days come back as values."""
    series = ["binance:BTC/USDT@trade", "okx:BTC/USDT:USDT@trade", "okx:1000-X_Y/USDT@trade"]
    batches = [
        random_trades(Series.parse(text), 900, MIDNIGHT - DAY // 2, n, mean_gap_ms=100_000)
        for n, text in enumerate(series)
    ]
    blocks = make_blocks(batches, "s", slice_ticks=100)
    await write(tmp_path, blocks, path=f"lake/{HIVE}", format="parquet")
    assert (
        "lake/exchange=okx/symbol=BTC%2FUSDT%3AUSDT/type=trade/date=2024-03-01/s.parquet"
        in names(tmp_path)
    )
    (tmp_path / "lake/exchange=okx/.s.parquet.part-files-0123456789ab").write_bytes(b"PAR1")
    lake = pyarrow.dataset.dataset(tmp_path / "lake", format="parquet", partitioning="hive")
    for batch in batches:
        field = pyarrow.dataset.field
        wanted = (field("exchange") == batch.series.exchange) & (
            field("symbol") == str(batch.series.symbol)
        )
        found = in_ns(lake.to_table(filter=wanted).sort_by("seq"))
        assert found["datetime"].to_pylist() == batch.ts_event.tolist()
        days = (batch.ts_event // DAY).astype("datetime64[D]").astype(str).tolist()
        assert found["date"].to_pylist() == days
        assert len(set(days)) > 1
        prices = [Decimal(text) for text in batch.fields["price"].texts()]
        assert found["price"].to_pylist() == prices
    everything = lake.to_table(columns=["seq"])["seq"].to_pylist()
    assert sorted(everything) == list(range(1, 2701))


async def test_parquet_is_rotated_by_size(tmp_path):
    batch = random_trades(TRADES, 40_000, MIDNIGHT)
    blocks = make_blocks([batch], "s", slice_ticks=700)
    options = {"path": "{symbol}-{data_type}.parquet", "format": "parquet"}
    await write(tmp_path, blocks, **options, rotate_bytes=200_000)
    files = [tmp_path / name for name in names(tmp_path)]
    assert len(files) >= 3
    sizes = [path.stat().st_size for path in files]
    assert max(sizes) <= 200_000
    assert min(sorted(sizes)[1:]) > 100_000, "and not much earlier than need be"
    assert [row["seq"] for row in rows_in(tmp_path)] == list(range(1, 40_001))


async def test_a_row_group_is_large_however_small_the_blocks(tmp_path):
    batch = random_trades(TRADES, 20_000, MIDNIGHT)
    blocks = make_blocks([batch], "s", slice_ticks=16)
    await write(tmp_path, blocks, path="{symbol}-{data_type}.parquet", format="parquet")
    file = pyarrow.parquet.ParquetFile(tmp_path / "BTC-USDT-trade.parquet")
    assert (file.metadata.num_rows, file.metadata.num_row_groups) == (20_000, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"path": "{symbol}-{data_type}.parquet", "format": "parquet"},
        {"path": "{symbol}.ndjson", "compression": "gzip"},
        {"path": "{symbol}.ndjson", "compression": "zstd"},
    ],
    ids=["parquet", "gzip", "zstd"],
)
async def test_what_waits_in_memory_is_bounded(tmp_path, monkeypatch, options):
    """However many files there are: the one with most gives its rows to the disk."""
    most = 100_000
    monkeypatch.setattr(stream, "MOST_BUFFERED", most)
    batches = [
        random_trades(Series.parse(f"binance:C{n}/USDT@trade"), 300, MIDNIGHT, n) for n in range(30)
    ]
    blocks = make_blocks(batches, "s", slice_ticks=200)
    sink = sink_in(tmp_path, **options)
    sink._handles._most_buffered = most
    highest = 0
    async with sink.run(), sink.open(suite_session("s")) as writer:
        for block in blocks:
            await writer.write(block)
            [files] = sink._streams.values()
            buffered = sum(part.buffered for part in files._parts.values())
            assert buffered == sink._handles._buffered
            highest = max(highest, buffered)
    assert sink._handles._buffered == 0
    assert most / 2 < highest < most + 200 * 400
    assert sorted(row["seq"] for row in rows_in(tmp_path)) == list(range(1, 9001))


# ---- disks


@pytest.mark.parametrize("packing", PACKINGS)
async def test_a_file_as_large_as_it_may_be_ends_in_order(tmp_path, packing, monkeypatch):
    """What did not fit goes to the next file; the one before is whole all the same."""
    monkeypatch.setattr(parts, "PORTION_BYTES", 15_000)
    blocks = make_blocks(suite_batches(), "s", slice_ticks=50)
    course = Course()
    sink = sink_in(tmp_path, path="x.ndjson", compression=packing)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        async with sink.run():
            await deliver(sink, suite_session("s"), blocks, course)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert course.failures == []
    assert len(names(tmp_path)) >= 3
    assert [row["seq"] for row in rows_in(tmp_path)] == list(range(1, sum(map(len, blocks)) + 1))


class Mending(Course):
    """Lets files grow again after three failures."""

    async def failed(self, error):
        await super().failed(error)
        if len(self.failures) == 3:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize(
    "options",
    [
        {"path": "{symbol}-{data_type}.parquet", "format": "parquet", "rotate_bytes": 60_000},
        {"path": "{symbol}.ndjson", "compression": "gzip"},
        {"path": "{symbol}.ndjson", "compression": "zstd"},
    ],
    ids=["parquet", "gzip", "zstd"],
)
@pytest.mark.parametrize("limit", [0, 4_000])
async def test_a_failure_in_the_middle_doubles_nothing(tmp_path, monkeypatch, options, limit):
    """Some portions are on disk and some are not when it fails, in several files."""
    monkeypatch.setattr(parts, "PORTION_BYTES", 4_000)
    batches = [
        random_trades(Series.parse(f"binance:C{n}/USDT@trade"), 5 + 300 * n, MIDNIGHT, n)
        for n in range(6)
    ]
    blocks = make_blocks(batches, "s", slice_ticks=170)
    sink = sink_in(tmp_path, **options)
    sink._handles._most_buffered = 40_000
    course = Mending()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        async with sink.run():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            await deliver(sink, suite_session("s"), blocks, course)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (len(course.failures) >= 3) or limit
    assert sink._handles._buffered == sink._handles._count == 0
    assert not any(".part-" in name for name in names(tmp_path))
    for n in range(6):
        seqs = [
            row["seq"]
            for path in sorted(tmp_path.glob(f"C{n}-USDT*"), key=in_order)
            for row in rows_of(path)
        ]
        assert len(seqs) == 5 + 300 * n
        assert seqs == sorted(seqs)
    rows = sorted(row["seq"] for row in rows_in(tmp_path))
    assert rows == list(range(1, sum(map(len, blocks)) + 1))


async def test_its_parquet_can_be_imported(tmp_path):
    batches = suite_batches()
    await write(tmp_path, make_blocks(batches, "s"), **PARQUET)
    formats = [format_() for format_ in tardisd_csv.tardisd_formats()]
    storage = MemoryStorage()
    for batch in batches:
        if batch.series.exchange == "okx":
            continue  # a swap: files of other vendors count contracts, so it must be told its size
        symbol = str(batch.series.symbol).replace("/", "-")
        name = f"{batch.series.exchange}/{symbol}-{batch.series.data_type}.parquet"
        with (tmp_path / name).open("rb") as file:
            result = await import_files(
                [(name, file)],
                batch.series,
                storage,
                formats,
                covers=None,
                spool_dir=tmp_path,
                progress=lambda _: None,
            )
        assert (result.added, result.revised) == (len(batch), 0)
        async with storage.read(batch.series, batch.extent()) as found:
            rows = [one async for one in found]
        assert same_rows(Batch.concat(rows), batch).all()


# ---- epochs


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"path": "x.ndjson"}, ["x.e2.ndjson", "x.e3.ndjson", "x.ndjson"]),
        (
            {"path": "{epoch}/x.ndjson", "compression": "gzip"},
            ["1/x.ndjson.gz", "2/x.ndjson.gz", "3/x.ndjson.gz"],
        ),
        (
            {"path": "{symbol}-{data_type}.parquet", "format": "parquet"},
            [f"BTC-USDT-trade{mark}.parquet" for mark in (".e2", ".e3", "")],
        ),
    ],
    ids=["suffix", "placeholder", "parquet"],
)
async def test_an_epoch_has_files_of_its_own(tmp_path, options, expected):
    """After a seek numbers start at 1 again; the files before it are complete by then."""
    batch = random_trades(TRADES, 500, MIDNIGHT)
    sink = sink_in(tmp_path, **options)
    async with sink.run(), sink.open(suite_session("s")) as writer:
        for epoch, first in ((1, 0), (2, 200), (3, 0)):
            for block in make_stream([batch[first:]], "s", epoch=epoch, slice_ticks=60):
                await writer.write(block)
            before = len([name for name in names(tmp_path) if ".part-" not in name])
            assert before == epoch - 1
            await writer.notice(Notice("reset", {"epoch": epoch + 1, "clock": 1, "cause": "seek"}))
            await writer.notice(Notice("snapshot", {"epoch": epoch + 1, "clock": 1, "data": []}))
            assert not any(".part-" in name for name in names(tmp_path))
    assert names(tmp_path) == expected
    counts = {1: 500, 2: 300, 3: 500}
    for name in expected:
        epoch = next((int(mark) for mark in "23" if f"e{mark}" in name or name[0] == mark), 1)
        seqs = [row["seq"] for row in rows_of(tmp_path / name)]
        assert seqs == list(range(1, counts[epoch] + 1))


async def test_parts_of_a_later_epoch_are_numbered(tmp_path):
    blocks = make_stream([random_trades(TRADES, 200, MIDNIGHT)], "s", epoch=2)
    await write(tmp_path, blocks, path="x.ndjson", rotate_bytes=20_000)
    assert {"x.e2.ndjson", "x.e2.1.ndjson"} <= set(names(tmp_path))


# ---- the content hash


def ticks_of(rows):
    """Return rows of the file as the hash sees them: all of it is in the file."""
    for row in rows:
        tick = {key: str(value) for key, value in row.items() if value is not None}
        tick["series"] = f"{row['exchange']}:{row['symbol']}@{row['channel']}"
        tick["ts_event"] = parse_time(row["datetime"])
        closes = row.get("close_time")
        tick["ts_release"] = tick["ts_event"] if closes is None else int(closes) * 1_000_000
        yield tick


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_reader_recomputes_the_sessions_hash(tmp_path, compression):
    sink = sink_in(tmp_path, path="{session_id}.ndjson", compression=compression)
    fine = random_trades(TRADES, 4000, MIDNIGHT, 1, mean_gap_ms=100)
    fine = Batch(
        TRADES, fine.ts_event + np.arange(4000) % 1000 * 1001, fine.fields, fine.ids, fine.sides
    )
    candles = random_candles(Series.parse("okx:ETH/USDT:USDT@candle_1m"), 6, MIDNIGHT, 2)
    texts = Batch(
        Series.parse("bybit:BTC/USDT:USDT@trade"),
        MIDNIGHT + np.arange(3) * MINUTE,
        {name: Decimals.of(["0.000000000000000001", "7", "1.50"]) for name in ("price", "amount")},
        np.array([b"a-1", "é".encode(), b"007"], np.bytes_),
        np.array([0, 1, 0], np.uint8),
    )
    batches = [fine, candles, texts]

    async def main(engine):
        for batch in batches:
            await engine.store(batch)
        async with sink.run():
            span = Span(MIDNIGHT, MIDNIGHT + 10 * MINUTE)
            wanted = [batch.series for batch in batches]
            heard = await engine.play(wanted, span, speed="max", sinks=("f",), session_id="s")
            await engine.sessions.end_all()
        return heard.end

    end = run_engine(main, sinks={"f": sink}, limiters=[sink._threads])
    [name] = names(tmp_path)
    lines = text_of(tmp_path / name).splitlines()
    rows = [json.loads(line, parse_float=Decimal) for line in lines]
    assert len(rows) == end["ticks"] == 4009
    assert hash_reference.content_hash(list(ticks_of(rows))) == end["hash"]


# ---- crashes

UNTIL_KILLED = """
import sys, trio
from pathlib import Path
sys.path[:0] = {paths!r}
from test_file_sink_formats import *

async def main():
    batches = [
        random_trades(Series.parse(f"binance:C{{n}}/USDT@trade"), 15_000, MIDNIGHT, n)
        for n in range(3)
    ]
    blocks = make_blocks(batches, "s", slice_ticks=200)
    sink = sink_in(Path({folder!r}), **{options!r})
    async with sink.run(), sink.open(suite_session("s")) as writer:
        for number, block in enumerate(blocks):
            await writer.write(block)
            print(number, flush=True)

trio.run(main)
"""
DRILLS = {
    "parquet": {"path": "{symbol}/{data_type}.parquet", "format": "parquet", "rotate_bytes": 60000},
    "gzip": {"path": "{symbol}/x.ndjson", "compression": "gzip", "rotate_bytes": 60_000},
    "zstd": {"path": "{symbol}/x.csv{data_type}", "format": "csv", "compression": "zstd",
             "rotate_bytes": 40_000},
}  # fmt: skip


@pytest.mark.parametrize("drill", DRILLS)
def test_a_kill_at_any_moment_leaves_whole_files(tmp_path, drill):
    """Complete files can be read to their end, and follow one another; the rest is recognisable."""
    options = DRILLS[drill]
    code = UNTIL_KILLED.format(paths=sys.path, folder=str(tmp_path), options=options)
    chosen = random.Random(drill)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        for _ in range(chosen.randrange(60, 200)):
            assert process.stdout.readline(), "it ended by itself"
        process.send_signal(signal.SIGKILL)
    before = names(tmp_path)
    temporary = [name for name in before if ".part-files-" in name]
    complete = sorted(set(before) - set(temporary))
    assert temporary, "a session under way has files in the making"
    assert len(complete) >= 3
    counted = Counter()
    for name in complete:
        if drill == "zstd":
            rows = text_of(tmp_path / name).splitlines()[1:]
        else:
            rows = rows_of(tmp_path / name)
        counted[Path(name).parent.name] += len(rows)
        assert rows
    assert set(counted) <= {"C0-USDT", "C1-USDT", "C2-USDT"}
    if drill != "zstd":
        seqs = [row["seq"] for row in rows_in(tmp_path)]
        assert len(seqs) == len(set(seqs)), "no row is in two files"

    async def start_again():
        async with sink_in(tmp_path, **options).run():
            assert names(tmp_path) == complete

    import trio

    trio.run(start_again)
