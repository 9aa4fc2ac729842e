"""Who may ask over HTTP: listen address, token, origin, host, TLS."""

from __future__ import annotations

import ssl

import httpx
import pytest
import trustme
from http_rig import BTC, gone, running, status_of

from tardisd.errors import PluginError
from tardisd.plugins.base import Context
from tardisd.plugins.secret import Secret
from tardisd_http.plugin import HttpOptions, HttpSink

TOKEN = "s3cret+/=ü"
BEARER = f"Bearer {TOKEN}".encode()


async def test_the_token(tmp_path):
    async with running(tmp_path, token=Secret(TOKEN)) as rig:
        for path, headers in [
            ("/api/replay", {"Authorization": BEARER}),
            ("/api/replay", {"authorization": b"bearer " + TOKEN.encode()}),
            ("/api/replay?token=s3cret%2B%2F%3D%C3%BC", {}),
            ("/api/replay?token=s3cret+/=%C3%BC", {}),
            ("/health", {}),
            ("/health/live", {}),
        ]:
            assert (await rig.client.get(path, headers=headers)).status_code == 200, path
        for path, headers in [
            ("/api/replay", {}),
            ("/api/replay?token=", {}),
            ("/api/replay?Token=s3cret%2B%2F%3D%C3%BC", {}),
            ("/api/replay?token=s3cret", {}),
            ("/api/replay", {"Authorization": TOKEN.encode()}),
            ("/api/replay", {"Authorization": b"Basic " + TOKEN.encode()}),
            ("/api/replay", {"Authorization": BEARER + b"x"}),
            ("/api/replay?token=%ff", {}),
            ("/metrics", {}),
            ("/openapi.json", {}),
            ("/api/replay/s/stream", {}),
            ("/nowhere", {}),
            ("/health/../metrics", {}),
        ]:
            answer = await rig.client.get(path, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "s3cret" not in answer.text
        await rig.refused(401, "unauthorized", "POST", "/api/replay/create", BTC)
        assert rig.sessions.list() == []


async def test_the_origin_of_browsers(tmp_path):
    allowed = ("https://charts.example",)
    async with running(tmp_path, allowed_origins=allowed) as rig:
        for origin in ("http://localhost:5173", "http://[::1]:3000", "https://CHARTS.example:443"):
            answer = await rig.client.get("/api/replay", headers={"Origin": origin})
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == origin
            assert answer.headers["vary"] == "origin"
        for origin in ("http://evil.example", "http://localhost.evil.example", "null", ""):
            answer = await rig.client.get("/health", headers={"Origin": origin})
            assert (answer.status_code, answer.json()["code"]) == (403, "unauthorized")
            assert "allowed_origins" in answer.json()["message"]
            assert "access-control-allow-origin" not in answer.headers
        answer = await rig.client.post(
            "/api/replay/create", json=BTC, headers={"Origin": "http://evil.example"}
        )
        assert answer.status_code == 403
        assert rig.sessions.list() == []


async def test_browsers_may_ask_what_they_may_send(tmp_path):
    async with running(tmp_path, token=Secret(TOKEN)) as rig:
        asking = {
            "Origin": "http://localhost:5173",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        answer = await rig.client.options("/api/replay/create", headers=asking)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == "http://localhost:5173"
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "authorization" in answer.headers["access-control-allow-headers"]
        asking["Origin"] = "http://evil.example"
        answer = await rig.client.options("/api/replay/create", headers=asking)
        assert "access-control-allow-origin" not in answer.headers
        assert (await rig.client.options("/api/replay/create")).status_code == 401


@pytest.mark.parametrize(
    ("host", "options", "right"),
    [
        ("localhost:8000", {}, True),
        ("127.0.0.1", {}, True),
        ("[::1]:8000", {}, True),
        ("evil.example", {}, False),
        ("127.0.0.1.evil.example:8000", {}, False),
        ("[", {}, False),
        ("charts.example", {"allowed_origins": ("https://charts.example",)}, True),
        ("evil.example", {"allowed_origins": ("*",)}, True),
        ("evil.example", {"token": Secret("x")}, True),
    ],
)
async def test_a_name_that_was_rebound_to_this_machine_reads_nothing(
    tmp_path, host, options, right
):
    async with running(tmp_path, **options) as rig:
        head = f"GET /api/series?token=x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        raw = await rig.raw(head.encode())
        told = await gone(raw)
        assert status_of(told) in ((200,) if right else (400, 403))
        assert (b'"series"' in told) == right


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"listen": "0.0.0.0:8000"}, "set token"),
        ({"listen": "[::]:8000"}, "set token"),
        ({"listen": "8000"}, "host:port"),
        ({"token": Secret("")}, "token is empty"),
        ({"tls_cert": "x.pem"}, "tls_key"),
        ({"allowed_origins": ("charts.example",)}, "not an origin"),
    ],
)
def test_options_that_cannot_be(options, named):
    with pytest.raises(ValueError, match=named):
        HttpOptions(**options)


def test_options_that_can():
    assert HttpOptions().listen == "127.0.0.1:8000"
    everywhere = HttpOptions(listen="0.0.0.0:8000", token=Secret("xyz"))
    assert "xyz" not in repr(everywhere)


async def test_tls(tmp_path):
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for at, pem in enumerate(issued.cert_chain_pems):
        pem.write_to_path(tmp_path / "cert.pem", append=at > 0)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    files = {"tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    async with running(tmp_path, client={"verify": trusting}, **files) as rig:
        assert rig.sink.url.startswith("https://127.0.0.1:")
        await rig.create(session_id="s", data_type="trade")
        lines = await rig.everything("s")
        assert (lines[-1]["type"], lines[-1]["reason"]) == ("end", "finished")
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01garbage", b""):
            plain = await rig.raw(data)
            await plain.send_eof()
            assert status_of(await gone(plain)) is None
        await rig.ask("GET", "/health")


async def test_a_port_in_use_is_a_clear_error(tmp_path):
    async with running(tmp_path) as rig:
        listen = f"127.0.0.1:{rig.sink.address[1]}"
        second = HttpSink(HttpOptions(listen=listen), Context("two", tmp_path, rig.sessions))
        with pytest.raises(PluginError, match="another program uses it"):
            async with second.run():
                pass
        with pytest.raises(RuntimeError):
            _ = second.address
        await rig.ask("GET", "/health")


async def test_files_that_are_no_certificate(tmp_path):
    (tmp_path / "x.pem").write_text("nothing")
    options = HttpOptions(tls_cert=str(tmp_path / "x.pem"), tls_key=str(tmp_path / "x.pem"))
    sink = HttpSink(options, Context("http", tmp_path, None))
    with pytest.raises(PluginError, match="give a PEM certificate"):
        async with sink.run():
            pass


async def test_the_old_client_that_names_no_host(tmp_path):
    async with running(tmp_path) as rig:
        raw = await rig.raw(b"GET /health HTTP/1.0\r\n\r\n")
        told = await gone(raw)
        assert status_of(told) == 200
        assert told.endswith(b'"ready":true}\n')


async def test_a_browser_page_elsewhere_sees_nothing(tmp_path):
    async with running(tmp_path) as rig:
        answer = await httpx.AsyncClient.get(rig.client, "/")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.json()["server"].startswith("tardisd/")
        assert "hypercorn" not in str(answer.headers)
