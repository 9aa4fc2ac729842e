"""Answers as JSON, and the HTTP status of each error code; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from tardisd.errors import RequestError, TardisError
from tardisd.plugins.sessions import Notice

JSON = "application/json"
STATUS = {
    "bad_json": 400,
    "bad_request": 400,
    "unauthorized": 401,
    "unknown_type": 404,
    "session_not_found": 404,
    "no_data": 404,
    "wrong_state": 409,
    "session_exists": 409,
    "too_large": 413,
    "too_many_sessions": 429,
    "internal": 500,
    "analyzer_failed": 502,
    "analyzer_unavailable": 503,
    "too_many_clients": 503,
}


class HttpError(RequestError):
    """Raised for a request that gets another status than its code usually does."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(code, message)
        self.status = status


def error_body(code: str, message: str, **more: object) -> bytes:
    """Return the JSON of an error."""
    return msgspec.json.encode({"type": "error", "code": code, "message": message, **more}) + b"\n"


def answer(content: Mapping[str, Any], status: int = 200, **headers: str) -> Response:
    """Return a JSON answer, one line long."""
    return Response(msgspec.json.encode(content) + b"\n", status, headers, JSON)


def told(session_id: str, notice: Notice, status: int = 200, **headers: str) -> Response:
    """Return a notice as the answer to the verb that made it."""
    return answer(message_of(session_id, notice), status, **headers)


def message_of(session_id: str, notice: Notice) -> dict[str, Any]:
    """Return a notice as a message of the protocol."""
    return {"type": notice.type, "session_id": session_id, **notice.fields}


def refusal(error: TardisError, session_id: str | None = None) -> Response:
    """Return the answer to a request that cannot be honoured."""
    code = error.code if error.code in STATUS else "internal"
    status = error.status if isinstance(error, HttpError) else STATUS[code]
    more = {} if session_id is None else {"session_id": session_id}
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    if code == "too_many_sessions":
        headers["retry-after"] = "5"
    return Response(error_body(code, error.message, **more), status, headers, JSON)
