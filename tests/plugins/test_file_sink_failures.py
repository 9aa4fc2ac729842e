"""The file sink when things go wrong: full disks, closed folders, kill -9, failing siblings."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio

from tardisd.errors import NotConnected, PluginError
from tardisd.market.series import Series
from tardisd.market.time import SECOND, parse_time
from tardisd.testing.blocks import make_blocks
from tardisd.testing.engine import run_engine
from tardisd.testing.sink import (
    Course,
    deliver,
    seqs_of,
    sink_context,
    suite_batches,
    suite_session,
)
from tardisd.testing.ticks import random_trades
from tardisd_file.plugin import FileOptions, FileSink

MIDNIGHT = parse_time("2024-03-01T00:00:00Z")
TRADES = Series.parse("binance:BTC/USDT@trade")
NOBODY = 65534


def sink_in(folder, **options):
    return FileSink(msgspec.convert(options, FileOptions), sink_context(folder, "files"))


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def seqs_in(folder):
    """Return the seqs of every complete file, file by file."""
    paths = [folder / name for name in names(folder) if ".part-" not in name]
    return {
        path.name: [json.loads(line)["seq"] for line in path.read_text().splitlines()]
        for path in paths
    }


class Mending(Course):
    """Calls `mend` after so many failures."""

    def __init__(self, mend, after=3):
        super().__init__()
        self._mend, self._after = mend, after

    async def failed(self, error):
        await super().failed(error)
        if len(self.failures) == self._after:
            self._mend()


# ---- disks


@contextmanager
def largest_file(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_file_as_large_as_it_may_be_goes_on_in_the_next(tmp_path):
    blocks = make_blocks(suite_batches(), "s", slice_ticks=50)
    sink = sink_in(tmp_path, path="x.ndjson")
    course = Course()
    with largest_file(20_000):
        async with sink.run():
            await deliver(sink, suite_session("s"), blocks, course)
    assert course.failures == []
    parts = seqs_in(tmp_path)
    assert len(parts) > 10
    assert sorted(seq for part in parts.values() for seq in part) == seqs_of(blocks)
    assert all(path.stat().st_size <= 20_000 for path in tmp_path.iterdir())


async def test_a_block_that_fails_in_the_middle_is_not_doubled(tmp_path):
    """Spread over many files, some of which are written when the others cannot be."""
    batches = [
        random_trades(Series.parse(f"binance:C{n}/USDT@trade"), 5 + 60 * n, MIDNIGHT, n)
        for n in range(6)
    ]
    blocks = make_blocks(batches, "s", slice_ticks=600)
    sink = sink_in(tmp_path, path="{symbol}.ndjson")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Enough for the small files of a block, and for no row of the large ones once they are long.
    course = Mending(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before))
    try:
        async with sink.run():
            resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))
            await deliver(sink, suite_session("s"), blocks, course)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(course.failures) == 3
    assert all(isinstance(failure, NotConnected) for failure in course.failures)
    parts = seqs_in(tmp_path)
    assert all(part == sorted(part) for part in parts.values())
    assert sorted(seq for part in parts.values() for seq in part) == seqs_of(blocks)
    assert not any(".part-" in name for name in names(tmp_path))


ON_A_SMALL_DISK = """
import sys, trio
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_file_sink_failures import *
from tardisd.errors import Retry

async def main():
    folder = Path({folder!r})
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(300_000))
    blocks = make_blocks([random_trades(TRADES, 1500, MIDNIGHT)], "s", slice_ticks=100)
    sink = sink_in(folder, path="out/{{session_id}}.ndjson")
    course = Mending(ballast.unlink)
    async with sink.run():
        await deliver(sink, suite_session("s"), blocks, course)
    assert len(course.failures) == 3, course.failures
    for failure in course.failures:
        assert isinstance(failure, Retry), failure
        assert "no space left on device; make room there" in failure.message, failure
    assert seqs_in(folder / "out") == {{"s.ndjson": seqs_of(blocks)}}
    assert names(folder) == ["out/s.ndjson"]

