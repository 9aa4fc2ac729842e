"""One connection to a Redis: requests out, replies in, errors told apart; knows no ticks.

Requests that belong together go out in one piece, as a transaction (MULTI … EXEC): Redis does all
of it or nothing. So whatever breaks, there is no tick that is in the stream but was not published,
and asking for what was done last tells where to go on. The thousand replies `QUEUED` that a
transaction brings are compared as bytes, not parsed one by one.

What was sent before a connection broke may still be on its way, and be done after one has asked. So
a new connection first has the old one closed on the side of Redis.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hiredis
import trio

from tardisd.errors import NotConnected, PluginError, Retry

from .address import Address
from .requests import pack

OLDEST = 7
_RECEIVE = 256 * 1024
_MULTI = pack(b"MULTI")
_EXEC = pack(b"EXEC")
_STARTED, _QUEUED = b"+OK\r\n", b"+QUEUED\r\n"
_FULL = {
    "OOM": "is out of memory; let it have more (maxmemory), or let it evict old keys",
    "MISCONF": "refuses writes because it cannot save to its disk; see its log",
}
_REFUSED = {
    "NOAUTH": "wants a password; set `password`",
    "WRONGPASS": "does not know this user and password; see to `password` and `url`",
    "NOPERM": "does not let this user do that; the README of the sink lists what it needs",
    "READONLY": "is a replica; `url` has to name the primary",
    "WRONGTYPE": "holds something else under a key that begins with `replay:`; remove it",
}


class Lost(NotConnected):
    """Raised when Redis cannot be reached just now; it may be back soon."""


def refusal(address: Address, text: str) -> PluginError:
    """Return the error that a Redis error reply comes to."""
    code = text.partition(" ")[0]
    if code in {"LOADING", "MASTERDOWN", "BUSY", "TRYAGAIN", "CLUSTERDOWN"}:
        return Lost(f"{address} is not ready: {text}")
    if code in _FULL:
        return Retry(f"{address} {_FULL[code]}", after=1.0)
    if code in _REFUSED:
        return NotConnected(f"{address} {_REFUSED[code]}")
    if "unknown command" in text and "HELLO" in text.upper():
        return NotConnected(f"{address} is older than Redis {OLDEST}; install a newer one")
    return NotConnected(f"{address} answered: {text[:200]}")


class Link:
    """A connection that is greeted and in its database. Once `broken` it is of no more use."""

    def __init__(self, stream: trio.abc.Stream, address: Address, timeout_secs: float) -> None:
        self.broken = False
        self.identity: tuple[bytes, ...] = ()
        self._stream = stream
        self._address = address
        self._timeout_secs = timeout_secs
        self._reader = hiredis.Reader(notEnoughData=Link)  # no reply is ever a class

    @classmethod
    async def connect(
        cls, address: Address, password: str | None, tls_ca: Path | None, timeout_secs: float
    ) -> Link:
        """Connect and greet. Raises Lost when nobody is there, NotConnected when refused."""
        with trio.move_on_after(timeout_secs):
            link = cls(await _open(address, tls_ca), address, timeout_secs)
            try:
                await link._greet(password)
            except BaseException:
                await link.close()
                raise
            return link
        hint = "; does it speak TLS?" if address.tls else ""
        raise Lost(f"{address} did not answer within {timeout_secs:g} s{hint}")

    async def close(self) -> None:
        """Close without waiting for anything."""
        self.broken = True
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)

    async def call(self, *words: bytes) -> Any:
        """Send one command and return the reply."""
        return (await self.call_all([words]))[0]

    async def call_all(self, commands: Sequence[tuple[bytes, ...]]) -> list[Any]:
        """Send commands at once and return their replies; raises what the first refusal means."""
        data = b"".join(pack(*words) for words in commands)
        return self._checked(await self._exchange(data, b"", len(commands)))

    async def end(self, identity: tuple[bytes, ...]) -> None:
        """Have Redis close an earlier connection, so that nothing of it is done any more."""
        if identity:  # a user that may not do that goes without
            await self._exchange(pack(b"CLIENT", b"KILL", *identity), b"", 1)

    async def transact(self, requests: bytes | bytearray, count: int) -> None:
        """Have all of the packed requests done, or none: then it raises why."""
        expected = _STARTED + _QUEUED * count
        data = b"".join((_MULTI, requests, _EXEC))
        replies = await self._exchange(data, expected, count + 2)
        done = self._checked(replies)[-1]
        self._checked(done if isinstance(done, list) else [])

    def _checked(self, replies: list[Any]) -> list[Any]:
        if any(issubclass(kind, hiredis.HiredisError) for kind in set(map(type, replies))):
            error = next(one for one in replies if isinstance(one, hiredis.HiredisError))
            raise refusal(self._address, str(error))
        return replies

    async def _exchange(self, data: bytes, expected: bytes, count: int) -> list[Any]:
        """Send, and return `count` replies; those that `expected` stands for only when they differ.

        Interrupted anywhere it leaves a broken link, for nobody knows what was done.
        """
        if self.broken:
            raise Lost(f"{self._address} was lost")
        self.broken = True
        with trio.move_on_after(self._timeout_secs):
            try:
                await self._stream.send_all(data)
                replies = await self._receive(expected, count)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise Lost(f"{self._address} closed the connection") from None
            except hiredis.ProtocolError:
                text = f"{self._address} does not answer as a Redis does; is it one?"
                raise NotConnected(text) from None
            self.broken = False
            return replies
        raise Lost(f"{self._address} did not answer within {self._timeout_secs:g} s")

    async def _receive(self, expected: bytes, count: int) -> list[Any]:
        head = bytearray()
        while len(head) < len(expected) and expected.startswith(head):
            head += await self._some()
        if expected and head.startswith(expected):
            head, count = head[len(expected) :], 1
        self._reader.feed(bytes(head))
        replies: list[Any] = []
        while len(replies) < count:
            reply = self._reader.gets()
            if reply is Link:
                self._reader.feed(bytes(await self._some()))
            else:
                replies.append(reply)
        return replies

    async def _some(self) -> bytes | bytearray:
        data = await self._stream.receive_some(_RECEIVE)
        if not data:
            raise trio.BrokenResourceError
        return data

    async def _greet(self, password: str | None) -> None:
        address = self._address
        secret = address.password if password is None else password
        login: tuple[bytes, ...] = ()
        if secret is not None:
            login = (b"AUTH", (address.username or "default").encode(), secret.encode())
        hello = await self.call(b"HELLO", b"2", *login, b"SETNAME", b"tardisd")
        facts = dict(zip(hello[::2], hello[1::2], strict=False))
        version = facts.get(b"version", b"0").decode(errors="replace")
        if int(version.partition(".")[0]) < OLDEST:
            text = f"{address} has version {version}; Redis {OLDEST} or newer is needed"
            raise NotConnected(text)
        if address.database:
            await self.call(b"SELECT", b"%d" % address.database)
        [info] = await self._exchange(pack(b"CLIENT", b"INFO"), b"", 1)
        if isinstance(info, bytes):  # after a restart of Redis the number alone is another's
            known = dict(word.partition(b"=")[::2] for word in info.split())
            self.identity = (b"ID", known[b"id"], b"ADDR", known[b"addr"])


async def _open(address: Address, tls_ca: Path | None) -> trio.abc.Stream:
    try:
        if address.path:
            return await trio.open_unix_socket(address.path)
        stream = await trio.open_tcp_stream(address.host, address.port)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Lost(f"{address} cannot be reached: {reason}; is it running?") from None
    if not address.tls:
        return stream
    try:
        context = ssl.create_default_context(cafile=tls_ca)
        secured = trio.SSLStream(stream, context, server_hostname=address.host)
        await secured.do_handshake()
    except (trio.BrokenResourceError, OSError) as error:
        await trio.aclose_forcefully(stream)
        cause = error.__cause__ or error
        if isinstance(cause, ssl.SSLCertVerificationError):
            text = f"{address}: {cause.verify_message}; set `tls_ca` when its issuer is your own"
        elif isinstance(cause, ssl.SSLError):
            text = f"{address} does not speak TLS; write redis:// instead of rediss://"
        elif isinstance(cause, FileNotFoundError):
            text = f"`tls_ca` is not there: {tls_ca}"
        else:
            raise Lost(f"{address} closed the connection during the TLS handshake") from None
        raise NotConnected(text) from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secured
