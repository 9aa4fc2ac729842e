"""Candles made of trades or of finer candles: exact, vectorised; knows nothing of gaps or order.

Everything is done to columns of candles; a trade is a candle of one price. Rows are folded group by
group, and the results of folding fold again, so a stream may be cut anywhere.

The price of an interval is where something was traded. A row without volume (a candle in which the
venue repeats its last price, a trade of nothing) says nothing of it while any other row does:
venues open their hour at its first trade, not at the price of the quiet minute before that.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tardisd.errors import DataError
from tardisd.market.columns import Batch, floors
from tardisd.market.decimals import DIGITS, POWERS, Bools, Decimals, Ints
from tardisd.market.series import Series

Order = NDArray[np.intp]

_INT64_MAX = 2**63 - 1
_LOW = 32  # bits of the lower half of a mantissa that is summed in halves
_PRICES = ("open", "high", "low", "close")
_SUMS = ("volume", "quote_volume", "trades")


def as_candles(batch: Batch, series: Series) -> Batch:
    """Return trades or finer candles as rows of `series`, each at the open of its interval.

    The quote volume of a trade is price × amount, or absent when that cannot be kept exactly. An
    aggregated trade does not say how many trades it is.
    """
    interval = series.data_type.interval
    assert interval is not None
    opens = floors(batch.ts_event, interval)
    if batch.series.data_type.kind == "candle":
        return Batch(series, opens, batch.fields)
    price, amount = batch.fields["price"], batch.fields["amount"]
    fields = dict.fromkeys(_PRICES, price)
    fields |= {"volume": amount, "quote_volume": product(price, amount)}
    if batch.series.data_type.kind == "trade":
        fields["trades"] = Decimals(np.ones(len(batch), np.int64))
    return Batch(series, opens, fields)


def starts_of(*keys: Ints) -> Order:
    """Return where a new group of equal neighbours starts."""
    differs = np.zeros(len(keys[0]), np.bool_)
    differs[:1] = True
    for key in keys:
        differs[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(differs)


def fold(rows: Batch, starts: Order) -> Batch:
    """Return one candle per group of rows; a group begins at each of `starts`, the first at 0.

    Raises DataError when a volume is too large to be kept exactly.
    """
    if len(starts) == len(rows):
        return rows
    fields = {n: _sum(rows.fields[n], starts) for n in _SUMS if n in rows.fields}
    priced, at = rows, starts
    if (silent := _silent(rows)) is not None:
        heard = np.logical_or.reduceat(~silent, starts)
        keep = ~(silent & np.repeat(heard, _counts(starts, len(rows))))
        priced = rows[keep]
        kept = np.add.reduceat(keep, starts, dtype=np.intp)
        at = kept.cumsum() - kept
    last = np.append(at[1:], len(priced)) - 1
    high, high_of = _keys(priced.fields["high"])
    low, low_of = _keys(priced.fields["low"])
    fields["open"] = priced.fields["open"][at]
    fields["high"] = high_of(np.maximum.reduceat(high, at))
    fields["low"] = low_of(np.minimum.reduceat(low, at))
    fields["close"] = priced.fields["close"][last]
    return _candles(rows, fields, rows.ts_event[starts])


def running(rows: Batch, starts: Order) -> Batch:
    """Return for every row what its group folds to up to and with it."""
    if len(starts) == len(rows):
        return rows
    counts = _counts(starts, len(rows))
    fields = {n: _running_sum(rows.fields[n], starts, counts) for n in _SUMS if n in rows.fields}
    places = np.arange(len(rows))
    first = np.repeat(starts, counts)
    if (silent := _silent(rows)) is not None:
        # Up to its first row with volume a group is a group of its own; after it, a row without
        # repeats the one before.
        latest = np.maximum.accumulate(np.where(silent, -1, places))
        heard = latest >= first
        places = np.where(heard, latest, places)
        fresh = np.zeros(len(rows), np.intp)
        fresh[starts] = starts
        begins = np.flatnonzero(heard[1:] & ~heard[:-1]) + 1
        fresh[begins] = begins
        first = np.maximum.accumulate(fresh)
    high, high_of = _keys(rows.fields["high"])
    low, low_of = _keys(rows.fields["low"])
    fields["open"] = rows.fields["open"][first]
    fields["high"] = high_of(_scan(high[places], first, np.maximum))
    fields["low"] = low_of(_scan(low[places], first, np.minimum))
    fields["close"] = rows.fields["close"][places]
    return _candles(rows, fields, rows.ts_event)


def product(left: Decimals, right: Decimals) -> Decimals:
    """Return left × right, row by row; a product that cannot be kept exactly is absent."""
    if left.scale + right.scale > DIGITS or not _fits(left, right):
        left, right = left.reduced(), right.reduced()
    if not _fits(left, right):
        return _product_of_integers(left, right)
    mantissa, scale = left.mantissa * right.mantissa, left.scale + right.scale
    if scale <= DIGITS:
        return Decimals(mantissa, scale)
    power = POWERS[scale - DIGITS]
    quotient = mantissa // power
    exact = quotient * power == mantissa
    return Decimals(np.where(exact, quotient, 0), DIGITS, None, None if exact.all() else exact)


def _candles(rows: Batch, fields: dict[str, Decimals], opens: Ints) -> Batch:
    if fields["volume"].present is not None:
        raise DataError(
            f"the volume of a candle of {rows.series} is too large to be kept exactly",
            column="volume",
        )
    names = rows.schema.fields
    return Batch(rows.series, opens, {name: fields[name] for name in names if name in fields})


def _counts(starts: Order, rows: int) -> Order:
    return np.diff(starts, append=rows)


def _silent(rows: Batch) -> Bools | None:
    """Return which rows have no volume, or None when all have."""
    volume = rows.fields["volume"]
    silent: Bools = volume.mantissa == 0
    if volume.fraction is not None:
        silent &= volume.fraction == 0
    return silent if silent.any() else None


def _most(mantissa: Ints) -> int:
    return max(int(mantissa.max()), -int(mantissa.min())) if len(mantissa) else 0


def _fits(left: Decimals, right: Decimals) -> bool:
    if left.fraction is not None or right.fraction is not None:
        return False
    return _most(left.mantissa) * _most(right.mantissa) <= _INT64_MAX


def _keys(column: Decimals) -> tuple[Ints, Callable[[Ints], Decimals]]:
    """Return integers in the order of the values, and what turns them into values again."""
    if column.fraction is None:
        return column.mantissa, lambda keys: Decimals(keys, column.scale)
    order = np.lexsort((column.fraction, column.mantissa))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks, lambda keys: column[order[keys]]


def _scan(keys: Ints, first: Order, best: np.ufunc) -> Ints:
    """Return the best of each row and those before it in its group, in log(longest) passes."""
    step, longest = 1, int((np.arange(len(keys)) - first).max())
    while step <= longest:
        mine = first[step:] == first[:-step]
        better = np.where(mine, best(keys[step:], keys[:-step]), keys[step:])
        keys = np.concatenate([keys[:step], better])
        step *= 2
    return keys


def _sum(column: Decimals, starts: Order) -> Decimals:
    """Return the sum of each group: absent when any value is, or when it cannot be kept."""
    present = None
    if column.present is not None:
        present = np.logical_and.reduceat(column.present, starts)
    counts = _counts(starts, len(column))
    if column.fraction is None and _most(column.mantissa) * int(counts.max()) <= _INT64_MAX:
        sums = np.add.reduceat(column.mantissa, starts)
        return _where(sums, column.scale, present)
    totals = _halves(column, lambda part: np.add.reduceat(part, starts))
    return _of_integers(totals, column, present)


def _running_sum(column: Decimals, starts: Order, counts: Order) -> Decimals:
    present = None
    if column.present is not None:
        missing = (~column.present).cumsum()
        before = missing[starts] - ~column.present[starts]
        present = missing == np.repeat(before, counts)

    def scan(part: Ints) -> Ints:
        sums: Ints = part.cumsum()
        return sums - np.repeat(sums[starts] - part[starts], counts)

    if column.fraction is None and _most(column.mantissa) * len(column) <= _INT64_MAX:
        return _where(scan(column.mantissa), column.scale, present)
    return _of_integers(_halves(column, scan), column, present)


def _where(mantissa: Ints, scale: int, present: Bools | None) -> Decimals:
    if present is None or present.all():
        return Decimals(mantissa, scale)
    return Decimals(np.where(present, mantissa, 0), scale, None, present)


def _halves(column: Decimals, add: Callable[[Ints], Ints]) -> list[int]:
    """Return sums, as integers at the column's scale (wide: 18), of values too large to add up."""
    totals = _joined(column.mantissa, add)
    if column.fraction is None:
        return totals
    fractions = _joined(column.fraction, add)
    return [w * POWERS[DIGITS] + f for w, f in zip(totals, fractions, strict=True)]


