"""The description of all endpoints, for people and generators; made from the routes themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any, get_args

import msgspec
from starlette.routing import BaseRoute, Route

import tardisd
from tardisd.plugins.questions import QuestionForm
from tardisd.plugins.requests import NewSession
from tardisd.plugins.sessions import WhenFull
from tardisd_http.answers import STATUS
from tardisd_http.stream import NDJSON
from tardisd_http.verbs import VERBS

_JSON = "application/json"
_ID = {
    "name": "session_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
}
_COUNT = {"type": "integer", "minimum": 0}
_QUERIES: dict[str, dict[str, tuple[dict[str, Any], str]]] = {
    "/api/replay/{session_id}/stream": {
        "epoch": (_COUNT, "with from_seq: send what follows that number of that epoch"),
        "from_seq": (_COUNT, "with epoch: the last number that was received"),
        "when_full": (
            {"type": "string", "enum": list(get_args(WhenFull))},
            "what a slow client means; by default what the creation said, else disconnect",
        ),
    },
    "/api/series": {
        "storage": ({"type": "string"}, "the name of a storage; by default the daemon's"),
        "exchange": ({"type": "string"}, "only series of this exchange"),
        "symbol": ({"type": "string"}, "only series of this unified symbol"),
        "data_type": ({"type": "string"}, "only series of this data type"),
        "limit": ({**_COUNT, "default": 1000}, "how many series at most"),
    },
}
_OTHER_TYPES = {
    "/metrics": ("text/plain", {"type": "string"}),
    "/api/replay/{session_id}/stream": (NDJSON, {"type": "string"}),
}
_BODIES: dict[str, type[msgspec.Struct]] = {
    "/api/replay/create": NewSession,
    "/api/analyze": QuestionForm,
    **{f"/api/replay/{{session_id}}/{name}": kind for name, kind in VERBS.items()},
}


def document(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """Return the OpenAPI document of the routes; those of other plugins by method and docstring."""
    schemas = msgspec.json.schema_components(
        [NewSession, QuestionForm, *VERBS.values()], ref_template="#/components/schemas/{name}"
    )[1]
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if isinstance(route, Route):
            path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
            operations = paths.setdefault(path, {})
            for method in sorted(route.methods or ()):
                if method != "HEAD":
                    operations.setdefault(method.lower(), _operation(path, method, route))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tardisd",
            "version": tardisd.__version__,
            "description": "Sessions over stored market data: create, steer and stream them.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Error": _error_schema(), "Message": _message_schema()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "query": {"type": "apiKey", "in": "query", "name": "token"},
            },
        },
        "security": [{}, {"bearer": []}, {"query": []}],
    }


def _operation(path: str, method: str, route: Route) -> dict[str, Any]:
    words = (inspect.getdoc(route.endpoint) or route.name).splitlines()
    kind, schema = _OTHER_TYPES.get(path, (_JSON, {"$ref": "#/components/schemas/Message"}))
    done = "201" if path.endswith("/create") else "200"
    operation: dict[str, Any] = {
        "summary": words[0],
        "operationId": re.sub(r"\W+", "_", f"{method}{path}").strip("_").lower(),
        "responses": {
            done: {"description": "done", "content": {kind: {"schema": schema}}},
            "default": {
                "description": "refused, or failed",
                "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    parameters = [
        _ID if name == "session_id" else {**_ID, "name": name, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    parameters += [
        {"name": name, "in": "query", "schema": schema, "description": text}
        for name, (schema, text) in _QUERIES.get(path, {}).items()
    ]
    if parameters:
        operation["parameters"] = parameters
    if method == "POST" and path in _BODIES:
        body = _BODIES[path]
        operation["requestBody"] = {
            "required": any(field.required for field in msgspec.structs.fields(body)),
            "content": {_JSON: {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}},
        }
    return operation


def _error_schema() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "required": ["type", "code", "message"],
        "properties": {
            "type": {"const": "error"},
            "code": {"type": "string", "enum": [*STATUS, "too_slow"]},
            "message": text,
            "session_id": text,
        },
    }


def _message_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "a message as docs/protocol.md describes it, by its type",
        "required": ["type"],
        "properties": {"type": {"type": "string"}, "session_id": {"type": "string"}},
    }
