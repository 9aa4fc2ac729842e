"""Rows of a chunk to bytes and back: narrow integers, byte planes, zstd; knows no database.

An integer column is stored as residuals: `value = offset + step * residual`, or, when neighbours
are closer to each other than to the rest, the same for the differences of neighbours. Residuals
take as few bytes as the largest needs, and the bytes lie in planes (all lowest bytes, then all
second ones, …), which packs better and lets decoding write them straight into an int64 column.
All arithmetic is modulo 2**64, so that every int64 comes back exactly.

A chunk is a zstd frame around: u32 length of the header, the header (msgpack, one entry per
column), the columns' bytes. The schema of a chunk is therefore in the chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from tardisd.errors import StorageCorrupt
from tardisd.market.columns import Batch, Ids
from tardisd.market.decimals import Bools, Decimals, Ints
from tardisd.market.series import Series

CODEC = 1
_LEVEL = 1
_TIME, _ID, _SIDE = "@ts", "@id", "@side"
_SAMPLE = 64

Bytes = NDArray[np.uint8]


class Column(msgspec.Struct, frozen=True, array_like=True):
    """How one column is packed; `part` is empty, `fraction` or `present`."""

    name: str
    part: str
    form: str
    width: int
    offset: int = 0
    step: int = 1
    first: int = 0
    scale: int = 0


_header_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(list[Column])


class Codec:
    """Encodes and decodes chunks. Not for two threads at once: it keeps zstd's working memory."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._decompressor = zstandard.ZstdDecompressor()

    def encode(self, batch: Batch) -> bytes:
        """Return the rows as bytes."""
        columns: list[Column] = []
        data: list[bytes] = []
        for column, raw in _packed(batch):
            columns.append(column)
            data.append(raw)
        header = _header_encoder.encode(columns)
        whole = b"".join([len(header).to_bytes(4, "little"), header, *data])
        return self._compressor.compress(whole)

    def decode(self, series: Series, rows: int, packed: bytes) -> Batch:
        """Return the rows; raises StorageCorrupt when the bytes are no chunk of that many rows."""
        try:
            whole = memoryview(self._decompressor.decompress(packed))
            start = 4 + int.from_bytes(whole[:4], "little")
            columns = _header_decoder.decode(whole[4:start])
            return _batch(series, rows, columns, np.frombuffer(whole, np.uint8, offset=start))
        except (ValueError, KeyError, IndexError, msgspec.MsgspecError, zstandard.ZstdError) as e:
            raise StorageCorrupt(f"a chunk of {series} cannot be decoded ({e})") from None


def _packed(batch: Batch) -> Iterator[tuple[Column, bytes]]:
    yield _pack_ints(_TIME, batch.ts_event)
    for name, decimals in batch.fields.items():
        column = decimals
        if column.fraction is not None:  # narrow what need not be wide within this chunk
            column = Decimals.from_parts(column.mantissa, column.fraction, column.present)
        yield _pack_ints(name, column.mantissa, scale=column.scale)
        if column.fraction is not None:
            yield _pack_ints(name, column.fraction, "fraction")
        if column.present is not None and not column.present.all():
            yield Column(name, "present", "bits", 0), np.packbits(column.present).tobytes()
    if batch.ids is not None:
        if batch.ids.dtype.kind == "i":
            yield _pack_ints(_ID, batch.ids.astype(np.int64, copy=False))
        else:
            width = batch.ids.dtype.itemsize
            planes = np.ascontiguousarray(batch.ids).view(np.uint8).reshape(-1, width).T
            yield Column(_ID, "", "bytes", width), planes.tobytes()
    if batch.sides is not None:
        yield Column(_SIDE, "", "bits", 0), np.packbits(batch.sides).tobytes()


def _pack_ints(name: str, values: Ints, part: str = "", scale: int = 0) -> tuple[Column, bytes]:
    first, form = 0, "plain"
    offset, reach = _extent(values)
    if len(values) > 1:
        differences = values[1:] - values[:-1]
        least, delta_reach = _extent(differences)
        if delta_reach < reach:
            first, form = int(values[0]), "delta"
            values, offset, reach = differences, least, delta_reach
    if reach == 0:
        return Column(name, part, form, 0, offset, 1, first, scale), b""
    residuals = (values - offset).view(np.uint64)
    step = _common_step(residuals)
    if step > 1:
        residuals = residuals // np.uint64(step)
        reach //= step
    width = (reach.bit_length() + 7) // 8
    planes = residuals.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)[:, :width].T
    return Column(name, part, form, width, offset, step, first, scale), planes.tobytes()


def _extent(values: Ints) -> tuple[int, int]:
    """Return the least value, and how far above it the greatest lies."""
    if not len(values):
        return 0, 0
    least = int(values.min())
    return least, int(values.max()) - least


def _common_step(residuals: NDArray[np.uint64]) -> int:
    # Nearly every column answers 1 or a power of ten after a few values.
    if int(np.gcd.reduce(residuals[:_SAMPLE])) == 1:
        return 1
    step = int(np.gcd.reduce(residuals))
    return step if step < 2**63 else 1


def _batch(series: Series, rows: int, columns: list[Column], data: Bytes) -> Batch:
    parts: dict[tuple[str, str], Any] = {}
    scales: dict[str, int] = {}
    at = 0
    for column in columns:
        count = rows - 1 if column.form == "delta" else rows
        size = (rows + 7) // 8 if column.form == "bits" else count * column.width
        raw = data[at : at + size]
        if len(raw) != size:
            raise ValueError(f"column {column.name} is cut short")
        at += size
        parts[column.name, column.part] = _unpack(column, raw, rows)
        if not column.part and not column.name.startswith("@"):
            scales[column.name] = column.scale
    fields = {
        name: Decimals(
            parts[name, ""],
            scale,
            parts.get((name, "fraction")),
            _bools(parts.get((name, "present"))),
        )
        for name, scale in scales.items()
    }
    return Batch(series, parts[_TIME, ""], fields, parts.get((_ID, "")), parts.get((_SIDE, "")))


def _bools(bits: Bytes | None) -> Bools | None:
    return None if bits is None else bits.view(np.bool_)


def _unpack(column: Column, raw: Bytes, rows: int) -> Ints | Bytes | Ids:
    if column.form == "bits":
        return np.unpackbits(raw, count=rows)
    if column.form == "bytes":
        planes = raw.reshape(column.width, rows)
        return np.ascontiguousarray(planes.T).view(f"S{column.width}").reshape(rows)
    delta = column.form == "delta"
    if not column.width and not delta:
        return np.full(rows, column.offset, np.int64)
    values = np.zeros(rows, np.int64)
    residuals = values[1:] if delta else values
    planes = values.view(np.uint8).reshape(rows, 8)[1 if delta else 0 :]
    for plane in range(column.width):
        planes[:, plane] = raw[plane * len(residuals) : (plane + 1) * len(residuals)]
    if column.step != 1:
        residuals *= column.step
    if column.offset:
        residuals += column.offset
    if delta:
        values[0] = column.first
        np.cumsum(values, out=values)
    return values
