"""The servers that some tests need: where they are, and whether to skip or fail without them.

`TARDISD_TEST_POSTGRES` and `TARDISD_TEST_REDIS` name them, else they are looked for on this
machine, where they usually listen. A test that needs one is marked `services`. It is skipped when
the server does not answer, and fails when `TARDISD_TEST_SERVICES=required` is set, as `.ci/run`
sets it.
"""

from __future__ import annotations

import functools
import os
import socket
from typing import NoReturn
from urllib.parse import urlsplit

import pytest

POSTGRES = "postgresql://127.0.0.1:5432/postgres"
REDIS = "redis://127.0.0.1:6379/0"
PATIENCE_SECS = 5


def postgres_dsn() -> str:
    """Return the address of a PostgreSQL database in which tests may make schemas of their own."""
    dsn = os.environ.get("TARDISD_TEST_POSTGRES") or POSTGRES
    if complaint := _ask_postgres(dsn):
        missing(f"PostgreSQL at {dsn} ({complaint}; set TARDISD_TEST_POSTGRES)")
    return dsn


def redis_url() -> str:
    """Return the address of a Redis in which tests may use keys and channels of their own."""
    url = os.environ.get("TARDISD_TEST_REDIS") or REDIS
    if complaint := _ask_redis(url):
        missing(f"Redis at {url} ({complaint}; set TARDISD_TEST_REDIS)")
    return url


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it where services are required."""
    if os.environ.get("TARDISD_TEST_SERVICES") == "required":
        pytest.fail(f"{what} is required and missing", pytrace=False)
    pytest.skip(f"{what} is missing")


@functools.cache
def _ask_postgres(dsn: str) -> str:
    try:
        import psycopg
    except ImportError as error:
        return str(error)
    try:
        psycopg.connect(dsn, connect_timeout=PATIENCE_SECS).close()
    except psycopg.Error as error:
        return " ".join(str(error).split())
    return ""


@functools.cache
def _ask_redis(url: str) -> str:
    where = urlsplit(url)
    try:
        address = (where.hostname or "127.0.0.1", where.port or 6379)
        with socket.create_connection(address, PATIENCE_SECS) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
    except OSError as error:
        return str(error)
    # A Redis that wants a password first is there too.
    return "" if answer.startswith((b"+PONG", b"-NOAUTH")) else f"it answered {answer[:40]!r}"
