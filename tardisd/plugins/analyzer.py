"""The contract of analyzer plugins: what looks at released ticks and says something about them.

There are three ways to look, and an analyzer may offer any of them: derive ticks as they pass
(`start`), follow a session as a sink does (`open`), and answer a question (`ask`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.plugins.base import OptionsT, Plugin
from tardisd.plugins.sessions import Session, SessionRequest
from tardisd.plugins.sink import Writer


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody wants to know: ticks as JSON objects (`data` of a tick), oldest first.

    `clock` is the session's market time (ns); nothing later may enter the answer.
    """

    ticks: Sequence[Mapping[str, Any]]
    analysis_type: str = "pattern"
    session_id: str | None = None
    clock: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What an analyzer says; `more` are further fields of the protocol's `analysis` message."""

    content: str
    model: str
    usage: Mapping[str, Any] = field(default_factory=dict)
    cached: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)


class Analysis:
    """One session's running analysis. Its calls are synchronous, in a worker thread, in order."""

    @abstractmethod
    def update(self, batch: Batch) -> Sequence[Batch]:
        """Take ticks of one series; return derived ones, of series `…@indicator_<name>`.

        Batches of one release time come in the order of the session; how ticks are cut into batches
        must make no difference. What is derived from a tick has its release time as event time, and
        depends on nothing later. Derived series may be any, each in ascending order.
        """

    def finish(self) -> Mapping[str, Any]:
        """Return the report at the session's end."""
        return {}


class Analyzer(Plugin[OptionsT]):
    """Looks at ticks. `consumes` are the kinds of tick it wants: `candle`, `trade`, ….

    `warmup` (ns of market time) is read again before a start in the middle or a seek, so that an
    analysis is the same as if it had seen everything.
    """

    consumes: ClassVar[frozenset[str]] = frozenset()
    #: The encodings that writers of `open` ask blocks for, as of a sink.
    forms: ClassVar[tuple[str, ...]] = ()
    #: Whether `ask` is worth calling.
    answers: ClassVar[bool] = False

    @property
    def warmup(self) -> int:
        """How much market time (ns) an analysis needs to have seen."""
        return 0

    def warmup_for(self, request: SessionRequest) -> int:
        """Return how much (ns) one session needs, where that depends on what it replays."""
        return self.warmup

    def start(self, request: SessionRequest) -> Analysis | None:
        """Begin to derive ticks for a session (again after each seek), or None."""
        return None

    def open(self, session: Session) -> AbstractAsyncContextManager[Writer | None]:
        """Follow a session as a sink does, after its ticks were released, or None."""
        return nullcontext()

    async def ask(self, question: Question) -> Answer:
        """Answer. Raises RequestError `analyzer_failed` or `analyzer_unavailable`."""
        raise RequestError(
            "analyzer_unavailable", f"analyzer {self.context.name!r} answers no questions"
        )
