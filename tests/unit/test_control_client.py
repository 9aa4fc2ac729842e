"""The blocking client, in a thread, against the real server and against bad ones."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager

import pytest
import trio
from control_rig import CANDLES, DAY, running, store_candles

from tardisd.control.client import ControlClient, control_socket
from tardisd.control.protocol import encode_notification, encode_result
from tardisd.errors import ControlError, NotRunning

KLINES = """\
1709251200000,61130.98,61131.00,61098.00,61119.34,25.6,1709251259999,1564694.1,1200,12.1,739000.1,0
1709251260000,61119.34,61150.00,61110.00,61140.01,10.5,1709251319999,641970.2,800,5.1,311000.9,0
"""


@pytest.fixture
async def rig(tmp_path):
    async with running(tmp_path) as one:
        yield one


async def in_thread(path, use):
    def work():
        with ControlClient(path) as client:
            return use(client)

    with trio.fail_after(100):
        return await trio.to_thread.run_sync(work)


async def test_calls_and_refusals(rig):
    def use(client):
        assert client.mismatch() is None
        assert client.call("daemon.hello")["protocol"] == 1
        with pytest.raises(ControlError) as caught:
            client.call("session.show", {"session_id": "nobody"})
        assert caught.value.code == "session_not_found"
        return client.call("series.list")

    assert await in_thread(rig.path, use) == []


async def test_watching(rig):
    await store_candles(rig.storage)

    def use(client):
        params = {"series": [CANDLES.text], "session_id": "s", "speed": 100_000, **DAY}
        client.call("session.create", params)
        watch = client.watch("s")
        told = []
        while True:
            try:
                told.append(next(watch))
            except StopIteration as done:
                return told, done.value

    told, end = await in_thread(rig.path, use)
    assert end["reason"] == "finished"
    assert {one.method for one in told} == {"session.ticks", "session.notice"}


async def test_importing_files_by_descriptor(rig, tmp_path):
    good, bad = tmp_path / "BTCUSDT-1m-2024-03-01.csv", tmp_path / "bad.csv"
    good.write_text(KLINES)
    bad.write_text(KLINES.replace("61098.00", "x"))
    params = {"exchange": "binance", "symbol": "BTC/USDT", "data_type": "candle_1m"}
    told = []

    def use(client):
        def note(method, values):
            told.append((method, values))

        with good.open("rb") as file:
            first = client.call(
                "data.import", {**params, "files": [good.name]}, [file.fileno()], note
            )
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            again = client.call(
                "data.import", {**params, "files": [good.name]}, [file.fileno()], note
            )
        with bad.open("rb") as file, pytest.raises(ControlError) as caught:
            client.call("data.import", {**params, "files": [bad.name]}, [file.fileno()])
        assert caught.value.code == "bad_data"
        assert "bad.csv, line 1" in caught.value.message
        return first, again

    first, again = await in_thread(rig.path, use)
    assert (first["added"], first["unchanged"]) == (2, 0)
    assert (again["added"], again["unchanged"]) == (0, 2)
    assert first["files"][0]["rows"] == 2
    assert {method for method, _ in told} == {"progress"}
    names = {"job", "request", "done", "total", "unit", "rate", "message"}
    assert all(set(values) == names for _, values in told)


def test_nobody_listens(tmp_path):
    with pytest.raises(NotRunning, match="no daemon listens"):
        ControlClient(tmp_path / "none.sock")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "dead.sock"))
    dead.close()
    with pytest.raises(NotRunning):
        ControlClient(tmp_path / "dead.sock")
    with pytest.raises(ControlError, match="cannot connect"):
        ControlClient(tmp_path / ("x" * 200))


@contextmanager
def answering(path, *answers):
    """Listen at `path` and answer each request with the next of `answers`, then hang up."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve():
            one, _ = server.accept()
            with one, one.makefile("rb") as lines:
                for answer, _line in zip(answers, lines, strict=False):
                    one.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with ControlClient(path) as client:
            yield client
        thread.join()


def test_another_version_is_told(tmp_path):
    path = tmp_path / "s"
    with answering(path, encode_result(1, {"version": "9.9.9", "protocol": 7})) as client:
        assert "9.9.9 (protocol 7)" in client.mismatch()


def test_a_daemon_that_goes_away(tmp_path):
    with answering(tmp_path / "s") as client, pytest.raises(NotRunning, match="hung up"):
        client.call("daemon.hello")
    half = b'{"jsonrpc":"2.0","id":1,"resu'
    with answering(tmp_path / "t", half) as client, pytest.raises(NotRunning, match="hung up"):
        client.call("daemon.hello")


@pytest.mark.parametrize("line", [b"garbage\n", b"[]\n", b"{}\n"])
def test_answers_that_are_none(tmp_path, line):
    with answering(tmp_path / "s", line) as client, pytest.raises(ControlError) as caught:
        client.call("daemon.hello")
    assert caught.value.code == "bad_answer"


def test_answers_in_pieces_after_notifications(tmp_path):
    told = []
    answer = encode_notification("progress", {"done": 1}) + encode_result(1, [1, 2])
    with answering(tmp_path / "s", answer) as client:
        result = client.call("x", {}, (), lambda *note: told.append(note))
    assert result == [1, 2]
    assert told == [("progress", {"done": 1})]


def test_where_the_socket_is_looked_for(tmp_path, monkeypatch):
    for name in ("TARDISD_SOCKET", "XDG_RUNTIME_DIR", "STATE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert str(control_socket()) == "/run/tardisd/control.sock"
    fallback = tmp_path / "data" / "tardisd" / "control.sock"
    fallback.parent.mkdir(parents=True)
    fallback.touch()
    assert control_socket() == fallback
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    own = tmp_path / "run" / "tardisd" / "control.sock"
    own.parent.mkdir(parents=True)
    own.touch()
    assert control_socket() == own
    monkeypatch.setenv("TARDISD_SOCKET", "/named")
    assert str(control_socket()) == "/named"
    assert str(control_socket("/explicit")) == "/explicit"
