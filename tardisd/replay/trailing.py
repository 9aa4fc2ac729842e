"""Hashes what a session had released before a restart, while the session goes on; paces nothing.

It has a reader of its own, which goes on until it has caught up with the blocks that the session
prepares: then they carry the hash on. Until then nothing of theirs is kept for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from tardisd.errors import TardisError
from tardisd.log import Log
from tardisd.replay.block import Prepared
from tardisd.replay.course import Course
from tardisd.replay.position import Position
from tardisd.replay.prepare import Opening
from tardisd.replay.source import Source
from tardisd.replay.trail import Trail
from tardisd.supervise import Backoff, attempt, describe

log = Log("tardisd.sessions")

# A storage may be away for a moment; after so many attempts it is for longer.
_ATTEMPTS = 5
_CHANGED = "what was released before the restart is not what is stored now"


class DataChanged(TardisError):
    """What is stored is not what was released."""


async def trail_behind(
    source: Source,
    course: Course,
    trail: Trail,
    expected: tuple[int, str] | None,
    disproved: Callable[[], None],
) -> None:
    """Find the content hash of an epoch from its beginning to where its blocks take it over.

    `expected` are a number of ticks and the hash that they had before the restart; `disproved` is
    called when they have another one.
    """
    why: str | None = "it was not found in time"
    try:
        with trail.scope:
            async with source.workers.trails:
                error = await _try(partial(_read, source, course, trail, expected), trail)
            why = None if error is None else describe(error)
            if error is not None:
                trail.restart()
                log.warning("session not hashed", session=source.session_id, error=why)
            if isinstance(error, DataChanged):
                trail.finish(why)
                disproved()
    finally:
        trail.finish(why)


async def _try(read: Callable[[], Awaitable[None]], trail: Trail) -> Exception | None:
    """Read, more than once if the storage is away; return the error that stays."""
    backoff = Backoff()
    while True:
        error = await attempt(read)
        if error is None or isinstance(error, DataChanged) or backoff.attempts + 1 >= _ATTEMPTS:
            return error
        trail.restart()
        await trio.sleep(backoff.next())


async def _read(
    source: Source, course: Course, trail: Trail, expected: tuple[int, str] | None
) -> None:
    opening = Opening(course.begin, middle=course.begin > Position(source.span.start))
    limiter = source.workers.limiter
    async with source.aside().open(course.number, opening) as items:
        async for item in items:
            if not isinstance(item, Prepared):
                continue
            trail.add(item, course.progress.ticks)
            if expected is not None and expected[0] <= trail.ticks:
                digest = await trio.to_thread.run_sync(trail.hash_at, expected[0], limiter=limiter)
                if digest.hexdigest() != expected[1]:
                    raise DataChanged(_CHANGED)
                expected = None
            while (wanted := trail.wanted) <= trail.ticks:
                digest = await trio.to_thread.run_sync(trail.hash_at, wanted, limiter=limiter)
                if trail.give(wanted, digest):
                    return
    raise DataChanged(_CHANGED)
