"""New rows among stored ones: order, same keys, where to cut; knows no database.

The key of a row is its event time and its venue id; a candle's is its open time alone. A row
without an id is known by its content, and equal ones at one instant are told apart by counting.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tardisd.errors import DataError
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.decimals import Ints
from tardisd.plugins.storage import Appended

CHUNK_ROWS = 8192

Order = NDArray[np.intp]


def in_order(batch: Batch) -> Batch:
    """Return the rows, sorted by event time already, by numeric id within each instant."""
    if batch.ids is None or batch.ids.dtype.kind != "i" or len(batch) < 2:
        return batch
    times, ids = batch.ts_event, batch.ids
    if not ((ids[1:] < ids[:-1]) & (times[1:] == times[:-1])).any():
        return batch
    return batch[np.lexsort((ids, times))]


def alike(left: Batch, right: Batch) -> bool:
    """Tell whether two batches have sides, and ids of one sort, both or neither."""
    left_ids = "" if left.ids is None else left.ids.dtype.kind
    right_ids = "" if right.ids is None else right.ids.dtype.kind
    return left_ids == right_ids and (left.sides is None) == (right.sides is None)


def merge(old: Batch, new: Batch) -> tuple[Batch, Appended]:
    """Return stored and new rows as one batch, and what the new ones changed.

    Both are sorted. Raises DataError when only one of them has taker sides.
    """
    if _is_part(old, new):
        return old, Appended(unchanged=len(new))
    if (old.sides is None) != (new.sides is None):
        raise DataError("rows with and without a taker side cannot share a series", column="side")
    both, split = Batch.concat([old, new]), len(old)
    earlier, later = _pairs(both, split)
    same = same_rows(both[earlier], both[later])
    taken = np.arange(split)
    taken[earlier[~same]] = later[~same]
    fresh = np.ones(len(new), np.bool_)
    fresh[later - split] = False
    index = np.concatenate([taken, split + np.flatnonzero(fresh)])
    unchanged = int(same.sum())
    appended = Appended(int(fresh.sum()), unchanged, len(same) - unchanged)
    times = both.ts_event[index]
    if both.ids is not None and both.ids.dtype.kind == "i":
        order = np.lexsort((both.ids[index], times))
    else:
        order = np.argsort(times, kind="stable")
    return both[index[order]], appended


def _is_part(old: Batch, new: Batch) -> bool:
    """Tell whether `new` is a run of `old`: the page that is simply fetched again."""
    start = int(np.searchsorted(old.ts_event, new.ts_event[0]))
    run = old[start : start + len(new)]
    return len(run) == len(new) and alike(run, new) and bool(same_rows(run, new).all())


def _pairs(both: Batch, split: int) -> tuple[Order, Order]:
    """Return the indices of stored rows and of the new rows that have the same keys."""
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


def pieces(times: Ints) -> Iterator[slice]:
    """Cut sorted rows into pieces of about equal length, at most `CHUNK_ROWS`.

    Rows of one instant stay in one piece unless they alone are too many: then every piece that
    holds some of them begins with them. So the first times of two pieces tell whether they share
    an instant.
    """
    start, total = 0, len(times)
    while start < total:
        rest = total - start
        end = start + -(-rest // -(-rest // CHUNK_ROWS))
        if end < total:
            end = int(np.searchsorted(times, times[end], "left"))
            if end <= start:
                end = int(np.searchsorted(times, times[start], "right"))
                end = min(end, start + CHUNK_ROWS)
        yield slice(start, end)
        start = end
