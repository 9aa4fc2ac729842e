"""Build candles from stored trades and compare them with the venue's own, exactly.

Only whole candles in time that both series cover are looked at. It changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import trio
from numpy.typing import NDArray

from tardisd.backfill.ledger import whole_candles
from tardisd.market.columns import Batch, closes
from tardisd.market.decimals import DIGITS, POWERS, Decimals, Ints
from tardisd.market.series import Series
from tardisd.market.span import Coverage, Span
from tardisd.market.time import Interval, format_time
from tardisd.plugins.storage import Storage

# Values are integers times 10**-18, as Python ints: sums of any size stay exact. There is one per
# candle, not per trade.
Exact = NDArray[np.object_]

MAX_EXAMPLES = 5
_FIELDS = ("open", "high", "low", "close", "volume", "trades")
_SUM_LIMIT = 2**62


@dataclass(slots=True)
class Compared:
    """How many candles were compared, how many differ, and trades that lie in no candle."""

    candles: int = 0
    different: int = 0
    orphans: int = 0
    examples: list[str] = field(default_factory=list)


async def compare_candles(
    storage: Storage[Any], candles: Series, trades: Series, span: Span
) -> Compared:
    """Compare the candles within `span` with the trades; raises StorageError."""
    interval = candles.data_type.interval
    assert interval is not None, f"{candles} are no candles"
    compared = Compared()
    covered = await storage.coverage(candles)
    for part in (await storage.coverage(trades)).intersect(span):
        for common in Coverage([part]).subtract(Coverage(covered.gaps(part))):
            whole = whole_candles(common, interval)
            if whole is not None:
                await _compare_part(storage, candles, trades, interval, whole, compared)
    return compared


async def _compare_part(
    storage: Storage[Any],
    candles: Series,
    trades: Series,
    interval: Interval,
    span: Span,
    compared: Compared,
) -> None:
    upto = span.start
    async with storage.read(candles, span) as batches:
        async for batch in batches:
            rows = batch[closes(batch.ts_event, interval) <= span.end]
            if not len(rows):
                continue
            built = _Built(rows.ts_event, closes(rows.ts_event, interval))
            end = int(built.ends[-1])
            async with storage.read(trades, Span(upto, end)) as pieces:
                async for piece in pieces:
                    await trio.to_thread.run_sync(built.feed, piece)
            await trio.to_thread.run_sync(built.compare, rows, compared)
            upto = end
    if upto < span.end:  # after the last candle there should be no trades
        async with storage.read(trades, Span(upto, span.end)) as pieces:
            async for piece in pieces:
                compared.orphans += len(piece)


class _Built:
    """Candles of given opens and ends (ns), growing with the trades that are fed in order."""

    def __init__(self, opens: Ints, ends: Ints) -> None:
        self.opens, self.ends = opens, ends
        self.orphans = 0
        zeros = [np.zeros(len(opens), dtype=object) for _ in _FIELDS]
        self.values: dict[str, Exact] = dict(zip(_FIELDS, zeros, strict=True))

    def feed(self, trades: Batch) -> None:
        """Take in the next trades."""
        owner = np.searchsorted(self.opens, trades.ts_event, "right") - 1
        inside = (owner >= 0) & (trades.ts_event < self.ends[owner])
        self.orphans += int((~inside).sum())
        if not inside.all():
            trades, owner = trades[inside], owner[inside]
        if not len(trades):
            return
        first = np.concatenate([[0], np.flatnonzero(np.diff(owner)) + 1])
        last = np.append(first[1:], len(trades)) - 1
        at = owner[first]
        price, amount = trades.fields["price"], trades.fields["amount"]
        raw = _comparable(price)
        unit = _unit(price)
        values, fresh = self.values, self.values["trades"][at] == 0
        high, low = (
            np.maximum.reduceat(raw, first).astype(object) * unit,
            np.minimum.reduceat(raw, first).astype(object) * unit,
        )
        opened = raw[first].astype(object) * unit
        values["open"][at] = np.where(fresh, opened, values["open"][at])
        values["high"][at] = np.where(fresh, high, np.maximum(values["high"][at], high))
        values["low"][at] = np.where(fresh, low, np.minimum(values["low"][at], low))
        values["close"][at] = raw[last].astype(object) * unit
        sums = np.add.reduceat(_summable(amount), first).astype(object) * _unit(amount)
        values["volume"][at] += sums
        values["trades"][at] += (last - first + 1).astype(object) * POWERS[DIGITS]

    def compare(self, candles: Batch, compared: Compared) -> None:
        """Count the candles that are not as built."""
        compared.candles += len(candles)
        compared.orphans += self.orphans
        traded = self.values["trades"] != 0
        wrong: dict[str, NDArray[np.bool_]] = {}
        for name in _FIELDS:
            if (column := candles.fields.get(name)) is None:
                continue
            differs = (_exact(column) != self.values[name]) & column.presence()
            # Where nobody traded, prices are the venue's choice.
            wrong[name] = differs if name in ("volume", "trades") else differs & traded
        any_wrong = np.logical_or.reduce(list(wrong.values()))
        compared.different += int(any_wrong.sum())
        for at in np.flatnonzero(any_wrong)[: MAX_EXAMPLES - len(compared.examples)].tolist():
            told = [
                f"{name} {candles.fields[name][at : at + 1].texts()[0]},"
                f" by its trades {_text(self.values[name][at])}"
                for name, mask in wrong.items()
                if mask[at]
            ]
            compared.examples.append(f"{format_time(int(self.opens[at]))}: {'; '.join(told)}")


def _exact(column: Decimals) -> Exact:
    whole, fraction = column.parts()
    exact: Exact = whole.astype(object) * POWERS[DIGITS] + fraction
    return exact


def _unit(column: Decimals) -> int:
    """Return what one unit of `_comparable` is worth, in 10**-18."""
    return 1 if column.fraction is not None else POWERS[DIGITS - column.scale]


def _comparable(column: Decimals) -> NDArray[Any]:
    return column.mantissa if column.fraction is None else _exact(column)


def _summable(column: Decimals) -> NDArray[Any]:
    """Return the values in a form whose sums do not overflow."""
    values = _comparable(column)
    if values.dtype != object and int(np.abs(values).max()) > _SUM_LIMIT // len(values):
        return values.astype(object)
    return values


def _text(value: int) -> str:
    whole, fraction = divmod(int(value), POWERS[DIGITS])
    return f"{whole}.{fraction:018d}".rstrip("0").rstrip(".")
