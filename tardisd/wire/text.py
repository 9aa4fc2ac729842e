"""Plain batches as compact text for files: CSV and NDJSON; knows nothing of sessions."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tardisd.market.columns import SCHEMAS, Batch
from tardisd.market.series import Series
from tardisd.market.ticks import Ticks
from tardisd.wire.encode import Encoder, Frame


def encode_batch(batch: Batch, form: Literal["csv", "ndjson"], first_seq: int = 1) -> bytes:
    """Return the rows as text without padding, one line each, values exact."""
    if not len(batch):
        return b""
    ids = batch.ids
    blank = None
    if form == "csv" and ids is not None and ids.dtype.kind == "S":
        blank = _stand_in(ids)
        if blank is not None:
            filled = [raw.replace(b" ", blank) for raw in ids.tolist()]
            batch = replace(batch, ids=np.array(filled, np.bytes_))
    ticks = Ticks.of(batch)
    seqs = np.arange(first_seq, first_seq + len(batch))
    rows, _ = Encoder(Frame(form, stamped=False)).encode(ticks, seqs)
    text = squeeze(rows.reshape(-1).data)
    return text if blank is None else text.replace(blank, b" ")


def _stand_in(ids: NDArray[np.bytes_]) -> bytes | None:
    """Return a character that can stand for the blanks in ids, which are no padding, or None."""
    texts = b"\n".join(ids.tolist())
    if b" " not in texts:
        return None
    private = (chr(code).encode() for code in range(0xE000, 0xF900))
    return next(char for char in private if char not in texts)


def squeeze(rows: bytes | memoryview) -> bytes:
    """Return encoded rows without their padding.

    JSON strings have no blanks in them; CSV must have no quoted cells.
    """
    return bytes(rows).replace(b" ", b"")


def csv_header(series: Series) -> bytes:
    """Return the header line of the series' CSV form."""
    schema = SCHEMAS[series.data_type.kind]
    names = ["datetime", *(["id"] if schema.has_id else []), *schema.fields]
    return ",".join([*names, *(["side"] if schema.has_side else [])]).encode() + b"\n"
