"""The control server on a real socket: well-behaved clients, and those that are not."""

from __future__ import annotations

import os
import select
import socket
import stat

import pytest
import trio
from control_rig import CANDLES, DAY, START, running, store_candles

from tardisd.control import listener, server
from tardisd.control.handlers import handlers_for
from tardisd.control.methods import METHODS
from tardisd.control.protocol import MAX_DESCRIPTORS, MAX_REQUEST_BYTES
from tardisd.control.server import serve_control
from tardisd.errors import ControlError


@pytest.fixture
async def rig(tmp_path):
    async with running(tmp_path) as one:
        yield one


def test_every_method_has_its_handler(tmp_path):
    assert list(handlers_for(None)) == list(METHODS)


async def test_hello_and_status(rig):
    async with rig.client() as client:
        hello = await client.result("daemon.hello")
        assert hello["protocol"] == 1
        assert hello["pid"] == os.getpid()
        status = await client.result("daemon.status")
        assert status["default_storage"] == "main"
        assert status["started_at"] == START // 1_000_000
        assert status["uptime_secs"] > 0
        assert [one["name"] for one in status["instances"]] == ["main", "made"]
        assert (await client.result("daemon.metrics"))["text"] == "tardisd_up 1\n"


async def test_the_socket_is_for_owner_and_group(rig):
    mode = rig.path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    assert [path.name for path in rig.path.parent.iterdir() if path.name.startswith(".")] == []


async def test_a_live_socket_is_refused_and_stays(rig):
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, rig.path, rig.services)
    (error,) = caught.value.exceptions
    assert isinstance(error, ControlError)
    assert "another daemon listens" in error.message
    async with rig.client() as client:
        assert await client.result("daemon.hello")


def test_stale_sockets_and_other_files(tmp_path):
    path = tmp_path / "control.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    with listener.listening(path), socket.socket(socket.AF_UNIX) as one:
        one.connect(str(path))
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(ControlError, match="not a socket"), listener.listening(path):
        pass
    assert path.read_text() == "precious"
    long = tmp_path / ("x" * 120)
    with pytest.raises(ControlError, match="too long"), listener.listening(long):
        pass


def test_a_successor_keeps_its_socket(tmp_path):
    path = tmp_path / "control.sock"
    with listener.listening(path):
        path.unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(path))
    assert path.exists()
    successor.close()


async def test_garbage_is_answered_and_the_connection_stays(rig):
    async with rig.client() as client:
        for line, number in [
            (b"}{", -32700),
            (b"\xff\xfe\x00", -32700),
            (b"[]", -32600),
            (b'{"jsonrpc":"2.0","id":4,"method":"no.such"}', -32601),
            (b'{"jsonrpc":"2.0","id":4,"method":"series.list","params":{"what":1}}', -32602),
            (b'{"jsonrpc":"2.0","id":4,"method":"series.list","params":[1]}', -32602),
        ]:
            await client.send(line + b"\n")
            answer = await client.get()
            assert answer["error"]["code"] == number, answer
            assert answer["error"]["data"]["code"] in ("bad_json", "bad_request", "unknown_method")
        await client.send(b"x" * (MAX_REQUEST_BYTES + 1) + b"\n\n  \n")
        assert (await client.get())["error"]["data"]["code"] == "too_large"
        assert await client.result("daemon.hello")


async def test_bytes_come_one_by_one(rig):
    async with rig.client() as client:
        line = client.line("daemon.hello")
        for at in range(len(line)):
            await client.send(line[at : at + 1])
        assert (await client.get())["result"]["protocol"] == 1


async def test_notifications_get_no_answer(rig):
    async with rig.client() as client:
        await client.send(b'{"jsonrpc":"2.0","method":"daemon.hello"}\n')
        await client.send(b'{"jsonrpc":"2.0","method":"no.such.thing"}\n')
        answer, _ = await client.ask("daemon.hello")
        assert answer["id"] == 1


async def test_half_closed_clients_get_their_answers(rig):
    async with rig.client() as client:
        await client.send(b"".join(client.line("daemon.hello") for _ in range(10)))
        await client.stream.send_eof()
        answers = [(await client.get())["id"] for _ in range(10)]
        assert sorted(answers) == list(range(1, 11))
        assert await client.get() is None


async def test_an_internal_error_harms_nobody_else(rig, caplog):
    rig.services.metrics = lambda: 1 // 0
    async with rig.client() as client:
        answer, _ = await client.ask("daemon.metrics")
        assert answer["error"]["code"] == -32603
        assert answer["error"]["data"]["code"] == "internal"
        assert "ZeroDivisionError" in answer["error"]["message"]
        assert await client.result("daemon.hello")
    assert "control method failed" in caplog.text


