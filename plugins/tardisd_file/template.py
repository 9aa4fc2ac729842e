"""Where files go: a path with placeholders, checked once and filled in safely; touches no disk.

A value never leaves the component it stands in: what is not a letter, a digit or one of `-_.` is
written as `%XX`, so that different values stay different names. In a folder of the form
`symbol={symbol}`, as Hive has them, readers undo just that, so the symbol is written so too.
"""

from __future__ import annotations

import glob
import posixpath
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from string import Formatter

PLACEHOLDERS = ("session_id", "epoch", "exchange", "symbol", "data_type", "date")
SERIES_FIELDS = frozenset({"exchange", "symbol", "data_type"})

_MAX_VALUE_BYTES = 80
_PACKED = (".gz", ".zst")
_KNOWN = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)


class PathTemplate:
    """A path with placeholders such as `{symbol}`; ValueError says what is wrong with it."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            pieces = list(Formatter().parse(text))
        except ValueError:
            raise ValueError(f"path {text!r} has a brace without its pair; use {_KNOWN}") from None
        for _, name, spec, conversion in pieces:
            if name is not None and (name not in PLACEHOLDERS or spec or conversion):
                raise ValueError(f"path {text!r} has an unknown placeholder; use {_KNOWN}")
        self.fields = frozenset(name for _, name, _, _ in pieces if name)
        components = text.split("/")
        if "\0" in text or components[-1] in {"", ".", "~"}:
            raise ValueError(f"path {text!r} names no file; end it with one, such as out.ndjson")
        if ".." in components:
            raise ValueError(f"path {text!r} must not contain '..'; write the folder out")
        parsed = [_parsed(component) for component in components]
        fixed = 0
        while fixed < len(parsed) - 1 and all(name is None for _, name in parsed[fixed]):
            fixed += 1
        folder = "/".join("".join(literal for literal, _ in part) for part in parsed[:fixed])
        self._root = folder or ("/" if text.startswith("/") else "")
        self._below = parsed[fixed:]

    def root(self, base: Path) -> Path:
        """Return the folder that no file ever leaves; a relative one lies in `base`."""
        return base / Path(self._root).expanduser()

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the path below the root."""
        return "/".join(_filled(part, values) for part in self._below)

    def folders_pattern(self) -> str:
        """Return a glob pattern for the folders below the root that files may be in."""
        return "".join(
            "".join(glob.escape(literal) + ("*" if name else "") for literal, name in part) + "/"
            for part in self._below[:-1]
        )


def _parsed(component: str) -> list[tuple[str, str | None]]:
    return [(literal, name) for literal, name, _, _ in Formatter().parse(component)]


def _filled(part: Sequence[tuple[str, str | None]], values: Mapping[str, str]) -> str:
    hive = len(part) == 1 and part[0][0].endswith("=")
    text = ""
    for literal, name in part:
        text += literal
        if name is not None:
            plain = name != "symbol" or hive
            text += safe_name(values[name]) if plain else safe_symbol(values[name])
    return text


def safe_name(value: str) -> str:
    """Return a value as a part of a file name: never empty, hidden or longer than its share."""
    return _bounded("".join(_safe(char, at, "-_") for at, char in enumerate(value)))


def safe_symbol(value: str) -> str:
    """Return a unified symbol as a part of a file name: `BTC-USDT`, `BTC-USDT_USDT`."""
    swaps = {"/": "-", ":": "_"}
    chars = (swaps.get(char) or _safe(char, at, "") for at, char in enumerate(value))
    return _bounded("".join(chars))


def numbered(path: str, number: int) -> str:
    """Return the path itself for number 0, else with the number before its suffix."""
    return marked(path, str(number)) if number else path


def marked(path: str, mark: str) -> str:
    """Return the path with a mark before its suffix: `x.ndjson.gz` is `x.2.ndjson.gz`."""
    packed = next((suffix for suffix in _PACKED if path.endswith(suffix)), "")
    stem, suffix = posixpath.splitext(path.removesuffix(packed))
    return f"{stem}.{mark}{suffix}{packed}"


def _safe(char: str, at: int, kept: str) -> str:
    if char.isalnum() or char in kept or (char == "." and at):
        return char
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))


def _bounded(text: str) -> str:
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) <= _MAX_VALUE_BYTES:
        return text or "%"
    kept = raw[: _MAX_VALUE_BYTES - 17].decode("utf-8", "ignore")
    return f"{kept}~{blake2b(raw, digest_size=8).hexdigest()}"
