"""Bring rows into storage order and settle repeats: equal ones drop, unequal ones are refused."""

from __future__ import annotations

import numpy as np

from tardisd.errors import TardisError
from tardisd.market.check import same_rows
from tardisd.market.columns import Batch, Ids
from tardisd.market.decimals import Bools, Ints

_MOST_BESIDE = 100


class Conflict(TardisError):
    """Raised when two rows of one key differ; `rows` are their numbers in the import."""

    code = "bad_data"

    def __init__(self, message: str, column: str, rows: tuple[int, int]) -> None:
        super().__init__(message)
        self.column = column
        self.rows = rows


def is_settled(batch: Batch) -> bool:
    """Tell whether the rows are in order and no two have one key, as in nearly every dump."""
    times = batch.ts_event
    step = np.diff(times)
    if batch.series.data_type.interval is not None:
        return bool((step > 0).all())
    if batch.ids is None:
        return bool((step >= 0).all())
    if batch.ids.dtype.kind != "i":  # order among texts means nothing
        return bool((step >= 0).all()) and not _has_twins(times, batch.ids)
    return bool(((step > 0) | ((step == 0) & (np.diff(batch.ids) > 0))).all())


def _has_twins(times: Ints, ids: Ids) -> bool:
    """Tell whether two rows of one time have one id; the times are sorted, the ids texts."""
    pairs = np.flatnonzero(times[1:] == times[:-1])
    for distance in range(1, _MOST_BESIDE):
        if not len(pairs):
            return False
        same = ids[pairs] == ids[pairs + distance]
        if bool((same & (ids[pairs] != b"")).any()):
            return True
        pairs = pairs[pairs + distance + 1 < len(times)]
        pairs = pairs[times[pairs] == times[pairs + distance + 1]]
    return True  # so many rows share one time that sorting them is the faster way


def settle(batch: Batch, rows: Ints) -> tuple[Batch, Ints]:
    """Return the batch sorted by time, then numeric id, then row number, without repeats.

    `rows` are the rows' numbers in the import. Rows without an id are never repeats of each other:
    two trades may well be equal. Raises Conflict.
    """
    if is_settled(batch):
        return batch, rows
    order = _order(batch, rows)
    batch, rows = batch[order], rows[order]
    repeats = _repeats(batch, rows)
    if repeats is None:
        return batch, rows
    return batch[~repeats], rows[~repeats]


def _order(batch: Batch, rows: Ints) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    if batch.ids is not None and batch.ids.dtype.kind == "i":
        return np.lexsort((rows, batch.ids, batch.ts_event))
    return np.lexsort((rows, batch.ts_event))


def _repeats(batch: Batch, rows: Ints) -> Bools | None:
    """Return a mask of the rows that repeat an earlier one, or None when no row can."""
    if batch.series.data_type.interval is not None:
        return _equal_neighbours(batch, rows, np.diff(batch.ts_event) == 0, "time")
    if batch.ids is None:
        return None
    if batch.ids.dtype.kind == "i":
        same = (np.diff(batch.ts_event) == 0) & (np.diff(batch.ids) == 0)
        return _equal_neighbours(batch, rows, same, "id")
    # Text ids stay in file order: find the repeats beside each other, then go back.
    order = np.lexsort((rows, batch.ids, batch.ts_event))
    beside = batch[order]
    assert beside.ids is not None
    same = (np.diff(beside.ts_event) == 0) & (beside.ids[1:] == beside.ids[:-1])
    same &= beside.ids[1:] != b""
    found = _equal_neighbours(beside, rows[order], same, "id")
    repeats = np.zeros(len(batch), np.bool_)
    repeats[order] = found
    return repeats


def _equal_neighbours(batch: Batch, rows: Ints, same_key: Bools, column: str) -> Bools:
    repeats = np.zeros(len(batch), np.bool_)
    repeats[1:] = same_key
    if same_key.any():
        later = np.flatnonzero(same_key) + 1
        equal = same_rows(batch[later], batch[later - 1])
        if not equal.all():
            at = int(later[np.argmin(equal)])
            what = "candle" if column == "time" else "id"
            first, second = sorted((int(rows[at - 1]), int(rows[at])))
            raise Conflict(f"another row of this {what} has other content", column, (first, second))
    return repeats
