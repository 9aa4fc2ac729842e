"""The Redis sink: its options, its lifetime, one writer and one connection per session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, ClassVar
from weakref import WeakKeyDictionary

import trio
from msgspec import Meta

from tardisd.errors import PluginError
from tardisd.log import Log
from tardisd.plugins.base import Context, Options
from tardisd.plugins.secret import Secret
from tardisd.plugins.sessions import Session
from tardisd.plugins.sink import Sink, Writer

from .address import Address
from .link import Link
from .writer import Course, RedisWriter

DEFAULT_URL = "redis://127.0.0.1:6379/0"
REFRESH_SECS = 1.0
LOOK_SECS = 2.0

log = Log("tardisd.redis")


class RedisOptions(Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of the Redis sink."""

    url: Annotated[
        Secret | None,
        Meta(description="redis://HOST:PORT/DATABASE, rediss://… for TLS, or unix:///PATH?db=N"),
    ] = None
    password: Annotated[
        Secret | None, Meta(description="the password, when it does not stand in url")
    ] = None
    tls_ca: Annotated[
        Path | None, Meta(description="PEM file with the issuers to trust; default: the system's")
    ] = None
    stream: Annotated[
        bool, Meta(description="also append to a Redis Stream, so that consumers can resume")
    ] = False
    stream_length: Annotated[
        int, Meta(ge=1, description="ticks that a stream keeps, roughly; the oldest go")
    ] = 100_000
    stream_secs: Annotated[
        int, Meta(ge=1, description="how long a stream is kept after its session")
    ] = 86_400
    patience_secs: Annotated[
        float,
        Meta(ge=0, le=45, description="how long sessions wait for a Redis that is lost"),
    ] = 30.0
    timeout_secs: Annotated[
        float, Meta(gt=0, le=15, description="how long one answer may take")
    ] = 10.0

    def __post_init__(self) -> None:
        Address.parse(DEFAULT_URL if self.url is None else self.url.reveal())


class RedisSink(Sink[RedisOptions]):
    """Publishes each session on a channel, keeps its state in a key, and its ticks in a stream."""

    name: ClassVar[str] = "redis"
    Options: ClassVar[type[RedisOptions]] = RedisOptions
    forms = ("data",)

    def __init__(self, options: RedisOptions, context: Context) -> None:
        super().__init__(options, context)
        self._address = Address.parse(DEFAULT_URL if options.url is None else options.url.reveal())
        self._courses: WeakKeyDictionary[Session, Course] = WeakKeyDictionary()
        self._writers: set[RedisWriter] = set()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Keep the keys of all sessions alive. A Redis that is not there yet is only logged."""
        with trio.move_on_after(LOOK_SECS):
            await self._look()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            yield
            nursery.cancel_scope.cancel()

    async def probe(self) -> None:
        """Return when Redis answers; raise PluginError when it does not."""
        link = await self._connect()
        await link.close()

    @asynccontextmanager
    async def open(self, session: Session) -> AsyncIterator[Writer]:
        """Connect for the session, and show it."""
        course = self._courses.get(session)
        if course is None:
            course = self._courses[session] = Course()
        writer = RedisWriter(session, course, self.options, self._connect)
        try:
            await writer.refresh()
            self._writers.add(writer)
            yield writer
        finally:
            self._writers.discard(writer)
            await writer.close()

    async def _connect(self) -> Link:
        options = self.options
        password = None if options.password is None else options.password.reveal()
        return await Link.connect(self._address, password, options.tls_ca, options.timeout_secs)

    async def _look(self) -> None:
        try:
            await self.probe()
        except PluginError as error:
            log.warning("redis not usable", instance=self.context.name, reason=error.message)

    async def _keep(self) -> None:
        while True:
            await trio.sleep(REFRESH_SECS)
            for writer in list(self._writers):
                try:
                    await writer.keep()
                except PluginError as error:  # the next write meets it too, and says so
                    log.debug("session not refreshed", reason=error.message)
