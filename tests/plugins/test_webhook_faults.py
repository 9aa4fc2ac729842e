"""Receivers that fail in every way: nothing is lost, what was acknowledged is not doubled."""

from __future__ import annotations

import json
import random
import shutil
import stat

import pytest
import trio
from webhook_rig import HookServer, answer, blocks_of, make_sink

from tardisd.errors import RequestError, Retry
from tardisd.plugins.sessions import Notice, Resume
from tardisd.testing.sink import Course, deliver, seqs_of, suite_session
from tardisd_webhook.breaker import Breaker
from tardisd_webhook.letters import DeadLetters

HTML = b"<html><body><h1>Bad gateway</h1></body></html>"
PASSING = [
    answer(500), answer(502, HTML, Content_Type="text/html"), answer(503, Retry_After="0"),
    answer(429, Retry_After="0.001"), answer(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    answer(408), answer(500, b"x" * 100_000), answer(503, Retry_After="soon"),
    b"HTTP/1.1 500 Oh\r\nContent-Length: 100\r\n\r\nhalf", b"this is no HTTP\r\n\r\n",
    "late", "drop", "reset", "cut", "drip", "hang",
]  # fmt: skip


@pytest.fixture
async def server():
    async with HookServer().running() as one:
        yield one


def letters(folder):
    path = folder / "hook-dead.ndjson"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Patient(Course):
    """Makes nothing of being asked to wait."""

    async def failed(self, error):
        assert isinstance(error, Retry)
        assert error.message.startswith("http://127.0.0.1:")
        assert "t0ps3cret" not in error.message
        self.failures.append(error)
        await trio.sleep(0.001)


async def play(sink, blocks, name="s"):
    async with sink.run():
        with trio.fail_after(60):
            await deliver(sink, suite_session(name), blocks, Patient())


@pytest.mark.parametrize("seed", range(3))
async def test_failing_in_every_way_loses_nothing_and_doubles_nothing(server, tmp_path, seed):
    chance = random.Random(seed)
    rest = [*PASSING] * 2
    chance.shuffle(rest)

    def behave(number, request):
        return rest.pop() if rest and chance.random() < 0.8 else answer(204)

    server.behave = behave
    blocks = blocks_of(2_000)
    await play(make_sink(server.url, tmp_path, batch_ticks=70, timeout_secs=0.15), blocks)
    assert server.seqs() == seqs_of(blocks)
    assert letters(tmp_path) == []
    first = {}
    for request in server.requests:  # none overtakes, and every attempt is the same
        assert first.setdefault(request.key, request).body == request.body
    assert list(server.taken) == list(first)


async def test_a_200_after_the_client_gave_up_is_the_same_request_again(server, tmp_path):
    server.behave = lambda number, request: "late" if number == 1 else answer()
    blocks = blocks_of(100)
    await play(make_sink(server.url, tmp_path, timeout_secs=0.1), blocks)
    one, two = server.requests
    assert (one.key, one.body) == (two.key, two.body)
    assert server.seqs() == seqs_of(blocks)


async def test_a_200_counts_though_its_body_never_ends(server, tmp_path):
    server.behave = lambda number, request: "drip"
    await play(make_sink(server.url, tmp_path, timeout_secs=0.2), blocks_of(100))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("said", "reason", "text"),
    [
        (answer(400, b'{"error":"no"}'), "HTTP 400 Said", '{"error":"no"}'),
        (answer(404, HTML), "HTTP 404 Said", HTML.decode()),
        (answer(413, b"y" * 50_000), "HTTP 413 Said", "y" * 4096),
        (answer(301, Location="http://elsewhere/"), "it leads to http://elsewhere/", ""),
    ],
)
async def test_what_no_repetition_mends_is_laid_aside(server, tmp_path, said, reason, text):
    server.behave = lambda number, request: said if number == 2 else answer()
    blocks = blocks_of(300)
    await play(make_sink(server.url, tmp_path, batch_ticks=100), blocks)
    assert server.seqs() == [*range(1, 101), *range(201, 301)]
    [letter] = letters(tmp_path)
    assert letter["request"] == server.requests[1].content
    assert (letter["key"], letter["attempts"], letter["answer"]) == ("s:1:101", 1, text)
    assert reason in letter["reason"]
    assert letter["status"] == int(said[9:12])
    assert letter["url"] == server.url.partition("?")[0]
    assert letter["instance"] == "hook"
    assert stat.S_IMODE((tmp_path / "hook-dead.ndjson").stat().st_mode) == 0o600


