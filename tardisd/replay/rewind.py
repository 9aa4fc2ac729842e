"""Finds the position some ticks before another one: storages are read forward only."""

from __future__ import annotations

from tardisd.market.time import SECOND
from tardisd.replay.position import Position
from tardisd.replay.source import Source

_FIRST_NS = SECOND
_WIDER = 8


async def ticks_before(source: Source, position: Position, count: int) -> tuple[Position, int]:
    """Return the position `count` ticks before another one, and how many ticks lie between.

    There are fewer than `count` when the session's start comes first. Looks at ever longer
    stretches before the position, so the effort grows with the time that those ticks span.
    """
    start, reach = source.span.start, _FIRST_NS
    while True:
        since = max(start, position.release - reach)
        found = await source.releases(since, position, count)
        if len(found) >= count:
            # One more look, at whole times: how many ticks of that very time come before it.
            release = int(found[0])
            equal = await source.releases(release, position, _ALL)
            return Position(release, len(equal) - count), count
        if since == start:
            return Position(start), len(found)
        reach *= _WIDER


_ALL = 1 << 62
