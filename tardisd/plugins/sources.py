"""Where plugins come from: entry points of installed packages, files and folders; imports none.

A file or folder is loaded under a flat name of our own: it cannot shadow an installed package, and
relative imports inside a folder work, which they would not under a dotted name.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from tardisd.errors import PluginError
from tardisd.plugins.hooks import GROUP

_FLAT_PREFIX = "tardisd_dropin_"
_STAMP = "__tardisd_stamp__"
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)[^;]*;.*extra\s*==\s*['\"]([^'\"]+)['\"]")


@dataclass(frozen=True, slots=True)
class Source:
    """One plugin module, not yet imported.

    `module` is its import name, `folder` where its own code stands (when known), and `extras` maps
    names of optional packages to the extra that brings them.
    """

    name: str
    origin: str
    version: str
    module: str
    load: Callable[[], object]
    folder: Callable[[], Path | None]
    extras: Callable[[], dict[str, str]]

    @property
    def upgrade(self) -> str:
        """How to get another version of the plugin."""
        if self.origin.startswith("/"):
            return f"replace {self.origin} by a newer version of it"
        return f"pip install --upgrade {self.origin}"

    def pip_hint(self, package: str) -> str:
        """Return the command that brings a missing package."""
        extra = self.extras().get(_normal(package))
        if extra is None:
            return f"pip install {package}"
        return f"pip install '{self.origin}[{extra}]'"


def installed() -> list[Source]:
    """Return the entry points of group `tardisd`, by name."""
    points = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    return [_of_entry_point(point) for point in points]


def _of_entry_point(point: EntryPoint) -> Source:
    dist = point.dist
    return Source(
        name=point.name,
        origin=dist.name if dist is not None else point.value,
        version=dist.version if dist is not None else "",
        module=point.module,
        load=point.load,
        folder=lambda: module_folder(point.module),
        extras=lambda: _extras(dist),
    )


def module_folder(module: str) -> Path | None:
    """Return where a module's top-level package stands, without importing it."""
    try:
        spec = find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin else None


def _extras(dist: Distribution | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for requirement in (dist.requires or []) if dist is not None else []:
        match = _REQUIREMENT.match(requirement)
        if match and match[2] not in ("all", "dev"):
            found.setdefault(_normal(match[1]), match[2])
    return found


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def dropped_in(dirs: Sequence[Path]) -> Iterator[Source]:
    """Yield the plugin files and folders in `dirs`, by name; a leading `_` or `.` hides one.

    A folder in `dirs` that does not exist yields nothing.
    """
    taken: set[str] = set()
    for directory in dirs:
        try:
            paths = sorted(path for path in directory.iterdir() if _is_plugin(path))
        except FileNotFoundError:
            continue
        except OSError:
            paths = [directory]  # loading it fails, and so tells why
        for path in paths:
            flat = base = _FLAT_PREFIX + re.sub(r"\W", "_", path.stem)
            number = 2
            while flat in taken:
                flat, number = f"{base}_{number}", number + 1
            taken.add(flat)
            yield _of_path(path, flat)


def _is_plugin(path: Path) -> bool:
    if path.name.startswith(("_", ".")):
        return False
    if path.is_dir():
        return (path / "__init__.py").is_file()
    return path.suffix == ".py" and path.is_file()


def _of_path(path: Path, flat: str) -> Source:
    return Source(
        name=path.stem,
        origin=str(path),
        version="",
        module=flat,
        load=lambda: _load_file(path, flat),
        folder=lambda: path,
        extras=dict,
    )


def _load_file(path: Path, flat: str) -> ModuleType:
    _refuse_writable(path)
    file = path / "__init__.py" if path.is_dir() else path
    stamp = _stamp(path)
    if (loaded := sys.modules.get(flat)) is not None and getattr(loaded, _STAMP, None) == stamp:
        return loaded  # classes stay the same ones when a configuration is read again
    for name in [name for name in sys.modules if name == flat or name.startswith(f"{flat}.")]:
        del sys.modules[name]  # a reload reads the files again
    inside = [str(path)] if path.is_dir() else None
    spec = spec_from_file_location(flat, file, submodule_search_locations=inside)
    if spec is None or spec.loader is None:
        raise PluginError(f"cannot load {file} as python code")
    module = module_from_spec(spec)
    setattr(module, _STAMP, stamp)
    sys.modules[flat] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(flat, None)
        raise
    return module


def _stamp(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Return what changes whenever a file of a plugin does."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    found = [(str(file), file.stat()) for file in files if file.is_file()]
    return tuple((name, it.st_ino, it.st_size, it.st_mtime_ns) for name, it in found)


def _refuse_writable(path: Path) -> None:
    # Whoever may write a plugin runs code as the daemon; compiled files in __pycache__ count too.
    parts = [path.parent, path, *(path.rglob("*") if path.is_dir() else [])]
    for part in parts:
        try:
            found = part.stat()
        except FileNotFoundError:  # a dangling link, or an editor's file that has just gone
            continue
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(found.st_mode)
            raise PluginError(
                f"{part} may be written by others (mode {mode:04o}); run `chmod go-w {part}`"
            )
        if found.st_uid not in (0, os.geteuid()):
            raise PluginError(
                f"{part} belongs to another user (uid {found.st_uid}); it must be root's or yours"
            )
