"""Find and read config files, merge what stands beside them, and have the whole checked.

Beside `config.toml`, every `conf.d/*.toml` is read in order of name and merged table by table: a
drop-in may add tables and keys, but the same key twice is an error, never an override.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from tardisd.config.check import check
from tardisd.config.findings import Findings, dotted
from tardisd.config.locate import Path, Places, locate
from tardisd.config.model import Config
from tardisd.config.paths import config_candidates, expand, readable_dirs
from tardisd.config.schema import NAMED
from tardisd.errors import ConfigError, Problem

MAX_BYTES = 4 * 1024 * 1024
MAX_DROP_INS = 1000


def load_config(path: FilePath | None, environ: Mapping[str, str]) -> Config:
    """Return the checked configuration. Raises ConfigError with every problem found."""
    data, findings, files = read_document(find_config(path, environ))
    return check(data, findings, files, environ)


def find_config(path: FilePath | None, environ: Mapping[str, str]) -> FilePath:
    """Return the config file: `path`, $TARDISD_CONFIG, or the first usual place that has one.

    Raises ConfigError when there is none; a file that is named need not exist.
    """
    if path is not None:
        return path
    if named := environ.get("TARDISD_CONFIG"):
        try:
            return expand(named, environ)
        except ValueError as error:
            raise ConfigError([Problem(named, 1, "$TARDISD_CONFIG", str(error))]) from None
    candidates = config_candidates(environ)
    for candidate in candidates:
        if os.path.lexists(candidate):
            return candidate
    places = ", ".join(map(str, candidates))
    text = (
        f"no configuration in {places}; name one with -c FILE or $TARDISD_CONFIG,"
        " or begin with `tardisd config example > config.toml`"
    )
    raise ConfigError([Problem(str(candidates[0]), 1, "config", text)])


def plugin_dirs(path: FilePath | None, environ: Mapping[str, str]) -> tuple[FilePath, ...]:
    """Return `[plugins] dirs` of a config that may be wrong otherwise, or none without a config.

    Raises ConfigError when a named file cannot be read.
    """
    try:
        found = find_config(path, environ)
    except ConfigError:
        return ()
    return tuple(readable_dirs(read_document(found)[0].get("plugins"), environ))


def read_document(
    path: FilePath,
) -> tuple[dict[str, Any], Findings, tuple[FilePath, ...]]:
    """Read a config file and its drop-ins; return the merged data, where it stands, the files.

    Raises ConfigError when any of them cannot be read; keys set twice are noted in the findings.
    """
    files = [path, *_drop_ins(path)]
    problems: list[Problem] = []
    parts = []
    for file in files:
        read = _read(file)
        if isinstance(read, Problem):
            problems.append(read)
        else:
            parts.append((str(file), *read))
    if problems:
        raise ConfigError(problems)
    return _merge(parts), _findings(parts), tuple(files)


def _drop_ins(path: FilePath) -> list[FilePath]:
    folder = path.parent / "conf.d"
    try:
        names = sorted(
            name for name in os.listdir(folder) if name.endswith(".toml") and name[0] != "."
        )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        text = f"cannot be listed: {error.strerror}"
        raise ConfigError([Problem(str(folder), 1, "conf.d", text)]) from None
    if len(names) > MAX_DROP_INS:
        text = f"{len(names)} files are too many; at most {MAX_DROP_INS} are read"
        raise ConfigError([Problem(str(folder), 1, "conf.d", text)])
    return [folder / name for name in names]


def _read(file: FilePath) -> tuple[dict[str, Any], Places] | Problem:
    """Return what a file holds and where, or the reason why it cannot be read."""

    def problem(line: int, text: str) -> Problem:
        return Problem(str(file), line, "config", text)

    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return problem(1, "no such file; begin with `tardisd config example > config.toml`")
    except OSError as error:
        return problem(1, f"cannot be read: {error.strerror}")
    if len(raw) > MAX_BYTES:
        return problem(1, f"larger than {MAX_BYTES} bytes")
    try:
        source = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return problem(line, f"not UTF-8: byte 0x{raw[error.start]:02x}; save the file as UTF-8")
    try:
        return tomllib.loads(source), locate(source)
    except tomllib.TOMLDecodeError as error:
        message, _, where = str(error).rpartition(" (at ")
        found = re.match(r"line (\d+)", where)
        line = int(found[1]) if found else source.rstrip().count("\n") + 1
        text = (message or str(error)).rstrip(".")
        return problem(line, f"not TOML: {text[:1].lower()}{text[1:]}")
    except RecursionError:
        return problem(1, "nested too deeply")


Part = tuple[str, dict[str, Any], Places]


def _findings(parts: list[Part]) -> Findings:
    places: dict[Path, tuple[str, int]] = {}
    findings = Findings([file for file, _, _ in parts], places)
    for file, data, lines in parts:
        for path in _conflicts(data, places):
            first_file, first_line = places[path]
            text = f"already set in {first_file}:{first_line}; keep one of them"
            key = dotted(path)
            findings.problems.append(Problem(file, lines.nearest(path), key, text))
        for path, line in lines.items():
            places.setdefault(path, (file, line))
    return findings


def _conflicts(data: dict[str, Any], places: Mapping[Path, object]) -> list[Path]:
    """Return the paths of keys in `data` that an earlier file has set."""
    found: list[Path] = []

    def walk(table: dict[str, Any], path: Path, deeper: int) -> None:
        for key, value in table.items():
            if deeper and isinstance(value, dict):
                walk(value, (*path, key), deeper - 1)
            elif (*path, key) in places:
                found.append((*path, key))

    for section, value in data.items():
        walk({section: value}, (), _table_depth(section))
    return found


def _table_depth(section: str) -> int:
    """Return how many levels of a section are tables that files share."""
    return 2 if section in NAMED else 1


def _merge(parts: list[Part]) -> dict[str, Any]:
    """Return the union of the files' tables; of a key set twice the first."""

    def join(into: dict[str, Any], table: dict[str, Any], deeper: int) -> None:
        for key, value in table.items():
            there = into.setdefault(key, {} if deeper and isinstance(value, dict) else value)
            if deeper and isinstance(value, dict) and isinstance(there, dict):
                join(there, value, deeper - 1)

    merged: dict[str, Any] = {}
    for _, data, _ in parts:
        for section, value in data.items():
            join(merged, {section: value}, _table_depth(section))
    return merged
