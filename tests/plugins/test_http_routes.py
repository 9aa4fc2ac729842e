"""Endpoints of other plugins on the HTTP sink, and the description of all."""

from __future__ import annotations

import json
import re

import httpx
import pytest
import trio
from http_rig import gone, running
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute

from tardisd.errors import RequestError
from tardisd.plugins.base import Context
from tardisd.plugins.secret import Secret


async def hello(request):
    """Say hello."""
    return PlainTextResponse(f"hello {request.path_params['name']}")


async def fail(request):
    raise ZeroDivisionError("the stranger's fault")


async def refuse(request):
    raise RequestError("wrong_state", "not now")


async def echo(request):
    return Response(await request.body())


async def half(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ha", "more_body": True})
    raise ZeroDivisionError("in the middle")


async def shout(websocket):
    await websocket.accept()
    if websocket.query_params.get("break"):
        raise ZeroDivisionError("while it was open")
    await websocket.send_text((await websocket.receive_text()).upper())
    await websocket.close()


ROUTES = [
    Route("/hello/{name}", hello),
    Route("/fail", fail),
    Route("/refuse", refuse, methods=["POST"]),
    Route("/echo", echo, methods=["PUT"]),
    Route("/api/replay", hello),  # ours goes first
    Mount("/half", half),
    WebSocketRoute("/shout", shout),
]


async def test_routes_come_and_go_with_their_plugin(tmp_path):
    async with running(tmp_path) as rig:
        stranger = Context("stranger", tmp_path, None, board=rig.board)
        await rig.refused(404, "unknown_type", "GET", "/hello/you")
        with stranger.offer("http.routes", ROUTES):
            assert (await rig.client.get("/hello/you")).text == "hello you"
            assert (await rig.ask("GET", "/api/replay"))["sessions"] == []
            assert (await rig.client.put("/echo", content=b"x" * 5000)).content == b"x" * 5000
            described = (await rig.ask("GET", "/openapi.json"))["paths"]["/hello/{name}"]["get"]
            assert described["summary"] == "Say hello."
            assert described["parameters"][0]["name"] == "name"
        await rig.refused(404, "unknown_type", "GET", "/hello/you")


async def test_what_goes_wrong_in_a_route_stays_there(tmp_path, caplog):
    async with running(tmp_path) as rig:
        stranger = Context("stranger", tmp_path, None, board=rig.board)
        with stranger.offer("http.routes", ROUTES):
            message = await rig.refused(500, "internal", "GET", "/fail")
            assert "stranger" not in message
            assert any("ZeroDivisionError" in str(record.facts) for record in caplog.records)
            assert await rig.refused(409, "wrong_state", "POST", "/refuse") == "not now"
            await rig.refused(405, "unknown_type", "GET", "/refuse")
            with pytest.raises(httpx.RemoteProtocolError):
                await rig.client.get("/half/")
            await rig.ask("GET", "/health")


async def test_offers_that_are_no_routes_are_left_out(tmp_path, caplog):
    async with running(tmp_path) as rig:
        stranger = Context("stranger", tmp_path, None, board=rig.board)
        with stranger.offer("http.routes", "routes"), stranger.offer("http.routes", 5):
            assert (await rig.ask("GET", "/api/replay"))["sessions"] == []
            assert any("stranger" in str(record.facts) for record in caplog.records)


async def test_routes_obey_the_rules_of_access(tmp_path, caplog):
    async with running(tmp_path, token=Secret("secret"), max_body_bytes=1024) as rig:
        stranger = Context("stranger", tmp_path, None, board=rig.board)
        with stranger.offer("http.routes", ROUTES):
            await rig.refused(401, "unauthorized", "GET", "/hello/you")
            assert (await rig.client.get("/hello/you?token=secret")).status_code == 200
            answer = await rig.client.put("/echo?token=secret", content=b"x" * 5000)
            assert answer.status_code == 413
            opening = (
                "GET /shout{} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n"
            )
            raw = await rig.raw(opening.format("").encode())
            assert b" 403 " in await raw.receive_some(1000)
            raw = await rig.raw(opening.format("?token=secret").encode())
            assert b" 101 " in await raw.receive_some(1000)
            await raw.send_all(b"\x81\x82\0\0\0\0hi")
            with trio.fail_after(100):
                told = await raw.receive_some(1000)
            assert told.startswith(b"\x81\x02HI")
            raw = await rig.raw(opening.format("?token=secret&break=1").encode())
            await gone(raw)
            assert any("while it was open" in str(record.facts) for record in caplog.records)


async def test_the_description_names_every_endpoint(tmp_path):
    async with running(tmp_path) as rig:
        described = await rig.ask("GET", "/openapi.json")
        assert described["openapi"].startswith("3.1")
        found = {(path, method) for path, ways in described["paths"].items() for method in ways}
        for path in ("/api/series", "/api/replay", "/health", "/metrics", "/openapi.json"):
            assert (path, "get") in found
        one = "/api/replay/{session_id}"
        for verb in ("pause", "resume", "stop", "speed", "seek", "step"):
            assert (f"{one}/{verb}", "post") in found
        assert {("/api/replay/create", "post"), (one, "get"), (f"{one}/stream", "get")} <= found
        text = json.dumps(described)
        for reference in re.findall(r'"\$ref": "#/([^"]+)"', text):
            place = described
            for step in reference.split("/"):
                place = place[step]
        names = [
            way["operationId"] for ways in described["paths"].values() for way in ways.values()
        ]
        assert len(names) == len(set(names))
        for path, ways in described["paths"].items():
            for way in ways.values():
                inside = [one["name"] for one in way.get("parameters", ()) if one["in"] == "path"]
                assert sorted(inside) == sorted(re.findall(r"\{(\w+)\}", path))


async def test_the_described_fields_are_those_that_are_taken(tmp_path):
    async with running(tmp_path) as rig:
        schemas = (await rig.ask("GET", "/openapi.json"))["components"]["schemas"]
        new = schemas["NewSession"]
        assert {"exchange", "symbol", "series", "speed", "when_full"} <= new["properties"].keys()
        assert sorted(new["required"]) == ["end_time", "start_time"]
        assert schemas["Seek"]["properties"].keys() == {"to", "by"}
