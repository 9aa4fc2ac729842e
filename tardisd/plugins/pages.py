"""What every storage does with a page before it stores it: refuse bad ones, put rows in order."""

from __future__ import annotations

from collections.abc import Sized

from tardisd.errors import DataError
from tardisd.market.check import check_batch
from tardisd.market.columns import SCHEMAS, Batch
from tardisd.market.match import in_order
from tardisd.market.series import Series
from tardisd.plugins.exchange import Page


def check_page(series: Series, page: Page) -> Batch:
    """Return the page's rows in storage order, or raise DataError when they cannot be stored."""
    batch = page.batch
    if batch.series.key != series.key:
        raise DataError(f"the page holds rows of {batch.series}, not of {series}")
    kind = series.data_type.kind
    if (schema := SCHEMAS.get(kind)) is None:
        raise DataError(f"{kind} rows cannot be stored yet")
    if unknown := [name for name in batch.fields if name not in schema.fields]:
        raise DataError(f"{kind} rows have no column {unknown[0]}")
    columns: list[Sized | None] = [*batch.fields.values(), batch.ids, batch.sides]
    if any(column is not None and len(column) != len(batch) for column in columns):
        raise DataError("columns differ in length")
    if batch.ids is not None and batch.ids.dtype.kind not in "iS":
        raise DataError(f"ids are neither int64 nor bytes but {batch.ids.dtype}", column="id")
    if batch.sides is not None and len(batch) and int(batch.sides.max()) > 1:
        raise DataError("side is neither buy nor sell", column="side")
    check_batch(batch, page.span)
    return in_order(batch)
