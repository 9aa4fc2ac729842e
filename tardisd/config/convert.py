"""Turn a TOML table into a msgspec Struct, field by field, so that every problem is reported.

msgspec stops at the first problem of a table; here each field is converted by itself. What names
mean beyond their own table is not looked at.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from tardisd.config.findings import Findings, suggest
from tardisd.config.locate import Path
from tardisd.config.paths import expand
from tardisd.config.secrets import read_secret
from tardisd.plugins.secret import Secret

StructT = TypeVar("StructT", bound=msgspec.Struct)

_TOML_TIMES = (datetime.datetime, datetime.date, datetime.time)
_WORDS = {
    "str": "string",
    "int": "integer",
    "bool": "boolean",
    "float": "number",
    "array": "list",
    "object": "table",
    "null": "nothing",
}
_MAX_SHOWN = 60


def convert_table(
    cls: type[StructT],
    table: Mapping[str, Any],
    path: Path,
    findings: Findings,
    environ: Mapping[str, str],
    passed_over: tuple[str, ...] = (),
) -> StructT | None:
    """Return the Struct that the table holds, or None after noting all that is wrong with it.

    `passed_over` names keys that are known but not the Struct's.
    """
    fields = {field.encode_name: field for field in msgspec.structs.fields(cls)}
    before = len(findings.problems)
    for key in table:
        if key not in fields and key not in passed_over:
            hint = suggest(key, [*fields, *passed_over])
            findings.add((*path, key), f"unknown key; {hint}")
    values = {}
    for key, field in fields.items():
        if key in table:
            try:
                values[field.name] = _convert(table[key], field.type, environ)
            except msgspec.ValidationError as error:
                inner, text = _explain(error, table[key], field.type)
                findings.add((*path, key, *inner), text)
            except TypeError as error:
                findings.add((*path, key), f"the plugin's option cannot be read: {error}")
        elif field.required:
            findings.add((*path, key), f"missing; add `{key} = …`{_purpose(field.type)}")
    if len(findings.problems) > before:
        return None
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:  # the Struct's own __post_init__
        text = str(error)
        word = re.match(r"\W*(\w+)", text)
        named = (word[1],) if word and word[1] in table else ()
        findings.add((*path, *named), text)
        return None


def _convert(value: object, kind: Any, environ: Mapping[str, str]) -> Any:
    return msgspec.convert(value, kind, builtin_types=_TOML_TIMES, dec_hook=decoder(environ))


def decoder(environ: Mapping[str, str]) -> Callable[[type[Any], object], Any]:
    """Return msgspec's hook for types of ours: paths, secrets and whatever has a `parse`."""

    def decode(kind: type[Any], value: object) -> Any:
        if kind is Secret:
            return read_secret(value, environ)
        if issubclass(kind, FilePath):
            if not isinstance(value, str):
                raise ValueError("expected a path as a string")
            return expand(value, environ)
        if parse := getattr(kind, "parse", None):
            return parse(value)
        raise NotImplementedError(f"no way to read {kind.__name__} from a config")

    return decode


def _explain(error: msgspec.ValidationError, value: object, kind: Any) -> tuple[Path, str]:
    """Return where within the value the error lies, and what it says in our words."""
    message, _, where = str(error).partition(" - at `$")
    inner: Path = tuple(
        int(index) if index else key
        for index, key in re.findall(r"\[(\d+)\]|\.([A-Za-z0-9_-]+)", where)
    )
    found: Any = value
    for part in inner:  # what stands in a table within is not shown: it may be a secret
        found = found[part] if isinstance(found, list) and isinstance(part, int) else None
    info = inspect.type_info(kind)
    if message.startswith("Invalid enum value"):
        text = f"{_shown(found)} is not allowed; {_choices(info, found)}"
    elif message.startswith("Expected "):
        text = re.sub(r"`([^`]*)`", lambda match: _in_words(match[1]), message)
        text = text[0].lower() + text[1:]
        scalar = isinstance(found, str | int | float) and not any(map(_is_secret, _leaves(info)))
        if scalar:
            text += f" ({_shown(found)})" if ", got " in text else f", got {_shown(found)}"
    else:
        text = message
    return inner, text


def _purpose(kind: Any) -> str:
    info = inspect.type_info(kind)
    extra = info.extra_json_schema if isinstance(info, inspect.Metadata) else None
    return f" ({extra['description']})" if extra and "description" in extra else ""


def _in_words(types: str) -> str:
    parts = [part.strip() for part in types.split("|")]
    return " or ".join(_WORDS.get(part, part) for part in parts if part != "null" or len(parts) < 2)


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


def _choices(info: inspect.Type, found: object) -> str:
    leaves = list(_leaves(info))
    words = [str(value) for leaf in leaves if _is_literal(leaf) for value in leaf.values]
    if any(isinstance(leaf, inspect.FloatType | inspect.IntType) for leaf in leaves):
        words.append("a number")
    return suggest(str(found), words, "use one of")


def _is_literal(info: Any) -> bool:
    return isinstance(info, inspect.LiteralType | inspect.EnumType)


def _is_secret(info: Any) -> bool:
    return isinstance(info, inspect.CustomType) and info.cls is Secret


def _leaves(info: Any) -> Iterator[Any]:
    """Yield the types that a type is made of, whatever holds them."""
    if isinstance(info, inspect.Metadata):
        yield from _leaves(info.type)
    elif isinstance(info, inspect.UnionType):
        for part in info.types:
            yield from _leaves(part)
    elif isinstance(info, inspect.CollectionType):
        yield from _leaves(info.item_type)
    elif isinstance(info, inspect.DictType):
        yield from _leaves(info.value_type)
    else:
        yield info
