"""What a request for a session must be, whatever is stored; reserves and creates nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from tardisd.errors import RequestError
from tardisd.plugins.session_form import SESSION_ID
from tardisd.plugins.sessions import SessionRequest
from tardisd.replay.clock import check_speed

PluginT = TypeVar("PluginT")


def check_request(request: SessionRequest, max_series: int) -> None:
    """Raise RequestError, bad_request or too_large, for one that cannot be."""
    check_speed(request.speed)
    count = len(request.series) + len(request.derive)
    if not count:
        raise RequestError("bad_request", "series: at least one is needed")
    if count > max_series:
        raise RequestError("too_large", f"{count} series in one session; the limit is {max_series}")
    if request.end <= request.start:
        raise RequestError("bad_request", "end_time: must be after start_time")


def check_id(session_id: str) -> None:
    """Raise RequestError unless it can be the id of a session."""
    if not SESSION_ID.fullmatch(session_id):
        raise RequestError(
            "bad_request", "session_id: use 1 to 128 letters, digits, '.', '_', ':' or '-'"
        )


def named(known: Mapping[str, PluginT], field: str, name: str | None) -> PluginT:
    """Return the plugin instance that a field names; RequestError when there is none."""
    if name is None or name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise RequestError("bad_request", f"{field}: {name!r} is not one of: {names}")
    return known[name]
