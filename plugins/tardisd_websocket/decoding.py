"""Turn a client's text into a request, or into the error to answer with; does no I/O.

A text is decoded in two steps. The first splits the object into raw fields, which settles whether
it is JSON at all and yields `id` and `session_id`, so that errors can echo them. The second decodes
it as the struct of its `type`; msgspec's complaint then becomes a message that begins with the
field's name.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from tardisd.errors import RequestError, TardisError
from tardisd.plugins.session_form import SESSION_ID, bad_field
from tardisd_websocket.messages import SUPPORTED, USE, AnyRequest

MAX_ID_BYTES = 256
ERROR_CODES = frozenset(
    {"bad_json", "bad_request", "unknown_type", "session_not_found", "session_exists", "no_data"}
    | {"wrong_state", "unauthorized", "too_many_sessions", "too_large", "analyzer_unavailable"}
    | {"analyzer_failed", "internal"}
)
_AT = re.compile(r"(?P<text>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_NAMED = re.compile(r"Object (missing required|contains unknown) field `(?P<name>.*)`", re.DOTALL)
_DECODERS = {name: msgspec.json.Decoder(kind) for name, kind in SUPPORTED.items()}
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_RAW = msgspec.json.Decoder(Raw)
_FieldT = TypeVar("_FieldT")


class Refused(RequestError):
    """Raised for a text that is no valid request; carries what its error reply must echo."""

    def __init__(
        self, code: str, message: str, request_id: Raw | None = None, session_id: str | None = None
    ) -> None:
        super().__init__(code, message)
        self.request_id = request_id
        self.session_id = session_id


def decode(text: str) -> AnyRequest:
    """Return the request that `text` is. Raises Refused with the code and what to echo."""
    try:
        _RAW.decode(text)
        fields = _FIELDS.decode(text)
    except msgspec.ValidationError as error:
        raise Refused("bad_request", f"expected one JSON object; {_lower(str(error))}") from None
    except msgspec.DecodeError as error:
        raise _not_json(text, error) from None
    except RecursionError:
        raise Refused("bad_request", "the JSON is nested too deeply") from None
    request_id = _request_id(fields.get("id"))
    session_id = _read(fields.get("session_id"), str)
    if session_id is not None and not SESSION_ID.fullmatch(session_id):
        session_id = None
    try:
        return _decode(text, fields)
    except RequestError as error:
        raise Refused(error.code, error.message, request_id, session_id) from None


def error_message(error: TardisError, request_id: Any, session_id: str | None) -> dict[str, Any]:
    """Return the `error` message for what a request met with."""
    code = error.code if error.code in ERROR_CODES else "internal"
    message: dict[str, Any] = {"type": "error", "code": code, "message": error.message}
    if request_id is not None:
        message["id"] = request_id
    if session_id is not None:
        message["session_id"] = session_id
    return message


def _decode(text: str, fields: dict[str, Raw]) -> AnyRequest:
    if "id" in fields and _request_id(fields["id"]) is None:
        raise bad_field("id", f"use {USE['id']} of at most {MAX_ID_BYTES} bytes")
    if "type" not in fields:
        raise bad_field("type", "is missing")
    kind = _read(fields["type"], str)
    if kind is None:
        raise bad_field("type", f"use {USE['type']}")
    if kind not in SUPPORTED:
        known = ", ".join(SUPPORTED)
        raise RequestError("unknown_type", f"{kind[:60]!r} is not a request; use one of {known}")
    try:
        request = _DECODERS[kind].decode(text)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    request.check()
    return request


def _explain(complaint: str) -> RequestError:
    """Turn msgspec's complaint into ours: the field, what is wrong, what to use."""
    if match := _NAMED.fullmatch(complaint):
        problem = "is missing" if match[1] == "missing required" else "is not a known field"
        return bad_field(match["name"][:100], problem)
    match = _AT.fullmatch(complaint)
    assert match is not None, "the pattern matches every text"
    field = (match["path"] or "request")[:100]
    problem = _lower(match["text"].replace("`", "")[:150])
    return bad_field(field, f"{problem}; use {USE[field]}" if field in USE else problem)


def _not_json(text: str, error: msgspec.DecodeError) -> Refused:
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
                problem = f"{name}: is not a finite number; JSON has none such"
                raw_id = value.get("id") if "id" not in odd else None
                echo = None if raw_id is None else Raw(json.dumps(raw_id).encode())
                return Refused("bad_request", problem, _request_id(echo))
    return Refused("bad_json", f"this is not JSON: {_lower(str(error))}")


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _request_id(raw: Raw | None) -> Raw | None:
    """Return an `id` that may be echoed: a string or a number, and not too long."""
    if raw is None or len(memoryview(raw)) > MAX_ID_BYTES:
        return None
    first = bytes(memoryview(raw)[:1])
    return raw.copy() if first in b'"-0123456789' else None


def _read(raw: Raw | None, kind: type[_FieldT]) -> _FieldT | None:
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError:
        return None


def _lower(text: str) -> str:
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
