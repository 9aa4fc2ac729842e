"""What can go wrong at a test venue, and for which requests; knows no venue's own words.

A `Fault` says which requests it meets; its kind says what becomes of them. Faults are tried in
order, and the first that applies is the only one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals

Change = Callable[[Batch], Batch]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Meets requests whose `path?query` holds the pattern `match`.

    Of these it lets the first `skip` pass, then meets `times` of them (None: all), each with the
    probability `chance`.
    """

    match: str = ""
    skip: int = 0
    times: int | None = 1
    chance: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse(Fault):
    """Answer with a status, and the venue's own words for it unless `body` is given.

    A `retry_after` of None leaves the header to the venue; an empty text leaves it out.
    """

    status: int
    retry_after: str | None = None
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall(Fault):
    """Fall silent for `secs` before the answer, or after `after_bytes` of its body."""

    secs: float
    after_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset(Fault):
    """Reset the connection after `after_bytes` of the body, or before the answer."""

    after_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate(Fault):
    """Close the connection in good order after `after_bytes` of a body announced as longer."""

    after_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite(Fault):
    """Answer with other bytes, announced as if they were right."""

    change: Callable[[bytes], bytes]
    content_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Misreport(Fault):
    """Answer with other rows than the venue has: of a page or of a file."""

    change: Change


def wrong_checksum(**when: object) -> Fault:
    """Publish a checksum that is not the file's."""
    return Rewrite(**{"match": r"\.CHECKSUM", "change": _other_digits, **when})  # type: ignore[arg-type]


def html_page(**when: object) -> Fault:
    """Answer with a web page where JSON is expected, as proxies do."""
    page = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>"
    return Rewrite(**{"change": lambda _: page, "content_type": "text/html", **when})  # type: ignore[arg-type]


def not_a_number(**when: object) -> Fault:
    """Put a bare NaN in place of the first quoted number with a fraction."""
    return Rewrite(**{"change": _with_nan, **when})  # type: ignore[arg-type]


def duplicated(batch: Batch) -> Batch:
    """Return the batch with its middle row twice."""
    at = len(batch) // 2
    return batch[np.insert(np.arange(len(batch)), at, at)] if len(batch) else batch


def unsorted(batch: Batch) -> Batch:
    """Return the batch with its first and last halves swapped."""
    return batch[np.roll(np.arange(len(batch)), len(batch) // 2)]


def missing(batch: Batch) -> Batch:
    """Return the batch without its middle row."""
    return batch[np.delete(np.arange(len(batch)), len(batch) // 2)] if len(batch) else batch


def empty(batch: Batch) -> Batch:
    """Return no row at all."""
    return batch[:0]


def stale(batch: Batch) -> Batch:
    """Return the batch as it was before the last row's volume or amount was complete."""
    fields = dict(batch.fields)
    name = "volume" if "volume" in fields else "amount"
    column = fields[name]
    if len(batch):
        mantissa = column.mantissa.copy()
        mantissa[-1] //= 2
        fields[name] = Decimals(mantissa, column.scale, column.fraction, column.present)
    return Batch(batch.series, batch.ts_event, fields, batch.ids, batch.sides)


class FaultBook:
    """Tells what goes wrong with each request; counts what has met whom."""

    def __init__(self, faults: Sequence[Fault], seed: int) -> None:
        self.faults = list(faults)
        self._met: dict[int, tuple[int, int]] = {}
        self._random = random.Random(seed)

    def add(self, fault: Fault) -> None:
        """Know one more fault, tried after those known before."""
        self.faults.append(fault)

    def next(self, target: str) -> Fault | None:
        """Return what goes wrong with a request for `path?query`, if anything."""
        for number, fault in enumerate(self.faults):
            seen, done = self._met.get(number, (0, 0))
            if (fault.times is not None and done >= fault.times) or not re.search(
                fault.match, target
            ):
                continue
            self._met[number] = seen + 1, done
            if seen < fault.skip or self._random.random() >= fault.chance:
                continue
            self._met[number] = seen + 1, done + 1
            return fault
        return None


def _other_digits(body: bytes) -> bytes:
    return bytes(
        ord("0") + (byte - ord("0") + 1) % 10 if 48 <= byte < 58 else byte for byte in body
    )


def _with_nan(body: bytes) -> bytes:
    return re.sub(rb'"[0-9]+\.[0-9]+"', b"NaN", body, count=1)
