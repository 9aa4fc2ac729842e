"""Files of a durable session whose daemon is killed: no row is missing, and none is there twice."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
from contextlib import suppress

import pytest
import trio
from pyarrow import parquet
from test_file_sink_failures import MIDNIGHT, names, sink_in

from tardisd.errors import NotConnected, Retry
from tardisd.market.series import Series
from tardisd.market.time import MINUTE
from tardisd.plugins.sessions import Notice
from tardisd.testing.blocks import make_blocks
from tardisd.testing.ticks import random_trades

BATCHES = [
    random_trades(Series.parse(f"binance:C{n}/USDT@trade"), 400, MIDNIGHT - 2 * MINUTE, n,
                  mean_gap_ms=600)
    for n in range(3)
]  # fmt: skip
BLOCKS = make_blocks(BATCHES, "s", slice_ticks=100)
COUNT = BLOCKS[-1].first_seq + len(BLOCKS[-1]) - 1


class Durable:
    """A session that outlives its daemon, and can tell again what it has told."""

    session_id = "s"

    def __init__(self, seq, status="active"):
        self.seq, self.word, self.asked = seq, status, []

    def status(self):
        return {"status": self.word, "epoch": 1, "seq": self.seq, "durable": True, "created_at": 7}

    def subscribe(self, when_full, forms, name, resume):
        self.asked.append(resume.from_seq)
        send, receive = trio.open_memory_channel(math.inf)
        for block in after(resume.from_seq, 70):
            send.send_nowait(block)
        send.close()
        return receive


def after(seq, step=100):
    """Return all that follows a number, in blocks that are cut anew."""
    found = []
    for block in BLOCKS:
        first = max(0, seq + 1 - block.first_seq)
        found += [
            block.cut(at, min(at + step, len(block))) for at in range(first, len(block), step)
        ]
    return found


def seqs_in(folder):
    """Return the numbers in all complete files, ascending; of CSV, which has none, the rows."""
    found = []
    for name in names(folder):
        path = folder / name
        if "files-done" in path.parts:
            continue
        assert ".part-" not in path.name
        if path.suffix == ".parquet":
            found += parquet.ParquetFile(path).read(columns=["seq"])["seq"].to_pylist()
            continue
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines()
        found += lines[1:] if path.suffix == ".csv" else [json.loads(line)["seq"] for line in lines]
    return sorted(found)


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("{session_id}.ndjson", {}),
        ("{symbol}.ndjson", {}),
        ("{symbol}/{date}.ndjson", {}),
        ("{session_id}.ndjson", {"rotate_bytes": 60_000}),
        ("{symbol}.ndjson", {"rotate_bytes": 40_000}),
        ("{symbol}/{date}.ndjson", {"rotate_bytes": 30_000}),
        ("{session_id}.ndjson", {"rotate_bytes": 9_000, "compression": "gzip"}),
        ("{symbol}.ndjson", {"rotate_bytes": 9_000, "compression": "gzip"}),
        ("{symbol}-{data_type}.csv", {"rotate_bytes": 10_000, "format": "csv"}),
        ("{symbol}-{data_type}.parquet", {"rotate_bytes": 16_000, "format": "parquet"}),
    ],
)
@pytest.mark.parametrize("behind", [0, 1, 250])
async def test_a_kill_at_any_moment_loses_and_doubles_no_row(
    tmp_path, monkeypatch, path, options, behind
):
    released, moments = [0], []

    def moment():
        """Remember everything as a kill would leave it now."""
        moments.append((released[0], tmp_path / f"moment-{len(moments)}"))
        shutil.copytree(tmp_path / "first", moments[-1][1])

    link = os.link

    def watched(*words, **named):
        moment()
        link(*words, **named)
        moment()

    monkeypatch.setattr("tardisd_file.output.os.link", watched)
    sink = sink_in(tmp_path / "first", path=path, **options)
    async with sink.run(), sink.open(Durable(0)) as writer:
        for number, block in enumerate(BLOCKS):
            released[0] = block.first_seq + len(block) - 1
            await writer.write(block)
            if number % 4 == 0:
                moment()
    monkeypatch.undo()
    whole = seqs_in(tmp_path / "first")
    assert whole == list(range(1, COUNT + 1)) or path.endswith(".csv")
    assert len(whole) == COUNT
    assert "rotate_bytes" not in options or len(names(tmp_path / "first")) > 4
    assert len(moments) > 4
    for seq, folder in moments:
        place = max(0, seq - behind)
        session = Durable(place)
        again = sink_in(folder, path=path, **options)
        async with again.run(), again.open(session) as writer:
            for block in after(place):
                await writer.write(block)
            session.word = "finished"
            await writer.notice(Notice("end", {"epoch": 1}))
        assert seqs_in(folder) == whole
        assert list((folder / "files-done").iterdir()) == []


async def test_full_files_that_somebody_took_away_are_not_written_again(tmp_path):
    """As a consumer does that moves each file as it appears: it must not get rows twice."""
    for path in ("{session_id}.ndjson", "{symbol}.ndjson"):
        folder, taken = tmp_path / path, []
        sink = sink_in(folder / "first", path=path, rotate_bytes=20_000)
        async with sink.run(), sink.open(Durable(0)) as writer:
            for block in BLOCKS[:6]:
                await writer.write(block)
            shutil.copytree(folder / "first", folder / "killed")
        killed = folder / "killed"
        for name in names(killed):
            if name.endswith(".ndjson") and not name.startswith("."):
                lines = (killed / name).read_text().splitlines()
                taken += [json.loads(line)["seq"] for line in lines]
                (killed / name).unlink()
        assert taken
        again = sink_in(killed, path=path, rotate_bytes=20_000)
        session = Durable(BLOCKS[6].first_seq - 1)
        async with again.run(), again.open(session) as writer:
            for block in BLOCKS[6:]:
                await writer.write(block)
        assert sorted(taken + seqs_in(killed)) == list(range(1, COUNT + 1))
        one_file = path.startswith("{session")
        assert session.asked == [max(taken) if one_file else 0], "no more is read than must be"


async def test_what_is_missing_comes_though_the_disk_is_full_meanwhile(tmp_path, monkeypatch):
    sink = sink_in(tmp_path / "first", path="{symbol}.ndjson")
    async with sink.run(), sink.open(Durable(0)) as writer:
        for block in BLOCKS[:6]:
            await writer.write(block)
        shutil.copytree(tmp_path / "first", tmp_path / "killed")
    write, calls = os.pwrite, []

    def full(*words):
        calls.append(words)
        if len(calls) % 3 == 0:
            raise OSError(28, "no space left on device")
        return write(*words)

    monkeypatch.setattr("tardisd_file.output.os.pwrite", full)
    session = Durable(BLOCKS[6].first_seq - 1)
    again = sink_in(tmp_path / "killed", path="{symbol}.ndjson")
    async with again.run(), again.open(session) as writer:
        for block in BLOCKS[6:]:
            while True:
                try:
                    await writer.write(block)
                except Retry:
                    continue
                break
        session.word = "finished"
        monkeypatch.undo()
    assert seqs_in(tmp_path / "killed") == list(range(1, COUNT + 1))
    assert len(session.asked) == 1


async def test_a_durable_session_that_only_ends_after_a_kill_has_all_rows(tmp_path):
    sink = sink_in(tmp_path / "first", path="{symbol}.ndjson")
    async with sink.run(), sink.open(Durable(0)) as writer:
        for block in BLOCKS[:6]:
            await writer.write(block)
        shutil.copytree(tmp_path / "first", tmp_path / "killed")
    again = sink_in(tmp_path / "killed", path="{symbol}.ndjson")
    last = BLOCKS[6].first_seq - 1
    async with again.run(), again.open(Durable(last, "stopped")) as writer:
        await writer.notice(Notice("end", {"epoch": 1}))
    assert seqs_in(tmp_path / "killed")[:last] == list(range(1, last + 1))


@pytest.mark.parametrize("rotate_bytes", [None, 20_000])
async def test_a_kill_after_a_block_was_written_in_part_doubles_no_row(
    tmp_path, monkeypatch, rotate_bytes
):
    """Trouble with one file in the middle of a block completes the others, with rows of it."""
    options = {"path": "{symbol}.ndjson", "rotate_bytes": rotate_bytes}
    for failing in range(1, 8):
        folder, write, calls = tmp_path / str(failing), os.pwrite, []

        def broken(*words, failing=failing, write=write, calls=calls):
            calls.append(words)
            if len(calls) == failing:
                raise OSError(5, "input/output error")
            return write(*words)

        monkeypatch.setattr("tardisd_file.output.os.pwrite", broken)
        written = 0
        sink = sink_in(folder / "first", **options)
        async with sink.run():
            with suppress(NotConnected):
                async with sink.open(Durable(0)) as writer:
                    for block in BLOCKS:
                        await writer.write(block)
                        written = block.first_seq + len(block) - 1
            assert len(calls) >= failing
            assert written < COUNT
            shutil.copytree(folder / "first", folder / "killed")
        monkeypatch.undo()
        again = sink_in(folder / "killed", **options)
        async with again.run(), again.open(Durable(written)) as writer:
            for block in after(written):
                await writer.write(block)
        assert seqs_in(folder / "killed") == list(range(1, COUNT + 1))
