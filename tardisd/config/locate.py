"""Find the line of every table, key and array element in TOML source; does not validate it.

tomllib keeps no positions, and problems must name lines. This scanner walks text that tomllib has
already accepted, so it need not know what is invalid: only where keys, strings, arrays and inline
tables begin and end.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left

Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\r\n]*")
_STRINGS = {  # the longer openings first; a multi-line string may end in up to two more quotes
    '"""': re.compile(r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}', re.DOTALL),
    "'''": re.compile(r"'''(?:[^']|'{1,2}(?!'))*'{3,5}"),
    '"': re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    "'": re.compile(r"'[^'\n]*'"),
}


class Places(dict[Path, int]):
    """The line (from 1) of every path: keys as str, array elements by index."""

    def nearest(self, path: Path) -> int:
        """Return the line of `path`, or of the closest thing around it that is written down."""
        while path and path not in self:
            path = path[:-1]
        return self.get(path, 1)


def locate(source: str) -> Places:
    """Return where everything stands in `source`, which tomllib.loads must accept."""
    return _Scanner(source).scan()


class _Scanner:
    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0
        self.places = Places()
        self.newlines = [match.start() for match in re.finditer("\n", source)]
        self.array_sizes: dict[Path, int] = {}  # of arrays of tables
        self.implied: set[Path] = set()  # tables named so far only on the way to others

    def scan(self) -> Places:
        table: Path = ()
        while self.skip(_BLANK) < len(self.source):
            if self.source.startswith("[[", self.at):
                table = self.header(2)
            elif self.source.startswith("[", self.at):
                table = self.header(1)
            else:
                self.pair(table)
        return self.places

    def skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self.source, self.at)
        assert match is not None, f"not TOML at line {self.line()}"
        self.at = match.end()
        return self.at

    def line(self) -> int:
        return bisect_left(self.newlines, self.at) + 1

    def header(self, brackets: int) -> Path:
        line = self.line()
        self.at += brackets
        parts = self.key()
        self.at += brackets
        path: Path = ()
        for part in parts[:-1]:
            path = (*path, part)
            self.imply(path, line)
            if path in self.array_sizes:
                path = (*path, self.array_sizes[path] - 1)
        path = (*path, parts[-1])
        if path not in self.places or path in self.implied:
            self.places[path] = line
            self.implied.discard(path)
        if brackets == 2:
            index = self.array_sizes.setdefault(path, 0)
            self.array_sizes[path] = index + 1
            path = (*path, index)
            self.places[path] = line
        return path

    def imply(self, path: Path, line: int) -> None:
        if path not in self.places:
            self.places[path] = line
            self.implied.add(path)

    def pair(self, table: Path) -> None:
        line = self.line()
        path = table
        for part in self.key():
            path = (*path, part)
            self.places.setdefault(path, line)
        self.at += 1  # the equals sign
        self.skip(_SPACE)
        self.value(path)

    def key(self) -> list[str]:
        """Read a dotted key and the blanks around it."""
        parts = []
        while True:
            self.skip(_SPACE)
            start = self.at
            quote = self.source[start]
            if quote in "\"'":
                text = self.source[start : self.skip(_STRINGS[quote])]
                parts.append(next(iter(tomllib.loads(f"{text} = 0"))))
            else:
                parts.append(self.source[start : self.skip(_BARE_KEY)])
            self.skip(_SPACE)
            if not self.source.startswith(".", self.at):
                return parts
            self.at += 1

    def value(self, path: Path) -> None:
        first = self.source[self.at]
        if first == "[":
            self.array(path)
        elif first == "{":
            self.inline_table(path)
        elif first in "\"'":
            opening = first * 3 if self.source.startswith(first * 3, self.at) else first
            self.skip(_STRINGS[opening])
        else:
            self.skip(_SCALAR)

    def array(self, path: Path) -> None:
        self.at += 1
        index = 0
        while self.source[self.skip(_BLANK)] != "]":
            if self.source[self.at] == ",":
                self.at += 1
                continue
            self.places[*path, index] = self.line()
            self.value((*path, index))
            index += 1
        self.at += 1

    def inline_table(self, path: Path) -> None:
        self.at += 1
        while self.source[self.skip(_BLANK)] != "}":
            if self.source[self.at] == ",":
                self.at += 1
            else:
                self.pair(path)
        self.at += 1
