"""Redis killed, cut off, full, closed, old or not there: nothing lost or doubled, all told."""

from __future__ import annotations

import random
import re
import ssl
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import pytest
import trio
import trustme
from redis_rig import PrivateRedis, command, entries, private_redis, quiet_port

from tardisd.config.convert import decoder
from tardisd.errors import NotConnected, PluginError, RequestError, Retry
from tardisd.market.series import Series
from tardisd.market.time import parse_time
from tardisd.plugins.sessions import Notice
from tardisd.testing.blocks import make_blocks
from tardisd.testing.sink import Course, deliver, end_notice, seqs_of, sink_context, suite_session
from tardisd.testing.ticks import random_trades
from tardisd_redis.address import Address
from tardisd_redis.plugin import RedisOptions, RedisSink

pytestmark = pytest.mark.services
START = parse_time("2024-03-01T00:00:00Z")


def make_sink(url, **options):
    options = {"url": url, "timeout_secs": 15, **options}
    return RedisSink(
        msgspec.convert(options, RedisOptions, dec_hook=decoder({})), sink_context(None)
    )


def blocks_of(count, slice_ticks=500):
    batch = random_trades(Series.parse("binance:BTC/USDT@trade"), count, START, 7)
    return make_blocks([batch], "s", slice_ticks=slice_ticks)


def data_of(blocks):
    return [bytes(row) for block in blocks for grid in block.encode("data").grids() for row in grid]


@pytest.fixture
def server(tmp_path):
    with private_redis(tmp_path / "redis") as one:
        yield one


class Moments(Course):
    """Does something before the items of some places."""

    def __init__(self, places, action):
        super().__init__()
        self.places, self.action = places, action

    async def before(self, place):
        if place in self.places:
            await self.action()


@pytest.mark.parametrize("seed", [1, 2])
async def test_killed_and_revived_it_has_each_tick_once(server, seed):
    chance = random.Random(seed)
    blocks = blocks_of(30_000)
    revival, kills = trio.Lock(), 0

    async def revive():
        async with revival:
            await trio.to_thread.run_sync(server.start)

    async def kill():
        nonlocal kills
        async with revival:
            server.kill()
        kills += 1
        nursery.start_soon(revive)

    course = Moments(sorted(chance.sample(range(1, len(blocks)), 3)), kill)
    async with trio.open_nursery() as nursery:
        sink = make_sink(server.url, stream=True)
        async with sink.run():
            with trio.fail_after(100):
                await deliver(sink, suite_session("s"), blocks, course)
    assert course.failures == []  # the sink waited for it by itself
    found = [int(row["seq"]) for _, row in entries(server.client(), "s")]
    assert kills == 3
    assert found == seqs_of(blocks)


@pytest.mark.parametrize("stream", [False, True])
async def test_cut_off_at_any_place_each_tick_is_published_once(server, stream):
    """A proxy ends connections after so many bytes in either direction, in the middle of words."""
    blocks = blocks_of(3_000, 150)
    listener = server.client()
    listener("SUBSCRIBE", "replay:s")
    chance = random.Random(stream)
    cuts = 0

    async def pump(source, target, nursery, budget):
        nonlocal cuts
        try:
            while budget > 0 and (data := await source.receive_some(chance.randrange(1, 9_000))):
                await target.send_all(data[:budget])
                budget -= len(data)
            cuts += budget <= 0
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()

    async def serve(client):
        upstream = await trio.open_tcp_stream("127.0.0.1", server.port)
        forth = chance.randrange(1_000, 500_000 if stream else 150_000)
        back = chance.randrange(300, 40_000)
        async with client, upstream, trio.open_nursery() as nursery:
            nursery.start_soon(pump, client, upstream, nursery, forth)
            nursery.start_soon(pump, upstream, client, nursery, back)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        sink = make_sink(f"redis://127.0.0.1:{port}", stream=stream, patience_secs=45)
        async with sink.run():
            course = Course()
            with trio.fail_after(100):
                await deliver(sink, suite_session("s"), blocks, course)
        nursery.cancel_scope.cancel()
    assert course.failures == []
    assert cuts >= 1
    assert await trio.to_thread.run_sync(listener.messages, 3_000) == data_of(blocks)
    if stream:
        found = [int(row["seq"]) for _, row in entries(server.client(), "s")]
        assert found == seqs_of(blocks)