async def test_attempts_are_bounded(server, tmp_path):
    server.behave = lambda number, request: answer(503) if number <= 3 else answer()
    blocks = blocks_of(200)
    await play(make_sink(server.url, tmp_path, batch_ticks=100, max_attempts=3), blocks)
    [letter] = letters(tmp_path)
    assert (letter["key"], letter["attempts"], letter["status"]) == ("s:1:1", 3, 503)
    assert server.seqs() == list(range(101, 201))


async def test_it_waits_as_long_as_it_was_told(server, tmp_path):
    said = [answer(429, Retry_After="0.3"), answer(503, Retry_After="0.2"), answer()]
    server.behave = lambda number, request: said[number - 1]
    await play(make_sink(server.url, tmp_path), blocks_of(100))
    one, two, three = (request.at for request in server.requests)
    assert two - one >= 0.3
    assert three - two >= 0.2


async def test_after_failures_in_a_row_requests_pause_and_one_tries_again(server, tmp_path):
    server.behave = lambda number, request: answer(500) if number <= 4 else answer()
    options = {"breaker_failures": 3, "breaker_secs": 0.3, "batch_ticks": 10}
    blocks = blocks_of(100)
    await play(make_sink(server.url, tmp_path, **options), blocks)
    times = [request.at for request in server.requests]
    assert times[3] - times[2] >= 0.3  # open
    assert times[4] - times[3] >= 0.3  # the probe failed
    assert server.seqs() == seqs_of(blocks)


def test_the_circuit():
    breaker = Breaker(2, 10.0)
    assert not breaker.failed(1.0)
    assert breaker.wait_until() == 0.0
    assert breaker.failed(2.0)
    assert breaker.wait_until() == 12.0
    assert not breaker.failed(12.5)
    assert breaker.wait_until() == 22.5
    assert breaker.worked()
    assert breaker.wait_until() == 0.0
    assert not breaker.worked()
    assert not breaker.failed(30.0)


async def test_the_session_waits_and_then_is_told_why(server, tmp_path):
    server.broken = True
    sink = make_sink(server.url, tmp_path, batch_ticks=10, patience_secs=0.2)
    async with sink.run(), sink.open(suite_session("s")) as writer:
        begun = trio.current_time()
        with pytest.raises(Retry, match="no answer: ") as raised:
            await writer.write(blocks_of(100)[0])
        assert trio.current_time() - begun >= 0.2
        assert "t0ps3cret" not in raised.value.message
        server.broken = False
    assert server.seqs() == list(range(1, 21))  # what had been taken is delivered all the same


class Remembering:
    """A session that can tell again what it has told, or says why not."""

    session_id = "s"

    def __init__(self, items, refusal=None, status="active"):
        self.items, self.refusal, self.word = items, refusal, status
        self.asked = []

    def status(self):
        return {"status": self.word, "epoch": 1, "seq": seqs_of(self.items)[-1]}

    def subscribe(self, when_full, forms, name, resume):
        assert (when_full, forms) == ("block", ("batch",))
        self.asked.append(resume)
        if self.refusal is not None:
            raise self.refusal
        send, receive = trio.open_memory_channel(len(self.items))
        for item in self.items:
            if item.first_seq + len(item) - 1 > resume.from_seq:
                send.send_nowait(item)
        send.close()
        return receive


async def test_what_was_skipped_meanwhile_is_asked_for_again(server, tmp_path):
    blocks = blocks_of(500)
    session = Remembering(blocks)
    sink = make_sink(server.url, tmp_path, batch_ticks=30)
    async with sink.run(), sink.open(session) as writer:
        await writer.write(blocks[0])
        await writer.notice(Notice("skipped", {"from_seq": 101, "to_seq": 300}))
        await writer.write(blocks[3])
        await writer.write(blocks[4])
    assert session.asked == [Resume(1, len(blocks[0]))]
    assert server.seqs() == seqs_of(blocks[:5])
    assert letters(tmp_path) == []