def _joined(values: Ints, add: Callable[[Ints], Ints]) -> list[int]:
    high, low = add(values >> _LOW), add(values & (2**_LOW - 1))
    return [(h << _LOW) + rest for h, rest in zip(high.tolist(), low.tolist(), strict=True)]


def _of_integers(totals: list[int], column: Decimals, present: Bools | None) -> Decimals:
    scale = column.scale if column.fraction is None else DIGITS
    if present is not None:
        totals = [t if here else 0 for t, here in zip(totals, present.tolist(), strict=True)]
    parts = [divmod(abs(total), POWERS[scale]) for total in totals]
    kept = np.array([whole <= _INT64_MAX for whole, _ in parts], np.bool_)
    signs = np.array([-1 if total < 0 else 1 for total in totals], np.int64)
    whole = np.array([w if w <= _INT64_MAX else 0 for w, _ in parts], np.int64) * signs
    fraction = np.array([f * POWERS[DIGITS - scale] for _, f in parts], np.int64) * signs * kept
    if present is not None:
        kept &= present
    return Decimals.from_parts(whole, fraction, None if kept.all() else kept)


def _product_of_integers(left: Decimals, right: Decimals) -> Decimals:
    """Multiply with Python's integers (slow path: columns in the wide form, or close to it)."""
    unit = POWERS[DIGITS]
    rows = zip(*(part.tolist() for part in (*left.parts(), *right.parts())), strict=True)
    products = [(w * unit + f) * (v * unit + g) for w, f, v, g in rows]
    exact = [abs(number) // unit * (1 if number >= 0 else -1) for number in products]
    column = _of_integers(exact, Decimals(left.mantissa, DIGITS), None)
    kept = column.presence() & np.array([number % unit == 0 for number in products], np.bool_)
    whole, fraction = column.parts()
    return Decimals.from_parts(whole * kept, fraction * kept, None if kept.all() else kept)
