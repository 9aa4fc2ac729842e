"""The content hash of a session: BLAKE2b over one little-endian record per tick, in total order.

The recipe is fixed by the semantics; `docs/hash-vectors.json` has examples. Speed, batching, scale
and chunking do not enter.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from tardisd.market.columns import SELL, Ids
from tardisd.market.decimals import DIGITS, POWERS
from tardisd.market.ticks import Ticks

_ID_BIT, _SELL_BIT, _FIRST_FIELD_BIT = 0, 1, 2


def text_hash(text: bytes) -> int:
    """Return the first 8 bytes of BLAKE2b of the text, as a little-endian integer."""
    return int.from_bytes(blake2b(text).digest()[:8], "little")


@lru_cache(maxsize=4096)
def _series_hash(text: str) -> int:
    return text_hash(text.encode())


def new_digest() -> blake2b:
    """Return the hash that records are fed to."""
    return blake2b(digest_size=32)


def records(ticks: Ticks) -> NDArray[np.void]:
    """Return one record per row, to be hashed in order."""
    names = ticks.schema.fields
    layout = [
        ("series", "<u8"),
        ("event", "<i8"),
        ("release", "<i8"),
        ("id", "<u8"),
        ("bits", "<u4"),
    ]
    layout += [(f"{part}{at}", "<i8") for at in range(len(names)) for part in ("whole", "fraction")]
    out = np.zeros(len(ticks), np.dtype(layout))
    hashes = np.array([_series_hash(series.text) for series in ticks.series], np.uint64)
    out["series"] = hashes[0] if len(hashes) == 1 else hashes[ticks.rank]
    out["event"] = ticks.ts_event
    out["release"] = ticks.ts_release
    constant = 0
    for at, name in enumerate(names):
        parts = ticks.fields.get(name)
        if parts is None:
            continue
        out[f"whole{at}"] = parts.whole
        if parts.fraction is not None:
            scaled = parts.fraction
            if parts.scale < DIGITS:
                scaled = scaled * POWERS[DIGITS - parts.scale]
            out[f"fraction{at}"] = scaled
        bit = 1 << (_FIRST_FIELD_BIT + at)
        if parts.present is None:
            constant |= bit
        else:
            out["bits"] += parts.present.astype(np.uint32) * np.uint32(bit)
    if ticks.ids is not None:
        numbers, present = id_numbers(ticks.ids)
        out["id"] = numbers
        if present is None:
            constant |= 1 << _ID_BIT
        else:
            out["bits"] += present.astype(np.uint32)
    if ticks.sides is not None:
        out["bits"] += (ticks.sides == SELL).astype(np.uint32) << np.uint32(_SELL_BIT)
    if constant:
        out["bits"] += np.uint32(constant)
    return out


def id_numbers(ids: Ids) -> tuple[NDArray[np.uint64], NDArray[np.bool_] | None]:
    """Return venue ids as the numbers that enter the hash, and which are present (None: all).

    An integer counts as itself whatever the column's form, so that storages may differ in it.
    """
    if ids.dtype.kind == "i":
        return ids.view(np.uint64), None
    texts = ids.tolist()
    numbers = np.array([_id_number(text) for text in texts], np.uint64)
    return numbers, None if all(texts) else np.array([bool(text) for text in texts])


def _id_number(text: bytes) -> int:
    if not text:
        return 0
    if text.isdigit() and (text[:1] != b"0" or text == b"0") and int(text) < 1 << 63:
        return int(text)
    return text_hash(text)
