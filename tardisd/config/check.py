"""Check a whole configuration at once and return it; touches no network and starts nothing.

Tables are first converted one by one, then what they say of each other is looked at. A section
that is wrong in itself still counts as existing, so that one mistake is not told of twice.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any, TypeVar

from tardisd.config.convert import StructT, convert_table
from tardisd.config.findings import Findings, suggest
from tardisd.config.locate import Path
from tardisd.config.model import BackfillRule, Config, Daemon, Instance, SessionPreset
from tardisd.config.paths import MAX_SOCKET_BYTES, default_data_dir, default_socket, readable_dirs
from tardisd.config.schema import (
    CORE,
    NAMED,
    SECTIONS,
    BackfillTable,
    DaemonTable,
    PluginsTable,
    SessionTable,
)
from tardisd.errors import PluginError
from tardisd.market.series import DataType, Series, Symbol
from tardisd.market.time import Interval
from tardisd.plugins.registry import Registry

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_PLURAL = {kind: section for section, kind in SECTIONS.items()}


def _candles(text: str) -> Series:
    series = Series.parse(text)
    if series.data_type.interval is None:
        raise ValueError(f"{text!r} is not of candles; only candles are built from other ticks")
    return series


def check(
    data: Mapping[str, Any],
    findings: Findings,
    files: tuple[FilePath, ...],
    environ: Mapping[str, str],
    discover: Callable[[tuple[FilePath, ...]], Registry] = Registry.discover,
) -> Config:
    """Return the configuration; raises ConfigError with everything found, `findings` included."""
    return _Checker(data, findings, environ).config(files, discover)


class _Checker:
    def __init__(
        self, data: Mapping[str, Any], findings: Findings, environ: Mapping[str, str]
    ) -> None:
        self.findings = findings
        self.environ = environ
        self.tables = self._tables(data)
        self.classes: dict[tuple[str, str], type[Any] | None] = {}

    def _tables(self, data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the sections that are tables, and those within them that are."""
        tables: dict[str, dict[str, Any]] = {section: {} for section in (*CORE, *NAMED)}
        for section, table in data.items():
            if section not in tables:
                hint = suggest(section, tables)
                self.findings.add((section,), f"unknown section; {hint}")
            elif not isinstance(table, dict):
                self.findings.add((section,), "expected a table")
            elif section not in NAMED:
                tables[section] = table
            else:
                for name, inner in table.items():
                    if not isinstance(inner, dict):
                        text = f"expected a table: write [{section}.NAME] above it"
                        self.findings.add((section, name), text)
                    elif not _NAME.fullmatch(name):
                        text = "a name has up to 64 letters, digits, '_', '-' and '.'"
                        self.findings.add((section, name), text)
                    else:
                        tables[section][name] = inner
        return tables

    def config(
        self, files: tuple[FilePath, ...], discover: Callable[[tuple[FilePath, ...]], Registry]
    ) -> Config:
        dirs = tuple(readable_dirs(self.tables["plugins"], self.environ))
        plugins = self.convert(PluginsTable, ("plugins",)) or PluginsTable(dirs=dirs)
        for index, folder in enumerate(plugins.dirs):
            if not os.path.isdir(folder):
                self.findings.add(("plugins", "dirs", index), f"{folder} is not a folder")
        registry = discover(plugins.dirs)
        instances: dict[str, dict[str, Instance]] = {}
        for section, kind in SECTIONS.items():
            found = (self.instance(section, name, registry) for name in self.tables[section])
            instances[kind] = {instance.name: instance for instance in found if instance}
        daemon = self.daemon()
        storage = daemon.storage if daemon else ""
        sessions = [self.preset(name, storage) for name in self.tables["sessions"]]
        backfills = [self.rule(name, storage) for name in self.tables["backfills"]]
        self.findings.raise_if_any()
        assert daemon is not None, "a missing [daemon] has been noted"
        return Config(
            path=files[0],
            daemon=daemon,
            plugins=plugins,
            instances=instances,
            sessions={preset.name: preset for preset in sessions if preset},
            backfills={rule.name: rule for rule in backfills if rule},
            registry=registry,
            files=files,
        )

    def convert(self, cls: type[StructT], path: tuple[str, ...]) -> StructT | None:
        table = self.tables[path[0]] if len(path) == 1 else self.tables[path[0]][path[1]]
        passed_over = ("plugin",) if path[0] in SECTIONS else ()
        return convert_table(cls, table, path, self.findings, self.environ, passed_over)

    def instance(self, section: str, name: str, registry: Registry) -> Instance | None:
        kind, path = SECTIONS[section], (section, name)
        self.classes[kind, name] = None
        plugin = self.tables[section][name].get("plugin")
        if not isinstance(plugin, str):
            wrong = "missing" if plugin is None else "expected string"
            known = registry.names(kind)
            hint = f'add `plugin = "{name}"`' if name in known else suggest("", known, "one of")
            self.findings.add((*path, "plugin"), f"{wrong}; {hint}")
            return None
        try:
            cls = registry.get(kind, plugin)
        except PluginError as error:
            self.findings.add((*path, "plugin"), error.message)
            return None
        self.classes[kind, name] = cls
        options = self.convert(cls.Options, path)
        return None if options is None else Instance(kind, name, cls, options)

    def daemon(self) -> Daemon | None:
        table = self.convert(DaemonTable, ("daemon",))
        storage = self.default_storage(None if table is None else table.storage)
        if table is None or storage is None:
            return None
        data_dir = (table.data_dir or default_data_dir(self.environ)).absolute()
        if os.path.exists(data_dir) and not os.path.isdir(data_dir):
            self.findings.add(("daemon", "data_dir"), f"{data_dir} is not a folder")
        socket = (table.control_socket or default_socket(data_dir, self.environ)).absolute()
        if (size := len(os.fsencode(socket))) > MAX_SOCKET_BYTES:
            self.findings.add(
                ("daemon", "control_socket"),
                f"{socket} has {size} bytes, a socket's path at most {MAX_SOCKET_BYTES};"
                " name a shorter one",
            )
        return Daemon(
            data_dir=data_dir,
            control_socket=socket,
            storage=storage,
            log_level=table.log_level,
            log_format=table.log_format,
            shutdown_secs=table.shutdown_secs,
            kept_secs=table.kept_secs,
            max_sessions=table.max_sessions,
        )

    def default_storage(self, named: str | None) -> str | None:
        """Return the storage that `[daemon]` names, or the only one."""
        storages = list(self.tables["storages"])
        if named is not None:
            return named if self.refer(("daemon", "storage"), "storage", named) else None
        if len(storages) == 1:
            return storages[0]
        if storages:
            names = ", ".join(storages)
            text = f"there are several storages; add `storage = …` to [daemon], one of: {names}"
            self.findings.add(("daemon", "storage"), text)
        else:
            text = 'there is none; add [storages.main] with `plugin = "sqlite"`'
            self.findings.add(("storages",), text)
        return None

    def refer(self, path: Path, kind: str, name: str) -> bool:
        """Note a problem unless there is a section of that kind and name."""
        if (kind, name) in self.classes:
            return True
        known = [known for of, known in self.classes if of == kind]
        hint = suggest(name, known)
        self.findings.add(path, f"there is no [{_PLURAL[kind]}.{name}]; {hint}")
        return False

    def refer_to_storage(self, path: Path, named: str | None) -> None:
        if named is not None:
            self.refer((*path, "storage"), "storage", named)

    def refer_from_wrong(self, path: tuple[str, str], kinds: Mapping[str, str]) -> None:
        """Look at the references of a table that is wrong elsewhere, as far as they are texts."""
        for key, kind in {**kinds, "storage": "storage"}.items():
            value = self.tables[path[0]][path[1]].get(key)
            if isinstance(value, str):
                self.refer((*path, key), kind, value)
            for index, name in enumerate(self.texts(path, key)):
                self.refer((*path, key, index), kind, name)

    def texts(self, path: tuple[str, str], key: str) -> tuple[str, ...]:
        """Return a list of a table that may be wrong, if it is one and holds texts alone."""
        value = self.tables[path[0]][path[1]].get(key)
        whole = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return tuple(value) if whole else ()

    def parse(self, path: Path, parse: Callable[[str], T], texts: tuple[str, ...]) -> list[T]:
        """Return what the texts mean, noting those that mean nothing or come twice."""
        found: list[T] = []
        for index, text in enumerate(texts):
            try:
                value = parse(text)
            except ValueError as error:
                self.findings.add((*path, index), str(error))
                continue
            if value in found:
                self.findings.add((*path, index), f"{text!r} is named twice")
            found.append(value)
        return found

    def preset(self, name: str, default_storage: str) -> SessionPreset | None:
        path = ("sessions", name)
        table = self.convert(SessionTable, path)
        if table is None:
            self.refer_from_wrong(path, {"sinks": "sink", "analyzers": "analyzer"})
            self.parse((*path, "series"), Series.parse, self.texts(path, "series"))
            return None
        series = self.parse((*path, "series"), Series.parse, table.series)
        if table.start.surely_not_before(table.end):
            self.findings.add((*path, "end"), f"{table.end} is not after start {table.start}")
        elif table.until is not None and (
            table.start.surely_not_before(table.until) or table.until.surely_after(table.end)
        ):
            text = f"{table.until} is not between start {table.start} and end {table.end}"
            self.findings.add((*path, "until"), text)
        if not isinstance(table.speed, str) and not (0 < table.speed < math.inf):
            text = f"{table.speed} is no speed; use a finite number above 0, or 'max'"
            self.findings.add((*path, "speed"), text)
        for key, kind in (("sinks", "sink"), ("analyzers", "analyzer")):
            for index, reference in enumerate(self.parse((*path, key), str, getattr(table, key))):
                self.refer((*path, key, index), kind, reference)
        self.refer_to_storage(path, table.storage)
        derive = self.parse((*path, "derive"), _candles, table.derive)
        if not table.series and not table.derive:
            self.findings.add((*path, "series"), "is empty; name what to replay")
        if table.forming and not table.derive:
            self.findings.add((*path, "forming"), "is for candles that `derive` names; add it")
        return SessionPreset(
            name=name,
            series=tuple(series),
            derive=tuple(derive),
            barrier=self._barrier(path, table),
            storage=table.storage or default_storage,
            table=table,
        )

    def _barrier(self, path: Path, table: SessionTable) -> Interval | None:
        if table.barrier is None:
            return None
        if not table.lockstep:
            self.findings.add((*path, "barrier"), "is for sessions with `lockstep = true`")
        try:
            return Interval.parse(table.barrier)
        except ValueError as error:
            self.findings.add((*path, "barrier"), str(error))
            return None

    def rule(self, name: str, default_storage: str) -> BackfillRule | None:
        path = ("backfills", name)
        table = self.convert(BackfillTable, path)
        if table is None:
            self.refer_from_wrong(path, {"exchange": "exchange"})
            self.parse((*path, "data_types"), DataType.parse, self.texts(path, "data_types"))
            return None
        self.refer_to_storage(path, table.storage)
        if table.end is not None and table.start.surely_not_before(table.end):
            self.findings.add((*path, "end"), f"{table.end} is not after start {table.start}")
        if table.every is not None and table.at is not None:
            self.findings.add((*path, "at"), "there is `every` too; keep one of them")
        if table.every is not None and table.every.ns < 1_000_000_000:
            self.findings.add((*path, "every"), f"{table.every} is too often; use 1s or more")
        data_types = self.parse((*path, "data_types"), DataType.parse, table.data_types)
        series: tuple[Series, ...] = ()
        if self.refer((*path, "exchange"), "exchange", table.exchange):
            venue = getattr(self.classes["exchange", table.exchange], "name", None)
            if venue is not None:
                symbols = self.parse(
                    (*path, "symbols"), lambda text: Symbol.parse(text, venue), table.symbols
                )
                series = tuple(Series(venue, it, kind) for it in symbols for kind in data_types)
        return BackfillRule(
            name=name,
            exchange=table.exchange,
            storage=table.storage or default_storage,
            series=series,
            start=table.start,
            end=table.end,
            every=None if table.every is None else table.every.ns,
            at=None if table.at is None else table.at.ns,
            jitter=0 if table.jitter is None else table.jitter.ns,
            table=table,
        )
