"""Load every plugin, each by itself, and remember what became of it; creates no instances.

pluggy's own loader stops at the first broken plugin. Here each has a `try` of its own, which is why
this module may catch everything: what a plugin's import raises is that plugin's failure alone. The
outcome is a state: `loaded`, `unavailable` (a package is missing; the reason says how to get it)
or `failed` (the reason names the author's own lines).
"""

from __future__ import annotations

import difflib
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pluggy

from tardisd.errors import PluginError, Unavailable
from tardisd.plugins.base import KINDS
from tardisd.plugins.contract import DECLARATION, check_contract, declared_in_source
from tardisd.plugins.format import FileFormat
from tardisd.plugins.inspection import classes_of
from tardisd.plugins.patience import TookTooLong, within
from tardisd.plugins.sources import Source, dropped_in, installed

State = Literal["loaded", "unavailable", "failed"]
# A plugin whose import, or a hook of it, takes longer is given up.
LOAD_SECS = 30.0
_MAX_FRAMES = 3
_MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """What became of one registered class, or of a module that registers none (`kind` is empty).

    `origin` is the distribution, or the path of a file or folder; `module` the import name.
    """

    name: str
    kind: str
    origin: str
    version: str
    state: State
    reason: str = ""
    cls: type[Any] | None = None
    module: str = ""


class Registry:
    """The plugins of this process, loaded or not."""

    def __init__(self, plugins: Iterable[PluginRecord]) -> None:
        kinds = {kind: place for place, kind in enumerate((*KINDS, ""))}
        self.plugins = sorted(
            _refuse_duplicates(plugins), key=lambda it: (kinds[it.kind], it.name, it.origin)
        )

    @classmethod
    def discover(cls, dirs: Sequence[Path] = ()) -> Registry:
        """Load the installed plugins and those in `dirs`; a broken one is recorded, not raised."""
        return cls(
            record for source in [*installed(), *dropped_in(dirs)] for record in _load(source)
        )

    def get(self, kind: str, name: str) -> type[Any]:
        """Return the loaded class. Raises Unavailable or PluginError saying why there is none."""
        named = [record for record in self.plugins if record.name == name]
        for record in named:
            if record.kind == kind and record.cls is not None:
                return record.cls
        for record in named:
            if record.kind in (kind, "") and record.state != "loaded":
                text = f"{kind} plugin {name!r} is {record.state}: {record.reason}"
                if record.state == "unavailable":
                    raise Unavailable(text, record.reason.rpartition("; ")[2])
                raise PluginError(text)
        for record in named:
            if record.state == "loaded":
                raise PluginError(f"plugin {name!r} is of kind {record.kind}, not {kind}")
        known = self.names(kind)
        text = f"no {kind} plugin is named {name!r}"
        if close := difflib.get_close_matches(name, known, 1):
            raise PluginError(f"{text}; did you mean {close[0]!r}?")
        raise PluginError(f"{text}; known: {', '.join(known) or 'none'}")

    def names(self, kind: str) -> list[str]:
        """Return the names of the loaded plugins of a kind."""
        return [it.name for it in self.plugins if it.kind == kind and it.state == "loaded"]

    def formats(self) -> list[FileFormat]:
        """Return one of each loaded file format, by name."""
        return [it.cls() for it in self.plugins if it.kind == "format" and it.cls is not None]


def _load(source: Source) -> list[PluginRecord]:
    blank = PluginRecord(
        source.name, "", source.origin, source.version, "failed", module=source.module
    )
    try:
        return within(LOAD_SECS, lambda: _loaded(source, blank))
    except TookTooLong as error:
        reason = f"{_reason(error, source)}; nothing that takes long belongs into an import"
        return [replace(blank, reason=reason)]
    except (Exception, SystemExit) as error:  # noqa: BLE001 - any fault of a plugin is its own
        try:
            check_contract(declared_in_source(source.folder(), source.module), source.upgrade)
        except (PluginError, Unavailable) as contract:
            return [_refused(blank, contract, source)]
        return [_refused(blank, error, source)]


def _loaded(source: Source, blank: PluginRecord) -> list[PluginRecord]:
    module = source.load()
    check_contract(getattr(module, DECLARATION, None), source.upgrade)
    version = source.version or str(getattr(module, "__version__", ""))
    return [
        replace(blank, name=cls.name, kind=kind, version=version, state="loaded", cls=cls)
        for kind, cls in classes_of(module)
    ]


def _refused(blank: PluginRecord, error: BaseException, source: Source) -> PluginRecord:
    """Return what became of a plugin that raised this."""
    if isinstance(error, Unavailable):
        return replace(blank, state="unavailable", reason=f"{error.message}; {error.hint}")
    if isinstance(error, ImportError) and (package := _missing_package(error, source)):
        reason = f"package {package} is missing or does not fit; {source.pip_hint(package)}"
        return replace(blank, state="unavailable", reason=reason)
    if isinstance(error, PluginError | pluggy.PluginValidationError):
        return replace(blank, reason=_one_line(str(error)))
    return replace(blank, reason=_reason(error, source))


def _missing_package(error: ImportError, source: Source) -> str | None:
    """Return the third-party package whose import failed, or None when the fault is nearer."""
    top = (error.name or "").partition(".")[0]
    near = {"", "tardisd", source.module.partition(".")[0]}
    return None if top in near or top in sys.stdlib_module_names else top


def _reason(error: BaseException, source: Source) -> str:
    """Return what was raised and the author's own frames, the innermost last."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError):
        return _one_line(text)
    folder = source.folder()
    frames = [
        f"{_short(frame.filename, folder)}:{frame.lineno} in {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if folder is not None and Path(frame.filename).is_relative_to(folder)
    ]
    where = f" ({' > '.join(frames[-_MAX_FRAMES:])})" if frames else ""
    return _one_line(text) + where


def _short(file: str, folder: Path) -> str:
    return str(Path(file).relative_to(folder.parent))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_REASON]


def _refuse_duplicates(records: Iterable[PluginRecord]) -> list[PluginRecord]:
    """Refuse all that claim one (kind, name); the same class registered twice counts once."""
    claims: dict[tuple[str, str], list[PluginRecord]] = defaultdict(list)
    for record in records:
        same = claims[record.kind, record.name]
        if record.cls is None or all(other.cls is not record.cls for other in same):
            same.append(record)
    kept = []
    for (kind, name), same in claims.items():
        if not kind or len(same) == 1:
            kept += same
            continue
        origins = sorted(f"{record.origin} ({record.module})" for record in same)
        reason = f"{kind} {name!r} is claimed by {' and by '.join(origins)}; remove all but one"
        kept += [replace(it, state="failed", reason=reason, cls=None) for it in same]
    return kept
