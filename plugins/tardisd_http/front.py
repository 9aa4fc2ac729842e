"""The way in to every endpoint: who may come, how much is read, what is said when it goes wrong.

It finds the endpoint and answers for it when it fails; what endpoints do is elsewhere.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import trio
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Router

from tardisd.errors import RequestError, TardisError
from tardisd.log import Log
from tardisd.plugins.base import Context
from tardisd.supervise import attempt, describe
from tardisd_http.answers import HttpError, refusal
from tardisd_http.api import Api
from tardisd_http.plugin import HttpOptions
from tardisd_http.transport import WatchedStream

TOPIC = "http.routes"
BODY_SECS = 20.0
HOUSE_SECS = 10.0
OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
_NO_ROUTES = f"what is offered as {TOPIC} must be a list of starlette routes"
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
log = Log("tardisd.http")


class Front:
    """The ASGI application of one sink."""

    def __init__(self, options: HttpOptions, context: Context) -> None:
        self._access = options.access()
        self._max_body_bytes = options.max_body_bytes
        self._board = context.board
        self._sessions = context.sessions
        self._seen = -1
        self._router = Router()
        self._api = Api(context, options.max_sessions, self.routes)

    async def keep_house(self) -> None:
        """Do what has to be done from time to time, for ever."""
        while True:
            await trio.sleep(HOUSE_SECS)
            self._api.made.end_orphans()

    def routes(self) -> Sequence[BaseRoute]:
        """Return our own routes, then those that other plugins offer; the first that fits is it."""
        return self._current().routes

    def _current(self) -> Router:
        if self._seen != self._board.version:
            self._seen = self._board.version
            routes = list(self._api.routes())
            for offer in self._board.offered(TOPIC):
                if _are_routes(offer.thing):
                    routes += offer.thing
                else:
                    log.error("http routes not taken", instance=offer.by, error=_NO_ROUTES)
            self._router = Router(routes, redirect_slashes=False)
        return self._router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever becomes of it."""
        connection: WatchedStream = scope["state"]["connection"]
        with connection.answering():
            answering = _Answering(send, self._cross_origin(scope["headers"]))
            call = self._websocket if scope["type"] == "websocket" else self._answer
            error = await attempt(call, scope, receive, answering)
            if error is None:
                return
            if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
                connection.abort()  # the client has gone, as clients do
                return
            # What has been sent stands, but that it is torn must be seen.
            if answering.started or scope["type"] == "websocket":
                log.error("http answer broke", path=scope["path"], error=describe(error))
                connection.abort()
            else:
                await self._refuse(scope, receive, answering, error)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "OPTIONS" and _asks_first(scope["headers"]):
            await _preflight()(scope, receive, send)
            return
        self._admit(scope)
        body = await self._body(scope["headers"], receive)
        if scope["path"] not in OPEN_PATHS:
            await self._sessions.recovered()
        await self._route(scope, _Replay(body, receive), send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a WebSocket on to a plugin's route; we have none of our own."""
        try:
            self._admit(scope)
        except RequestError:
            await send({"type": "websocket.close", "code": 4401})
            return
        await self._current()(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        headers = scope["headers"]
        why = self._access.origin_refusal(headers) or self._access.host_refusal(headers)
        if why is not None:
            raise HttpError(403, "unauthorized", why)
        if scope["path"] in OPEN_PATHS:  # whoever looks after the daemon need not know the token
            return
        query = scope["query_string"].decode("ascii", "replace")
        why = self._access.token_refusal(f"/?{query}", headers)
        if why is not None:
            raise HttpError(401, "unauthorized", why)

    async def _body(self, headers: Sequence[tuple[bytes, bytes]], receive: Receive) -> bytes:
        limit = self._max_body_bytes
        too_large = HttpError(413, "too_large", f"the body is longer than {limit} bytes")
        for name, value in headers:
            if name == b"content-length" and value.isdigit() and int(value) > limit:
                raise too_large
        parts: list[bytes] = []
        size = 0
        with trio.move_on_after(BODY_SECS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise HttpError(400, "bad_request", "the request ended early")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    raise too_large
                if not message.get("more_body", False):
                    return b"".join(parts)
        text = f"the body has not come within {BODY_SECS:g} s; send it at once"
        raise HttpError(408, "bad_request", text)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # then Starlette raises what it cannot route
        try:
            await self._current()(scope, receive, send)
        except HTTPException as error:
            raise _routing_error(scope, error) from None

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, error: Exception) -> None:
        if not isinstance(error, TardisError):
            log.error("http endpoint failed", path=scope["path"], error=describe(error))
            error = RequestError("internal", "a fault of the server; its log says more")
        response = refusal(error, scope.get("path_params", {}).get("session_id"))
        async with trio.open_nursery() as nursery:
            # hypercorn cannot even say goodbye while nobody takes what the client sends.
            nursery.start_soon(_drain, receive)
            await response(scope, receive, send)
            nursery.cancel_scope.cancel()

    def _cross_origin(self, headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return what lets the script of an allowed page read the answer."""
        origins = [value for name, value in headers if name == b"origin"]
        if len(origins) != 1 or self._access.origin_refusal(headers) is not None:
            return []
        return [(b"access-control-allow-origin", origins[0]), (b"vary", b"origin")]


class _Answering:
    """Passes an answer on, with headers of ours; knows whether it has begun."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = False
        self._send = send
        self._headers = [*headers, (b"x-content-type-options", b"nosniff")]

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            message["headers"] = [*message.get("headers", []), *self._headers]
        await self._send(message)


class _Replay:
    """Gives the body that has been read, then what comes after it: that the client went."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> MutableMapping[str, Any]:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def _are_routes(thing: object) -> bool:
    return isinstance(thing, list | tuple) and all(isinstance(one, BaseRoute) for one in thing)


async def _drain(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _routing_error(scope: Scope, error: HTTPException) -> HttpError:
    asked = f"{scope['method']} {scope['path'][:100]}"
    if error.status_code == 404:
        return HttpError(404, "unknown_type", f"there is no {asked}; /openapi.json lists what is")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return HttpError(405, "unknown_type", f"there is no {asked}; use {allowed}")
    code = "unauthorized" if error.status_code in (401, 403) else "bad_request"
    if error.status_code >= 500:
        code = "internal"
    return HttpError(error.status_code, code, error.detail)


def _asks_first(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    return any(name == b"access-control-request-method" for name, _ in headers)


def _preflight() -> Response:
    """Return what a browser wants to know before it sends a request of another origin's page."""
    return Response(
        status_code=204,
        headers={
            "access-control-allow-methods": _METHODS.decode(),
            "access-control-allow-headers": "authorization, content-type",
            "access-control-max-age": "600",
        },
    )
