"""What sinks that listen for clients share: options, their checks, sockets, TLS; serves nobody."""

from __future__ import annotations

import errno
import socket
import ssl
from pathlib import Path
from typing import Annotated

import trio
from msgspec import Meta

from tardisd.errors import PluginError
from tardisd.plugins.access import Access, is_loopback, normalise_origin, parse_listen
from tardisd.plugins.base import Options
from tardisd.plugins.secret import Secret
from tardisd.plugins.sparing import SparingListener

# Little in flight lets a pause reach a slow client soon; room for two pieces (the kernel doubles
# what it is told) means that most of them go out without waiting.
SEND_BUFFER_BYTES = 256 * 1024
NOT_SENT_BYTES = 128 * 1024


class ListeningOptions(Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a sink that listens: where, and who may come in. Subclass it with a `listen`."""

    listen: Annotated[
        str, Meta(description="Address to listen on; other than loopback needs a token")
    ]
    token: Annotated[
        Secret | None, Meta(description="Secret that clients must show; none by default")
    ] = None
    allowed_origins: Annotated[
        tuple[str, ...],
        Meta(description="Web pages that may connect, besides those on loopback; * for all"),
    ] = ()
    tls_cert: Annotated[
        str | None, Meta(description="Certificate chain (PEM file); with tls_key: TLS")
    ] = None
    tls_key: Annotated[str | None, Meta(description="Private key (PEM file) of tls_cert")] = None

    def __post_init__(self) -> None:
        host, _ = parse_listen(self.listen)
        if self.token is not None and not self.token.reveal():
            raise ValueError("token is empty; give one of 16 characters or more, or leave it out")
        if self.token is None and not is_loopback(host):
            raise ValueError(
                f"listen = {self.listen!r} can be reached from other machines; set token,"
                " or listen on 127.0.0.1"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together; set both or neither")
        for origin in self.allowed_origins:
            normalise_origin(origin)

    def claims(self) -> frozenset[str]:
        """Return the port, for `Plugin.claims`, unless any port will do."""
        _, port = parse_listen(self.listen)
        return frozenset({f"tcp port {port}"} if port else ())

    def access(self) -> Access:
        """Return the rules by which clients are let in."""
        return Access(self.token, frozenset(map(normalise_origin, self.allowed_origins)))


async def open_listeners(listen: str) -> list[SparingListener]:
    """Listen on `host:port`. Raises PluginError that says why it cannot be."""
    host, port = parse_listen(listen)
    try:
        opened = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            advice = "another program uses it; stop that, or set another address in `listen`"
        elif error.errno == errno.EACCES:
            advice = "no permission; use a port above 1023"
        else:
            advice = f"{(error.strerror or str(error)).lower()}; set another in `listen`"
        raise PluginError(f"cannot listen on {listen}: {advice}") from error
    return [SparingListener(one) for one in opened]


def tls_context(options: ListeningOptions) -> ssl.SSLContext | None:
    """Return the TLS context that the options ask for. Raises PluginError for unfit files."""
    if options.tls_cert is None or options.tls_key is None:
        return None
    cert, key = (Path(text).expanduser() for text in (options.tls_cert, options.tls_key))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:  # ssl.SSLError among them
        raise PluginError(
            f"cannot use tls_cert {cert} with tls_key {key}: {error};"
            " give a PEM certificate and its own key"
        ) from error
    return context


def url_of(scheme: str, address: tuple[str, int]) -> str:
    """Return the URL of an address; with brackets when it is an IPv6 one."""
    host, port = address
    return f"{scheme}://[{host}]:{port}/" if ":" in host else f"{scheme}://{host}:{port}/"


def tune(stream: trio.SocketStream) -> None:
    """Set a socket up for ticks to go out by: little in flight, large writes, no delay."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_BYTES)