trio.run(main)
"""


def test_a_full_disk_is_waited_for(tmp_path):
    mounted = ["unshare", "-m", "sh", "-c"]
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=512k none '{folder}'"
    if (
        shutil.which("unshare") is None
        or subprocess.run([*mounted, mount], capture_output=True, check=False).returncode
    ):
        pytest.skip("no small disk can be mounted here")
    program = tmp_path / "program.py"
    program.write_text(ON_A_SMALL_DISK.format(tests=str(Path(__file__).parent), folder=str(folder)))
    done = subprocess.run(
        [*mounted, f"{mount} && exec '{sys.executable}' '{program}'"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# ---- folders


@pytest.fixture
def foreign_folder():
    """Return a folder that this process may look into but not write to, until it is opened up."""
    outer = Path(tempfile.mkdtemp())
    outer.chmod(0o755)
    folder = outer / "closed"
    folder.mkdir(mode=0o555)
    folder.chmod(0o555)
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        os.seteuid(was)
        shutil.rmtree(outer)


async def test_a_folder_that_is_closed_is_waited_for(foreign_folder):
    blocks = make_blocks(suite_batches(), "s", slice_ticks=300)
    sink = sink_in(foreign_folder, path="out/x.ndjson")

    def open_up():
        was = os.geteuid()
        if os.getuid() == 0:
            os.seteuid(0)
        foreign_folder.chmod(0o777)
        os.seteuid(was)

    course = Mending(open_up)
    async with sink.run():
        with pytest.raises(PluginError, match="permission denied; let the user that tardisd runs"):
            await sink.probe()
        await deliver(sink, suite_session("s"), blocks, course)
        await sink.probe()
    assert [type(failure) for failure in course.failures] == [NotConnected] * 3
    assert "permission denied" in course.failures[0].message
    assert seqs_in(foreign_folder) == {"x.ndjson": seqs_of(blocks)}


async def test_a_name_that_cannot_be_given_is_given_later(foreign_folder):
    """The folder is closed while rows are in a file already: it gets its name when it can."""
    os.seteuid(os.getuid())
    foreign_folder.chmod(0o777)
    if os.getuid() == 0:
        os.seteuid(NOBODY)
    blocks = make_blocks(suite_batches(), "s", slice_ticks=300)
    sink = sink_in(foreign_folder, path="x.ndjson")

    def chmod(mode):
        was = os.geteuid()
        os.seteuid(os.getuid())
        foreign_folder.chmod(mode)
        os.seteuid(was)

    class Closing(Mending):
        async def before(self, place):
            if place == len(blocks):
                chmod(0o555)

    course = Closing(lambda: chmod(0o777))
    async with sink.run():
        await deliver(sink, suite_session("s"), blocks, course)
    assert len(course.failures) == 3
    assert names(foreign_folder) == ["x.ndjson"]
    assert seqs_in(foreign_folder) == {"x.ndjson": seqs_of(blocks)}


async def test_what_a_session_left_unfinished_is_completed_at_the_end(foreign_folder):
    os.seteuid(os.getuid())
    foreign_folder.chmod(0o777)
    if os.getuid() == 0:
        os.seteuid(NOBODY)

    def chmod(mode):
        was = os.geteuid()
        os.seteuid(os.getuid())
        foreign_folder.chmod(mode)
        os.seteuid(was)

    blocks = make_blocks(suite_batches(), "s")
    sink = sink_in(foreign_folder, path="x.ndjson")
    async with sink.run():

        async def write_and_close_the_folder():
            async with sink.open(suite_session("s")) as writer:
                for block in blocks:
                    await writer.write(block)
                chmod(0o555)

        with pytest.raises(NotConnected, match="permission denied"):
            await write_and_close_the_folder()
        chmod(0o777)  # the core has given the sink up for this session, and never opens it again
    assert seqs_in(foreign_folder) == {"x.ndjson": seqs_of(blocks)}


async def test_files_that_others_remove_do_not_stop_it(tmp_path):
    blocks = make_blocks(suite_batches(), "s", slice_ticks=300)
    sink = sink_in(tmp_path, path="out/x.ndjson")
    async with sink.run():
        async with sink.open(suite_session("s")) as writer:
            await writer.write(blocks[0])
            shutil.rmtree(tmp_path / "out")
        await deliver(sink, suite_session("t"), blocks, Course())
    assert seqs_in(tmp_path) == {"x.ndjson": seqs_of(blocks)}


# ---- crashes

UNTIL_KILLED = """
import sys, trio
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_file_sink_failures import *

