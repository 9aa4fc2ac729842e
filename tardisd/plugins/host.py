"""What a plugin may ask of the daemon it runs in, and of its other instances; does nothing itself.

The control socket answers from the same objects, so a plugin sees what `tardisctl` sees.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tardisd.errors import RequestError

if TYPE_CHECKING:
    from tardisd.plugins.analyzer import Analyzer
    from tardisd.plugins.storage import Storage


class Host(Protocol):
    """The daemon, as its plugins see it."""

    @property
    def ready(self) -> bool:
        """Whether everything has started and nothing has been told to stop."""

    def storage(self, name: str | None = None) -> Storage[Any]:
        """Return a storage, the default one for None; RequestError says which there are."""

    def analyzer(self, name: str | None = None) -> Analyzer[Any]:
        """Return an analyzer, the first one for None; RequestError `analyzer_unavailable`."""

    def metrics(self) -> str:
        """Return the daemon's figures in Prometheus' text form."""


class Alone:
    """The host of a plugin that runs outside a daemon: it has nothing."""

    ready = True

    def storage(self, name: str | None = None) -> Storage[Any]:
        """Raise RequestError: there is no storage."""
        return find_storage({}, None, name)

    def analyzer(self, name: str | None = None) -> Analyzer[Any]:
        """Raise RequestError: there is no analyzer."""
        return find_analyzer({}, name)

    def metrics(self) -> str:
        """Return no figures."""
        return ""


def find_storage(
    storages: Mapping[str, Storage[Any]], default: str | None, name: str | None
) -> Storage[Any]:
    """Return a storage by name, the default one for None; RequestError for one that is not."""
    wanted = default if name is None else name
    if wanted is not None and wanted in storages:
        return storages[wanted]
    known = ", ".join(sorted(storages)) or "none"
    text = f"storage: no storage is named {wanted!r}; configured: {known}"
    raise RequestError("bad_request", text)


def find_analyzer(analyzers: Mapping[str, Analyzer[Any]], name: str | None) -> Analyzer[Any]:
    """Return an analyzer by name, the first one that answers questions for None."""
    if name is None:
        for one in analyzers.values():
            if one.answers:
                return one
        raise RequestError(
            "analyzer_unavailable",
            "no analyzer that answers questions is configured; add an [analyzers.NAME] section",
        )
    if name not in analyzers:
        known = ", ".join(sorted(analyzers)) or "none"
        text = f"analyzer: no analyzer is named {name[:64]!r}; configured: {known}"
        raise RequestError("analyzer_unavailable", text)
    return analyzers[name]


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """One thing that an instance offers to others."""

    by: str
    thing: Any


class Board:
    """What the instances of a daemon offer each other, by topic; the core reads none of it.

    A topic belongs to the plugin that reads it, whose documentation says what may be offered
    (`http.routes`). Instances start in any order, so a reader looks again when `version` has
    changed.
    """

    def __init__(self) -> None:
        self.version = 0
        self._offers: defaultdict[str, list[Offer]] = defaultdict(list)

    def offered(self, topic: str) -> Sequence[Offer]:
        """Return what is offered now, oldest first."""
        return tuple(self._offers[topic])

    @contextmanager
    def offer(self, topic: str, thing: Any, by: str) -> Iterator[None]:
        """Offer something for as long as the block lasts."""
        offer = Offer(by, thing)
        self._offers[topic].append(offer)
        self.version += 1
        try:
            yield
        finally:
            self._offers[topic].remove(offer)
            self.version += 1
