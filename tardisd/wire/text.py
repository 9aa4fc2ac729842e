"""Plain batches as compact text for files: CSV and NDJSON; knows nothing of sessions."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tardisd.market.columns import SCHEMAS, Batch
from tardisd.market.series import Series
from tardisd.market.ticks import Ticks
from tardisd.wire.digits import BLANK
from tardisd.wire.encode import Encoder, Frame


def encode_batch(batch: Batch, form: Literal["csv", "ndjson"], first_seq: int = 1) -> bytes:
    """Return the rows as text without padding, one line each, values exact."""
    if not len(batch):
        return b""
    ticks = Ticks.of(batch)
    seqs = np.arange(first_seq, first_seq + len(batch))
    rows, _ = Encoder(Frame(form, stamped=False)).encode(ticks, seqs)
    return compact(rows.reshape(-1), ticks.ids)


def compact(text: NDArray[np.uint8], ids: NDArray[np.int64] | NDArray[np.bytes_] | None) -> bytes:
    """Return encoded text without its padding, unless some id has blanks of its own."""
    if ids is not None and ids.dtype.kind == "S" and any(b" " in raw for raw in ids.tolist()):
        return text.tobytes()
    return bytes(text[text != BLANK])


def csv_header(series: Series) -> bytes:
    """Return the header line of the series' CSV form."""
    schema = SCHEMAS[series.data_type.kind]
    names = ["datetime", *(["id"] if schema.has_id else []), *schema.fields]
    return ",".join([*names, *(["side"] if schema.has_side else [])]).encode() + b"\n"