async def main():
    batch = random_trades(TRADES, 50_000, MIDNIGHT)
    blocks = make_blocks([batch], "s", slice_ticks=200)
    sink = sink_in(Path({folder!r}), path="{{session_id}}.ndjson", rotate_bytes=300_000)
    async with sink.run(), sink.open(suite_session("s")) as writer:
        for number, block in enumerate(blocks):
            await writer.write(block)
            if number == {announce}:
                print("going", flush=True)

trio.run(main)
"""


@pytest.mark.parametrize("announce", [20, 55, 120])
async def test_a_kill_leaves_only_complete_files(tmp_path, announce):
    folder = tmp_path / "out"
    folder.mkdir()
    program = UNTIL_KILLED.format(
        tests=str(Path(__file__).parent), folder=str(folder), announce=announce
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "going\n"
        process.send_signal(signal.SIGKILL)
    before = names(folder)
    assert any(".part-" in name for name in before)
    complete = seqs_in(folder)
    assert len(complete) >= 3
    rows = sorted(seq for part in complete.values() for seq in part)
    assert rows == list(range(1, len(rows) + 1)), "complete files follow one another"
    async with sink_in(folder, path="{session_id}.ndjson").run():
        assert names(folder) == sorted(complete)
    assert seqs_in(folder) == complete


# ---- two sinks


def test_a_failing_sink_is_no_other_sinks_trouble(tmp_path):
    trades = random_trades(TRADES, 150_000, MIDNIGHT, mean_gap_ms=1)
    batch = replace(trades, ts_event=trades.ts_event - trades.ts_event % SECOND)  # in bursts
    good, bad = sink_in(tmp_path, path="good.ndjson"), sink_in(tmp_path, path="bad/x.ndjson")
    (tmp_path / "bad").write_text("in the way")

    def states(session):
        return {sink["name"]: (sink["state"], sink["error"]) for sink in session.status()["sinks"]}

    async def main(engine):
        await engine.store(batch)
        async with good.run(), bad.run():
            session = await engine.create(
                [TRADES], batch.extent(), speed=1.0, sinks=("good", "bad", "good")
            )
            watcher = engine.listen(session)
            session.begin()
            await trio.sleep(30)
            assert list(states(session)) == ["good", "bad"]
            assert states(session)["good"] == ("open", None)
            assert states(session)["bad"][0] == "failing"
            assert "a file stands where path needs a folder" in states(session)["bad"][1]
            (tmp_path / "bad").unlink()
            await trio.sleep(31)  # the longest wait between two attempts, and one more
            assert states(session)["bad"] == ("open", None)
            session.change_speed("max")
            await watcher.done.wait()
            await engine.sessions.end_all()
            assert states(session) == {"good": ("done", None), "bad": ("done", None)}
            assert watcher.seqs() == list(range(1, 150_001))

    threads = [good._threads, bad._threads]
    run_engine(main, sinks={"good": good, "bad": bad}, limiters=threads)
    files = seqs_in(tmp_path)
    assert files["good.ndjson"] == list(range(1, 150_001))
    recovered = files["x.ndjson"]
    assert recovered == sorted(set(recovered)), "in order, none twice"
    assert recovered[0] == 1, "the block that failed was tried until it was in"
    assert recovered[-1] == 150_000
    assert len(recovered) < 150_000, "it lost what it could not keep back, and only that"
