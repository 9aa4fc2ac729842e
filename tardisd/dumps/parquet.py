"""Parquet files as the text that other dumps are: rows of cells, exact; knows no vendor.

Formats recognise a Parquet file by its column names, as they do CSV, and its values take the same
way through parsing and checks. Decimals and integers are spelt out exactly. A float is spelt as the
shortest text that means it, which is what its writer printed or was told; `floats` names those
columns. Works on an open, seekable file, in constant memory.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from tardisd.dumps.exact import arrow
from tardisd.dumps.source import Block, Source, open_source
from tardisd.errors import DataError

MAGIC = b"PAR1"
BATCH_ROWS = 2**15
BUFFER_BYTES = 2**20
# Symbols, sides and ids are short; a long text per row would not fit in memory.
MAX_TEXT_BYTES = 2**10


class ParquetSource:
    """One open Parquet file as lines of text; rows count from 1. Use from one thread at a time."""

    member = None
    unit = "row"

    def __init__(self, name: str, raw: BinaryIO) -> None:
        self.name = name
        self._raw = raw
        self._size = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        pa, parquet = arrow(), _parquet()
        with self._readable():
            schema = parquet.read_schema(raw)
            texts = [field.name for field in schema if _is_text(field.type)]
            self._file = parquet.ParquetFile(
                raw, read_dictionary=texts, pre_buffer=False, buffer_size=BUFFER_BYTES
            )
        self._names = [field.name for field in schema if _is_readable(field.type)]
        self.floats = frozenset(
            field.name for field in schema if pa.types.is_floating(_plain(field.type))
        )
        self._rows = int(self._file.metadata.num_rows)
        self._done = 0
        if not self._names:
            raise DataError("the file has no column of numbers, times or texts", file=name)

    @property
    def position(self) -> int:
        """About how many bytes of the file have been read."""
        return self._size * self._done // max(self._rows, 1)

    def peek(self) -> bytes:
        """Return the column names and the first rows as lines."""
        batch = next(self._batches(20), None)
        names = io.StringIO()
        csv.writer(names, lineterminator="\n").writerow(self._names)
        return names.getvalue().encode() + (b"" if batch is None else self._lines(batch))

    def blocks(self, skip_header: bool) -> Iterator[Block]:
        """Yield all rows, in blocks."""
        if not skip_header:
            raise DataError("the columns have no names that tell what they are", file=self.name)
        self._done = 0
        for batch in self._batches(BATCH_ROWS):
            block = Block(self._lines(batch), self._done + 1)
            self._done += batch.num_rows
            yield block

    def _batches(self, size: int) -> Iterator[Any]:
        batches = self._file.iter_batches(batch_size=size, columns=self._names, use_threads=False)
        while True:
            with self._readable():
                batch = next(batches, None)
            if batch is None:
                return
            if batch.num_rows:
                yield batch

    def _lines(self, batch: Any) -> bytes:
        pa = arrow()
        with self._readable():
            columns = [self._cells(batch.column(name)) for name in self._names]
            out = pa.BufferOutputStream()
            pa.csv.write_csv(
                pa.RecordBatch.from_arrays(columns, names=self._names),
                out,
                pa.csv.WriteOptions(include_header=False, batch_size=BATCH_ROWS),
            )
        return out.getvalue().to_pybytes()  # type: ignore[no-any-return]

    def _cells(self, column: Any) -> Any:
        """Return an array whose values are written exactly, as the readers of text expect them."""
        pa = arrow()
        if pa.types.is_dictionary(column.type):
            texts = column.dictionary
            if len(texts) and pa.compute.max(pa.compute.binary_length(texts)).as_py() > (
                MAX_TEXT_BYTES
            ):
                raise DataError(f"a text is longer than {MAX_TEXT_BYTES} bytes", file=self.name)
            return column.cast(column.type.value_type)
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("ns", "UTC"))
        if pa.types.is_timestamp(column.type) and column.type.tz is not None:
            return column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64())
        if pa.types.is_timestamp(column.type) or pa.types.is_decimal(column.type):
            return column.cast(pa.string())  # a time without a zone is refused where it is read
        return column

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except arrow().ArrowException as error:
            raise DataError(
                f"the Parquet file is cut off or damaged ({_first_line(error)})", file=self.name
            ) from None
        except OSError as error:
            raise DataError(
                f"the Parquet file cannot be read ({_first_line(error)})", file=self.name
            ) from None


def _parquet() -> Any:
    import pyarrow.parquet  # noqa: PLC0415

    return pyarrow.parquet


def _plain(type_: Any) -> Any:
    return type_.value_type if arrow().types.is_dictionary(type_) else type_


def _is_text(type_: Any) -> bool:
    types = arrow().types
    return bool(types.is_string(_plain(type_)) or types.is_large_string(_plain(type_)))


def _is_readable(type_: Any) -> bool:
    types = arrow().types
    if types.is_dictionary(type_):
        return _is_text(type_)
    known = (
        types.is_integer, types.is_floating, types.is_decimal, types.is_boolean,
        types.is_timestamp, types.is_date,
    )  # fmt: skip
    return _is_text(type_) or any(is_known(type_) for is_known in known)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def open_file(name: str, raw: BinaryIO) -> Iterator[Source | ParquetSource]:
    """Open a dump from its start, whatever it is packed in; DataError when it is not readable."""
    try:
        raw.seek(0)
        magic = raw.read(len(MAGIC))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=name) from None
    if magic == MAGIC:
        yield ParquetSource(name, raw)
        return
    with open_source(name, raw) as source:
        yield source
