"""Ask one plugin module for its classes and check them against the contracts; imports no module."""

from __future__ import annotations

import difflib
import inspect
import re
from typing import Any

import msgspec
import pluggy

from tardisd.errors import PluginError
from tardisd.plugins import hooks
from tardisd.plugins.analyzer import Analyzer
from tardisd.plugins.base import Options
from tardisd.plugins.exchange import Exchange
from tardisd.plugins.format import FileFormat
from tardisd.plugins.sink import Sink
from tardisd.plugins.storage import Storage

_HOOKS: dict[str, tuple[str, type[Any]]] = {
    "tardisd_exchanges": ("exchange", Exchange),
    "tardisd_storages": ("storage", Storage),
    "tardisd_sinks": ("sink", Sink),
    "tardisd_analyzers": ("analyzer", Analyzer),
    "tardisd_formats": ("format", FileFormat),
}
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


def classes_of(module: object) -> list[tuple[str, type[Any]]]:
    """Return (kind, class) for everything the module registers.

    Every module gets a hook manager of its own, so that one cannot break the hooks of another.
    Raises PluginError when it registers nothing, misspells a hook or does not keep a contract,
    pluggy's PluginValidationError for a hook with wrong arguments, and whatever its hooks raise.
    """
    manager = pluggy.PluginManager(hooks.GROUP)
    manager.add_hookspecs(hooks)
    manager.register(module)
    _check_spelling(manager)
    if not manager.get_hookcallers(module):
        raise PluginError("registers nothing; mark a function with @tardisd.hookimpl")
    found = []
    for hook, (kind, contract) in _HOOKS.items():
        for classes in getattr(manager.hook, hook)():
            if not isinstance(classes, list | tuple):
                kind_found = type(classes).__name__
                raise PluginError(f"{hook} returned {kind_found}; return a list of classes")
            for cls in classes:
                _check(cls, hook, contract)
                found.append((kind, cls))
    return found


def _check_spelling(manager: pluggy.PluginManager) -> None:
    try:
        manager.check_pending()
    except pluggy.PluginValidationError:
        for name in vars(manager.hook):
            if name.startswith("_") or name in _HOOKS:
                continue
            close = difflib.get_close_matches(name, _HOOKS, 1) or [", ".join(_HOOKS)]
            raise PluginError(f"there is no hook {name!r}; did you mean {close[0]}?") from None
        raise


def _check(cls: Any, hook: str, contract: type[Any]) -> None:
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        raise PluginError(f"{hook} returned {cls!r}; return subclasses of {contract.__name__}")
    name = getattr(cls, "name", None)
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise PluginError(
            f"{cls.__name__}.name is {name!r}; use lower-case letters, digits, '_', '-' or '.'"
        )
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise PluginError(f"{cls.__name__} does not implement {', '.join(missing)}")
    if contract is FileFormat:
        if not isinstance(getattr(cls, "kinds", None), frozenset):
            raise PluginError(f"{cls.__name__}.kinds is not a frozenset of data type kinds")
        if getattr(cls, "match", None) is FileFormat.match and not getattr(cls, "header", None):
            raise PluginError(f"{cls.__name__} has neither a header nor a match() of its own")
        inspect.signature(cls).bind()  # the core makes formats without arguments
        return
    options: Any = getattr(cls, "Options", None)
    if not (isinstance(options, type) and issubclass(options, Options)):
        raise PluginError(f"{cls.__name__}.Options is not a subclass of tardisd.Options")
    try:
        msgspec.inspect.type_info(options)
    except TypeError as error:
        raise PluginError(f"{cls.__name__}.Options cannot be read from a config: {error}") from None
    if "plugin" in {field.encode_name for field in msgspec.structs.fields(options)}:
        raise PluginError(f"{cls.__name__}.Options may not have an option named 'plugin'")
