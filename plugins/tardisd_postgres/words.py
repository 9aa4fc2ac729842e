"""What PostgreSQL and its driver complain of, in words that say what to do; connects to nothing."""

from __future__ import annotations

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from tardisd.errors import StorageError

_MOST_CHARS = 300

# Faults that end by themselves or with the server's return. 57P: shut down, crashed, starting up;
# 08: connection trouble; 53300: too many clients.
_PASSING = ("57P01", "57P02", "57P03", "53300")
_CONNECTION = "08"

# The server's refusals come without a code while connecting, and in its own language; these are
# the English ones. A text that is not known counts as a server that is away.
_REFUSALS = (
    ("password authentication failed", "check user and password in dsn"),
    ("no password supplied", "put a password into dsn, or into a .pgpass file"),
    ("authentication failed", "check user and password in dsn, and the server's pg_hba.conf"),
    ("no pg_hba.conf entry", "allow this machine and user in the server's pg_hba.conf"),
    ("role", "create it with `createuser`, or name another user in dsn"),
    ("database", "create it with `createdb`, or name another one in dsn"),
)
_ADVICE = "check dsn, and that the server runs and accepts connections there"


class Away(StorageError):
    """Raised when the server cannot be reached, or went away during a call; it may come back."""


class PartitionGone(StorageError):
    """Raised when a partition that was there before is there no more."""


def place(dsn: str) -> str:
    """Return where a dsn leads, without the password."""
    found = conninfo_to_dict(dsn)
    host = found.get("host") or found.get("hostaddr") or "the local socket"
    port = f":{found['port']}" if found.get("port") else ""
    return f"PostgreSQL at {host}{port}, database {found.get('dbname') or 'of the user'}"


def flat(error: psycopg.Error) -> str:
    """Return the server's own words on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}…"


def connect_failed(where: str, error: psycopg.Error) -> StorageError:
    """Return what to raise when no connection could be made."""
    text = flat(error)
    for part, remedy in _REFUSALS:
        if part in text and ("does not exist" in text or part not in ("role", "database")):
            return StorageError(f"{where} refuses the connection ({text}); {remedy}")
    return Away(f"{where} cannot be reached ({text}); {_ADVICE}")


def is_lost(error: psycopg.Error, connection: psycopg.Connection[object] | None) -> bool:
    """Tell whether the server, rather than the statement, is what failed."""
    state = error.sqlstate or ""
    if state in _PASSING or state.startswith(_CONNECTION):
        return True
    # What carries no state was said by no server: the library could not send or receive. It does
    # not always know at once that the connection is broken.
    if not state and isinstance(error, psycopg.OperationalError):
        return True
    return connection is None or connection.broken


def told(where: str, error: psycopg.Error) -> StorageError:
    """Return what to raise for a statement that failed."""
    text = flat(error)
    if isinstance(error, errors.CheckViolation):  # the only check there is: that rows have a place
        return PartitionGone(f"{where}: {text}; do not drop partitions while tardisd runs")
    match error:
        case errors.InsufficientPrivilege():
            remedy = "grant the user CREATE on the database and all rights on the schema"
        case errors.DiskFull():
            remedy = "free some disk space on the server; nothing was half stored"
        case errors.ReadOnlySqlTransaction():
            remedy = "it is a standby or read-only; name the primary server in dsn"
        case errors.UndefinedTable() | errors.UndefinedColumn() | errors.InvalidSchemaName():
            remedy = "tables were changed or dropped while tardisd ran; start it anew"
        case errors.OutOfMemory() | errors.ConfigurationLimitExceeded():
            remedy = "give the server more memory or higher limits"
        case errors.DataCorrupted() | errors.IndexCorrupted():
            remedy = "the database is damaged; restore it from a backup"
        case _:
            remedy = "the server's log says more"
    return StorageError(f"{where}: {text}; {remedy}")
