"""JSON-RPC 2.0, one object per line: bytes to messages and back; owns no socket.

Either side feeds what it received, cut anywhere, and gets whole lines; a line that is no proper
request becomes a ProtocolError that knows how to answer. Batches and positional parameters, which
JSON-RPC allows, are refused: nothing here needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

VERSION = 1
MAX_REQUEST_BYTES = 1 << 20
MAX_REPLY_BYTES = 64 << 20
MAX_DESCRIPTORS = 250  # the kernel passes 253 at most

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
APPLICATION_ERROR = -32000

RequestId = str | int | float | None

_NUMBERS = {
    "bad_json": PARSE_ERROR,
    "unknown_method": METHOD_NOT_FOUND,
    "internal": INTERNAL_ERROR,
}
_MEMBERS = frozenset({"jsonrpc", "method", "params", "id"})


class WrittenFloat(float):
    """A number that prints as it was written, with all its digits: a price stays exact."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_decode_answer = msgspec.json.Decoder(float_hook=WrittenFloat).decode


class ProtocolError(Exception):
    """Raised when a line is no proper request; `slug` goes to `error.data.code`."""

    def __init__(self, number: int, slug: str, message: str, request_id: RequestId = None) -> None:
        super().__init__(message)
        self.number = number
        self.slug = slug
        self.message = message
        self.request_id = request_id

    def reply(self) -> bytes:
        """Return the error as a line."""
        return encode_error(self.request_id, self.slug, self.message, number=self.number)


@dataclass(frozen=True, slots=True)
class Request:
    """One call; a notification wants no reply, not even an error."""

    method: str
    params: Mapping[str, Any]
    request_id: RequestId = None
    notification: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one call: `error` is None or {code, message, data}."""

    request_id: RequestId
    result: Any = None
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Notification:
    """Something told without being asked: `progress`, `session.ticks`, …"""

    method: str
    params: Mapping[str, Any]


class Lines:
    """Cuts a byte stream into lines of at most `limit` bytes; longer ones come out as None."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._partial = bytearray()
        self._overlong = False

    @property
    def within_line(self) -> bool:
        """Whether the last line fed has not ended yet."""
        return bool(self._partial) or self._overlong

    def feed(self, data: bytes) -> list[bytes | None]:
        """Return the lines that `data` completes, without their ends and without empty lines."""
        lines: list[bytes | None] = []
        *ended, rest = data.split(b"\n")
        for piece in ended:
            line = self._finish(piece)
            if line is None or line.strip():
                lines.append(line)
        self._extend(rest)
        return lines

    def _extend(self, piece: bytes) -> None:
        if self._overlong or len(self._partial) + len(piece) > self._limit:
            self._overlong = True
            self._partial.clear()  # only its length is still of interest
        else:
            self._partial += piece

    def _finish(self, piece: bytes) -> bytes | None:
        self._extend(piece)
        line = None if self._overlong else bytes(self._partial)
        self._partial.clear()
        self._overlong = False
        return line


def too_long() -> ProtocolError:
    """Return the error for a line over the size limit."""
    message = f"a line is over {MAX_REQUEST_BYTES} bytes long; send smaller requests"
    return ProtocolError(INVALID_REQUEST, "too_large", message)


def parse_request(line: bytes) -> Request:
    """Return the request that a line holds; raises ProtocolError when it holds none."""
    try:
        value = _decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        message = f"the line is not JSON: {str(error)[:200]}"
        raise ProtocolError(PARSE_ERROR, "bad_json", message) from None
    if isinstance(value, list):
        raise _invalid("batches are not supported; send one object per line")
    if not isinstance(value, dict):
        raise _invalid("a request must be a JSON object")
    request_id = value.get("id")
    if isinstance(request_id, bool) or not isinstance(request_id, str | int | float | None):
        raise _invalid("id: expected a string, a number or null")
    if value.get("jsonrpc") != "2.0":
        raise _invalid('jsonrpc: expected "2.0"', request_id)
    method = value.get("method")
    if not isinstance(method, str):
        raise _invalid("method: expected a string", request_id)
    if unknown := sorted(value.keys() - _MEMBERS):
        raise _invalid(f"{unknown[0][:60]}: unknown member of a request", request_id)
    params = value.get("params", {})
    if not isinstance(params, dict):
        message = "params: expected an object with named parameters"
        raise ProtocolError(INVALID_PARAMS, "bad_request", message, request_id)
    return Request(method, params, request_id, notification="id" not in value)


def _invalid(message: str, request_id: RequestId = None) -> ProtocolError:
    return ProtocolError(INVALID_REQUEST, "bad_request", message, request_id)


def parse_answer(line: bytes) -> Reply | Notification:
    """Return what a server sent; raises ProtocolError when it is neither reply nor notification."""
    try:
        value = _decode_answer(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise ProtocolError(PARSE_ERROR, "bad_json", "the answer is not JSON") from None
    if not isinstance(value, dict):
        raise _invalid("the answer is not a JSON object")
    if isinstance(method := value.get("method"), str):
        return Notification(method, value.get("params") or {})
    error = value.get("error")
    if isinstance(error, dict):
        return Reply(value.get("id"), error=error)
    if "result" not in value:
        raise _invalid("the answer has neither result nor error")
    return Reply(value.get("id"), value["result"])


def encode_request(method: str, params: Mapping[str, Any], request_id: RequestId) -> bytes:
    """Return a call as a line."""
    call = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    return _encode(call) + b"\n"


def encode_result(request_id: RequestId, result: Any) -> bytes:
    """Return a result as a line; raises TypeError when it cannot be JSON."""
    return _encode({"jsonrpc": "2.0", "id": request_id, "result": result}) + b"\n"


def encode_error(
    request_id: RequestId,
    slug: str,
    message: str,
    *,
    number: int | None = None,
    data: Mapping[str, Any] | None = None,
) -> bytes:
    """Return an error as a line; `slug` and `data` make up `error.data`."""
    error = {
        "code": _NUMBERS.get(slug, APPLICATION_ERROR) if number is None else number,
        "message": message,
        "data": {"code": slug, **(data or {})},
    }
    return _encode({"jsonrpc": "2.0", "id": request_id, "error": error}) + b"\n"


def encode_notification(method: str, params: Mapping[str, Any]) -> bytes:
    """Return a notification as a line; values may hold `msgspec.Raw` JSON."""
    return _encode({"jsonrpc": "2.0", "method": method, "params": params}) + b"\n"
