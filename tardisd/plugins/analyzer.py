"""The contract of analyzer plugins: what looks at released ticks and says something about them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from tardisd.market.columns import Batch
from tardisd.plugins.base import OptionsT, Plugin
from tardisd.plugins.sessions import Session


class Analysis:
    """One session's running analysis; sees released ticks only, in order."""

    @abstractmethod
    def update(self, batch: Batch) -> Sequence[Batch]:
        """Take released ticks of one series; return derived ones."""

    def finish(self) -> dict[str, object]:
        """Return the report at the session's end."""
        return {}


class Analyzer(Plugin[OptionsT]):
    """Derives ticks or answers questions. No first-party analyzer exists yet."""

    consumes: ClassVar[frozenset[str]]

    @abstractmethod
    def start(self, session: Session) -> Analysis:
        """Begin to analyze a session."""
