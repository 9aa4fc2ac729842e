"""Requests of clients to values, with one wording of what is wrong; reads no socket.

Every sink that takes requests decodes them here: what a field may be, and what is said when it is
something else, does not depend on how the request came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from tardisd.errors import RequestError
from tardisd.market.time import MILLISECOND
from tardisd.plugins import session_form
from tardisd.plugins.questions import MAX_LAST
from tardisd.plugins.session_form import SessionForm, bad_field, time_field
from tardisd.plugins.sessions import Session, Sessions, WhenFull

MOST = 2**53  # what every JSON reader takes for a whole number
Delivery = Literal["tick", "batch"]
PositiveSpeed = Annotated[float, Meta(gt=0)] | Literal["max"]
Count = Annotated[int, Meta(ge=-MOST, le=MOST)]
StructT = TypeVar("StructT")

USE = {
    **session_form.USE,
    "delivery": '"tick" or "batch"',
    "when_full": '"block", "drop_oldest", "conflate" or "disconnect"',
    "to": session_form.TIME,
    "by": "whole milliseconds, negative to go back",
    "count": "a whole number of ticks, negative to go back",
    "epoch": "the epoch's number, from 1",
    "seq": "a sequence number, from 0",
    "from_seq": "a sequence number, from 0",
    "last": f"a whole number of ticks from 1 to {MAX_LAST}",
    "tick_data": "the `data` of a tick, an object",
    "id": "a string or a number",
    "type": "a string",
}
_AT = re.compile(r"(?P<text>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_NAMED = re.compile(r"Object (missing required|contains unknown) field `(?P<name>.*)`", re.DOTALL)
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_RAW = msgspec.json.Decoder(Raw)
_RUNNING = frozenset({"created", "active", "paused"})


class NewSession(SessionForm, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields of `create_session`: what to replay, and how its creator follows it."""

    delivery: Delivery = "tick"
    when_full: WhenFull = "block"


def seek_of(to: int | str | UnsetType, by: int | UnsetType) -> tuple[int | None, int]:
    """Return the time (ns) that a seek goes to, or None and by how much (ns) it moves."""
    if (to is UNSET) == (by is UNSET):
        raise bad_field("to", "give either to (a time) or by (milliseconds)")
    if to is not UNSET:
        return time_field("to", to), 0
    assert by is not UNSET, "one of the two is given"
    return None, by * MILLISECOND


class Quota:
    """How many sessions may run at once, over all clients of a sink."""

    def __init__(self, sessions: Sessions, limit: int) -> None:
        self._sessions = sessions
        self._limit = limit
        self._being_made = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Hold a place while a session is made; RequestError `too_many_sessions` when full."""
        running = sum(map(runs, self._sessions.list()))
        if running + self._being_made >= self._limit:
            raise RequestError(
                "too_many_sessions",
                f"{self._limit} sessions run already; stop one, or raise max_sessions",
            )
        self._being_made += 1
        try:
            yield
        finally:
            self._being_made -= 1


def runs(session: Session) -> bool:
    """Tell whether a session has not ended."""
    return session.status()["status"] in _RUNNING


def decode(text: str, kind: type[StructT]) -> StructT:
    """Return the struct that a JSON object is. Raises RequestError, `bad_json` or `bad_request`."""
    split(text)
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise explain(str(error)) from None


def split(text: str) -> dict[str, Raw]:
    """Return the raw fields of a JSON object; RequestError when it is none."""
    try:
        _RAW.decode(text)
        return _FIELDS.decode(text)
    except msgspec.ValidationError as error:
        problem = f"expected one JSON object; {lower(str(error))}"
        raise RequestError("bad_request", problem) from None
    except msgspec.DecodeError as error:
        raise not_json(text, str(error)) from None
    except RecursionError:
        raise RequestError("bad_request", "the JSON is nested too deeply") from None


def explain(complaint: str) -> RequestError:
    """Turn msgspec's complaint into ours: the field, what is wrong, what to use."""
    if match := _NAMED.fullmatch(complaint):
        problem = "is missing" if match[1] == "missing required" else "is not a known field"
        return bad_field(match["name"][:100], problem)
    match = _AT.fullmatch(complaint)
    assert match is not None, "the pattern matches every text"
    field = (match["path"] or "request")[:100]
    problem = lower(match["text"].replace("`", "")[:150])
    return bad_field(field, f"{problem}; use {USE[field]}" if field in USE else problem)


def not_json(text: str, complaint: str) -> RequestError:
    """Tell NaN and Infinity, which some clients print as numbers, from what is no JSON at all."""
    if "NaN" in text or "Infinity" in text:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            odd = [name for name, found in value.items() if not _is_json(found)]
            if odd:
                name = odd[0][:100].encode("utf-8", "replace").decode()
                return bad_field(name, "is not a finite number; JSON has none such")
    return RequestError("bad_json", f"this is not JSON: {lower(complaint)}")


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def lower(text: str) -> str:
    """Return a sentence as the rest of another."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
