"""What else can come down a socket: silence, garbage, floods, breaches of the protocol."""

from __future__ import annotations

import json
import os
import random

import pytest
import trio
from trio_websocket import ConnectionClosed
from websocket_rig import Frames, client_frame, gone, handshake, running

from tardisd.errors import PluginError
from tardisd.plugins.base import Context
from tardisd_websocket.plugin import WebSocketOptions, WebSocketSink

PING = client_frame(b'{"type":"ping"}')


@pytest.fixture
async def rig(tmp_path):
    async with running(tmp_path) as one:
        yield one
        async with one.client() as client:  # whatever came, it still serves
            assert (await client.ask("ping"))["type"] == "pong"


async def ending(stream):
    """Read to the end; return the code of the close frame, or None."""
    frames, code = Frames(stream), None
    try:
        while (frame := await frames.get()) is not None:
            if frame[0] == 8:
                code = int.from_bytes(frame[1][:2])
    except trio.BrokenResourceError:
        pass
    return code


@pytest.mark.parametrize("character", ["x", "ä"])
async def test_a_message_over_the_limit_closes_with_1009(rig, character):
    stream = await rig.shaken()
    text = json.dumps({"type": "ping", "id": character * 10_000_000}, ensure_ascii=False)
    # Sent whole before anything is read, as most clients do: the close frame must survive that.
    await stream.send_all(client_frame(text.encode()))
    assert await ending(stream) == 1009


async def test_the_limit_counts_bytes(tmp_path):
    async with running(tmp_path, max_message_bytes=2048) as rig:
        for character, count, fits in [("x", 2047, True), ("x", 2049, False), ("ä", 1500, False)]:
            async with rig.client() as client:
                await client.websocket.send_message(character * count)
                if fits:
                    assert (await client.get())["code"] == "bad_json"
                    continue
                with pytest.raises(ConnectionClosed) as closed:
                    await client.get()
                assert closed.value.reason.code == 1009


async def test_fragments_over_the_limit_close_with_1009(rig):
    stream = await rig.shaken()
    await stream.send_all(client_frame(b"x" * 60_000, final=False))
    for _ in range(20):
        await stream.send_all(client_frame(b"x" * 60_000, opcode=0, final=False))
    assert await ending(stream) == 1009


async def test_fragments_make_one_request(rig):
    stream = await rig.shaken()
    await stream.send_all(client_frame(b'{"type":"pi', final=False))
    await stream.send_all(client_frame(b"are you there", opcode=9))
    await stream.send_all(client_frame(b'ng","id":5}', opcode=0))
    frames = Frames(stream)
    seen = [await frames.get() for _ in range(3)]
    assert [opcode for opcode, _ in seen] == [1, 10, 1]
    assert json.loads(seen[2][1])["id"] == 5


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x02{}", 1002),  # not masked
        (client_frame(b"\xff\xfe"), 1007),  # not UTF-8
        (client_frame(b"{}", opcode=3), 1002),  # no such opcode
        (client_frame(b"x" * 200, opcode=9), 1002),  # too long for a ping
        (client_frame(b"more", opcode=0), 1002),  # continues nothing
        (client_frame(b"\x03\xe8bye", opcode=8), 1000),
    ],
)
async def test_breaches_of_the_protocol_close_with_their_code(rig, data, code):
    stream = await rig.shaken()
    await stream.send_all(data + PING * 100)
    with trio.fail_after(100):
        assert await ending(stream) == code


GARBAGE = [
    b"\x00" * 100,
    os.urandom(4096),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500),  # a TLS client
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"GET / HTTP/9.9\r\n\r\n",
    handshake().replace(b"13", b"12"),
    handshake().replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"),
    handshake().replace(b"Host: localhost\r\n", b""),
    handshake("/\xff\xfe"),
    handshake("/?token=%ff%00&token=%"),
    handshake(Authorization="Bearer ÿ").replace("ÿ".encode(), b"\xff"),
    handshake(Origin="http://[").replace(b"http://[", b"\xfe\xff"),
    b"GET / HTTP/1.1\r\n" + b"X-Header: " + b"x" * 100_000 + b"\r\n\r\n",
    b"*1\r\n$4\r\nPING\r\n",
    b"\r\n" * 1000,
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage_instead_of_a_handshake(rig, data):
    stream = await rig.raw()
    try:
        await stream.send_all(data)
        await stream.send_eof()
    except trio.BrokenResourceError:
        pass
    with trio.fail_after(100):
        answer = await gone(stream)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert rig.sessions.list() == []


