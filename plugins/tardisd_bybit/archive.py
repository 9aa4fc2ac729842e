"""The trade files of public.bybit.com: which there are, and which to take; reads no row.

Its folders have an HTML index each, and nothing else says what is there. Swaps have a file per day;
spot has one per day and one per month, of which the days are taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tardisd.market.series import SWAP, Series
from tardisd.market.span import Span
from tardisd.venue.client import Unreadable

from .formats import span_of_name

_LINK = re.compile(rb"""href=["']?\.?/?([^"'/>?\s]+\.csv\.gz)["'\s>]""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class File:
    """One file: its path at the host, and the time (ns) that it holds."""

    path: str
    span: Span


def folder_of(series: Series) -> str:
    """Return the path of the folder of a symbol."""
    root = "trading" if series.symbol.kind == SWAP else "spot"
    return f"/{root}/{series.symbol.venue_id(series.exchange)}/"


def names_in(body: bytes) -> list[str]:
    """Return the names of the files in an index; Unreadable for a page that is none."""
    if b"</html>" not in body.lower():
        raise Unreadable("the index is cut off, or is no web page")
    return [name.decode() for name in dict.fromkeys(_LINK.findall(body)) if name.isascii()]


def files_of(series: Series, names: Iterable[str]) -> list[File]:
    """Return the files to take, in order and without overlap: days, and months where there is none.

    Names that are not of the symbol are left out.
    """
    folder, symbol = folder_of(series), series.symbol.venue_id(series.exchange)
    found = [
        File(folder + name, Span(*span))
        for name in names
        for venue_id, span in [span_of_name(name)]
        if venue_id == symbol and span is not None
    ]
    shortest = min((file.span.length for file in found), default=0)
    days = [file for file in found if file.span.length == shortest]
    taken = {file.span.start: file for file in days}
    for month in (file for file in found if file.span.length > shortest):
        if not any(day.span.intersect(month.span) for day in days):
            taken[month.span.start] = month
    return [taken[start] for start in sorted(taken)]