async def test_out_of_memory_it_waits_and_loses_nothing(server):
    blocks = blocks_of(20_000)
    client = server.client()
    used = int(client("INFO", "memory").split(b"used_memory:")[1].split()[0])
    client("CONFIG", "SET", "maxmemory", used + 2_000_000)
    sink = make_sink(server.url, stream=True)

    class Grows(Course):
        async def failed(self, error):
            await super().failed(error)
            assert isinstance(error, Retry)
            assert "out of memory; let it have more (maxmemory)" in error.message
            if len(self.failures) == 3:
                client("CONFIG", "SET", "maxmemory", 0)

    course = Grows()
    async with sink.run():
        await deliver(sink, suite_session("s"), blocks, course)
    assert len(course.failures) == 3
    assert [int(row["seq"]) for _, row in entries(client, "s")] == seqs_of(blocks)


class Remembering:
    """A session that can tell again what it has told, or says why not."""

    session_id = "s"

    def __init__(self, items, refusal=None):
        self.items, self.refusal = items, refusal
        self.asked = []

    def status(self):
        return {"status": "active", "epoch": 1, "seq": seqs_of(self.items)[-1]}

    def subscribe(self, when_full, forms, name, resume):
        assert (when_full, forms) == ("block", ("data",))
        self.asked.append(resume.from_seq)
        if self.refusal is not None:
            raise self.refusal
        send, receive = trio.open_memory_channel(len(self.items))
        for item in self.items:
            if item.first_seq + len(item) - 1 > resume.from_seq:
                send.send_nowait(item)
        send.close()
        return receive


@pytest.mark.parametrize("at", [0, 1, 3])
async def test_what_redis_forgot_it_is_told_again(server, caplog, at):
    blocks = blocks_of(2_000)
    session = Remembering(blocks)
    sink = make_sink(server.url, stream=True)
    async with sink.run(), sink.open(session) as writer:
        for place, block in enumerate(blocks):
            await writer.write(block)
            if place == at:
                server.client()("FLUSHALL")
                server.kill()
                await trio.to_thread.run_sync(server.start)
        await writer.notice(end_notice(2_000))
    assert session.asked == [0]
    assert [int(row["seq"]) for _, row in entries(server.client(), "s")] == seqs_of(blocks)
    assert any("redis forgot" in record.getMessage() for record in caplog.records)


async def test_what_was_skipped_meanwhile_is_asked_for_again(server):
    blocks = blocks_of(2_000)
    session = Remembering(blocks)
    listener = server.client()
    listener("SUBSCRIBE", "replay:s")
    for stream in (False, True):
        sink = make_sink(server.url, stream=stream)
        async with sink.run(), sink.open(session) as writer:
            await writer.write(blocks[0])
            await writer.notice(Notice("skipped", {"from_seq": 501, "to_seq": 1000}))
            await writer.write(blocks[2])
            await writer.notice(end_notice(2_000))
        heard = await trio.to_thread.run_sync(listener.messages, len(data_of(blocks)))
        assert heard == data_of(blocks)
    assert [int(row["seq"]) for _, row in entries(server.client(), "s")] == seqs_of(blocks)


async def test_what_cannot_be_had_again_is_told(server, caplog):
    blocks = blocks_of(2_000)
    session = Remembering(blocks, RequestError("wrong_state", "gone for good"))
    sink = make_sink(server.url, stream=True)
    async with sink.run(), sink.open(session) as writer:
        await writer.write(blocks[0])
        await writer.write(blocks[2])
    found = [int(row["seq"]) for _, row in entries(server.client(), "s")]
    assert found == seqs_of([blocks[0], blocks[2]])
    assert any("ticks lost" in record.getMessage() for record in caplog.records)


