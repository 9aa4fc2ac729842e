"""Decimal text to exact columns, vectorised by Arrow; rounds nothing, and knows no file.

Arrow parses into 128-bit integers; viewed as pairs of int64 they become mantissas. What it refuses,
or might get wrong, is read again one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tardisd.market.decimals import DIGITS, POWERS, Bools, Decimals, Ints

# Arrow does not notice when a value overflows 128 bits at the asked scale; so many digits cannot.
SAFE_DIGITS = 38


def arrow() -> Any:
    """Return pyarrow, whose 50 MiB only reading needs."""
    import pyarrow  # noqa: PLC0415
    import pyarrow.compute  # noqa: PLC0415
    import pyarrow.csv  # noqa: PLC0415

    return pyarrow


def decimals_of_texts(texts: Sequence[str], scale: int | None = None) -> Decimals:
    """Return a column of decimal text, at `scale` when that is enough (default: as the first has).

    Raises ValueError naming the first text that is no finite number or cannot be kept exactly.
    """
    pa = arrow()
    if scale is None:
        scale = min(len(texts[0].partition(".")[2]), DIGITS) if texts else 0
    column = pa.array(texts, pa.string())
    for attempt in (scale, 12):
        try:
            parsed = column.cast(pa.decimal128(SAFE_DIGITS - attempt, attempt))
        except pa.ArrowInvalid:
            continue
        exact = decimals_of_arrow(parsed, attempt)
        if exact is not None:
            return exact
    try:
        return Decimals.of(texts)
    except ValueError:
        for text in texts:
            try:
                Decimals.of([text])
            except ValueError as error:
                raise ValueError(f"{text[:80]!r}: {error}") from None
        raise


def decimals_of_arrow(column: Any, scale: int) -> Decimals | None:
    """Return a decimal128 array as a column; None when a value needs more than int64 gives."""
    pa = arrow()
    present: Bools | None = None
    if column.null_count:
        present = column.is_valid().to_numpy(zero_copy_only=False)
        column = column.fill_null(0)
    low, high = _halves(column)
    if bool((high == low >> 63).all()):
        return Decimals(low.copy(), scale, None, present)
    truncated = pa.compute.cast(column, pa.decimal128(SAFE_DIGITS, 0), safe=False)
    whole, rest = _halves(truncated)
    if not bool((rest == whole >> 63).all()):
        return None
    # The difference fits 64 bits whatever the two low halves hold: arithmetic wraps around.
    fraction = (low - whole * POWERS[scale]) * POWERS[DIGITS - scale]
    return Decimals.from_parts(whole.copy(), fraction, present)


def _halves(column: Any) -> tuple[Ints, Ints]:
    """Return the low and high 64 bits of a decimal128 array."""
    words = np.frombuffer(column.buffers()[1], np.int64).reshape(-1, 2)
    words = words[column.offset : column.offset + len(column)]
    return words[:, 0], words[:, 1]
