"""Turns merged windows into blocks: hashed, numbered, encoded ahead; reads and paces nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

from tardisd.replay.block import Prepared
from tardisd.replay.digest import new_digest
from tardisd.replay.merge import Mark, Window
from tardisd.replay.position import Position
from tardisd.replay.prelude import Item, Prelude, Snapshot
from tardisd.replay.trail import Trail
from tardisd.wire.encode import Encoder

HASH_AHEAD_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Opening:
    """Where a source is opened: the position, the last seq before it, and the hash up to there.

    `middle` tells that something may have been released before; a snapshot then comes first.
    Without `hashed` the blocks have no content hash: what repeats others' ticks needs none. With a
    `trail`, they have none until it has caught up with them; `ticks` are those before the position.
    """

    begin: Position
    seq: int = 0
    digest: Callable[[], blake2b] = new_digest
    middle: bool = True
    hashed: bool = True
    trail: Trail | None = None
    ticks: int = 0


@dataclass(frozen=True, slots=True)
class Stamp:
    """What all blocks of an epoch share: whose they are, and how they are encoded."""

    session_id: str
    epoch: int
    encoders: Mapping[str, Encoder]


class Windows(Protocol):
    """Where windows come from, one after another."""

    @property
    def done(self) -> bool:
        """Whether everything has been given out."""

    def window(self) -> Window:
        """Return what can be ordered now."""


class Preparer:
    """Turns windows into blocks, a few at a time, in any thread; one call at a time."""

    def __init__(
        self,
        stamp: Stamp,
        opening: Opening,
        windows: Windows,
        hasher: Executor,
        demand: Callable[[], frozenset[str]],
    ) -> None:
        self._stamp = stamp
        self._windows = windows
        self._hasher = hasher
        self._demand = demand
        self._window: Window | None = None
        self._items: Iterator[Item] = iter(())
        self._first = self._seq = opening.seq + 1
        self._hashes: deque[Future[blake2b]] | None = None
        self._trail, self._ticks = opening.trail, opening.ticks
        if opening.hashed and opening.trail is None:
            self._hashes = deque([hasher.submit(opening.digest)])
        self._prelude: Prelude | None = None
        if opening.middle:
            self._prelude = Prelude(opening.begin, stamp.encoders["batch"])

    @property
    def busy(self) -> bool:
        """Whether there is something to prepare without reading more."""
        return self._window is not None or (self._prelude is not None and self._windows.done)

    def work(self, ticks: int) -> list[Snapshot | Prepared | Mark]:
        """Return the next blocks and marks: few at first, for the sake of the first tick."""
        found: list[Snapshot | Prepared | Mark] = []
        most = self._seq + (1 if self._seq == self._first else ticks)
        if self._window is None:
            self._window = self._windows.window()
            self._items = iter(self._window)
            if self._prelude is not None:
                items = self._prelude.strain(self._window)
                if items is None and not self._windows.done:
                    self._window = None
                    return found
                self._items = iter(self._prelude.pending if items is None else items)
                found.append(self._prelude.snapshot(self._stamp.session_id, self._stamp.epoch))
                self._prelude = None
        while self._seq < most:
            item = next(self._items, None)
            if item is None:
                self._window = None
                break
            if isinstance(item, Mark):
                found.append(item)
                self._seq += 1
            else:
                block = self._prepare(self._window, *item)
                found.append(block)
                self._seq += len(block)
        return found

    def _prepare(self, window: Window, first: int, last: int) -> Prepared:
        stamp, piece = self._stamp, window.piece(first, last)
        if self._hashes is None and self._trail is not None:
            self._join(self._trail, last - first)
        block = Prepared(
            stamp.session_id,
            stamp.epoch,
            piece.kinds,
            piece.runs,
            piece.release,
            stamp.encoders,
            self._seq,
            None if self._hashes is None else self._hashes[-1].result,
        )
        if self._hashes is not None:
            self._hash(block, self._hashes)
        for form in self._demand():
            block.encode(form)
        return block

    def _join(self, trail: Trail, ticks: int) -> None:
        """Hash from the next block on, if the trail has come so far."""
        digest = trail.join(self._ticks, self._ticks + ticks)
        self._ticks += ticks
        if digest is not None:
            known: Future[blake2b] = Future()
            known.set_result(digest)
            self._hashes, self._trail = deque([known]), None

    def _hash(self, block: Prepared, hashes: deque[Future[blake2b]]) -> None:
        """Have the block hashed by the next thread; at most a few blocks wait for it."""
        before = hashes[-1]

        def after() -> blake2b:
            digest = before.result().copy()
            digest.update(block.records().bytes())
            return digest

        hashes.append(self._hasher.submit(after))
        if len(hashes) > HASH_AHEAD_BLOCKS:
            hashes.popleft().result()
