"""Blocks: consecutive ticks of a session in total order, encoded once for all followers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from operator import itemgetter
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from tardisd.market.columns import Batch
from tardisd.market.decimals import Ints
from tardisd.market.series import Series
from tardisd.market.ticks import Ticks
from tardisd.replay.digest import records
from tardisd.wire.encode import FORMS, Encoder, Form, Frame
from tardisd.wire.rows import EncodedRows, RowSlice, interleave

# Columns and one encoding of a tick, about; a queue that counts bytes counts these.
TICK_BYTES = 512
_NO_SEQS: Ints = np.empty(0, np.int64)


class Prepared:
    """A whole block as the pipeline makes it: ticks by kind, their order, lazily made bytes.

    `kinds` holds the ticks of each kind in their own order; `runs` are (kind, first row in it,
    rows) in total order. `encoders` are the session's, one per form. `hash_before` returns the
    content hash of all that came before the block; it may have to wait for it. None: the block is
    for one who needs no hash, or the hash is found elsewhere.
    """

    __slots__ = ("_encoded", "_encoders", "_lock", "epoch", "first_seq", "hash_before", "kinds",
                 "release", "runs", "session_id")  # fmt: skip

    def __init__(
        self,
        session_id: str,
        epoch: int,
        kinds: Sequence[Ticks],
        runs: Sequence[tuple[int, int, int]],
        release: Ints,
        encoders: Mapping[str, Encoder],
        first_seq: int,
        hash_before: Callable[[], blake2b] | None,
    ) -> None:
        self.session_id = session_id
        self.epoch = epoch
        self.first_seq = first_seq
        self.hash_before = hash_before
        self.kinds = kinds
        self.runs = runs
        self.release = release
        self._encoders = encoders
        self._encoded: dict[str, EncodedRows] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.release)

    def seqs(self, kind: int) -> Ints:
        """Return the sequence number of each tick of a kind."""
        if len(self.kinds) == 1:
            return np.arange(self.first_seq, self.first_seq + len(self))
        seqs = np.empty(len(self.kinds[kind]), np.int64)
        seq = self.first_seq
        for which, first, count in self.runs:
            if which == kind:
                seqs[first : first + count] = np.arange(seq, seq + count)
            seq += count
        return seqs

    def encode(self, form: str) -> EncodedRows:
        """Return the ticks as rows of bytes, made on first use; any thread may ask."""
        with self._lock:  # two encodings of one block would not have the same rows stamped
            rows = self._encoded.get(form)
            if rows is None:
                encoder = self._encoders[form]
                tables = enumerate(self.kinds)
                grids = [
                    encoder.encode(ticks, self.seqs(at) if encoder.numbered else _NO_SEQS)
                    for at, ticks in tables
                ]
                rows = self._encoded[form] = interleave(grids, self.runs)
        return rows

    def records(self) -> EncodedRows:
        """Return the records of the content hash (made anew: they are needed once, or twice)."""
        grids: list[tuple[NDArray[np.uint8], int | None]] = []
        for ticks in self.kinds:
            made = records(ticks)
            grids.append((made.view(np.uint8).reshape(len(made), made.dtype.itemsize), None))
        return interleave(grids, self.runs)

    def hash_upto(self, row: int) -> blake2b:
        """Return the session's content hash after the first `row` ticks of this block."""
        assert self.hash_before is not None, "the block is not hashed"
        digest = self.hash_before().copy()
        if row:
            digest.update(self.records().bytes(0, row))
        return digest

    def __getitem__(self, at: slice) -> SessionBlock:
        first, last, _ = at.indices(len(self))
        return SessionBlock(self, first, last)


class SessionBlock:
    """The ticks `first <= i < last` of a prepared block: what followers receive."""

    __slots__ = ("_first", "_last", "_stamped", "_whole", "sent_ms")

    def __init__(self, whole: Prepared, first: int, last: int) -> None:
        self._whole, self._first, self._last = whole, first, last
        self._stamped: set[str] = set()
        self.sent_ms = 0

    def __len__(self) -> int:
        return self._last - self._first

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self._whole.session_id

    @property
    def epoch(self) -> int:
        """The epoch that the sequence numbers belong to."""
        return self._whole.epoch

    @property
    def first_seq(self) -> int:
        """Sequence number of the first tick."""
        return self._whole.first_seq + self._first

    @property
    def last_release(self) -> int:
        """Release time (ns) of the last tick."""
        return int(self._whole.release[self._last - 1])

    @property
    def nbytes(self) -> int:
        """About how many bytes of memory the ticks take; the same at every call."""
        return len(self) * TICK_BYTES

    @property
    def release(self) -> Ints:
        """Release time (ns) of each tick, ascending."""
        return self._whole.release[self._first : self._last]

    def encode(self, form: str) -> RowSlice:
        """Return the ticks as rows of bytes, made once per form and shared by all followers."""
        rows = self._whole.encode(form)
        if form not in self._stamped:
            rows.stamp(self._first, self._last, self.sent_ms)
            self._stamped.add(form)
        return RowSlice(rows, self._first, self._last)

    def batches(self) -> Sequence[tuple[Batch, Sequence[int]]]:
        """Return the ticks as one batch per series, each with its sequence numbers (slow path)."""
        found: list[tuple[Batch, Sequence[int]]] = []
        for kind, ticks in enumerate(self._whole.kinds):
            seqs = self._whole.seqs(kind)
            low, high = np.searchsorted(seqs, [self.first_seq, self.first_seq + len(self)])
            if low < high:
                part = ticks.take(slice(int(low), int(high)))
                within = seqs[low:high]
                found += [(batch, within[rows].tolist()) for batch, rows in part.batches()]
        return found

    def series_rows(self) -> Sequence[tuple[Series, NDArray[np.intp]]]:
        """Return the series of the ticks, each with the numbers (from 0) of its rows, ascending."""
        found: list[tuple[Series, NDArray[np.intp]]] = []
        for kind, ticks in enumerate(self._whole.kinds):
            places = self._whole.seqs(kind) - self.first_seq
            low, high = np.searchsorted(places, [0, len(self)])
            places, ranks = places[low:high], ticks.rank[low:high]
            present = np.unique(ranks).tolist()
            if len(present) == 1:
                found.append((ticks.series[present[0]], places))
            else:
                found += [(ticks.series[rank], places[ranks == rank]) for rank in present]
        return found

    def newest_rows(self) -> list[tuple[int, Series]]:
        """Return the place and series of the newest tick of each series, ascending."""
        newest: dict[Series, int] = {}
        row = 0
        for kind, first, count in self._whole.runs:
            low, high = max(row, self._first), min(row + count, self._last)
            if low < high:
                ticks = self._whole.kinds[kind]
                ranks = ticks.rank[first + low - row : first + high - row][::-1]
                present, at = np.unique(ranks, return_index=True)
                for rank, back in zip(present.tolist(), at.tolist(), strict=True):
                    newest[ticks.series[rank]] = high - 1 - back - self._first
            row += count
        return sorted(((place, series) for series, place in newest.items()), key=itemgetter(0))

    def cut(self, first: int, last: int) -> SessionBlock:
        """Return a part of this block with the same time of sending."""
        part = SessionBlock(self._whole, self._first + first, self._first + last)
        part.sent_ms = self.sent_ms
        return part


def make_encoders(frame: Frame, forms: Iterable[Form] = FORMS) -> dict[str, Encoder]:
    """Return one encoder per form for a session's epoch."""
    return {
        form: Encoder(Frame(form, frame.session_id, frame.epoch, frame.lookahead)) for form in forms
    }
