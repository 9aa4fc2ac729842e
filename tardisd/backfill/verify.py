"""Check what is stored of a series against itself: bytes, order, ids; mends nothing.

Reading checks the storage's checksums. Integer trade ids leave no number out within covered time,
unless the venue does: of swaps some numbers are burnt, so there it is only told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import trio

from tardisd.backfill.compare import compare_candles
from tardisd.errors import DataError, StorageCorrupt
from tardisd.market.check import check_batch
from tardisd.market.columns import Batch
from tardisd.market.decimals import Ints
from tardisd.market.series import SWAP, DataType, Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import format_time
from tardisd.plugins.storage import Storage
from tardisd.progress import Progress

OK, WRONG, SKIPPED = "ok", "wrong", "skipped"
MAX_DETAILS = 5


@dataclass(slots=True)
class Check:
    """The outcome of one check: `problems` among `checked` rows, the first few in words."""

    name: str
    state: str = OK
    checked: int = 0
    problems: int = 0
    details: list[str] = field(default_factory=list)

    def blame(self, detail: str, problems: int = 1) -> None:
        """Note problems."""
        self.state = WRONG
        self.tell(detail, problems)

    def tell(self, detail: str, problems: int = 1) -> None:
        """Note something that need not be wrong."""
        self.problems += problems
        if len(self.details) < MAX_DETAILS:
            self.details.append(detail)

    def skip(self, why: str) -> None:
        """Note that there was nothing to check."""
        self.state, self.details = SKIPPED, [why]


async def verify_series(
    storage: Storage[Any],
    series: Series,
    span: Span,
    progress: Callable[[Progress], None] = lambda _: None,
) -> list[Check]:
    """Return the outcome of every check of the part of a series within `span`."""
    checksums, order = Check("checksums"), Check("order")
    ids = IdRuns((await storage.coverage(series)).intersect(span))
    last: Batch | None = None
    try:
        async with storage.read(series, span) as batches:
            async for batch in batches:
                checksums.checked += len(batch)
                await trio.to_thread.run_sync(_check_order, order, last, batch)
                await trio.to_thread.run_sync(ids.feed, batch)
                last = batch[-1:] if len(batch) else last
                at = 0 if last is None else int(last.ts_event[0]) - span.start
                text = f"{series}: {checksums.checked:,} rows read"
                progress(Progress(at, span.length, "ns", text))
    except StorageCorrupt as error:
        checksums.blame(f"{error.message}; nothing behind it was checked")
    checks = [checksums, order, ids.finish(series)]
    if checksums.state == OK:
        checks += await _compare(storage, series, span)
    return checks


def _check_order(order: Check, before: Batch | None, batch: Batch) -> None:
    order.checked += len(batch)
    try:
        check_batch(batch)
        if before is not None and len(batch):
            check_batch(Batch.concat([before, batch[:1]]))
    except DataError as error:
        at = "" if error.row is None else f" at {format_time(int(batch.ts_event[error.row]))}"
        order.blame(f"{error.message}{at}")


class IdRuns:
    """Finds integer ids that are left out within covered time, in rows that come in order."""

    def __init__(self, coverage: Coverage) -> None:
        self._starts = np.array([span.start for span in coverage], np.int64)
        self._run = -1
        self._count = self._first = self._last = self._newest = 0
        self._jumps: list[tuple[int, int, int]] = []
        self._check = Check("trade ids")
        self._integers: bool | None = None

    def feed(self, batch: Batch) -> None:
        """Take in the next rows."""
        if not len(batch):
            return
        if batch.ids is None or batch.ids.dtype.kind != "i":
            self._integers = False
        if self._integers is False:
            return
        self._integers = True
        assert batch.ids is not None
        runs = np.searchsorted(self._starts, batch.ts_event, "right")
        cuts = [0, *(np.flatnonzero(np.diff(runs)) + 1).tolist(), len(batch)]
        for first, last in pairwise(cuts):
            run = int(runs[first])
            self._feed_run(run, batch.ids[first:last], batch.ts_event[first:last])

    def _feed_run(self, run: int, ids: Ints, times: Ints) -> None:
        if run != self._run or not self._count:
            self._end_run()
            self._run, self._newest = run, int(ids[0]) - 1
            self._first = self._last = int(ids[0])
        steps = np.diff(ids, prepend=self._newest)
        for at in np.flatnonzero(steps > 1)[: MAX_DETAILS - len(self._jumps)].tolist():
            self._jumps.append((int(ids[at]) - int(steps[at]), int(ids[at]), int(times[at])))
        self._count += len(ids)
        self._first = min(self._first, int(ids.min()))
        self._last = max(self._last, int(ids.max()))
        self._newest = int(ids[-1])

    def _end_run(self) -> None:
        self._check.checked += self._count
        missing = self._last - self._first + 1 - self._count if self._count else 0
        if missing < 0:
            self._check.blame(f"{-missing} ids come twice", -missing)
        elif missing:
            self._check.blame(f"{missing:,} ids from {self._first} to {self._last} are missing",
                              missing)  # fmt: skip
            for before, after, ts in self._jumps:
                told = f"after {before} comes {after} at {format_time(ts)}"
                self._check.tell(told, 0)
        self._jumps.clear()
        self._count = 0

    def finish(self, series: Series) -> Check:
        """Return the outcome."""
        self._end_run()
        check = self._check
        if not self._integers:
            why = "no rows" if self._integers is None else "the ids are no integers"
            check.skip("candles have no ids" if series.data_type.interval else why)
        elif check.state == WRONG and series.symbol.kind == SWAP and self._burnt(series):
            check.state = OK
        return check

    def _burnt(self, series: Series) -> bool:
        return series.data_type.kind == "trade"


async def _compare(storage: Storage[Any], series: Series, span: Span) -> list[Check]:
    """Compare candles with the trades they were made of, where both are stored."""
    trade = Series(series.exchange, series.symbol, DataType.parse("trade"))
    if series.data_type.interval is not None:
        pairs = [series]
    elif series.key == trade.key:
        stored = (info.series for info in await storage.list_series())
        candles = (one for one in stored if one.data_type.interval is not None)
        pairs = sorted(
            (one for one in candles if one.key[:3] == series.key[:3]), key=lambda one: one.order
        )
    else:
        pairs = []
    checks = []
    for candle in pairs:
        check = Check(f"{candle.data_type} against trades")
        checks.append(check)
        try:
            compared = await compare_candles(storage, candle, trade, span)
        except StorageCorrupt as error:
            check.blame(error.message)
            continue
        check.checked = compared.candles
        if not compared.candles and not compared.orphans:
            check.skip("candles and trades are not stored of one time")
        for told in compared.examples[:MAX_DETAILS]:
            check.blame(told, 0)
        check.problems = compared.different
        if compared.orphans:
            check.blame(f"{compared.orphans:,} trades lie in no candle", compared.orphans)
    return checks
