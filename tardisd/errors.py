"""Every error tardisd raises on purpose; nothing here formats or logs them.

    TardisError
    ├── RequestError          a client asked for something that cannot be done (wire error codes)
    ├── ConfigError           the configuration is invalid; carries every problem found
    ├── DataError             market data that must not be stored (file, line, column, value)
    ├── StorageError          a storage cannot do its work
    │   ├── StorageLocked     another process owns it
    │   ├── StorageCorrupt    what was read fails its own checks
    │   └── StorageNewer      written by a newer tardisd
    ├── ControlError          the daemon answered a control request with an error
    │   └── NotRunning        nothing listens on the control socket
    └── PluginError           a plugin reports that it cannot go on
        ├── Unavailable       a needed package is missing (carries the pip command)
        ├── Retry             try the same call again after a while
        ├── NotConnected      open again, then retry
        └── Rejected          this block will never be accepted; go on with the next

Each class has a stable `code`; messages are lower case without a full stop: what is wrong, what was
found, what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class TardisError(Exception):
    """Base of all errors raised on purpose."""

    code = "internal"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(TardisError):
    """Raised when a request cannot be honoured; `code` is one of the wire error codes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing wrong in a configuration: where it stands and what to do."""

    file: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.key}: {self.text}"


class ConfigError(TardisError):
    """Raised when a configuration is invalid; `problems` lists all of them, in file order."""

    code = "config_invalid"

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class DataError(TardisError):
    """Raised when market data fails a check; names the row it stands in when that is known.

    `row` counts from 0 within the batch; `line` is a physical line from 1 within `file`, or, where
    a file has no lines, another `unit`.
    """

    code = "bad_data"

    def __init__(
        self,
        message: str,
        *,
        row: int | None = None,
        file: str | None = None,
        line: int | None = None,
        column: str | None = None,
        value: str | None = None,
        unit: str = "line",
    ) -> None:
        where = [part for part in (file, None if line is None else f"{unit} {line}") if part]
        if column is not None:
            where.append(f"column {column}")
        found = "" if value is None else f" (found {value[:80]!r})"
        super().__init__((", ".join(where) + ": " if where else "") + message + found)
        self.reason = message
        self.row = row
        self.file = file
        self.line = line
        self.column = column
        self.value = value


class StorageError(TardisError):
    """Raised when a storage cannot do its work; the message says what to do."""

    code = "storage_failed"


class StorageLocked(StorageError):
    """Raised when another process owns the storage."""

    code = "storage_locked"


class StorageCorrupt(StorageError):
    """Raised when stored bytes fail their checksum or cannot be decoded."""

    code = "storage_corrupt"


class StorageNewer(StorageError):
    """Raised when the storage was written by a newer tardisd."""

    code = "storage_newer"


class ControlError(TardisError):
    """Raised by control clients when the daemon answers with an error; `data` says more of it."""

    def __init__(self, code: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data or {}


class NotRunning(ControlError):
    """Raised when no daemon listens on the control socket."""

    def __init__(self, message: str) -> None:
        super().__init__("not_running", message)


class PluginError(TardisError):
    """Raised by a plugin that cannot go on; anything else it raises counts as its bug."""

    code = "plugin_failed"


class Unavailable(PluginError):
    """Raised when a plugin's own requirement is missing; `hint` is the command that brings it."""

    code = "plugin_unavailable"

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Retry(PluginError):
    """Raised to have the same call made again after `after` seconds."""

    def __init__(self, message: str, after: float = 1.0) -> None:
        super().__init__(message)
        self.after = after


class NotConnected(PluginError):
    """Raised to be opened again before the same block is written once more."""


class Rejected(PluginError):
    """Raised when this block will never be accepted; the next one may be."""