async def test_too_many_clients_are_told_so(rig):
    async with trio.open_nursery() as nursery:

        async def hold(task_status):
            async with rig.client() as client:
                await client.result("daemon.hello")
                task_status.started()
                await trio.sleep_forever()

        for _ in range(server.MAX_CLIENTS):
            await nursery.start(hold)
        async with rig.client() as late:
            assert (await late.get())["error"]["data"]["code"] == "too_many_clients"
            assert await late.get() is None
        nursery.cancel_scope.cancel()


async def test_too_many_requests_at_once(rig, monkeypatch):
    monkeypatch.setattr(server, "PENDING_WAIT_SECS", 0.01)
    await store_candles(rig.storage)
    async with rig.client() as client:
        await client.result(
            "session.create", series=[CANDLES.text], session_id="s", start_paused=True, **DAY
        )
        for _ in range(server.MAX_PENDING):
            await client.send(client.line("session.watch", session_id="s"))
        assert await client.refusal("daemon.hello") == "too_many_requests"
        async with rig.client() as other:
            assert await other.result("daemon.hello")
            await other.result("session.stop", session_id="s")
        ended = set()
        while len(ended) < server.MAX_PENDING:
            answer, _ = await client.answer()
            ended.add(answer["id"])
        assert await client.result("daemon.hello")


async def test_a_client_that_reads_nothing_is_cut_off(rig, monkeypatch):
    monkeypatch.setattr(server, "WRITE_TIMEOUT_SECS", 0.5)
    async with rig.client() as deaf, rig.client() as other:
        with trio.fail_after(100):
            with pytest.raises(trio.BrokenResourceError):
                await deaf.send(deaf.line("plugin.list") * 100_000)
        assert await other.result("daemon.hello")


async def test_leaving_ends_what_was_asked_for(rig):
    await store_candles(rig.storage)
    async with rig.client() as other:
        await other.result(
            "session.create", series=[CANDLES.text], session_id="s", start_paused=True, **DAY
        )
        async with rig.client() as client:
            await client.send(client.line("session.watch", session_id="s"))
            await client.result("daemon.hello")
            assert (await other.result("session.show", session_id="s"))["subscribers"] == 1
        with trio.fail_after(100):
            while (await other.result("session.show", session_id="s"))["subscribers"]:
                await trio.sleep(0.01)


def is_closed(end):
    """Tell whether no other copy of a pipe's other end is open."""
    poll = select.poll()
    poll.register(end, select.POLLERR | select.POLLHUP)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


@pytest.mark.parametrize(
    ("request_line", "slug"),
    [
        (b'{"jsonrpc":"2.0","id":1,"method":"daemon.hello"}', "bad_request"),
        (b'{"jsonrpc":"2.0","id":1,"method":"no.such"}', "unknown_method"),
        (b"garbage", "bad_json"),
        (b"x" * (MAX_REQUEST_BYTES + 5), "too_large"),
        (
            b'{"jsonrpc":"2.0","id":1,"method":"data.import","params":{"exchange":"binance",'
            b'"symbol":"BTC/USDT","data_type":"trade","files":["a","b"]}}',
            "bad_request",
        ),
    ],
)
async def test_descriptors_are_closed_when_refused(rig, request_line, slug):
    reading, writing = os.pipe()
    async with rig.client() as client:
        await client.send_with_files(request_line + b"\n", [writing])
        os.close(writing)
        answer, _ = await client.answer()
        assert answer["error"]["data"]["code"] == slug
        assert await client.result("daemon.hello")
        assert is_closed(reading)
    os.close(reading)


async def test_descriptors_of_an_unfinished_line_are_closed(rig):
    reading, writing = os.pipe()
    async with rig.client() as client:
        await client.send_with_files(b'{"jsonrpc":', [writing])
        os.close(writing)
    with trio.fail_after(100):
        while not is_closed(reading):
            await trio.sleep(0.01)
    os.close(reading)


async def test_too_many_descriptors(rig):
    reading, writing = os.pipe()
    async with rig.client() as client:
        line = client.line("daemon.hello")
        await client.send_with_files(line[:5], [writing] * 200)
        await client.send_with_files(line[5:], [writing] * (MAX_DESCRIPTORS - 199))
        os.close(writing)
        answer, _ = await client.answer()
        assert answer["error"]["data"]["code"] == "too_large"
        assert is_closed(reading)
        assert await client.result("daemon.hello")
    os.close(reading)


async def test_stop_is_answered_first(rig):
    async with rig.client() as client:
        assert await client.result("daemon.stop") == {"stopping": True}
        await rig.stopped.wait()
        assert await client.result("daemon.hello")