async def test_numbers_of_gaps_are_not_asked_for(server, tmp_path):
    one, two, three, *_ = blocks_of(500)
    sink = make_sink(server.url, tmp_path)
    hole = range(two.first_seq, three.first_seq)
    async with sink.run(), sink.open(Remembering([one])) as writer:
        await writer.write(one)
        for seq in hole:
            await writer.notice(Notice("gap", {"epoch": 1, "seq": seq}))
        await writer.write(three)
    assert server.seqs() == seqs_of([one, three])


async def test_a_session_after_a_restart_begins_where_it_is(server, tmp_path):
    blocks = blocks_of(500)
    session = Remembering(blocks)
    sink = make_sink(server.url, tmp_path)
    async with sink.run(), sink.open(session) as writer:
        await writer.write(blocks[2])
    assert session.asked == []
    assert server.seqs() == seqs_of(blocks[2:3])


class Durable(Remembering):
    """A session that outlives the daemon."""

    def __init__(self, items, created_at=7, status="active"):
        super().__init__(items, status=status)
        self.created_at = created_at

    def status(self):
        return {**super().status(), "durable": True, "created_at": self.created_at}


async def killed_with(server, folder, blocks, count):
    """Write so many blocks to a receiver that fails; return the data folder as a kill leaves it."""
    server.broken = True
    sink = make_sink(server.url, folder / "first", batch_ticks=60, patience_secs=45)
    with trio.CancelScope() as scope:
        async with sink.run(), sink.open(Durable(blocks)) as writer:
            for block in blocks[:count]:
                await writer.write(block)
            shutil.copytree(folder / "first", folder / "killed")
            scope.cancel()
            await trio.sleep_forever()
    server.broken = False
    return folder / "killed"


@pytest.mark.parametrize("at", [0, 1, 3], ids=["before", "where it was", "behind"])
async def test_a_kill_loses_nothing_of_a_durable_session(server, tmp_path, monkeypatch, at):
    monkeypatch.setattr("tardisd_webhook.plugin.CLOSE_SECS", 0.05)
    blocks = blocks_of(500)
    sink = make_sink(server.url, await killed_with(server, tmp_path, blocks, 1), batch_ticks=70)
    before = {request.key: request.body for request in server.requests}
    session = Durable(blocks, status="finished")
    async with sink.run(), sink.open(session) as writer:
        for block in blocks[at:]:
            await writer.write(block)
        await writer.notice(Notice("end", {"epoch": 1}))
    bodies = {request.key: request.body for request in server.requests}
    assert bodies == bodies | before  # what was tried before is tried again as it was
    assert server.seqs() == seqs_of(blocks)
    assert letters(tmp_path / "killed") == []
    assert list((tmp_path / "killed" / "hook-outbox").iterdir()) == []


