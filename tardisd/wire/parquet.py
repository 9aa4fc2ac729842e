"""Rows of a series as a Parquet table with exact decimals; opens no file.

The columns are those of the CSV form: `datetime` in ns UTC, decimals that hold every value that can
be stored, `id` and `side` as text; `seq` in front where rows are numbered. The file is written
straight on, so a pipe will do.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tardisd.dumps.exact import arrow
from tardisd.market.columns import BUY, SCHEMAS, Batch
from tardisd.market.decimals import DIGITS, Decimals, Ints
from tardisd.market.series import Series

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Storages give batches of some thousand rows; row groups that small would compress badly.
GROUP_ROWS = 2**17
# 19 digits before the point, as int64 has, and 18 after it.
_PRECISION = DIGITS + 20


class ParquetTable:
    """One table; `write` takes its bytes, in order. Use from one thread at a time.

    `about` goes into the schema's metadata, besides the series. With `numbered` rows come with
    their sequence numbers. `waiting_rows` and `waiting_bytes` are what is in no row group yet.
    """

    def __init__(
        self,
        series: Series,
        write: Callable[[memoryview], object],
        *,
        codec: str = "zstd",
        numbered: bool = False,
        about: Mapping[str, str] | None = None,
    ) -> None:
        import pyarrow.parquet  # noqa: PLC0415

        pa = arrow()
        self._kind = SCHEMAS[series.data_type.kind]
        columns = [("seq", pa.int64())] if numbered else []
        columns.append(("datetime", pa.timestamp("ns", "UTC")))
        if self._kind.has_id:
            columns.append(("id", pa.string()))
        columns += [(name, pa.decimal128(_PRECISION, DIGITS)) for name in self._kind.fields]
        if self._kind.has_side:
            columns.append(("side", pa.string()))
        self._schema = pa.schema(columns, {"series": series.text, **(about or {})})
        self._writer = pyarrow.parquet.ParquetWriter(
            pa.PythonFile(_Pass(write), mode="w"), self._schema, compression=codec
        )
        self.names: list[str] = self._schema.names
        self.groups = 0
        self._waiting: list[Any] = []
        self.waiting_rows = 0
        self.waiting_bytes = 0

    def add(self, batch: Batch, seqs: Sequence[int] | Ints | None = None) -> None:
        """Append the rows; most of them are written when there are enough for a row group."""
        pa = arrow()
        columns = [] if seqs is None else [pa.array(seqs, pa.int64())]
        columns.append(pa.array(batch.ts_event).cast(self._schema.field("datetime").type))
        if self._kind.has_id:
            columns.append(_ids(batch))
        columns += [_exact(batch.fields.get(name), len(batch)) for name in self._kind.fields]
        if self._kind.has_side:
            columns.append(_sides(batch))
        made = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        self._waiting.append(made)
        self.waiting_rows += len(batch)
        self.waiting_bytes += made.nbytes
        if self.waiting_rows >= GROUP_ROWS:
            self.write_group()

    def write_group(self) -> None:
        """Write the rows that wait as a row group, however few they are."""
        if not self.waiting_rows:
            return
        table = arrow().Table.from_batches(self._waiting, self._schema)
        self._writer.write_table(table, row_group_size=self.waiting_rows)
        self.groups += 1
        self._waiting, self.waiting_rows, self.waiting_bytes = [], 0, 0

    def finish(self) -> None:
        """Write what is left, and the footer without which nothing can be read."""
        self.write_group()
        self._writer.close()


class _Pass(io.RawIOBase):
    """A file that hands on what is written to it, and knows how much that was."""

    def __init__(self, write: Callable[[memoryview], object]) -> None:
        super().__init__()
        self._write = write
        self._at = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._at

    def write(self, data: Buffer, /) -> int:
        """Hand on all of it."""
        view = memoryview(data)
        self._write(view)
        self._at += view.nbytes
        return view.nbytes


def _ids(batch: Batch) -> Any:
    pa = arrow()
    if batch.ids is None:
        return pa.nulls(len(batch), pa.string())
    if batch.ids.dtype.kind == "i":
        return pa.array(batch.ids).cast(pa.string())
    return pa.array([raw.decode() or None for raw in batch.ids.tolist()], pa.string())


def _sides(batch: Batch) -> Any:
    pa = arrow()
    if batch.sides is None:
        return pa.nulls(len(batch), pa.string())
    return pa.array(np.where(batch.sides == BUY, "buy", "sell"), pa.string())


def _exact(column: Decimals | None, count: int) -> Any:
    pa = arrow()
    wanted = pa.decimal128(_PRECISION, DIGITS)
    if column is None:
        return pa.nulls(count, wanted)
    values = _decimal128(column.mantissa, column.scale).cast(wanted)
    if column.fraction is not None:
        # One digit less, so that the sum fits; the whole part of int64 does not need it.
        tight = pa.decimal128(_PRECISION - 1, DIGITS)
        fraction = _decimal128(column.fraction, DIGITS).cast(tight)
        values = pa.compute.add(values.cast(tight), fraction)
    if column.present is not None:
        values = pa.compute.if_else(pa.array(column.present), values, pa.scalar(None, wanted))
    return values


def _decimal128(mantissa: Ints, scale: int) -> Any:
    """Return int64 mantissas as Arrow's 128-bit decimals, without looking at each."""
    pa = arrow()
    words = np.empty((len(mantissa), 2), np.int64)
    words[:, 0] = mantissa
    words[:, 1] = mantissa >> 63
    type_ = pa.decimal128(_PRECISION, scale)
    return pa.Array.from_buffers(type_, len(mantissa), [None, pa.py_buffer(words)])
