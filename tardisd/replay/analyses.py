"""Analyses of one session: fed with windows in order, what they derive joins the same windows.

An analysis that fails is dropped and named; the session goes on without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tardisd.log import Log
from tardisd.market.columns import Batch
from tardisd.market.ticks import Ticks
from tardisd.plugins.analyzer import Analysis, Analyzer
from tardisd.plugins.sessions import SessionRequest
from tardisd.replay.merge import Window
from tardisd.supervise import describe, result_of

log = Log("tardisd.sessions")

MAX_DERIVED = 64  # per tick consumed, on average


@dataclass(frozen=True, slots=True)
class Reports:
    """What the analyses of a session have to say at its end, by analyzer."""

    found: Mapping[str, Mapping[str, Any]]


@dataclass
class Analyses:
    """The running analyses of one reading of a session.

    `warmup` is how much market time (ns) they need to have seen before what they derive counts.
    """

    session_id: str
    warmup: int = 0
    running: dict[str, tuple[Analysis, frozenset[str]]] = field(default_factory=dict)

    @classmethod
    def started(
        cls, session_id: str, analyzers: Mapping[str, Analyzer[Any]], request: SessionRequest
    ) -> Analyses:
        """Return what the analyzers begin for a session; not all of them derive anything."""
        found = cls(session_id)
        for name, analyzer in analyzers.items():
            begun, error = result_of(partial(_begun, analyzer, request))
            if error is not None:
                found._failed(name, describe(error))
            elif begun is not None:
                analysis, warmup = begun
                found.running[name] = (analysis, analyzer.consumes)
                found.warmup = max(found.warmup, warmup)
        return found

    def extend(self, window: Window) -> Window:
        """Return the window with what is derived from its ticks.

        Analyses see candles that are built, too, but none before it is finished.
        """
        derived: list[Batch] = []
        for name, (analysis, consumes) in list(self.running.items()):
            batches = [
                batch
                for ticks in window.kinds
                if ticks.kind in consumes
                for batch, _ in ticks.batches()
                if not batch.series.is_forming
            ]
            if not batches:
                continue
            found, error = result_of(partial(_derived, analysis, batches, window))
            if error is not None or found is None:
                self._failed(name, "nothing" if error is None else describe(error))
                del self.running[name]
            else:
                derived += found
        if not derived:
            return window
        derived.sort(key=lambda batch: batch.series.order)
        ticks = Ticks.concat(derived, [batch.ts_event for batch in derived])
        return window.followed_by(ticks)

    def finish(self) -> Reports | None:
        """Return the reports of those that have one."""
        found = {}
        for name, (analysis, _) in self.running.items():
            report, error = result_of(analysis.finish)
            if error is not None:
                self._failed(name, describe(error))
            elif report:
                found[name] = report
        return Reports(found) if found else None

    def _failed(self, name: str, text: str) -> None:
        log.error("analyzer failed", analyzer=name, session=self.session_id, error=text)


def _begun(analyzer: Analyzer[Any], request: SessionRequest) -> tuple[Analysis, int] | None:
    analysis = analyzer.start(request)
    return None if analysis is None else (analysis, int(analyzer.warmup_for(request)))


def _derived(analysis: Analysis, batches: Sequence[Batch], window: Window) -> list[Batch]:
    """Return one batch per derived series; ValueError for what cannot stand in the window."""
    parts: dict[str, list[Batch]] = {}
    for batch in batches:
        for one in analysis.update(batch):
            if len(one):
                parts.setdefault(one.series.text, []).append(one)
    found = [Batch.concat(of_one) for of_one in parts.values()]
    first, last = int(window.release[0]), int(window.release[-1])
    for one in found:
        times = one.ts_event
        if one.series.data_type.kind != "indicator":
            raise ValueError(f"{one.series} is not of type indicator_<name>")
        if int(times[0]) < first or int(times[-1]) > last or (times[1:] < times[:-1]).any():
            raise ValueError(f"{one.series}: times outside of the ticks they are derived from")
    if sum(map(len, found)) > MAX_DERIVED * sum(map(len, batches)):
        raise ValueError(f"more than {MAX_DERIVED} derived ticks for each one")
    return found
