"""New rows among stored ones, and where to cut them into chunks; knows no database."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tardisd.errors import DataError
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch
from tardisd.market.decimals import Ints
from tardisd.market.match import pairs
from tardisd.plugins.storage import Appended

CHUNK_ROWS = 8192


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
    earlier, later = pairs(both, split)
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
