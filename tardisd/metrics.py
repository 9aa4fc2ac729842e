"""Figures of the running daemon in Prometheus' text form, read off when asked; counts nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class StatusCollector:
    """Turns what sessions and backfills know of themselves into metric families."""

    def __init__(
        self, statuses: Iterable[Mapping[str, Any]], past_ticks: int, backfills: Iterable[str]
    ) -> None:
        self._statuses = list(statuses)
        self._past_ticks = past_ticks
        self._backfills = Counter(backfills)

    def collect(self) -> Iterator[Any]:
        """Return the metric families, as prometheus_client asks for them."""
        from prometheus_client.core import (  # noqa: PLC0415 - 50 ms that most daemons never need
            CounterMetricFamily,
            GaugeMetricFamily,
        )

        ticks = self._past_ticks + sum(status["ticks"] for status in self._statuses)
        yield CounterMetricFamily(
            "tardisd_replay_ticks", "Ticks released to followers by all sessions", value=ticks
        )
        sessions = GaugeMetricFamily("tardisd_sessions", "Sessions by status", labels=["status"])
        counts: dict[str, int] = {}
        for status in self._statuses:
            counts[status["status"]] = counts.get(status["status"], 0) + 1
        for name, count in sorted(counts.items()):
            sessions.add_metric([name], count)
        yield sessions
        backfills = GaugeMetricFamily(
            "tardisd_backfill_jobs", "Backfill jobs that are remembered, by state", labels=["state"]
        )
        for name, count in sorted(self._backfills.items()):
            backfills.add_metric([name], count)
        yield backfills
        subscribers = sum(status["subscribers"] for status in self._statuses)
        yield GaugeMetricFamily(
            "tardisd_session_subscribers", "Followers of all sessions", value=subscribers
        )
        lag = max((status["lag_ms"] for status in self._statuses), default=0.0)
        yield GaugeMetricFamily(
            "tardisd_session_lag_seconds", "How far the slowest session is behind", value=lag / 1000
        )


def exposition(
    statuses: Iterable[Mapping[str, Any]], past_ticks: int = 0, backfills: Iterable[str] = ()
) -> str:
    """Return the metrics as text for a scraper; `backfills` are the states of the jobs."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - see above

    registry = CollectorRegistry()
    registry.register(StatusCollector(statuses, past_ticks, backfills))
    return generate_latest(registry).decode()
