"""One session into Redis: what was done is asked for after every failure, and gone on from.

Positions are (epoch, seq). With a stream they are the ids of its entries, so that Redis itself
refuses an entry twice and a consumer's own last id says where it stands; without, they are kept
beside. Ticks between what Redis has and what is to be written are asked of the session again: those
that Redis forgot, that were dropped while it was lost, or that a killed daemon had not sent yet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from tardisd.errors import NotConnected, RequestError
from tardisd.log import Log
from tardisd.plugins.sessions import Block, Evicted, Notice, Resume, Session
from tardisd.plugins.sink import Writer
from tardisd.supervise import Backoff
from tardisd.wall import wall_ms

from .link import Link, Lost
from .requests import Keys, Packer, pack

if TYPE_CHECKING:
    from .plugin import RedisOptions

log = Log("tardisd.redis")

Position = tuple[int, int]
SESSION_SECS = b"3600"
_SILENT = frozenset({"gap", "skipped", "snapshot", "barrier"})


@dataclass(slots=True)
class Course:
    """What is known of a session over failures and reopenings.

    `first` is the first number that came: it tells whether the session begins here, or goes on
    after a restart. Then, once, keys that an earlier session of the name left are removed.
    """

    first: Position | None = None
    cleared: bool = False
    delivered: Position = (0, 0)
    sent: Position = (0, 0)
    identity: tuple[bytes, ...] = ()
    end: dict[str, Any] | None = None
    failing_since: float | None = None
    backoff: Backoff = field(default_factory=partial(Backoff, first=0.1, most=2.0))


def _before(gap: Notice) -> Position:
    return (gap.fields["epoch"], gap.fields["seq"] - 1)


class RedisWriter(Writer):
    """Publishes a session's blocks; a block is delivered when Redis has acknowledged all of it."""

    def __init__(
        self,
        session: Session,
        course: Course,
        options: RedisOptions,
        connect: Callable[[], Awaitable[Link]],
    ) -> None:
        self._session = session
        self._course = course
        self._options = options
        self._connect = connect
        self._keys = Keys.of(session.session_id)
        length = options.stream_length if options.stream else None
        self._packer = Packer(self._keys, length, options.stream_secs)
        self._link: Link | None = None
        self._place: Position | None = None
        self._lock = trio.Lock()
        self._closed = False

    async def write(self, block: Block, /) -> None:
        """Publish what of the block is not published. Raises as `Link` does."""
        self._begin(block.epoch, block.first_seq)
        await self._patiently(partial(self._publish, block))

    async def notice(self, notice: Notice, /) -> None:
        """Keep the session's own key and its place among the paused ones up to date."""
        if notice.type == "gap":
            self._begin(notice.fields["epoch"], notice.fields["seq"])
        elif notice.type == "skipped":
            self._begin(self._session.status()["epoch"], notice.fields["from_seq"])
        if notice.type == "gap" and self._place == _before(notice):
            self._place = (notice.fields["epoch"], notice.fields["seq"])
        if notice.type == "end":
            self._course.end = dict(notice.fields)
            await self._patiently(self._complete)
        if notice.type not in _SILENT:
            await self.refresh()

    async def refresh(self) -> None:
        """Write the session's key anew; waits for a Redis that is lost."""
        await self._patiently(self._show)

    async def keep(self) -> None:
        """Write the session's key anew, unless there is something more important to do."""
        if not self._lock.locked() and self._course.failing_since is None:
            async with self._lock:
                await self._show_with(await self._linked())

    async def close(self) -> None:
        """Close the connection, for good."""
        self._closed = True
        await self._drop()

    async def _drop(self) -> None:
        if self._link is not None:
            await self._link.close()
            self._link = None

    def _begin(self, epoch: int, seq: int) -> None:
        if self._course.first is None:
            self._course.first = (epoch, seq)

    async def _patiently(self, action: Callable[[], Awaitable[None]]) -> None:
        """Act, again and again while Redis is lost, for as long as the session may be held up."""
        course = self._course
        while True:
            begun = trio.current_time()
            try:
                async with self._lock:
                    await action()
            except Lost as error:
                now = trio.current_time()
                if course.failing_since is None:
                    course.failing_since = begun
                    log.warning("redis lost", session=self._session.session_id, reason=str(error))
                wait = course.backoff.next()
                if now + wait >= course.failing_since + self._options.patience_secs:
                    raise
                await trio.sleep(wait)
            else:
                break
        if course.failing_since is not None:
            log.info("redis is back", session=self._session.session_id)
            course.failing_since = None
            course.backoff.reset()

    async def _linked(self) -> Link:
        if self._link is None or self._link.broken:
            await self._drop()
            self._place = None
            link = await self._connect()
            self._link = link
            if self._closed:  # in the meantime
                await self._drop()
                raise Lost("the session was closed")
            await link.end(self._course.identity)
            self._course.identity = link.identity
        return self._link

    async def _publish(self, block: Block) -> None:
        link = await self._linked()
        if self._place is None:
            self._place = await self._where(link)
        await self._fill(link, block.epoch, block.first_seq - 1)
        await self._send(link, block)

    async def _send(self, link: Link, block: Block) -> None:
        """Publish what of the block lies behind the place."""
        assert self._place is not None
        epoch, seq = self._place
        if epoch > block.epoch:
            return
        first = max(seq - block.first_seq + 1, 0) if epoch == block.epoch else 0
        for chunk in self._packer.chunks(block, first):
            self._course.sent = (block.epoch, chunk.last_seq)
            await link.transact(chunk.data, chunk.requests)
            self._place = self._course.delivered = self._course.sent

    async def _complete(self) -> None:
        """Publish what is missing at the end of the session."""
        link = await self._linked()
        if self._place is None:
            self._place = await self._where(link)
        status = self._session.status()
        await self._fill(link, status["epoch"], status["seq"])

    async def _fill(self, link: Link, epoch: int, upto: int) -> None:
        """Publish what Redis lacks up to that seq, as far as the session can still tell it."""
        assert self._place is not None
        if self._place[0] < epoch:
            self._place = (epoch, 0)
        if self._place >= (epoch, upto):
            return
        first, names = self._place[1], {"session": self._session.session_id}
        try:
            missed = self._session.subscribe("block", ("data",), "redis", Resume(epoch, first))
        except RequestError as error:
            log.warning("ticks lost", **names, after=first, upto=upto, reason=error.message)
            return
        log.info("redis catches up", **names, after=first, upto=upto)
        try:
            while self._place < (epoch, upto):
                item = await missed.receive()
                if not isinstance(item, Notice):
                    await self._send(link, item)
                elif item.type == "gap":
                    self._place = (epoch, item.fields["seq"])
                elif item.type == "reset":  # nobody needs the rest
                    return
        except (Evicted, trio.EndOfChannel) as error:
            after = self._place[1]
            log.warning("ticks lost", **names, after=after, upto=upto, reason=str(error))
        finally:
            missed.close()

    async def _newest(self, link: Link) -> tuple[Position, bytes]:
        """Return the place that Redis tells, and how it tells it."""
        if self._options.stream:
            newest = await link.call(b"XREVRANGE", self._keys.stream, b"+", b"-", b"COUNT", b"1")
            text = newest[0][0] if newest else b"0-0"
        else:
            text = await link.call(b"GET", self._keys.delivered) or b"0-0"
        left, _, right = text.partition(b"-")
        if left.isdigit() and right.isdigit():
            return (int(left), int(right)), text
        return (2**64, 0), text

    async def _where(self, link: Link) -> Position:
        """Return what Redis has got last, after removing what an earlier session left."""
        keys, course = self._keys, self._course
        place, text = await self._newest(link)
        if not course.cleared and course.first is not None:
            epoch, seq = course.first
            if seq == 1 and (epoch == 1 or place >= course.first):
                await link.call(b"UNLINK", keys.stream, keys.delivered)
                place = (0, 0)
            course.cleared = True
        if course.sent < place and course.sent != (0, 0):
            key = keys.stream if self._options.stream else keys.delivered
            raise NotConnected(
                f"somebody else writes to {key.decode()}: it ends with {text[:40]!r}; use another"
                " session id, or another database"
            )
        if not self._options.stream:  # who was to hear it has heard it
            return max(place, course.delivered)
        if place < course.delivered:
            log.warning(
                "redis forgot", session=self._session.session_id, has=place,
                acknowledged=course.delivered, hint="appendonly yes in its configuration",
            )  # fmt: skip
        return place

    async def _show(self) -> None:
        await self._show_with(await self._linked())

    async def _show_with(self, link: Link) -> None:
        keys = self._keys
        facts = {**self._session.status(), "updated": wall_ms()}
        if self._course.end is not None:
            facts["end"] = self._course.end
        name = self._session.session_id.encode()
        commands = [
            (b"SET", keys.session, msgspec.json.encode(facts), b"EX", SESSION_SECS),
            (b"SADD" if facts["status"] == "paused" else b"SREM", keys.paused, name),
        ]
        if self._options.stream:
            commands.append((b"EXPIRE", keys.stream, b"%d" % self._options.stream_secs))
        else:
            commands.append((b"EXPIRE", keys.delivered, SESSION_SECS))
        packed = b"".join(pack(*words) for words in commands)
        await link.transact(packed, len(commands))
