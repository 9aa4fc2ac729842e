"""The HTTP sink: its options and its lifetime; serving and answering are elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, ClassVar

import trio
from msgspec import Meta

from tardisd.log import Log
from tardisd.plugins.base import Context
from tardisd.plugins.listening import ListeningOptions, open_listeners, tls_context, url_of
from tardisd.plugins.sink import Sink

if TYPE_CHECKING:
    from tardisd_http.server import Server

log = Log("tardisd.http")


class HttpOptions(ListeningOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of the HTTP sink."""

    listen: Annotated[
        str, Meta(description="Address to listen on; other than loopback needs a token")
    ] = "127.0.0.1:8000"
    max_clients: Annotated[int, Meta(ge=1, description="Connections at once")] = 1000
    max_sessions: Annotated[int, Meta(ge=1, description="Sessions running at once")] = 100
    max_body_bytes: Annotated[
        int, Meta(ge=1024, description="Longest body of a request that is read")
    ] = 1024 * 1024


class HttpSink(Sink[HttpOptions]):
    """Serves sessions to HTTP clients, which create, steer and stream them by themselves."""

    name: ClassVar[str] = "http"
    Options: ClassVar[type[HttpOptions]] = HttpOptions

    def __init__(self, options: HttpOptions, context: Context) -> None:
        super().__init__(options, context)
        self._address: tuple[str, int] | None = None
        self._server: Server | None = None

    def claims(self) -> frozenset[str]:
        """Return the port that it listens on."""
        return self.options.claims()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on; RuntimeError while it does not run."""
        if self._address is None:
            raise RuntimeError("the HTTP sink does not run yet")
        return self._address

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return url_of("http" if self.options.tls_cert is None else "https", self.address)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return 0 if self._server is None else self._server.connections

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Listen until left; then let answers under way finish, for a moment."""
        from tardisd_http.front import Front  # noqa: PLC0415 - they bring hypercorn and Starlette
        from tardisd_http.server import Server  # noqa: PLC0415

        front = Front(self.options, self.context)
        self._server = server = Server(front, tls_context(self.options), self.options.max_clients)
        listeners = await open_listeners(self.options.listen)
        self._address = listeners[0].socket.getsockname()[:2]
        log.info("http listening", instance=self.context.name, url=self.url)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(front.keep_house)
            try:
                async with server.serving(listeners):
                    yield
            finally:
                nursery.cancel_scope.cancel()
                self._address = self._server = None