async def test_somebody_else_in_the_stream_is_not_taken_for_progress(server):
    first, second, *_ = blocks_of(1_000)
    sink = make_sink(server.url, stream=True)
    async with sink.run(), sink.open(suite_session("s")) as writer:
        await writer.write(first)
        server.client()("XADD", "replay:s:ticks", "*", "their", "entry")
        server.client()("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with pytest.raises(NotConnected, match="somebody else writes to replay:s:ticks"):
            await writer.write(second)


async def complaint(url, **options):
    """Return what the sink says of a Redis that it cannot use, however it is asked."""
    sink = make_sink(url, patience_secs=0, **options)
    with pytest.raises(PluginError) as asked:
        await sink.probe()
    async with sink.run():
        with pytest.raises(PluginError) as opened:
            async with sink.open(suite_session("s")):
                pass
    assert opened.value.message == asked.value.message
    assert "hunter2" not in opened.value.message
    return opened.value.message


async def test_passwords(tmp_path):
    with private_redis(tmp_path, "--requirepass", "hunter2") as server:
        client = server.client()
        client("AUTH", "hunter2")
        client("ACL", "SETUSER", "ann", "on", ">hunter2", "~replay:*", "&replay:*", "+@all")
        where = f"redis at 127.0.0.1:{server.port}"
        assert await complaint(server.url) == f"{where} wants a password; set `password`"
        told = f"{where} does not know this user and password; see to `password` and `url`"
        assert await complaint(server.url, password="x") == told
        assert await complaint(f"redis://ann:x@127.0.0.1:{server.port}") == told
        await make_sink(server.url, password="hunter2").probe()
        await make_sink(f"redis://:hunter2@127.0.0.1:{server.port}/3").probe()
        await make_sink(f"redis://ann:hunter2@127.0.0.1:{server.port}").probe()
        text = await complaint(f"redis://:hunter2@127.0.0.1:{server.port}/99")
        assert "DB index is out of range" in text


async def test_a_user_that_may_not(server):
    server.client()("ACL", "SETUSER", "bob", "on", "nopass", "~*", "&*", "+@all", "-sadd", "-srem")
    sink = make_sink(f"redis://bob:x@127.0.0.1:{server.port}", patience_secs=0)
    async with sink.run():
        with pytest.raises(PluginError, match="does not let this user do that"):
            async with sink.open(suite_session("s")):
                pass


async def test_nobody_there(server):
    server.kill()
    text = await complaint(server.url)
    assert text.startswith(f"redis at 127.0.0.1:{server.port} cannot be reached: ")
    assert text.endswith("is it running?")


@asynccontextmanager
async def speaking(answer):
    """Listen on loopback, and answer whatever is said with the same."""

    async def serve(stream):
        async with stream:
            await stream.receive_some()
            if answer:
                await stream.send_all(answer)
                await stream.receive_some()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"redis://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not answer as a Redis does; is it one?"),
        (b"-ERR unknown command `HELLO`, with args\r\n", "is older than Redis 7"),
        (command("server", "redis", "version", "6.2.14"), "has version 6.2.14; Redis 7 or newer"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "is not ready: LOADING"),
        (b"", "closed the connection"),
    ],
)
async def test_something_else_there(answer, says):
    async with speaking(answer) as url:
        assert says in await complaint(url)


async def test_one_that_hangs():
    async with speaking(b"*2\r\n") as url:
        assert "did not answer within 0.05 s" in await complaint(url, timeout_secs=0.05)


async def test_tls_and_sockets(tmp_path):
    ca = trustme.CA()
    pem = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(pem))
    issued = ca.issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    files = ["--tls-cert-file", str(tmp_path / "cert.pem"), "--tls-key-file",
             str(tmp_path / "key.pem"), "--tls-ca-cert-file", str(pem),
             "--tls-auth-clients", "no"]  # fmt: skip
    plain = PrivateRedis(tmp_path)
    try:
        await make_sink(f"unix://{tmp_path}/redis.sock?db=2").probe()
        assert "cannot be reached" in await complaint("unix:///nowhere/redis.sock")
        text = await complaint(
            f"rediss://localhost:{plain.port}", tls_ca=str(pem), timeout_secs=0.2
        )
        assert "did not answer within 0.2 s; does it speak TLS?" in text
        plain.kill()
        secured = quiet_port()
        plain.options = [*files, "--tls-port", str(secured)]
        plain.start()
        await make_sink(f"rediss://localhost:{secured}", tls_ca=str(pem)).probe()
        text = await complaint(f"rediss://localhost:{secured}")
        assert "set `tls_ca` when its issuer is your own" in text
        text = await complaint(f"rediss://localhost:{secured}", tls_ca="/no/such.pem")
        assert text == "`tls_ca` is not there: /no/such.pem"
    finally:
        plain.close()
    assert ssl.HAS_TLSv1_2


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:6379", "url begins with 'localhost'; expected redis://"),
        ("http://x", "url begins with 'http'; expected redis://"),
        ("redis://", "url lacks a host"),
        ("redis://h/one", "url names database 'one'; a database is a number"),
        ("redis://h?password=hunter2", "url asks for password; only 'db' can be asked for"),
        ("redis://h:port", "url is not one of a Redis"),
        ("redis://:hun#ter2@h", "url "),
        ("unix://redis.sock", "url lacks the path of the socket"),
    ],
)
def test_urls_that_are_none(url, says):
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        make_sink(url)
    assert "ter2" not in str(raised.value)


def test_urls():
    one = Address.parse("redis://ann:p%40ss@[::1]/4")
    assert (one.host, one.port, one.database) == ("::1", 6379, 4)
    assert (one.username, one.password, str(one)) == ("ann", "p@ss", "redis at [::1]:6379")
    assert "p@ss" not in repr(one)
    assert Address.parse("rediss://h:1?db=2").tls
    assert Address.parse("unix:///run/r.sock?db=3").path == "/run/r.sock"
