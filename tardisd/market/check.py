"""Checks that every page passes before it is stored (semantics §7); repairs nothing."""

from __future__ import annotations

import numpy as np

from tardisd.errors import DataError
from tardisd.market.columns import Batch, Ids
from tardisd.market.decimals import Bools, Decimals
from tardisd.market.span import Span
from tardisd.market.time import EARLIEST, LATEST, format_time

_ODD = np.uint64(0x9E3779B97F4A7C15)


def check_batch(batch: Batch, span: Span | None = None) -> None:
    """Raise DataError (with the row) unless the rows are sane, sorted, and inside `span`."""
    schema = batch.schema
    if missing := [n for n in schema.fields if n not in batch.fields and n not in schema.optional]:
        raise DataError(f"column {missing[0]} is missing")
    times = batch.ts_event
    _refuse((times < EARLIEST) | (times >= LATEST), "time is outside 2009..2100", "timestamp")
    if len(times) > 1:
        back = np.zeros(len(times), np.bool_)
        back[1:] = times[1:] < times[:-1]
        _refuse(back, "time goes backwards", "timestamp")
    if span is not None:
        outside = (times < span.start) | (times >= span.end)
        _refuse(outside, f"row lies outside the page's span {span}", "timestamp")
    for name, column in batch.fields.items():
        if name not in schema.optional and column.present is not None:
            _refuse(~column.present, "value is missing", name)
    if batch.series.data_type.kind == "candle":
        _check_candles(batch)
    elif "price" in batch.fields:
        _refuse(_below_zero(batch.fields["amount"]), "amount is negative", "amount")
    _check_keys(batch)


def _refuse(bad: Bools, message: str, column: str) -> None:
    if bad.any():
        raise DataError(message, row=int(np.argmax(bad)), column=column)


def _below_zero(column: Decimals) -> Bools:
    negative: Bools = column.mantissa < 0
    if column.fraction is not None:
        negative |= column.fraction < 0
    return negative


def _check_candles(batch: Batch) -> None:
    fields = batch.fields
    high, low = fields["high"], fields["low"]
    for name in ("open", "close", "low"):
        _refuse(high.less_than(fields[name]), f"high is below {name}", "high")
    for name in ("open", "close"):
        _refuse(fields[name].less_than(low), f"low is above {name}", "low")
    for name in ("volume", "quote_volume", "trades"):
        if name in fields:
            _refuse(_below_zero(fields[name]), f"{name} is negative", name)


def _check_keys(batch: Batch) -> None:
    """Refuse two rows of one key; callers drop repeated identical rows first."""
    times = batch.ts_event
    if batch.series.data_type.kind == "candle":
        twice = np.zeros(len(times), np.bool_)
        twice[1:] = times[1:] == times[:-1]
        if twice.any():
            at = int(np.argmax(twice))
            raise DataError(
                f"two candles open at {format_time(int(times[at]))}", row=at, column="timestamp"
            )
    elif batch.ids is not None and len(batch):
        # Ids nearly always rise with time; sort only when they do not.
        ids = batch.ids
        if ids.dtype.kind == "i" and bool((ids[1:] > ids[:-1]).all()):
            return
        if ids.dtype.kind != "i" and not _may_repeat(ids):
            return
        order = np.argsort(ids, kind="stable")
        same = (ids[order][1:] == ids[order][:-1]) & (ids[order][1:] != ids.dtype.type())
        if ids.dtype.kind == "i":
            same = ids[order][1:] == ids[order][:-1]
        if same.any():
            at = int(order[1:][same].min())
            raise DataError("two rows have one id", row=at, column="id", value=str(ids[at]))


def _may_repeat(ids: Ids) -> bool:
    """Tell whether two texts may be equal; sorting hashes is much faster than sorting texts."""
    width = -(-ids.dtype.itemsize // 8) * 8
    words = ids.astype(f"S{width}").view(np.uint64).reshape(len(ids), -1)
    hashes = words[:, 0].copy()
    for at in range(1, words.shape[1]):
        hashes = (hashes ^ hashes >> np.uint64(29)) * _ODD + words[:, at]
    hashes.sort()
    return bool((hashes[1:] == hashes[:-1]).any())


def same_rows(left: Batch, right: Batch) -> Bools:
    """Return a mask of the rows (of two batches of equal length) whose content is the same."""
    same: Bools = left.ts_event == right.ts_event
    for name in {*left.fields, *right.fields}:
        a, b = left.fields.get(name), right.fields.get(name)
        if a is not None and b is not None:
            same &= a.equals(b)
        elif (one := a if a is not None else b) is not None:
            same &= ~one.presence()
    if left.sides is not None and right.sides is not None:
        same &= left.sides == right.sides
    elif left.sides is not right.sides:
        same &= False
    if left.ids is not None and right.ids is not None:
        if left.ids.dtype.kind == right.ids.dtype.kind:
            same &= left.ids == right.ids
        else:
            same &= left.ids.astype(np.bytes_) == right.ids.astype(np.bytes_)
    elif (ids := left.ids if left.ids is not None else right.ids) is not None:
        same &= ids.astype(np.bytes_) == b""
    return same
