"""Collect problems of a configuration with the line that each stands in; decides none of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from tardisd.config.locate import Path
from tardisd.errors import ConfigError, Problem


class Findings:
    """Problems found so far. `places` maps paths to (file, line), `files` is their order."""

    def __init__(self, files: list[str], places: Mapping[Path, tuple[str, int]]) -> None:
        self.files = files
        self.places = places
        self.problems: list[Problem] = []

    def add(self, path: Path, text: str) -> None:
        """Note a problem with what stands, or should stand, at `path`."""
        file, line = self.place(path)
        self.problems.append(Problem(file, line, dotted(path), " ".join(text.split())))

    def place(self, path: Path) -> tuple[str, int]:
        """Return the file and line of `path`, or of the closest thing around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, (self.files[0], 1))

    def raise_if_any(self) -> None:
        """Raise ConfigError with all problems, each once, in the order of the files."""
        if self.problems:
            order = {file: place for place, file in enumerate(self.files)}
            raise ConfigError(
                sorted(
                    dict.fromkeys(self.problems),
                    key=lambda it: (order.get(it.file, -1), it.line, it.key, it.text),
                )
            )


def dotted(path: Path) -> str:
    """Return a path as people write it: `sinks.ws.listen`, `sessions.demo.series[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = part.replace("-", "").replace("_", "").isalnum() and part.isascii()
            text += ("." if text else "") + (part if bare else repr(part))
    return text


def suggest(word: str, known: Iterable[str], otherwise: str = "known") -> str:
    """Return `did you mean 'x'?`, or the list of what is known when nothing is like `word`."""
    names = list(dict.fromkeys(known))
    if close := difflib.get_close_matches(word, names, 1, 0.6):
        return f"did you mean {close[0]!r}?"
    return f"{otherwise}: {', '.join(names)}" if names else f"{otherwise}: none"
