"""Real blocks made of batches by the engine's own merge, for tests of sinks; paces nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tardisd.market.columns import Batch
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.replay.block import Prepared, SessionBlock, make_encoders
from tardisd.replay.digest import new_digest
from tardisd.replay.merge import Mark, Merger, Track
from tardisd.wire.encode import Frame

SENT_MS = 1_700_000_000_000


def make_stream(
    batches: Sequence[Batch],
    session_id: str = "suite",
    *,
    span: Span | None = None,
    coverage: Mapping[Series, Coverage] | None = None,
    slice_ticks: int = 2048,
    publish_delay: int = 0,
    lookahead: bool = False,
    epoch: int = 1,
    window_ticks: int = 0,
) -> list[SessionBlock | Mark]:
    """Return what a session over the batches delivers: blocks and gap marks, in total order.

    Several batches of one series follow one another. Without `span` it reaches from the first tick
    to the last; a series without `coverage` is covered.
    """
    by_series: dict[Series, list[Batch]] = {}
    for batch in batches:
        by_series.setdefault(batch.series, []).append(batch)
    if span is None:
        extents = [batch.extent() for batch in batches if len(batch)]
        span = Span(min(e.start for e in extents), max(e.end for e in extents))
    whole = Coverage([span])
    tracks = [
        Track(series, span, (coverage or {}).get(series, whole), (), publish_delay)
        for series in by_series
    ]
    merger = Merger(tracks, lookahead, window_ticks)
    rest = {series: iter(parts) for series, parts in by_series.items()}
    encoders = make_encoders(Frame("tick", session_id, epoch, lookahead))
    stream: list[SessionBlock | Mark] = []
    seq, digest = 1, new_digest()
    while not merger.done:
        while hungry := merger.hungry():
            for track in hungry:
                rows = (one.within(span) for one in rest[track.series])
                found = next((one for one in rows if len(one)), None)
                if found is None:
                    track.finish()
                else:
                    merger.feed(track, found)
        window = merger.window()
        for item in window:
            if isinstance(item, Mark):
                stream.append(item)
                seq += 1
                continue
            piece = window.piece(*item)
            block = Prepared(
                session_id,
                epoch,
                piece.kinds,
                piece.runs,
                piece.release,
                encoders,
                seq,
                digest.copy().copy,
            )
            digest.update(block.records().bytes())
            seq += len(block)
            for first in range(0, len(block), slice_ticks):
                part = block[first : first + slice_ticks]
                part.sent_ms = SENT_MS
                stream.append(part)
    return stream


def make_blocks(
    batches: Sequence[Batch], session_id: str = "suite", *, slice_ticks: int = 2048
) -> list[SessionBlock]:
    """Return the blocks of a session over the batches, without its gap marks."""
    stream = make_stream(batches, session_id, slice_ticks=slice_ticks)
    return [item for item in stream if not isinstance(item, Mark)]
