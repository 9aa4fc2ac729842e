"""Decide who may connect: listen address, bearer token, browser origin; opens no socket.

Browsers let any page open a WebSocket to any address and only tell the page's origin, so a daemon
on loopback would be open to every web site its user visits. Hence the origin check, which also
stops a site that rebinds its own name to 127.0.0.1. Programs send no origin and are not affected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit

from tardisd.plugins.secret import Secret


def parse_listen(text: str) -> tuple[str, int]:
    """Return (host, port) for `127.0.0.1:8001` or `[::1]:8001`; ValueError when it is neither."""
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r} is not an address; write an IPv6 one as [::1]:8001")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError(f"{text!r} is not an address; write host:port, such as 127.0.0.1:8001")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Tell whether only programs on this machine can reach `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def normalise_origin(text: str) -> str:
    """Return an origin in the one spelling that is compared; ValueError when it is none."""
    if text in {"*", "null"}:
        return text
    parts = urlsplit(text)
    if not (parts.scheme and parts.hostname) or parts.path.strip("/") or parts.query:
        raise ValueError(f"{text[:80]!r} is not an origin; write https://example.com or '*'")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = {"http": 80, "https": 443}.get(parts.scheme)
    port = "" if parts.port in {None, default} else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


@dataclass(frozen=True, slots=True)
class Access:
    """What a client must bring: the token when there is one, and an origin that is allowed."""

    token: Secret | None
    origins: frozenset[str]

    def refusal(self, path: str, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """Return why the handshake is refused, or None when the client may come in."""
        return self.origin_refusal(headers) or self.token_refusal(path, headers)

    def origin_refusal(self, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """Return why the page that asks is refused, or None."""
        for origin in _values(headers, b"origin"):
            if not self._allows(origin):
                return (
                    f"origin {origin[:80]!r} is not allowed; add it to allowed_origins"
                    " in the sink's configuration"
                )
        return None

    def token_refusal(self, path: str, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """Return what is wrong with the token shown, or None; `path` includes the query."""
        if self.token is not None and not self._has_token(path, headers):
            return "token is missing or wrong; send 'Authorization: Bearer …' or '?token=…'"
        return None

    def host_refusal(self, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """Return why a request to the host it names is refused, or None.

        A browser tells no origin when a page reads from its own address, and a site may rebind its
        name to 127.0.0.1. Where a token is needed that gains it nothing.
        """
        if self.token is not None or "*" in self.origins:
            return None
        for host in _values(headers, b"host"):
            name = urlsplit(f"//{host}").hostname if "[" not in host or "]" in host else None
            known = {urlsplit(origin).hostname for origin in self.origins}
            if name is None or not (is_loopback(name) or name in known):
                return (
                    f"host {host[:80]!r} is not this machine's loopback; use 127.0.0.1, set token,"
                    " or add its origin to allowed_origins in the sink's configuration"
                )
        return None

    def _allows(self, origin: str) -> bool:
        if "*" in self.origins:
            return True
        try:
            known = normalise_origin(origin)
            return known in self.origins or is_loopback(urlsplit(known).hostname or "")
        except ValueError:
            return False

    def _has_token(self, path: str, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        offered = []
        for value in _values(headers, b"authorization"):
            scheme, _, credentials = value.partition(" ")
            if scheme.lower() == "bearer":
                offered.append(credentials.strip())
        for pair in urlsplit(path).query.split("&"):
            name, _, value = pair.partition("=")
            if name == "token":
                # A '+' stands for itself: tokens are often base64 and pasted into the URL as is.
                offered.append(unquote(value))
        return any(self.token is not None and self.token.matches(text) for text in offered)


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("utf-8", "replace") for key, value in headers if key.lower() == name]
