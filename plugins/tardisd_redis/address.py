"""Where a Redis is: `redis://`, `rediss://` (TLS) and `unix://` URLs; connects to nothing."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

_FORMS = "redis://HOST:PORT/DATABASE, rediss://… for TLS, or unix:///PATH?db=DATABASE"


@dataclass(frozen=True, slots=True)
class Address:
    """A server and a database in it. `password` is shown by neither `str` nor `repr`."""

    host: str
    port: int
    path: str
    tls: bool
    database: int
    username: str
    password: str | None

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a URL. Raises ValueError, whose text never holds the password."""
        try:
            parts = urlsplit(url)
            port, host = parts.port or 6379, parts.hostname or ""
        except ValueError:
            raise ValueError(f"url is not one of a Redis; expected {_FORMS}") from None
        if parts.scheme not in {"redis", "rediss", "unix"}:
            raise ValueError(f"url begins with {parts.scheme or 'no scheme'!r}; expected {_FORMS}")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        local = parts.scheme == "unix"
        place = unquote(parts.path)
        database = query.pop("db", "" if local else place.strip("/")) or "0"
        if query:
            raise ValueError(f"url asks for {', '.join(query)}; only 'db' can be asked for")
        if not database.isascii() or not database.isdigit():
            raise ValueError(f"url names database {database!r}; a database is a number")
        if parts.fragment:  # a password with an unescaped #, most likely
            raise ValueError("url has a '#'; write %23 for one within a password")
        if local and not place.startswith("/"):
            raise ValueError("url lacks the path of the socket; write unix:///run/redis/redis.sock")
        if not local and not host:
            raise ValueError(f"url lacks a host; expected {_FORMS}")
        return cls(
            host=host,
            port=port,
            path=place if local else "",
            tls=parts.scheme == "rediss",
            database=int(database),
            username=unquote(parts.username or ""),
            password=None if parts.password is None else unquote(parts.password),
        )

    def __str__(self) -> str:
        where = self.path or f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
        return f"redis at {where}"

    def __repr__(self) -> str:
        return f"Address({self})"
