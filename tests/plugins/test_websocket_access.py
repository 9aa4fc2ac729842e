"""Who may connect: listen address, token, origin, TLS."""

from __future__ import annotations

import json
import ssl

import pytest
import trio
import trustme
from trio_websocket import ConnectionClosed, open_websocket_url
from websocket_rig import Client, Frames, handshake, running

from tardisd.errors import PluginError
from tardisd.plugins.access import is_loopback, normalise_origin, parse_listen
from tardisd.plugins.base import Context
from tardisd.plugins.secret import Secret
from tardisd_websocket.plugin import WebSocketOptions, WebSocketSink

TOKEN = "s3cret+/=ü"


async def enter(rig, path="/", **headers):
    """Do a handshake; return the first message and, when that is an error, the close code."""
    stream = await rig.raw()
    await stream.send_all(handshake(path, **headers))
    reply = b""
    while not reply.endswith(b"\r\n\r\n"):
        reply += await stream.receive_some(1)
    assert reply.startswith(b"HTTP/1.1 101")
    frames = Frames(stream)
    message = json.loads((await frames.get())[1])
    if message["type"] != "error":
        return message, None
    opcode, payload = await frames.get()
    assert opcode == 8
    return message, int.from_bytes(payload[:2])


@pytest.mark.parametrize(
    ("path", "headers", "right"),
    [
        ("/", {"Authorization": f"Bearer {TOKEN}"}, True),
        ("/", {"authorization": f"bearer {TOKEN}"}, True),
        ("/?token=s3cret%2B%2F%3D%C3%BC", {}, True),
        ("/?a=b&token=s3cret+/=%C3%BC&c", {}, True),
        ("/anywhere?token=s3cret%2B/=%C3%BC", {}, True),
        ("/", {}, False),
        ("/?token=", {}, False),
        ("/?token", {}, False),
        ("/?Token=s3cret%2B%2F%3D%C3%BC", {}, False),
        ("/?token=s3cret", {}, False),
        ("/s3cret", {"Authorization": TOKEN}, False),
        ("/", {"Authorization": f"Basic {TOKEN}"}, False),
        ("/", {"Authorization": "Bearer "}, False),
        ("/", {"Authorization": f"Bearer {TOKEN}x"}, False),
        ("/", {"Authorization": "Bearer wrong"}, False),
        ("/?token=%ff", {}, False),
    ],
)
async def test_the_token(tmp_path, path, headers, right):
    async with running(tmp_path, token=Secret(TOKEN)) as rig:
        message, code = await enter(rig, path, **headers)
        if right:
            assert (message["type"], code) == ("connected", None)
        else:
            assert (message["type"], message["code"]) == ("error", "unauthorized")
            assert code == 4401
            assert "s3cret" not in message["message"]


@pytest.mark.parametrize(
    ("origin", "allowed", "right"),
    [
        ("http://localhost", (), True),
        ("http://localhost:5173", (), True),
        ("https://127.0.0.1:8443", (), True),
        ("http://[::1]:3000", (), True),
        ("http://evil.example", (), False),
        ("http://127.0.0.1.evil.example", (), False),
        ("http://localhost.evil.example", (), False),
        ("null", (), False),
        ("", (), False),
        ("file://", (), False),
        ("http://[", (), False),
        ("https://charts.example", ("https://charts.example",), True),
        ("https://CHARTS.example:443", ("https://charts.example",), True),
        ("https://charts.example", ("https://charts.example:443/",), True),
        ("http://charts.example", ("https://charts.example",), False),
        ("https://charts.example:444", ("https://charts.example",), False),
        ("http://localhost:3000", ("https://charts.example",), True),
        ("null", ("null",), True),
        ("http://evil.example", ("*",), True),
        ("null", ("*",), True),
    ],
)
async def test_the_origin_of_browsers(tmp_path, origin, allowed, right):
    async with running(tmp_path, allowed_origins=allowed) as rig:
        message, code = await enter(rig, Origin=origin)
        if right:
            assert (message["type"], code) == ("connected", None)
        else:
            assert (message["type"], message["code"], code) == ("error", "unauthorized", 4401)
            assert "allowed_origins" in message["message"]


