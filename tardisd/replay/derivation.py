"""What a session's derived candles are built from: chosen once, read again wherever it begins.

Chooses and reads; builds nothing itself (`derive`), and orders nothing (`merge`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tardisd.backfill.ledger import whole_candles
from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.market.quarters import quarter
from tardisd.market.series import DerivedSeries, Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import SECOND, Interval
from tardisd.plugins.sessions import SessionRequest
from tardisd.plugins.storage import Storage
from tardisd.replay.derive import CandleBuilder
from tardisd.replay.stored import Material, has_rows, material, refuse_without_data

_NAMED_IN_ERRORS = 8


@dataclass(frozen=True, slots=True)
class Derivation:
    """A series to build, and what is stored of its source."""

    series: DerivedSeries
    source: Material
    forming: bool = False

    @property
    def interval(self) -> Interval:
        """The interval of the candles."""
        interval = self.series.data_type.interval
        assert interval is not None
        return interval

    def first_after(self, ts: int, delay: int) -> int:
        """Return the open of the first candle that is released, closed, at `ts` or later."""
        return self.interval.floor(ts - delay - 1)

    def builder(
        self,
        span: Span,
        start: int | None = None,
        before: int | None = None,
        forming: bool = False,
    ) -> CandleBuilder:
        """Return a builder for the session's span whose source is read from `start` on."""
        source = self.source
        return CandleBuilder(
            self.series, source.series, span, source.coverage, source.causes, forming, start, before
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What there is for a session: series that are stored, and how the others are built."""

    materials: Sequence[Material] = ()
    derivations: Sequence[Derivation] = ()

    def settle(self, request: SessionRequest) -> SessionRequest:
        """Return the request with the sources that were chosen, to be the same ever after."""
        chosen = {one.series.text: one.series for one in self.derivations}
        return replace(request, derive=tuple(chosen[one.text] for one in request.derive))

    @property
    def versions(self) -> dict[str, int]:
        """The versions that the stored series have, those that candles are built of included."""
        read = [*self.materials, *(one.source for one in self.derivations)]
        return {one.series.text: one.version for one in read}

    def as_of(self, versions: Mapping[str, int]) -> Found:
        """Return the same, as at the time when the series had these versions.

        What was changed since then is told as a change, and not taken for what it was.
        """

        def then(one: Material) -> Material:
            return replace(one, version=versions.get(one.series.text, one.version))

        return Found(
            [then(one) for one in self.materials],
            [replace(one, source=then(one.source)) for one in self.derivations],
        )


async def find(storage: Storage[Any], request: SessionRequest, again: bool = False) -> Found:
    """Return what is stored for a request; a session that is taken up `again` is asked less.

    Raises RequestError: no_data, bad_request; StorageError.
    """
    derived = await _derivations(storage, request, again)
    series = sorted(dict.fromkeys(request.series), key=lambda one: one.order)
    if not derived and not again:
        await refuse_without_data(storage, series, Span(request.start, request.end))
    return Found([await material(storage, one) for one in series], derived)


async def _derivations(
    storage: Storage[Any], request: SessionRequest, again: bool
) -> list[Derivation]:
    """Return how the candles that a request asks to derive are built, in order."""
    if request.forming and not request.derive:
        raise RequestError("bad_request", "forming: only candles that are derived can be shown so")
    if request.derive and request.release == "open-lookahead":
        raise RequestError(
            "bad_request", "derive: candles are built of what was released, not with open-lookahead"
        )
    found = []
    for series in sorted(dict.fromkeys(request.derive), key=lambda one: one.order):
        _refuse_unfit(series, request)
        if isinstance(series, DerivedSeries):  # it was chosen before
            chosen = Series(series.exchange, series.symbol, series.source)
            source = await material(storage, chosen)
        else:
            choose = _choose if again else _better
            source = await choose(storage, series, Span(request.start, request.end))
        derived = DerivedSeries(
            series.exchange, series.symbol, series.data_type, source.series.data_type
        )
        found.append(Derivation(derived, source, request.forming))
    return found


def _refuse_unfit(series: Series, request: SessionRequest) -> None:
    interval = series.data_type.interval
    if interval is None:
        raise RequestError("bad_request", f"derive: {series} is not a series of candles")
    if series in request.series:
        raise RequestError("bad_request", f"derive: {series} is asked for as stored, too")
    span = Span(request.start, request.end)
    if whole_candles(span, interval) is None:
        raise RequestError("bad_request", f"derive: no whole candle of {series} fits in {span}")


async def _better(storage: Storage[Any], series: Series, span: Span) -> Material:
    """Return the source of a series; refuse to build what is stored for as much of the span."""
    stored = await material(storage, series) if await has_rows(storage, series, span) else None
    refusal = RequestError(
        "bad_request", f"derive: {series} is stored; ask for it in 'series' instead"
    )
    try:
        source = await _choose(storage, series, span)
    except RequestError:
        if stored is not None:
            raise refusal from None
        raise
    interval = series.data_type.interval
    assert interval is not None
    within = whole_candles(span, interval)
    if stored is not None and within is not None:
        kept, built = (_whole_ns(one.coverage, interval, within) for one in (stored, source))
        if kept >= built:
            raise refusal
    return source


async def _choose(storage: Storage[Any], series: Series, span: Span) -> Material:
    """Return the source that covers most of the span's whole candles, the coarsest among equals."""
    interval = series.data_type.interval
    assert interval is not None
    within = whole_candles(span, interval)
    assert within is not None
    stored = [
        info.series
        for info in await storage.list_series()
        if info.rows and info.series.key[:3] == series.key[:3] and info.series.key != series.key
    ]
    usable = []
    for one in stored:
        if (rank := _rank(one, interval)) is not None and await has_rows(storage, one, within):
            found = await material(storage, one)
            usable.append((rank[0], -_whole_ns(found.coverage, interval, within), rank[1:], found))
    if usable:
        return min(usable, key=lambda item: item[:3])[3]
    needed = f"trades, or candles whose interval divides {interval}"
    if not stored:
        raise RequestError(
            "no_data", f"derive: nothing is stored to build {series} from; needed: {needed}"
        )
    names = ", ".join(map(str, stored[:_NAMED_IN_ERRORS]))
    more = ", …" if len(stored) > _NAMED_IN_ERRORS else ""
    raise RequestError(
        "no_data",
        f"derive: nothing stored in {span} can make {series}; needed: {needed};"
        f" stored: {names}{more}",
    )


def _rank(source: Series, interval: Interval) -> tuple[int, int, int] | None:
    """Return how good a source is (less is better), or None when it cannot be one.

    Aggregates come after everything; else candles, the coarsest first, before trades.
    """
    finer = source.data_type.interval
    if finer is not None:
        return (0, 0, -finer.nominal_ns) if interval.holds(finer) else None
    return {"trade": (0, 1, 0), "agg_trade": (1, 0, 0)}.get(source.data_type.name)


def _whole_ns(coverage: Coverage, interval: Interval, within: Span) -> int:
    parts = (whole_candles(part, interval) for part in coverage.intersect(within))
    return sum(part.length for part in parts if part is not None)


@dataclass(frozen=True, slots=True)
class Resumption:
    """Where to read a source from when a session begins in the middle.

    `start` is an open. The last row of the source before it is at `before`. `last` is the candle
    that was released last, where it does not come of what is read.
    """

    start: int
    before: int | None = None
    last: Batch | None = None


async def resume_at(
    storage: Storage[Any], derivation: Derivation, span: Span, before: int, delay: int
) -> Resumption:
    """Return from where on a source must be read to build what is not released before `before`.

    That is the interval of the source's last row before the first candle that is still to come:
    gaps that are open then begin there at the latest.
    """
    interval, source = derivation.interval, derivation.source.series
    builder = derivation.builder(span)
    within = builder.within
    first = min(max(derivation.first_after(before, delay), within.start), within.end)
    row = await storage.last_before(source, first)
    if row is None or int(row.ts_event[0]) < within.start:
        return Resumption(within.start)
    start = interval.floor(int(row.ts_event[0]))
    uncovered = Coverage(gap.span for gap in builder.uncovered)
    if source.data_type.interval is None and start not in uncovered:
        return Resumption(start)  # trades have no hidden holes: there is a candle of these
    last = await _last_closed(storage, derivation, span, first, uncovered)
    if last is not None and int(last.ts_event[0]) >= start:
        last = None
    return Resumption(start, await _row_before(storage, source, start), last)


async def foldable(
    storage: Storage[Any], derivation: Derivation, missed: Span, before: int, delay: int
) -> Span:
    """Return the first part of `missed` that may be read as quarter-hours; it may be empty.

    That is what no candle can tell from the single trades: none that forms is shown of it at
    `before` or later, nor is it the last one that was shown before that.
    """
    source = derivation.source.series
    if source.data_type.interval is None and derivation.interval.holds(quarter()):
        row = await storage.last_before(source, before - delay - SECOND)
        if row is not None and (upto := quarter().floor(int(row.ts_event[0]))) > missed.start:
            return Span(missed.start, min(upto, quarter().floor(missed.end)))
    return Span(missed.start, missed.start)


async def _row_before(storage: Storage[Any], source: Series, ts: int) -> int | None:
    row = await storage.last_before(source, ts)
    return None if row is None else int(row.ts_event[0])


async def _last_closed(
    storage: Storage[Any], derivation: Derivation, span: Span, before: int, uncovered: Coverage
) -> Batch | None:
    """Return the last candle that closes at or before `before`, built of the source's rows."""
    interval, source = derivation.interval, derivation.source.series
    while (row := await storage.last_before(source, before)) is not None:
        before = interval.floor(int(row.ts_event[0]))
        if before < span.start:
            return None
        if before in uncovered:
            before = next(part.start for part in uncovered if before in part)
            continue
        builder = derivation.builder(span, before, await _row_before(storage, source, before))
        async with storage.read(source, Span(before, interval.close(before))) as batches:
            candles = [builder.feed(batch.within(span)).closed async for batch in batches]
        found = Batch.concat([*candles, builder.finish().closed])
        if len(found) and int(found.ts_event[0]) == before:
            return found[:1]
    return None
