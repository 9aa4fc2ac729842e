"""New rows among stored ones: the order within an instant, and which rows have the same key.

The key of a row is its event time and its venue id; a candle's is its open time alone. A row
without an id is known by its content, and equal ones at one instant are told apart by counting.
It knows no storage, and replaces nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tardisd.market.columns import Batch
from tardisd.market.decimals import Ints

Order = NDArray[np.intp]


def in_order(batch: Batch) -> Batch:
    """Return the rows, sorted by event time already, by numeric id within each instant."""
    if batch.ids is None or batch.ids.dtype.kind != "i" or len(batch) < 2:
        return batch
    times, ids = batch.ts_event, batch.ids
    if not ((ids[1:] < ids[:-1]) & (times[1:] == times[:-1])).any():
        return batch
    return batch[np.lexsort((ids, times))]


def pairs(both: Batch, split: int) -> tuple[Order, Order]:
    """Return the indices of rows before `split` and of those from there on with the same keys."""
    origin = np.zeros(len(both), np.int8)
    origin[split:] = 1
    times, keys = both.ts_event, _keys(both)
    order = np.lexsort((origin, keys, times))
    if both.series.data_type.kind != "candle" and (both.ids is None or both.ids.dtype.kind == "S"):
        count = _occurrence(order, times, keys, origin)
        order = np.lexsort((origin, count, keys, times))
        same = count[order][1:] == count[order][:-1]
    else:
        same = np.ones(max(len(both) - 1, 0), np.bool_)
    for column in (times, keys):
        same &= column[order][1:] == column[order][:-1]
    same &= origin[order][1:] > origin[order][:-1]
    at = np.flatnonzero(same)
    return order[at], order[at + 1]


def _keys(both: Batch) -> Ints:
    """Return a number per row that is the same for rows of one key at one instant."""
    if both.series.data_type.kind == "candle":
        return np.zeros(len(both), np.int64)
    if both.ids is not None and both.ids.dtype.kind == "i":
        return both.ids
    keys = _content(both)
    if both.ids is not None:
        named = both.ids != b""
        _, ranks = np.unique(both.ids, return_inverse=True)
        keys = np.where(named, -1 - ranks, keys)
    return keys


def _content(both: Batch) -> Ints:
    columns = []
    for field in both.fields.values():
        columns += [*field.parts(), field.presence()]
    if both.sides is not None:
        columns.append(both.sides)
    order = np.lexsort(columns)
    differs = np.zeros(len(both), np.bool_)
    for column in columns:
        differs[1:] |= column[order][1:] != column[order][:-1]
    ranks = np.empty(len(both), np.int64)
    ranks[order] = np.cumsum(differs)
    return ranks


def _occurrence(order: Order, times: Ints, keys: Ints, origin: NDArray[np.int8]) -> Ints:
    """Return for each row how many equal ones of its origin come before it at its instant."""
    starts = np.ones(len(order), np.bool_)
    starts[1:] = False
    for column in (times, keys, origin):
        starts[1:] |= column[order][1:] != column[order][:-1]
    place = np.arange(len(order))
    count = np.empty(len(order), np.int64)
    count[order] = place - np.maximum.accumulate(np.where(starts, place, 0))
    return count
