"""Texts of parameters to values, and values to JSON; raises RequestError naming the parameter."""

from __future__ import annotations

from tardisd.control.methods import Time
from tardisd.errors import RequestError
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import MILLISECOND, check_instant, format_time, parse_time


def series_of(text: str, parameter: str = "series") -> Series:
    """Return the series written `exchange:symbol@data_type`."""
    try:
        return Series.parse(text)
    except ValueError as error:
        raise RequestError("bad_request", f"{parameter}: {error}") from None


def time_of(value: Time, parameter: str) -> int:
    """Return ns for integer milliseconds or ISO-8601 text with a zone."""
    try:
        return check_instant(parse_time(value))
    except ValueError as error:
        raise RequestError("bad_request", f"{parameter}: {error}") from None


def span_of(start: Time, end: Time, first: str = "from", last: str = "to") -> Span:
    """Return the span between two times; `first` and `last` are the parameters' names."""
    start_ts, end_ts = time_of(start, first), time_of(end, last)
    if end_ts <= start_ts:
        raise RequestError(
            "bad_request", f"{last}: must be after {first} ({format_time(start_ts)})"
        )
    return Span(start_ts, end_ts)


def part_of(start: Time | None, end: Time | None, whole: Span | None) -> Span | None:
    """Return the span asked for, open ends filled from `whole`; None when nothing is stored."""
    if start is not None and end is not None:
        return span_of(start, end)
    if whole is None:
        return None
    first = whole.start if start is None else time_of(start, "from")
    last = whole.end if end is None else time_of(end, "to")
    return Span(first, max(first, last))


def instant_json(ts: int | None) -> int | None:
    """Return milliseconds for ns."""
    return None if ts is None else ts // MILLISECOND
