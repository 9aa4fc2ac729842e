"""Find the format of a file: sample its first lines and ask each FileFormat; reads no data rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from tardisd.errors import DataError
from tardisd.market.columns import SCHEMAS
from tardisd.market.series import SPOT, Series, Symbol
from tardisd.plugins.format import ROLES, FileFormat, Layout, Sample

SAMPLE_ROWS = 20
_DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to read one file: its format's name, layout, delimiter, and what people call columns.

    `scales` are the fraction digits that the sample shows, per decimal field: where to begin.
    """

    format_name: str
    layout: Layout
    delimiter: str
    labels: tuple[str, ...]
    scales: dict[str, int]


def take_sample(file_name: str, member: str | None, head: bytes) -> Sample:
    """Return the sample of a file that begins with `head`."""
    text = head.decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()][:SAMPLE_ROWS]
    first = lines[0] if lines else ""
    delimiter = max(_DELIMITERS, key=first.count)
    rows = csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter)
    cells: list[list[str]] = []
    with suppress(csv.Error):  # a broken row is told with its line when the rows are read
        cells.extend([cell.strip() for cell in row] for row in rows)
    return Sample(file_name, cells, member, delimiter)


def choose_format(sample: Sample, series: Series, formats: Sequence[FileFormat]) -> Recipe:
    """Return the recipe of the format that knows the file; DataError says what it looks like."""
    kind = series.data_type.kind
    usable = [f for f in formats if not f.exchanges or series.exchange in f.exchanges]
    # A format that names the exchange knows better than one that takes any.
    for rank in (True, False):
        found = [
            (format_, layout)
            for format_ in usable
            if bool(format_.exchanges) == rank and kind in format_.kinds
            if (layout := _match(format_, sample, kind)) is not None
        ]
        if len(found) > 1:
            names = " and ".join(sorted(format_.name for format_, _ in found))
            raise DataError(f"formats {names} both claim this file", file=sample.file_name)
        for format_, layout in found:
            _check_layout(format_, layout, kind)
            _check_origin(sample, layout, series)
            _check_symbol(sample, layout, series)
            return _recipe(sample, format_, layout, kind)
    raise DataError(_unknown(sample, series, usable, formats), file=sample.file_name)


def _match(format_: FileFormat, sample: Sample, kind: str) -> Layout | None:
    try:
        return format_.match(sample, kind)
    except DataError as error:
        raise DataError(error.reason, file=sample.file_name) from None


def _unknown(
    sample: Sample, series: Series, usable: Sequence[FileFormat], formats: Sequence[FileFormat]
) -> str:
    kind = series.data_type.kind
    for format_ in sorted(usable, key=lambda f: not f.exchanges):
        for other in sorted(format_.kinds - {kind}):
            if _match(format_, sample, other) is not None:
                name = "candle_<interval>" if other == "candle" else other
                return (
                    f"looks like {format_.name} ({other}), not like {kind} data;"
                    f" import it with data type {name}"
                )
    for format_ in formats:
        for other in sorted(format_.kinds):
            if format_ not in usable and _match(format_, sample, other) is not None:
                venues = ", ".join(sorted(format_.exchanges))
                return (
                    f"looks like {format_.name} ({other}) of {venues}, not of {series.exchange};"
                    f" import it with exchange {venues}"
                )
    known = sorted({f.name for f in usable if kind in f.kinds})
    width = len(sample.cells[0]) if sample.cells else 0
    begins = sample.delimiter.join(sample.cells[0])[:60] if sample.cells else ""
    return (
        f"no known format of {kind} data matches: the file has {width} columns and begins"
        f" with {begins!r}; known are {', '.join(known) or 'none'}"
    )


def _check_layout(format_: FileFormat, layout: Layout, kind: str) -> None:
    """Refuse a layout that cannot give the kind's ticks: a fault of the format plugin."""
    schema = SCHEMAS[kind]
    needed = {"time", *(name for name in schema.fields if name not in schema.optional)}
    missing = sorted(needed - set(layout.columns))
    if schema.has_side and not {"side", "buyer_is_maker"} & set(layout.columns):
        missing.append("side")
    meaning = [c for c in layout.columns if c in ROLES or c in schema.fields]
    twice = sorted({name for name in meaning if meaning.count(name) > 1})
    if missing or twice:
        what = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(twice)} twice"
        raise DataError(
            f"the layout of format {format_.name!r} {what}; this is a bug of its plugin"
        )


def _check_origin(sample: Sample, layout: Layout, series: Series) -> None:
    symbol = series.symbol
    if layout.exchange not in (None, series.exchange):
        raise DataError(
            f"the file is of {layout.exchange}, but the series is {series};"
            f" import it with exchange {layout.exchange}",
            file=sample.file_name,
        )
    if layout.market not in (None, symbol.kind):
        pair = f"{symbol.base}/{symbol.quote}"
        other = pair if layout.market == SPOT else f"{pair}:{symbol.quote}"
        raise DataError(
            f"the file is of the {layout.market} market, but the series is {series};"
            f" import it with symbol {other}",
            file=sample.file_name,
        )


def _check_symbol(sample: Sample, layout: Layout, series: Series) -> None:
    stated = layout.venue_id
    if stated is None or same_symbol(stated, series):
        return
    raise DataError(
        f"the file name says {stated}, but the series is {series};"
        " import it as its own symbol, or rename the file when its name is wrong",
        file=sample.file_name,
    )


def same_symbol(text: str, series: Series) -> bool:
    """Tell whether a venue's or vendor's spelling means the symbol of the series."""
    symbol = series.symbol
    pair = f"{symbol.base}{symbol.quote}"
    other = Symbol(symbol.base, symbol.quote, None if symbol.settle else symbol.quote)
    if text.upper() == other.venue_id(series.exchange) != symbol.venue_id(series.exchange):
        return False  # where spot and swap have ids of their own, the one is not the other
    known = {pair, *(f"{pair}{tail}" for tail in (symbol.settle, "SWAP", "PERP") if tail)}
    return _plain(text) in {_plain(name) for name in (*known, symbol.venue_id(series.exchange))}


def _plain(text: str) -> str:
    return "".join(char for char in text.upper() if char.isalnum())


def _recipe(sample: Sample, format_: FileFormat, layout: Layout, kind: str) -> Recipe:
    labels = layout.labels or layout.columns
    rows = sample.cells[1:] if layout.header else sample.cells
    if layout.header and sample.cells and len(sample.cells[0]) == len(layout.columns):
        labels = tuple(sample.cells[0])
    scales = {}
    for at, name in enumerate(layout.columns):
        if name in SCHEMAS[kind].fields:
            digits = [len(row[at].partition(".")[2]) for row in rows if at < len(row)]
            scales[name] = min(max(digits, default=0), 18)
    prices = [name for name in ("open", "high", "low", "close") if name in scales]
    for name in prices:  # one scale for all lets the checks compare mantissas
        scales[name] = max(scales[price] for price in prices)
    return Recipe(format_.name, layout, sample.delimiter, labels, scales)
