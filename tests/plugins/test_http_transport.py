"""Clients that are slow, silent, gone or hostile harm only themselves."""

from __future__ import annotations

import json
import random
from contextlib import suppress

import pytest
import trio
import trio.testing
from http_rig import BTC, gone, running, status_of
from test_http_stream import STREAM, TRADED, blocking, pass_time

from tardisd_http import front, server

POST = b"POST /api/replay/create HTTP/1.1\r\nHost: localhost\r\n"


def refusal_in(data):
    """Return the status and code of a refusal."""
    head, _, body = data.partition(b"\r\n\r\n")
    return status_of(head), json.loads(body)["code"]


async def test_a_body_that_is_too_long(tmp_path):
    async with running(tmp_path, max_body_bytes=1024) as rig:
        path = "/api/replay/create"
        large = json.dumps({**BTC, "session_id": "x" * 2000}).encode()
        assert "1024" in await rig.refused(413, "too_large", "POST", path, large)

        raw = await rig.raw(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        await raw.send_all((b"1000\r\n" + b" " * 4096 + b"\r\n") * 50)
        assert refusal_in(await gone(raw)) == (413, "too_large")
        # It need not even be sent.
        raw = await rig.raw(POST + b"Content-Length: 999999999999\r\n\r\n")
        assert refusal_in(await gone(raw)) == (413, "too_large")
        await rig.ask("GET", "/health")


async def test_a_body_that_never_ends_is_cut_short(tmp_path):
    async with running(tmp_path, max_body_bytes=1024) as rig:
        raw = await rig.raw(POST + b"Transfer-Encoding: chunked\r\n\r\n")

        async def pour():
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while True:
                    await raw.send_all(b"10000\r\n" + bytes(65536) + b"\r\n")

        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pour)
                while rig.sink.connections:
                    await trio.testing.wait_all_tasks_blocked()
                raw.socket.close()
                nursery.cancel_scope.cancel()


async def test_a_head_that_is_too_long(tmp_path):
    async with running(tmp_path) as rig:
        raw = await rig.raw(b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000)
        assert status_of(await gone(raw)) == 431
        raw = await rig.raw(b"GET /" + b"x" * 200_000)
        assert status_of(await gone(raw)) in (414, 431)


@pytest.mark.parametrize(
    ("data", "secs"),
    [
        (b"", server.IDLE_SECS + 2),
        (b"GET / HT", server.IDLE_SECS + 2),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n", server.IDLE_SECS + 2),
        (POST + b"Content-Length: 100\r\n\r\n{", front.BODY_SECS + 2),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", front.BODY_SECS + 2),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", server.IDLE_SECS + 2),
    ],
)
async def test_who_says_nothing_more_is_dropped(tmp_path, mock_clock, data, secs):
    async with running(tmp_path) as rig:
        raw = await rig.raw(data)
        while not rig.sink.connections:
            await trio.testing.wait_all_tasks_blocked()
        await pass_time(mock_clock, secs)
        told = await gone(raw)
        expected = {True: 408, False: 200 if b"/health" in data else None}
        assert status_of(told) == expected[data.startswith(POST)]
        assert rig.sink.connections == 0


async def test_a_slow_loris_is_dropped_though_it_says_something(tmp_path, mock_clock):
    async with running(tmp_path) as rig:
        raw = await rig.raw(b"GET / HTTP/1.1\r\n")
        for _ in range(int(server.IDLE_SECS) + 3):
            try:
                await raw.send_all(b"X: y\r\n")
            except trio.BrokenResourceError:
                break
            await pass_time(mock_clock, 1)
        await gone(raw)
        assert rig.sink.connections == 0


async def test_a_client_that_reads_no_answers_is_dropped(tmp_path, mock_clock):
    async with running(tmp_path) as rig:
        raw = await rig.raw(receive_buffer=4096)
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with trio.move_on_after(600) as stuck:
            async with trio.open_nursery() as nursery:

                async def pour():
                    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        while True:
                            await raw.send_all(ask * 100)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(pour)
                while True:
                    await pass_time(mock_clock, 1)
        assert not stuck.cancelled_caught
        while rig.sink.connections:
            await trio.testing.wait_all_tasks_blocked()


