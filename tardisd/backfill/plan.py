"""What a backfill has to fetch: the span asked for without what is stored; fetches nothing."""

from __future__ import annotations

from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import EARLIEST, LATEST, Interval


def missing_spans(series: Series, span: Span, coverage: Coverage, *, again: int = 1) -> list[Span]:
    """Return what of `span` is to be fetched, in order.

    Candles are asked for whole: their spans reach from an open to a close, even when `span` does
    not. What continues the newest covered time begins with the last `again` covered candles (one at
    least), because venues revise recent ones. Nothing is returned when nothing is missing.
    """
    interval = series.data_type.interval
    if interval is None:
        return coverage.gaps(span)
    if not span:
        return []
    missing = coverage.gaps(_whole(span, interval))
    hull = coverage.hull
    if missing and hull is not None and missing[-1].start == hull.end:
        recent = hull.end - 1 - (again - 1) * interval.nominal_ns
        missing[-1] = Span(max(recent, hull.start), missing[-1].end)
    return list(Coverage(_whole(part, interval) for part in missing))


def closed_before(series: Series, ts: int) -> int:
    """Return the end (ns) of what can be complete when the venue's clock says `ts`."""
    interval = series.data_type.interval
    return ts if interval is None else interval.floor(ts)


def _whole(span: Span, interval: Interval) -> Span:
    """Return the span widened to whole candles, within the years that times may have."""
    start, end = interval.floor(span.start), interval.ceil(span.end)
    return Span(max(start, min(EARLIEST, span.start)), min(end, max(LATEST, span.end)))


def fetchable(series: Series, span: Span | None, now: int | None) -> Span | None:
    """Return what to fetch of a span: not beyond what is closed at `now`, or None for nothing."""
    if span is None or now is None:
        return span
    end = min(span.end, closed_before(series, now))
    return Span(span.start, end) if span.start < end else None
