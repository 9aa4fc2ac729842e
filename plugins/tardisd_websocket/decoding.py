"""Turn a client's text into a request, or into the error to answer with; does no I/O.

A text is decoded in two steps. The first splits the object into raw fields, which settles whether
it is JSON at all and yields `id` and `session_id`, so that errors can echo them. The second decodes
it as the struct of its `type`; msgspec's complaint then becomes a message that begins with the
field's name.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from tardisd.errors import RequestError, TardisError
from tardisd.plugins.requests import USE, explain, split
from tardisd.plugins.session_form import SESSION_ID, bad_field
from tardisd_websocket.messages import SUPPORTED, AnyRequest

MAX_ID_BYTES = 256
ERROR_CODES = frozenset(
    {"bad_json", "bad_request", "unknown_type", "session_not_found", "session_exists", "no_data"}
    | {"wrong_state", "unauthorized", "too_many_sessions", "too_large", "analyzer_unavailable"}
    | {"analyzer_failed", "internal"}
)
_DECODERS = {name: msgspec.json.Decoder(kind) for name, kind in SUPPORTED.items()}
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
        fields = split(text)
    except RequestError as error:
        raise Refused(error.code, error.message, _id_in_python(text)) from None
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
        raise explain(str(error)) from None
    request.check()
    return request


def _id_in_python(text: str) -> Raw | None:
    """Return the `id` of a text that is JSON to Python only, for it holds NaN or Infinity."""
    if "NaN" not in text and "Infinity" not in text:
        return None
    try:
        value = json.loads(text)
        found = value.get("id") if isinstance(value, dict) else None
        return (
            None if found is None else _request_id(Raw(json.dumps(found, allow_nan=False).encode()))
        )
    except (ValueError, RecursionError):
        return None


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
