"""The content hash of a session: BLAKE2b over one little-endian record per tick, in total order.

The recipe is fixed by the semantics; `docs/hash-vectors.json` has examples. Speed, batching, scale
and chunking do not enter.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from tardisd.market.columns import NO_SIDE, SELL, SIDES, Ids
from tardisd.market.decimals import DIGITS, POWERS
from tardisd.market.series import Series
from tardisd.market.ticks import Ticks

_ID_BIT, _SELL_BIT, _FIRST_FIELD_BIT = 0, 1, 2


def text_hash(text: bytes) -> int:
    """Return the first 8 bytes of BLAKE2b of the text, as a little-endian integer."""
    return int.from_bytes(blake2b(text).digest()[:8], "little")


def new_digest() -> blake2b:
    """Return the hash that records are fed to."""
    return blake2b(digest_size=32)


@lru_cache(maxsize=64)
def _layout(fields: int) -> np.dtype[np.void]:
    """Return the record of ticks with so many decimal fields."""
    parts = [f"{part}{at}" for at in range(fields) for part in ("whole", "fraction")]
    head = [("series", "<u8"), ("event", "<i8"), ("release", "<i8"), ("id", "<u8"), ("bits", "<u4")]
    return np.dtype([*head, *((part, "<i8") for part in parts)])


def records(ticks: Ticks) -> NDArray[np.void]:
    """Return one record per row, to be hashed in order."""
    names = ticks.schema.fields
    bits = 0
    for at, name in enumerate(names):
        if name in ticks.fields and ticks.fields[name].present is None:
            bits |= 1 << (_FIRST_FIELD_BIT + at)
    numbers, present = None, None
    if ticks.ids is not None:
        numbers, present = id_numbers(ticks.ids)
        bits |= (present is None) << _ID_BIT
    out = _beginnings(ticks, bits)
    out["event"] = ticks.ts_event
    out["release"] = ticks.ts_release
    if numbers is not None:
        out["id"] = numbers
        if present is not None:
            out["bits"] |= present.astype(np.uint32) << np.uint32(_ID_BIT)
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
        if parts.present is not None:
            out["bits"] |= parts.present.astype(np.uint32) << np.uint32(_FIRST_FIELD_BIT + at)
    return out


def _beginnings(ticks: Ticks, bits: int) -> NDArray[np.void]:
    """Return records with what depends on series and side only: all else is 0."""
    sides = (NO_SIDE,) if ticks.sides is None else SIDES
    kinds = _kinds(ticks.series, sides, bits, len(ticks.schema.fields))
    which = ticks.rank if ticks.sides is None else ticks.rank * len(SIDES) + ticks.sides
    return kinds.take(which)


@lru_cache(maxsize=64)
def _kinds(
    table: tuple[Series, ...], sides: tuple[int, ...], bits: int, fields: int
) -> NDArray[np.void]:
    """Return one record for each series and side, in order."""
    kinds = np.zeros((len(table), len(sides)), _layout(fields))
    for series, row in zip(table, kinds, strict=True):
        row["series"] = text_hash(series.text.encode())
        row["bits"] = [bits | (side == SELL) << _SELL_BIT for side in sides]
    return kinds.reshape(-1)


def id_numbers(ids: Ids) -> tuple[NDArray[np.uint64], NDArray[np.bool_] | None]:
    """Return venue ids as the numbers that enter the hash, and which are present (None: all).

    An integer counts as itself whatever the column's form, so that storages may differ in it.
    """
    if ids.dtype.kind == "i":
        if not len(ids) or int(ids.min()) >= 0:
            return ids.view(np.uint64), None
        ids = ids.astype(np.bytes_)  # a negative one counts as the text that it is to clients
    texts = ids.tolist()
    numbers = np.array([_id_number(text) for text in texts], np.uint64)
    return numbers, None if all(texts) else np.array([bool(text) for text in texts])


def _id_number(text: bytes) -> int:
    if not text:
        return 0
    # No int64 has more than 19 digits, and Python refuses to read thousands of them.
    plain = len(text) < 20 and text.isdigit() and (text[:1] != b"0" or text == b"0")
    if plain and int(text) < 1 << 63:
        return int(text)
    return text_hash(text)
