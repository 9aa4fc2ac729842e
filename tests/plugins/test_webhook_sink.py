"""The webhook sink does what every sink must, and its requests are what the protocol says."""

from __future__ import annotations

import json
import re
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
import trio
from webhook_rig import HookServer, answer, blocks_of, make_sink

from tardisd.plugins.sessions import Notice
from tardisd.testing.blocks import make_blocks, make_stream
from tardisd.testing.sink import SinkSuite, end_notice, seqs_of, suite_batches, suite_session
from tardisd_webhook.options import WebhookOptions

FOLDER = Path(__file__).resolve().parents[2] / "plugins" / "tardisd_webhook"


@pytest.fixture
async def server():
    async with HookServer().running() as one:
        yield one


class TestWebhook(SinkSuite):
    """The receiver takes each key once, as it should."""

    @pytest.fixture(autouse=True)
    def _server(self):
        with HookServer().running_apart() as self.server:
            yield

    @asynccontextmanager
    async def sink(self, folder):
        self.server.taken.clear()
        sink = make_sink(self.server.url, folder, batch_ticks=64)
        async with sink.run():
            yield sink

    async def arrived(self, folder, session_id):
        return self.server.seqs(session_id)

    @asynccontextmanager
    async def broken(self, folder):
        self.server.broken = True
        yield
        self.server.broken = False

    async def test_it_is_usable(self, tmp_path):
        async with self.sink(tmp_path) as sink:
            await sink.probe()
        assert self.server.requests == []  # nobody is bothered with empty batches


async def deliver(sink, items, name="s"):
    async with sink.run(), sink.open(suite_session(name)) as writer:
        for item in items:
            await (writer.notice(item) if isinstance(item, Notice) else writer.write(item))


async def test_requests_are_what_the_protocol_says(server, tmp_path):
    blocks = make_blocks(suite_batches(), "s")
    sink = make_sink(server.url, tmp_path, batch_ticks=50, headers={"Authorization": "Bearer x"})
    await deliver(sink, [*blocks, end_notice(1)])
    expected = [
        json.loads(line, parse_float=Decimal)
        for block in blocks
        for line in bytes(block.encode("ndjson").bytes()).splitlines()
    ]
    made = []
    for request in server.requests:
        content = json.loads(request.body, parse_float=Decimal)
        assert (content["session_id"], content["epoch"]) == ("s", 1)
        assert request.headers["content-type"] == "application/json"
        assert request.headers["authorization"] == "Bearer x"
        assert request.headers["user-agent"].startswith("tardisd/")
        assert b" " not in request.body
        for at, tick in enumerate(content["ticks"]):
            assert next(iter(tick)) == "channel"
            made.append({"seq": content["first_seq"] + at, **tick})
    assert made == expected
    assert {len(request.content["ticks"]) for request in server.requests[:-1]} == {50}


async def test_a_batch_waits_no_longer_than_it_may(server, tmp_path):
    [first, *_] = blocks_of(300, 3)
    came = trio.Event()
    server.behave = lambda number, request: came.set() or answer()
    sink = make_sink(server.url, tmp_path, batch_ticks=1000, batch_ms=20)
    async with sink.run(), sink.open(suite_session("s")) as writer:
        begun = trio.current_time()
        await writer.write(first)
        with trio.fail_after(30):
            await came.wait()
        assert trio.current_time() - begun >= 0.02
        assert server.seqs() == [1, 2, 3]


@pytest.mark.parametrize("kind", ["paused", "reset", "sought", "end"])
async def test_nothing_waits_when_no_more_will_come(server, tmp_path, kind):
    [first, *_] = blocks_of(300, 3)
    came = trio.Event()
    server.behave = lambda number, request: came.set() or answer()
    sink = make_sink(server.url, tmp_path, batch_ticks=1000, batch_ms=3_600_000)
    async with sink.run(), sink.open(suite_session("s")) as writer:
        await writer.write(first)
        await writer.notice(Notice(kind, {}))
        with trio.fail_after(30):
            await came.wait()


async def test_a_hole_in_the_numbers_and_a_new_epoch_begin_a_new_batch(server, tmp_path):
    one, two, three, four, *_ = blocks_of(1000, 10)
    gaps = [Notice("gap", {"epoch": 1, "seq": seq}) for seq in seqs_of([three])]
    again = make_stream(suite_batches()[:1], "s", epoch=2)
    sink = make_sink(server.url, tmp_path, batch_ticks=1000, batch_ms=3_600_000)
    await deliver(sink, [one, two, *gaps, four, Notice("reset", {"epoch": 2}), *again])
    keys = [(request.key, len(request.content["ticks"])) for request in server.requests]
    assert keys == [("s:1:1", 20), ("s:1:31", 10), ("s:2:1", 6)]


async def test_bodies_are_bounded(server, tmp_path):
    blocks = make_blocks(suite_batches(), "s")
    await deliver(make_sink(server.url, tmp_path, max_body_bytes=2000), blocks)
    assert server.seqs() == seqs_of(blocks)
    assert max(len(request.body) for request in server.requests) < 2000 + 100
    assert len(server.requests) < len(seqs_of(blocks)) / 3


async def test_sessions_take_turns_at_one_address(server, tmp_path):
    sink = make_sink(server.url, tmp_path, batch_ticks=10)
    async with sink.run(), trio.open_nursery() as nursery:
        for name in ("a", "b"):
            nursery.start_soon(write_all, sink, blocks_of(500, 100, name), name)
    for name in ("a", "b"):
        assert server.seqs(name) == list(range(1, 501))
    order = [request.content["session_id"] for request in server.requests]
    assert 5 <= order[10:30].count("a") <= 15


async def write_all(sink, blocks, name):
    async with sink.open(suite_session(name)) as writer:
        for block in blocks:
            await writer.write(block)


def test_the_readme_shows_the_sample():
    sample = (FOLDER / "sample.toml").read_text()
    assert f"```toml\n{sample}```" in (FOLDER / "README.md").read_text()
    for option in msgspec.structs.fields(WebhookOptions):
        assert f"{option.name} = " in sample


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "ftp://x"}, "url must begin with http:// or https://"),
        ({"url": "http://"}, "url must begin with http:// or https://"),
        ({"url": "http://h:port/hunter2"}, "url is not an address"),
        ({"headers": {"Host": "x"}}, "headers has 'Host', which the sink itself sets"),
        ({"headers": {"X": "a\r\nb"}}, "headers has 'X', which is no header"),
        ({"headers": {"É": "a"}}, "headers has 'É', which is no header"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, says):
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        make_sink(options.pop("url", "http://h"), tmp_path, **options)
    assert "hunter2" not in str(raised.value)
