"""What differs between two checked configurations, by section name; pure, it changes nothing.

Sections that are alike are the same instance: they go on undisturbed. Where a section moved to
another name, the one is removed and the other added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tardisd.config.model import Config, Instance
from tardisd.config.schema import SECTIONS

# Of [daemon], what is taken up only once, when the process starts.
ONLY_AT_START = ("data_dir", "control_socket")
_PLURAL = {kind: section for section, kind in SECTIONS.items()}


@dataclass(frozen=True, slots=True)
class Diff:
    """The way from one configuration to another.

    `changed` are pairs (old, new). `rules` and `presets` are names of sections that differ in any
    way, `daemon` the keys of `[daemon]` that take effect at once, `restart` those that need a
    restart; all are written as in a config: `sinks.ws`, `daemon.data_dir`.
    """

    added: tuple[Instance, ...] = ()
    removed: tuple[Instance, ...] = ()
    changed: tuple[tuple[Instance, Instance], ...] = ()
    rules: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    daemon: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()

    @property
    def leaving(self) -> tuple[Instance, ...]:
        """What is to stop: the removed, and the old form of the changed."""
        return (*self.removed, *(old for old, _ in self.changed))

    @property
    def coming(self) -> tuple[Instance, ...]:
        """What is to start: the added, and the new form of the changed."""
        return (*self.added, *(new for _, new in self.changed))

    def told(self) -> dict[str, list[str]]:
        """Return it as people are told of it, names only."""
        return {
            "added": [section_of(one) for one in self.added],
            "removed": [section_of(one) for one in self.removed],
            "changed": [section_of(new) for _, new in self.changed],
            "backfills": list(self.rules),
            "sessions": list(self.presets),
            "daemon": list(self.daemon),
            "restart_needed": list(self.restart),
        }


def compare(old: Config, new: Config) -> Diff:
    """Return what turns `old` into `new`."""
    before, after = _instances(old), _instances(new)
    keys = _differing(old.daemon, new.daemon)
    return Diff(
        added=tuple(one for key, one in after.items() if key not in before),
        removed=tuple(one for key, one in before.items() if key not in after),
        changed=tuple(
            (before[key], one) for key, one in after.items() if before.get(key, one) != one
        ),
        rules=_names("backfills", old.backfills, new.backfills),
        presets=_names("sessions", old.sessions, new.sessions),
        daemon=tuple(f"daemon.{key}" for key in keys if key not in ONLY_AT_START),
        restart=tuple(f"daemon.{key}" for key in keys if key in ONLY_AT_START),
    )


def without_restart(old: Config, new: Config) -> Config:
    """Return `new` with those keys as in `old` that take effect only after a restart."""
    kept = {key: getattr(old.daemon, key) for key in ONLY_AT_START}
    return replace(new, daemon=replace(new.daemon, **kept))


def section_of(one: Instance) -> str:
    """Return an instance's section as it is written in the configuration: `sinks.ws`."""
    return f"{_PLURAL[one.kind]}.{one.name}"


def _instances(config: Config) -> dict[tuple[str, str], Instance]:
    return {
        (kind, name): one
        for kind in SECTIONS.values()
        for name, one in config.instances.get(kind, {}).items()
    }


def _names(section: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"{section}.{name}"
        for name in dict.fromkeys((*old, *new))
        if name not in old or name not in new or old[name] != new[name]
    )


def _differing(old: Any, new: Any) -> list[str]:
    """Return the fields in which two dataclasses of one type differ."""
    return [key for key in old.__dataclass_fields__ if getattr(old, key) != getattr(new, key)]
