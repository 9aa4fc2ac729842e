"""What derived candles must be, in plain Python: one interval at a time, fractions for numbers."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from tardisd.market.decimals import check_decimal
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Gap, Span
from tardisd.market.time import SECOND

FIELDS = ("open", "high", "low", "close", "volume", "quote_volume", "trades")


@dataclass(frozen=True)
class Row:
    """A row of the source: when it is, when it can be known, and its numbers as text."""

    at: int
    known: int
    values: dict[str, str | None]


def text_of(value: Fraction) -> str | None:
    """Return decimal text, or None for what an exact column cannot hold."""
    scaled = value * 10**18
    if scaled.denominator != 1 or abs(int(value)) >= 2**63:
        return None
    digits = f"{abs(int(scaled)):019d}"
    fraction = digits[-18:].rstrip("0")
    sign = "-" if scaled < 0 else ""
    return sign + digits[:-18] + (f".{fraction}" if fraction else "")


def candle(rows: list[Row], kind: str) -> tuple[str | None, ...]:
    """Return the fields of the candle that the rows make."""
    trade = kind != "candle"
    amount = "amount" if trade else "volume"
    priced = [r for r in rows if Fraction(r.values[amount]) != 0] or rows
    first, last = priced[0].values, priced[-1].values
    if trade:
        highs = lows = [Fraction(r.values["price"]) for r in priced]
        quotes = [text_of(Fraction(r.values["price"]) * Fraction(r.values["amount"])) for r in rows]
        counts: list[str | None] = ["1" if kind == "trade" else None] * len(rows)
    else:
        highs = [Fraction(r.values["high"]) for r in priced]
        lows = [Fraction(r.values["low"]) for r in priced]
        quotes = [r.values.get("quote_volume") for r in rows]
        counts = [r.values.get("trades") for r in rows]

    def total(texts: list[str | None]) -> str | None:
        return None if None in texts else text_of(sum(map(Fraction, texts), Fraction(0)))

    return (
        text_of(Fraction(first["price" if trade else "open"])),
        text_of(max(highs)),
        text_of(min(lows)),
        text_of(Fraction(last["price" if trade else "close"])),
        total([r.values[amount] for r in rows]),
        total(quotes),
        total(counts),
    )


@dataclass
class Expected:
    """Closed candles by open, forming ones by (open, update), and causes of empty intervals."""

    closed: dict[int, tuple[str | None, ...]]
    forming: dict[tuple[int, int], tuple[str | None, ...]]
    causes: dict[int, set[str]]


def derive(
    series: Series,
    source: Series,
    span: Span,
    rows: list[Row],
    coverage: Coverage,
    causes: list[Gap],
) -> Expected:
    """Return what is to be built over `span` from the source's rows, all at once."""
    interval, finer = series.data_type.interval, source.data_type.interval
    assert interval is not None
    result = Expected({}, {}, {})
    start, end = interval.ceil(span.start), interval.floor(span.end)
    at = start
    while at < end:
        close = interval.close(at)
        inside = [r for r in rows if at <= r.at < close and (finer is None or r.known <= close)]
        astride = [
            r
            for r in rows
            if finer is not None
            and start <= r.at
            and r.known <= end
            and interval.close(interval.floor(r.at)) < r.known
            and r.at < close
            and interval.ceil(r.known) > at
        ]
        broken = since = None
        if coverage.gaps(Span(at, close)):
            broken, since = {"any"}, at
        elif finer is not None:
            holes = _unexplained(rows, finer, coverage, causes, Span(start, end))
            touching = [s for s, e in holes if interval.floor(s) < close and interval.ceil(e) > at]
            times = [max(s, at) for s in touching]
            times += [max(at, interval.close(interval.floor(r.at))) for r in astride]
            if times:
                broken, since = {"unknown"}, min(times)
        if not inside and broken is None:
            default = "no_trades" if finer is None else "unknown"
            known = {g.cause for g in causes if g.span.intersect(Span(at, close))}
            broken = (known & {"no_trades", "exchange_down"}) | {default}
        if broken is None:
            result.closed[at] = candle(inside, source.data_type.kind)
        else:
            result.causes[at] = broken
        for row in inside:
            known = row.known + (finer is None)
            update = -(-known // SECOND) * SECOND
            if update < close and (since is None or update <= since):
                upto = [r for r in inside if r.known + (finer is None) <= update]
                result.forming[at, update] = candle(upto, source.data_type.kind)
        at = close
    return result


def _unexplained(
    rows: list[Row], finer: Any, coverage: Coverage, causes: list[Gap], span: Span
) -> list[tuple[int, int]]:
    """Return the holes between candles that no recorded cause explains, in covered time."""
    start, end = finer.ceil(span.start), finer.floor(span.end)
    holes, cursor = [], start
    for row in [r for r in rows if start <= r.at and r.known <= end]:
        if row.at > cursor:
            holes.append(Span(cursor, row.at))
        cursor = max(cursor, row.known)
    if cursor < end:
        holes.append(Span(cursor, end))
    told = Coverage(g.span for g in causes if g.cause in ("no_trades", "exchange_down"))
    proven = Coverage(
        Span(finer.ceil(s.start), max(finer.ceil(s.start), finer.floor(s.end)))
        for s in coverage.intersect(span)
    )
    return [
        (part.start, part.end)
        for hole in holes
        for piece in proven.intersect(hole)
        for part in Coverage([piece]).subtract(told)
    ]


def exact(text: str) -> Decimal:
    """Return the value of decimal text that a column can hold."""
    return check_decimal(text)
