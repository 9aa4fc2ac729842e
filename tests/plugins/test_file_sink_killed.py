"""Files of a durable session whose daemon is killed: no row is missing, and none is there twice."""

from __future__ import annotations

import json
import math
import os
import shutil

import pytest
import trio
from test_file_sink_failures import MIDNIGHT, names, sink_in

from tardisd.errors import Retry
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
    """Return the numbers in all complete files, ascending."""
    paths = [folder / name for name in names(folder) if name.endswith(".ndjson")]
    assert not [path for path in paths if ".part-" in path.name]
    return sorted(
        json.loads(line)["seq"] for path in paths for line in path.read_text().splitlines()
    )


@pytest.mark.parametrize(
    "path", ["{session_id}.ndjson", "{symbol}.ndjson", "{symbol}/{date}.ndjson"]
)
@pytest.mark.parametrize("behind", [0, 1, 250])
async def test_a_kill_at_any_moment_loses_and_doubles_no_row(tmp_path, monkeypatch, path, behind):
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
    sink = sink_in(tmp_path / "first", path=path)
    async with sink.run(), sink.open(Durable(0)) as writer:
        for number, block in enumerate(BLOCKS):
            released[0] = block.first_seq + len(block) - 1
            await writer.write(block)
            if number % 4 == 0:
                moment()
    monkeypatch.undo()
    assert seqs_in(tmp_path / "first") == list(range(1, COUNT + 1))
    assert len(moments) > 4
    for seq, folder in moments:
        place = max(0, seq - behind)
        session = Durable(place)
        again = sink_in(folder, path=path)
        async with again.run(), again.open(session) as writer:
            for block in after(place):
                await writer.write(block)
            session.word = "finished"
            await writer.notice(Notice("end", {"epoch": 1}))
        assert seqs_in(folder) == list(range(1, COUNT + 1))
        assert list((folder / "files-done").iterdir()) == []


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
