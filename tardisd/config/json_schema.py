"""Describe config files as JSON Schema, for editors; the check itself does not use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tardisd.config.model import plain
from tardisd.config.schema import CORE, SECTIONS, Duration, Moment, TimeOfDay
from tardisd.plugins.registry import Registry
from tardisd.plugins.secret import Secret

_SECRET = {
    "description": "the secret itself, or where it is kept",
    "anyOf": [
        {"type": "string"},
        *(
            {
                "type": "object",
                "properties": {way: {"type": "string"}},
                "required": [way],
                "additionalProperties": False,
            }
            for way in ("env", "file", "credential")
        ),
    ],
}


def config_schema(registry: Registry) -> dict[str, Any]:
    """Return the JSON Schema of a config file, with the options of every loaded plugin."""
    plugins = [it for it in registry.plugins if it.kind in SECTIONS.values() and it.cls is not None]
    options = [it.cls.Options for it in plugins if it.cls is not None]
    tables, definitions = _tables([*CORE.values(), *options])
    core = dict(zip(CORE, tables, strict=False))
    by_kind: dict[str, list[dict[str, Any]]] = {kind: [] for kind in SECTIONS.values()}
    for record, table in zip(plugins, tables[len(CORE) :], strict=True):
        properties = {"plugin": {"const": record.name}, **table["properties"]}
        required = ["plugin", *table["required"]]
        by_kind[record.kind].append({**table, "properties": properties, "required": required})
    sections: dict[str, Any] = {"daemon": core["daemon"], "plugins": core["plugins"]}
    for section, kind in SECTIONS.items():
        sections[section] = _named({"anyOf": by_kind[kind]} if by_kind[kind] else {})
    for section in ("sessions", "backfills"):
        sections[section] = _named(core[section])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tardisd configuration",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
        "$defs": definitions,
    }


def options_schema(cls: type[Any]) -> dict[str, Any]:
    """Return the JSON Schema of one plugin's options."""
    (table,), definitions = _tables([cls])
    return {**table, "$defs": definitions} if definitions else table


def _named(table: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": table}


def _tables(structs: Sequence[type[Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the schema of each Struct, and of what their fields are made of.

    msgspec's own schema of a Struct wants defaults that JSON knows; ours may be paths.
    """
    fields = [msgspec.structs.fields(struct) for struct in structs]
    schemas, definitions = msgspec.json.schema_components(
        [field.type for each in fields for field in each],
        schema_hook=_schema_of,
        ref_template="#/$defs/{name}",
    )
    remaining = iter(schemas)
    tables = []
    for struct, each in zip(structs, fields, strict=True):
        properties = {}
        for field in each:
            schema = dict(next(remaining))
            if field.default is not msgspec.NODEFAULT and field.default is not None:
                schema["default"] = plain(field.default)
            properties[field.encode_name] = schema
        tables.append(
            {
                "type": "object",
                "description": (struct.__doc__ or "").partition("\n")[0],
                "properties": properties,
                "required": [field.encode_name for field in each if field.required],
                "additionalProperties": False,
            }
        )
    return tables, definitions


def _schema_of(kind: type[Any]) -> dict[str, Any]:
    if kind is Secret:
        return _SECRET
    if kind is Moment:
        return {"type": ["string", "integer"]}
    if issubclass(kind, Path) or kind in (Duration, TimeOfDay):
        return {"type": "string"}
    return {}
