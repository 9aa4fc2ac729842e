"""Proves what a session has released: replays it from the storage, and compares the hashes."""

from __future__ import annotations

from typing import Any

from tardisd.errors import RequestError
from tardisd.replay.block import Prepared
from tardisd.replay.course import Course
from tardisd.replay.digest import new_digest
from tardisd.replay.position import Position
from tardisd.replay.prepare import Opening
from tardisd.replay.source import Source


async def prove(source: Source, course: Course) -> dict[str, Any]:
    """Replay an epoch, as far as it has come, for nobody; return both hashes, and if they agree.

    `changed` names the stored series that changed since the session was created. Raises
    RequestError for a session of which only the end is known, or no content hash.
    """
    if not source.series:
        raise RequestError(
            "wrong_state",
            f"session {source.session_id!r} ended before the daemon was started; create it again",
        )
    await course.progress.hash_known()
    if not course.progress.hash_is_known:
        raise RequestError(
            "wrong_state",
            f"the content hash of session {source.session_id!r} is not known: it was still being"
            " found when the session or the daemon ended",
        )
    told, expected = course.progress.ticks, course.progress.hexdigest()
    opening = Opening(course.begin, middle=course.begin > Position(source.span.start))
    ticks, found = 0, new_digest()
    if told:
        async with source.aside().open(course.number, opening) as items:
            async for item in items:
                if isinstance(item, Prepared):
                    row = min(len(item), told - ticks)
                    ticks += row
                    if ticks == told:
                        found = item.hash_upto(row)
                        break
    before, now = source.versions(), await source.versions_now()
    changed = sorted(name for name, version in now.items() if version != before[name])
    return {
        "epoch": course.number,
        "equal": ticks == told and found.hexdigest() == expected,
        "ticks": ticks,
        "hash": found.hexdigest(),
        "expected_ticks": told,
        "expected_hash": expected,
        "data_changed": bool(changed),
        "changed": changed,
    }