async def test_a_real_client_sees_why_it_is_refused(tmp_path):
    async with (
        running(tmp_path, token=Secret(TOKEN)) as rig,
        open_websocket_url(rig.sink.url) as websocket,
    ):
        client = Client(websocket)
        assert (await client.get())["code"] == "unauthorized"
        with pytest.raises(ConnectionClosed) as closed:
            await client.get()
        assert closed.value.reason.code == 4401
        await trio.aclose_forcefully(websocket._stream)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"listen": "0.0.0.0:8001"}, "set token"),
        ({"listen": "[::]:8001"}, "set token"),
        ({"listen": "192.168.1.5:8001"}, "set token"),
        ({"listen": "example.com:8001"}, "set token"),
        ({"listen": "8001"}, "host:port"),
        ({"listen": "127.0.0.1"}, "host:port"),
        ({"listen": "127.0.0.1:x"}, "host:port"),
        ({"listen": "127.0.0.1:70000"}, "host:port"),
        ({"listen": "::1:8001"}, r"\[::1\]:8001"),
        ({"listen": ""}, "host:port"),
        ({"token": Secret("")}, "token is empty"),
        ({"tls_cert": "x.pem"}, "tls_key"),
        ({"tls_key": "x.pem"}, "tls_cert"),
        ({"allowed_origins": ("charts.example",)}, "not an origin"),
        ({"allowed_origins": ("https://charts.example/page",)}, "not an origin"),
    ],
)
def test_options_that_cannot_be(options, named):
    with pytest.raises(ValueError, match=named):
        WebSocketOptions(**options)


def test_options_that_can():
    assert WebSocketOptions().listen == "127.0.0.1:8001"
    for listen in ("localhost:0", "[::1]:8001", "127.0.0.2:65535"):
        assert WebSocketOptions(listen=listen).token is None
    everywhere = WebSocketOptions(listen="0.0.0.0:8001", token=Secret("x"))
    assert "x" not in repr(everywhere.token)


def test_addresses():
    assert parse_listen("127.0.0.1:8001") == ("127.0.0.1", 8001)
    assert parse_listen("[::1]:0") == ("::1", 0)
    assert is_loopback("LOCALHOST")
    assert is_loopback("::1")
    assert is_loopback("127.8.8.8")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("localhost.example")
    assert normalise_origin("HTTPS://A.Example:443") == "https://a.example"
    assert normalise_origin("http://[::1]:80") == "http://[::1]"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def certificate(authority, tmp_path):
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for at, pem in enumerate(issued.cert_chain_pems):
        pem.write_to_path(tmp_path / "cert.pem", append=at > 0)
    return {"tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}


async def test_tls(tmp_path, authority, certificate):
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with running(tmp_path, **certificate) as rig:
        assert rig.sink.url.startswith("wss://127.0.0.1:")
        async with rig.client(ssl_context=trusting) as client:
            assert client.hello["type"] == "connected"
            await client.create(session_id="s", data_type="trade", delivery="batch")
            assert (await client.until("end"))[-1]["reason"] == "finished"
        for data in (handshake(), b"\x16\x03\x01garbage", b""):
            plain = await rig.raw()
            await plain.send_all(data)
            await plain.send_eof()
            try:
                while await plain.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
        async with rig.client(ssl_context=trusting) as client:
            assert (await client.ask("ping"))["type"] == "pong"


async def test_a_tls_client_that_says_nothing_is_dropped(tmp_path, certificate, autojump_clock):
    async with running(tmp_path, **certificate) as rig:
        silent = await rig.raw()
        with trio.fail_after(60):
            assert await silent.receive_some() == b""


async def test_certificates_that_cannot_be_used(tmp_path, certificate):
    (tmp_path / "bad.pem").write_text("nothing")
    for bad in (str(tmp_path / "missing.pem"), str(tmp_path / "bad.pem")):
        for option in ("tls_cert", "tls_key"):
            options = WebSocketOptions(listen="127.0.0.1:0", **{**certificate, option: bad})
            sink = WebSocketSink(options, Context("ws", tmp_path, None))
            with pytest.raises(PluginError, match=bad):
                async with sink.run():
                    pass


async def test_addresses_that_cannot_be_listened_on(tmp_path):
    for listen in ("192.0.2.1:8001", "no-such-host.invalid:8001"):
        options = WebSocketOptions(listen=listen, token=Secret("x"))
        sink = WebSocketSink(options, Context("ws", tmp_path, None))
        with pytest.raises(PluginError, match=f"cannot listen on {listen}"):
            async with sink.run():
                pass
