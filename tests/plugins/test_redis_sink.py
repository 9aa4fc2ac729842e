"""The Redis sink does what every sink must, and what its protocol says."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from contextlib import asynccontextmanager
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import msgspec
import numpy as np
import pytest
import trio
from redis_rig import Client, entries, private_redis
from services import redis_url

from tardisd.config.convert import decoder
from tardisd.market.series import Series
from tardisd.market.time import parse_time
from tardisd.plugins.sessions import Notice
from tardisd.testing.blocks import make_blocks, make_stream
from tardisd.testing.sink import (
    SinkSuite,
    end_notice,
    seqs_of,
    sink_context,
    suite_batches,
    suite_session,
)
from tardisd.testing.ticks import random_candles, random_trades
from tardisd_redis.plugin import RedisOptions, RedisSink

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
import verify_hash

pytestmark = pytest.mark.services
START = parse_time("2024-03-01T00:00:00Z")
FOLDER = Path(__file__).resolve().parents[2] / "plugins" / "tardisd_redis"


def make_sink(url, folder=None, **options):
    values = {"url": url, "patience_secs": 0, **options}
    return RedisSink(
        msgspec.convert(values, RedisOptions, dec_hook=decoder({})), sink_context(folder)
    )


@pytest.fixture
def client():
    where = urlsplit(redis_url())
    one = Client((where.hostname, where.port))
    yield one
    one.close()


@pytest.fixture
def name(client):
    """Return a session id that nobody else has, and remove what it left."""
    name = f"test-{secrets.token_hex(6)}"
    yield name
    client("DEL", f"replay:{name}:ticks", f"replay:session:{name}", f"replay:{name}:delivered")
    client("SREM", "replay:paused", name)


class RedisSuite(SinkSuite):
    """Runs against a server per test, which can be killed."""

    options: ClassVar[dict] = {}

    @pytest.fixture(autouse=True)
    def _server(self, tmp_path):
        with private_redis(tmp_path / "redis") as self.server:
            yield

    @asynccontextmanager
    async def sink(self, folder):
        self.server.client()("FLUSHALL")
        sink = make_sink(self.server.url, folder, **self.options)
        async with sink.run():
            yield sink

    @asynccontextmanager
    async def broken(self, folder):
        self.server.kill()
        yield
        self.server.start()


class TestStream(RedisSuite):
    options: ClassVar[dict] = {"stream": True}

    async def arrived(self, folder, session_id):
        found = entries(self.server.client(), session_id)
        assert [name for name, _ in found] == [f"{r['epoch']}-{r['seq']}" for _, r in found]
        return [int(row["seq"]) for _, row in found]


class TestChannel(RedisSuite):
    """Reads how far a channel got from what is kept beside it; messages are counted below."""

    async def arrived(self, folder, session_id):
        last = self.server.client()("GET", f"replay:{session_id}:delivered")
        return [] if last is None else list(range(1, int(last.split(b"-")[1]) + 1))


async def deliver(sink, name, items):
    async with sink.run(), sink.open(suite_session(name)) as writer:
        for item in items:
            await (writer.notice(item) if isinstance(item, Notice) else writer.write(item))


def data_of(blocks):
    return [bytes(row) for block in blocks for grid in block.encode("data").grids() for row in grid]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("slice_ticks", [2048, 3])
async def test_each_tick_is_published_once_as_its_data(client, name, stream, slice_ticks):
    blocks = make_blocks(suite_batches(), name, slice_ticks=slice_ticks)
    client("SUBSCRIBE", f"replay:{name}")
    await deliver(make_sink(redis_url(), stream=stream), name, blocks)
    heard = await trio.to_thread.run_sync(client.messages, len(seqs_of(blocks)))
    assert heard == data_of(blocks)
    assert {"timestamp", "symbol", "replay_time"} <= json.loads(heard[0]).keys()
    client("UNSUBSCRIBE")


async def test_a_consumer_of_the_stream_recomputes_the_hash(client, name):
    blocks = make_blocks(suite_batches(), name)
    await deliver(make_sink(redis_url(), stream=True), name, blocks)
    digest = blake2b(digest_size=32)
    for _, row in entries(client, name):
        data = json.loads(row["data"], parse_float=Decimal)
        digest.update(verify_hash.record(row["channel"], data))
    expected = blocks[-1]._whole.hash_upto(len(blocks[-1]._whole))
    assert digest.hexdigest() == expected.hexdigest()


async def test_rows_of_many_looks_keep_their_order_and_numbers(client, name):
    batches = [
        random_candles(Series.parse(f"binance:BTC/USDT@candle_{interval}"), count, START, seed)
        for seed, (interval, count) in enumerate([("1m", 120), ("5m", 24), ("1h", 2)])
    ]
    batches.append(random_trades(Series.parse("okx:ETH/USDT@trade"), 1500, START, mean_gap_ms=900))
    blocks = make_blocks(batches, name)
    await deliver(make_sink(redis_url(), stream=True), name, blocks)
    found = entries(client, name)
    assert [row["seq"] for _, row in found] == [str(seq) for seq in seqs_of(blocks)]
    wanted = np.empty(len(found), object)
    for block in blocks:
        for series, rows in block.series_rows():
            wanted[rows + block.first_seq - 1] = str(series.data_type)
    assert [row["channel"] for _, row in found] == wanted.tolist()
    assert [row["data"].encode() for _, row in found] == data_of(blocks)


async def test_a_stream_is_kept_short(client, name):
    blocks = make_blocks(suite_batches(), name)
    await deliver(make_sink(redis_url(), stream=True, stream_length=200), name, blocks)
    seqs = [int(row["seq"]) for _, row in entries(client, name)]
    assert 200 <= len(seqs) < 500
    assert seqs == seqs_of(blocks)[-len(seqs) :]
    assert 86_000 < client("TTL", f"replay:{name}:ticks") <= 86_400


@pytest.mark.parametrize("stream", [False, True])
async def test_a_name_used_again_begins_anew(client, name, stream):
    blocks = make_blocks(suite_batches(), name)
    sink = make_sink(redis_url(), stream=stream)
    client("SUBSCRIBE", f"replay:{name}")
    await deliver(sink, name, blocks)
    await deliver(sink, name, blocks[:1])
    expected = data_of([*blocks, blocks[0]])
    assert await trio.to_thread.run_sync(client.messages, len(expected)) == expected
    client("UNSUBSCRIBE")
    if stream:
        assert len(entries(client, name)) == len(blocks[0])


async def test_a_session_that_outlived_its_daemon_goes_on(client, name):
    blocks = make_blocks(suite_batches(), name, slice_ticks=100)
    await deliver(make_sink(redis_url(), stream=True), name, blocks[:6])
    again = blocks[4:]  # it does not know how far it had got
    await deliver(make_sink(redis_url(), stream=True), name, again)
    assert [int(row["seq"]) for _, row in entries(client, name)] == seqs_of(blocks)


async def test_epochs_follow_each_other(client, name):
    stream = []
    for epoch in (1, 2, 10):
        stream += make_stream(suite_batches()[:1], name, epoch=epoch)
    await deliver(make_sink(redis_url(), stream=True), name, stream)
    assert [name for name, _ in entries(client, name)] == [
        f"{epoch}-{seq}" for epoch in (1, 2, 10) for seq in range(1, 7)
    ]


class Changing:
    """A session whose status a test sets."""

    def __init__(self, session_id):
        self.session_id = session_id
        self.word = "active"

    def status(self):
        return {"session_id": self.session_id, "status": self.word, "epoch": 1, "seq": 0}


async def test_its_state_is_kept_in_a_key_and_in_the_set_of_the_paused(client, name):
    session = Changing(name)
    key = f"replay:session:{name}"

    def shown():
        assert 3590 < client("TTL", key) <= 3600
        return json.loads(client("GET", key))

    def is_paused():
        return bool(client("SISMEMBER", "replay:paused", name))

    sink = make_sink(redis_url())
    session.word = "paused"
    async with sink.run(), sink.open(session) as writer:
        assert (shown()["status"], is_paused()) == ("paused", True)
        session.word = "active"
        await writer.notice(Notice("resumed", {"clock": 1}))
        assert (shown()["status"], is_paused()) == ("active", False)
        session.word = "paused"
        await writer.notice(Notice("paused", {"clock": 1}))
        assert (shown()["status"], is_paused()) == ("paused", True)
        client("DEL", key)
        with trio.fail_after(100):
            while client("GET", key) is None:  # kept alive though nothing happens
                await trio.sleep(0.01)
        session.word = "finished"
        await writer.notice(end_notice(7))
        assert (shown()["status"], is_paused()) == ("finished", False)
    assert shown()["end"] == {"epoch": 1, "reason": "finished", "ticks": 7, "hash": "00" * 32}


def test_without_its_package_it_says_how_to_get_it():
    code = (
        "import sys; sys.modules['hiredis'] = None\n"
        "from tardisd.plugins.registry import Registry\n"
        "[it] = [it for it in Registry.discover().plugins if it.name == 'redis']\n"
        "print(it.state, it.reason)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("unavailable package hiredis is missing")
    assert "pip install 'tardisd[redis]'" in done.stdout


def test_the_readme_shows_the_sample():
    sample = (FOLDER / "sample.toml").read_text()
    assert f"```toml\n{sample}```" in (FOLDER / "README.md").read_text()
    for option in RedisOptions.__struct_fields__:
        assert f"{option} = " in sample