async def test_a_pipelined_request_behind_a_stream_that_breaks_leaves_nothing(tmp_path):
    async with running(tmp_path) as rig:
        await rig.create(session_id="s", speed=1)
        tasks = trio.lowlevel.current_statistics().tasks_living
        for _ in range(10):
            raw = await rig.raw(STREAM % b"" + STREAM % b"" * 50)
            await raw.receive_some(1000)
            raw.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")  # SO_LINGER: it ends in a reset
            raw.socket.close()
        await rig.ask("POST", "/api/replay/s/resume")
        await rig.ask("POST", "/api/replay/s/stop")
        with trio.fail_after(100):
            while rig.sink.connections > 1:
                await trio.testing.wait_all_tasks_blocked()
            while trio.lowlevel.current_statistics().tasks_living > tasks:
                await trio.testing.wait_all_tasks_blocked()


async def test_pipelined_requests_are_answered_in_order(tmp_path):
    async with running(tmp_path) as rig:
        asks = [b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"] * 5
        asks.append(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        raw = await rig.raw(b"".join(asks))
        told = await gone(raw)
        assert told.count(b"HTTP/1.1 200") == 5
        assert told.index(b"HTTP/1.1 404") > told.rindex(b"HTTP/1.1 200")


async def test_noise_of_every_kind(tmp_path):
    dice = random.Random(5)
    noises = [
        b"\0" * 1000,
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /%ff%fe%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + dice.randbytes(500),
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: upgrade\r\n"
        b"HTTP2-Settings: !!!\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        *(dice.randbytes(dice.randrange(1, 3000)) for _ in range(40)),
    ]
    async with running(tmp_path) as rig:
        for noise in noises:
            raw = await rig.raw(noise)
            await raw.send_eof()
            with trio.fail_after(100):
                told = await gone(raw)
            assert b"Traceback" not in told
        await rig.ask("GET", "/health")
        with trio.fail_after(100):
            while rig.sink.connections > 1:
                await trio.testing.wait_all_tasks_blocked()


async def test_when_the_house_is_full(tmp_path):
    async with running(tmp_path, max_clients=2) as rig:
        await rig.ask("GET", "/health")
        second = await rig.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await second.receive_some(1000)
        third = await rig.raw()
        told = await third.receive_some(1000)
        assert refusal_in(told) == (503, "too_many_clients")
        assert b"Retry-After: 5" in told
        await third.send_eof()
        await gone(third)
        await second.aclose()
        while rig.sink.connections > 1:
            await trio.testing.wait_all_tasks_blocked()
        raw = await rig.raw(b"GET /health HTTP/1.0\r\n\r\n")
        assert status_of(await gone(raw)) == 200


async def test_a_crowd_that_comes_and_goes(tmp_path):
    async with running(tmp_path, max_clients=50) as rig:
        for _ in range(30):
            crowd = [await rig.raw() for _ in range(50)]
            for one in crowd:
                one.socket.close()
            rig.streams.clear()
        with trio.fail_after(100):
            while rig.sink.connections:
                await trio.testing.wait_all_tasks_blocked()
        await rig.ask("GET", "/health")


async def test_leaving_waits_for_nobody_who_does_not_read(tmp_path):
    with trio.fail_after(100):
        async with running(tmp_path, blocking(100_000)) as rig:
            await rig.create(session_id="s", **TRADED)
            raw = await rig.raw(STREAM % b"?when_full=block", receive_buffer=4096)
            await raw.receive_some(100)
            await rig.ask("POST", "/api/replay/s/resume")
            while not rig.sessions.get("s").status()["waiting_for"]:
                await trio.testing.wait_all_tasks_blocked()


async def test_http_2_is_not_spoken(tmp_path):
    async with running(tmp_path) as rig:
        upgrade = (
            "GET /health HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: {}\r\n\r\n"
        )
        raw = await rig.raw(upgrade.format("Upgrade, HTTP2-Settings, close").encode())
        assert status_of(await gone(raw)) == 200
        raw = await rig.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert status_of(await raw.receive_some(1000)) in (400, 404)
