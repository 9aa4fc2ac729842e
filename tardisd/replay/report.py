"""What a session says of itself in `status` and `session_created`; changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Protocol

from tardisd.market.time import MILLISECOND
from tardisd.plugins.sessions import SessionRequest
from tardisd.replay.block import SessionBlock
from tardisd.replay.course import Course


class SinkFacts(Protocol):
    """What a session tells of the sinks it is delivered to."""

    def facts(self) -> dict[str, Any]:
        """Return name, state and last error."""


def asked(request: SessionRequest) -> dict[str, Any]:
    """Return what was asked for, as messages show it."""
    derived = {"derive": [series.text for series in request.derive]} if request.derive else {}
    return {
        "series": [series.text for series in request.series],
        **derived,
        "start_time": request.start // MILLISECOND,
        "end_time": request.end // MILLISECOND,
    }


def as_objects(blocks: Sequence[SessionBlock]) -> list[dict[str, Any]]:
    """Return ticks as objects, as in `ticks` messages (a slow path, for few of them)."""
    found: list[dict[str, Any]] = []
    for block in blocks:
        rows = bytes(block.encode("batch").bytes()).rstrip(b",")
        found += json.loads(b"[" + rows + b"]", parse_float=Decimal)
    return found


def report(
    session_id: str,
    created_at: int,
    status: str,
    course: Course,
    sinks: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Return the fields of protocol §1 `status`, and more of how the session does."""
    time, audience, progress = course.stage.time, course.stage.audience, course.progress
    return {
        "session_id": session_id,
        "status": status,
        **asked(course.stage.request),
        "clock": time.market() // MILLISECOND,
        "speed": time.speed,
        "achieved_speed": time.achieved_speed,
        "seq": course.told_seq,
        "epoch": course.number,
        "ticks": progress.ticks,
        "subscribers": len(audience),
        "lag_ms": time.lag_ms(),
        "emission_error_ms": time.emission_error_ms(),
        "waiting_for": course.waiting_for(),
        "queues": audience.facts(),
        "sinks": list(sinks),
        "origin": course.stage.request.origin,
        "durable": course.stage.request.durable,
        "created_at": created_at,
    }