async def test_random_bytes_after_the_handshake(rig):
    draw = random.Random(7)
    for _ in range(30):
        stream = await rig.shaken()
        try:
            await stream.send_all(PING + draw.randbytes(draw.randrange(1, 400)))
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass
        with trio.fail_after(100):
            await gone(stream)


async def test_clients_that_connect_and_go(rig):
    for at in range(1200):
        stream = await rig.raw()
        if at % 3 == 1:
            await stream.send_all(handshake()[: at % 100])
        elif at % 3 == 2:
            await stream.send_all(handshake())
        await trio.aclose_forcefully(stream)


async def test_hundreds_at_once(rig):
    async def visit():
        async with rig.client() as client:
            assert (await client.ask("ping", id=1))["id"] == 1

    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(visit)


async def test_a_silent_client_is_dropped(tmp_path, autojump_clock):
    async with running(tmp_path) as rig:
        stream = await rig.raw()
        began = trio.current_time()
        assert await gone(stream) == b""
        assert 9.9 < trio.current_time() - began < 20
        stream = await rig.raw()
        await stream.send_all(handshake()[:-2])
        assert await gone(stream) == b""


async def test_a_client_that_answers_no_ping_is_dropped(tmp_path, autojump_clock):
    async with running(tmp_path) as rig:
        stream = await rig.shaken()
        began = trio.current_time()
        received = await gone(stream)
        assert b"\x89\x00" in received
        assert 39 < trio.current_time() - began < 70


async def test_a_client_that_answers_pings_stays(tmp_path, autojump_clock):
    async with running(tmp_path) as rig:
        stream = await rig.shaken()
        frames = Frames(stream)
        assert json.loads((await frames.get())[1])["type"] == "connected"
        for _ in range(20):
            assert await frames.get() == (9, b"")
            await stream.send_all(client_frame(b"", opcode=10))
        assert trio.current_time() >= 400
        await stream.send_all(PING)
        assert json.loads((await frames.get())[1])["type"] == "pong"


async def test_who_asks_without_reading_is_held_back(rig):
    stream = await rig.shaken(receive_buffer=4096)
    sent = 0
    with trio.move_on_after(2):
        while sent < 200_000_000:
            await stream.send_all(PING * 1000)
            sent += len(PING) * 1000
    assert sent < 50_000_000
    async with rig.client() as other:
        assert (await other.ask("ping"))["type"] == "pong"


async def test_who_never_reads_its_replies_is_dropped(tmp_path, autojump_clock):
    async with running(tmp_path) as rig:
        stream = await rig.shaken(receive_buffer=4096)
        dropped = False

        async def flood():
            nonlocal dropped
            try:
                while True:
                    await stream.send_all(PING * 1000)
            except trio.BrokenResourceError:
                dropped = True

        began = trio.current_time()
        with trio.fail_after(300):
            await flood()
        assert dropped
        assert trio.current_time() - began >= 59


async def test_too_many_clients(tmp_path):
    async with running(tmp_path, max_clients=2) as rig:

        async def knock():
            stream = await rig.raw()
            await stream.send_all(handshake())
            return (await stream.receive_some())[:13]

        async with rig.client(), rig.client():
            assert await knock() == b"HTTP/1.1 503 "
        with trio.fail_after(100):
            while await knock() != b"HTTP/1.1 101 ":  # until both are seen to be gone
                pass


async def test_a_port_in_use_is_named(rig, tmp_path):
    host, port = rig.sink.address
    second = WebSocketSink(
        WebSocketOptions(listen=f"{host}:{port}"), Context("second", tmp_path, rig.sessions)
    )
    with pytest.raises(PluginError, match=rf"cannot listen on {host}:{port}: .*another") as error:
        async with second.run():
            pass
    assert "Errno" not in error.value.message
    with pytest.raises(RuntimeError, match="does not run"):
        _ = second.address


async def test_it_can_be_run_again_on_the_same_port(tmp_path):
    async with running(tmp_path) as rig:
        host, port = rig.sink.address
        again = WebSocketSink(
            WebSocketOptions(listen=f"{host}:{port}"), Context("ws", tmp_path, rig.sessions)
        )
        async with rig.client():
            pass
    async with again.run():
        assert again.address == (host, port)
        assert again.url == f"ws://{host}:{port}/"