async def test_what_a_kill_left_is_sent_though_its_session_does_not_come_back(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr("tardisd_webhook.plugin.CLOSE_SECS", 0.05)
    blocks = blocks_of(500)
    folder = await killed_with(server, tmp_path, blocks, 1)
    sink = make_sink(server.url, folder, batch_ticks=70)
    other = make_sink(server.url, folder)  # as after a reload
    async with sink.run(), other.run():
        with trio.fail_after(10):
            while not server.taken:
                await trio.sleep(0.01)
    assert server.seqs() == list(range(1, 61))
    assert letters(folder) == []


async def test_an_outbox_that_cannot_be_written_delivers_all_the_same(server, tmp_path, caplog):
    (tmp_path / "hook-outbox").write_text("in the way")
    blocks = blocks_of(500)
    sink = make_sink(server.url, tmp_path, batch_ticks=30)
    async with sink.run(), sink.open(Durable(blocks)) as writer:
        for block in blocks:
            await writer.write(block)
    assert server.seqs() == seqs_of(blocks)
    assert [record.message for record in caplog.records].count("outbox not kept on disk") == 2


async def test_what_cannot_be_had_again_is_told(server, tmp_path):
    blocks = blocks_of(500)
    session = Remembering(blocks, RequestError("wrong_state", "gone for good"), "finished")
    sink = make_sink(server.url, tmp_path)
    async with sink.run(), sink.open(session) as writer:
        await writer.notice(Notice("skipped", {"from_seq": 1, "to_seq": 300}))
        await writer.write(blocks[3])
    lost, rest = letters(tmp_path)
    assert (lost["from_seq"], lost["to_seq"]) == (1, blocks[3].first_seq - 1)
    assert lost["reason"] == "dropped: gone for good"
    last = seqs_of(blocks)[-1]
    assert (rest["from_seq"], rest["to_seq"]) == (blocks[4].first_seq, last)  # it was cut off
    assert server.seqs() == seqs_of([blocks[3]])


async def test_what_is_left_when_tardisd_stops_is_laid_aside(server, tmp_path, monkeypatch):
    monkeypatch.setattr("tardisd_webhook.plugin.CLOSE_SECS", 0.05)
    server.broken = True
    sink = make_sink(server.url, tmp_path, batch_ticks=60, patience_secs=45)
    block = blocks_of(100)[0]
    with trio.CancelScope() as scope:
        async with sink.run(), sink.open(suite_session("s")) as writer:
            await writer.write(block)
            scope.cancel()
            await trio.sleep_forever()
    assert [(one["key"], len(one["request"]["ticks"])) for one in letters(tmp_path)] == [
        ("s:1:1", 60),
        ("s:1:61", len(block) - 60),
    ]


async def complains(writer, text):
    try:
        await writer.write(blocks_of(100)[0])
    except Retry as error:
        return text in error.message
    return False


async def test_a_dead_letter_file_that_cannot_be_written_loses_nothing(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr("tardisd_webhook.endpoint.LETTER_RETRY_SECS", 0.01)
    server.behave = lambda number, request: answer(400)
    place = tmp_path / "letters"
    place.write_text("in the way")
    sink = make_sink(server.url, tmp_path, batch_ticks=10, dead_letter=str(place / "hook.ndjson"))
    async with sink.run(), sink.open(suite_session("s")) as writer:
        with trio.fail_after(30):
            while not await complains(writer, "cannot be written; see the log"):
                await trio.sleep(0.001)
        place.unlink()
    keys = [json.loads(line)["key"] for line in (place / "hook.ndjson").read_text().splitlines()]
    assert keys == ["s:1:1", "s:1:11"]
    assert len(server.requests) == 2  # not asked again


def test_dead_letters_are_whole_lines_and_bounded(tmp_path):
    path = tmp_path / "new" / "x.ndjson"
    box = DeadLetters(path, 50)
    box.append(b'{"a":1}')
    with path.open("ab") as file:
        file.write(b'{"torn')
    box.append(b'{"b":2}')
    assert path.read_bytes() == b'{"a":1}\n{"torn\n{"b":2}\n'
    box.append(b"c" * 40)
    assert path.read_bytes() == b"c" * 40 + b"\n"
    assert path.with_name("x.ndjson.1").read_bytes().endswith(b'{"b":2}\n')
    box.append(b"d" * 60)
    assert path.read_bytes() == b"d" * 60 + b"\n"
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        DeadLetters(link, 50).append(b"x")


async def test_one_that_takes_very_long_is_no_reason_to_be_cut_off(server, tmp_path, monkeypatch):
    monkeypatch.setattr("tardisd_webhook.outbox.LONGEST_HOLD_SECS", 0.1)
    sink = make_sink(server.url, tmp_path, batch_ticks=10, patience_secs=45, timeout_secs=30)
    server.behave = lambda number, request: "hang" if number == 1 else answer()
    with trio.CancelScope() as scope:
        async with sink.run(), sink.open(suite_session("s")) as writer:
            with pytest.raises(Retry, match="takes very long to answer"):
                await writer.write(blocks_of(100)[0])
            monkeypatch.setattr("tardisd_webhook.plugin.CLOSE_SECS", 0.01)
            scope.cancel()
            await trio.sleep_forever()
    assert [letter["key"] for letter in letters(tmp_path)] == ["s:1:1", "s:1:11"]
