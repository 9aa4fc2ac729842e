"""Write the example configuration: the core's defaults and every first-party plugin's sample.

Samples are read from plugin folders without importing them, so that the example is the same
whichever optional packages are there.
"""

from __future__ import annotations

import json
import re
import textwrap
import tomllib
from typing import Any

import msgspec

from tardisd.config.model import plain
from tardisd.config.schema import (
    SECTIONS,
    BackfillTable,
    DaemonTable,
    PluginsTable,
    SessionTable,
)
from tardisd.errors import TardisError
from tardisd.plugins.sources import installed, module_folder

_WIDTH = 96
_HEAD = """\
# Configuration of tardisd. Lines with `# key = value` show defaults, or examples where there is no
# default. `tardisd check` tells what is wrong with a file, `tardisd config show` what it means.
# Files in conf.d/ beside this one are read too. Secrets: "text", { env = "NAME" },
# { file = "PATH" } or { credential = "NAME" } (systemd).
"""
_OURS = "tardisd"
_SECTION = re.compile(r"^(?:# )?\[(\w+)\.", re.MULTILINE)


def example() -> str:
    """Return the text of `config.example.toml`. Raises TardisError for a sample that is not TOML.

    It loads as it is, with everything optional commented out. So is the backfill, because it would
    fetch on the first start.
    """
    samples = _samples()
    storages = [name for _, table in samples for name in table.get("storages", {})]
    active = {"storage": storages[0]} if len(storages) > 1 else {}
    parts = [
        _HEAD,
        _section("daemon", DaemonTable, active),
        _section("plugins", PluginsTable),
        *(text for text, _ in samples),
        _section("sessions.demo", SessionTable),
        _commented(_section("backfills.btc", BackfillTable)),
    ]
    return "\n".join(part.strip() + "\n" for part in parts)


def _samples() -> list[tuple[str, dict[str, Any]]]:
    """Return (text, parsed) of the samples: exchanges first, then by name as sections are."""
    found = []
    modules = {source.module: source.name for source in installed() if source.origin == _OURS}
    for module, name in modules.items():
        folder = module_folder(module)
        path = None if folder is None else folder / "sample.toml"
        if path is None or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise TardisError(f"{path} is not TOML: {error}") from None
        # A sample of what few people have, a server for one, stands there as a comment.
        sections = _SECTION.findall(text)
        order = min((list(SECTIONS).index(key) for key in sections if key in SECTIONS), default=99)
        found.append((order, name, text, table))
    return [(text, table) for _, _, text, table in sorted(found, key=lambda it: it[:2])]


def _section(header: str, cls: type[Any], active: dict[str, Any] | None = None) -> str:
    lines = [*_comment(_purpose(cls)), f"[{header}]"]
    for field in msgspec.structs.fields(cls):
        info = msgspec.inspect.type_info(field.type)
        assert isinstance(info, msgspec.inspect.Metadata), f"{field.name} has no description"
        extra = info.extra_json_schema or {}
        chosen = (active or {}).get(field.name)
        value = chosen or (extra["examples"][0] if "examples" in extra else plain(field.default))
        mark = "" if chosen or field.required else "# "
        lines += _comment(extra["description"])
        lines.append(f"{mark}{field.encode_name} = {_toml(value)}")
    return "\n".join(lines)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text[:1].upper() + text[1:], _WIDTH)]


def _toml(value: Any) -> str:
    # JSON and TOML agree on text, numbers, booleans and lists of them.
    return json.dumps(value, ensure_ascii=False)


def _purpose(cls: type[Any]) -> str:
    return (cls.__doc__ or "").partition(": ")[2].rstrip(".")


def _commented(section: str) -> str:
    """Return the section with what would be active behind a `#` without a space."""
    return "\n".join(line if line.startswith("#") else f"#{line}" for line in section.splitlines())
