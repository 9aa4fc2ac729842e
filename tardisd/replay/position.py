"""Where a session stands in its total order, and what it has released so far; reads nothing.

A position is a release time and how many ticks and gap marks of that very time have passed. It says
nothing of blocks or batches, so it stays true however the same ticks are cut anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

from tardisd.plugins.sessions import Notice
from tardisd.replay.block import Prepared, SessionBlock
from tardisd.replay.digest import new_digest
from tardisd.replay.trail import Trail

# A resume reads at most so many ticks again to find its place.
CHECKPOINT_TICKS = 65_536
# What a client that comes back at once gets without any reading.
RECENT_TICKS = 8192


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Behind everything released before `release` (ns), and behind so many items released then."""

    release: int
    ticks: int = 0
    marks: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A position, and the last seq and the count of ticks before it."""

    seq: int
    ticks: int
    position: Position


class Progress:
    """What an epoch has released: seq, count, position, content hash, and the last few items."""

    def __init__(self, begin: Position) -> None:
        self.begin = begin
        self.seq = 0
        self.ticks = 0
        self.recent: deque[SessionBlock | Notice] = deque()
        self._sealed = begin
        self._block: Prepared | None = None
        self._first = self._upto = 0
        self._checkpoints = [Checkpoint(0, 0, begin)]
        self._recent_ticks = 0
        self._digest: Callable[[], blake2b] = new_digest
        self._known_hash: str | None = None
        #: What finds the hash of blocks that have none, after a restart.
        self.trail: Trail | None = None
        self._trailing = False

    def released(self, block: Prepared, first: int, upto: int, slice_: SessionBlock | None) -> None:
        """Note that the rows `first <= i < upto` of a block are out; `slice_` told followers so."""
        if block is not self._block:
            self._seal()
            self._block, self._first = block, first
            if self.seq >= self._checkpoints[-1].seq + CHECKPOINT_TICKS:
                self._checkpoints.append(Checkpoint(self.seq, self.ticks, self._sealed))
        self._upto = upto
        self.seq += upto - first
        self.ticks += upto - first
        if slice_ is not None:
            self._keep(slice_, upto - first)

    def marked(self, release: int, notice: Notice | None) -> None:
        """Note that a gap mark of that release time is out."""
        self._seal()
        self.seq += 1
        before = self._sealed
        if before.release == release:
            self._sealed = Position(release, before.ticks, before.marks + 1)
        else:
            self._sealed = Position(release, 0, 1)
        if notice is not None:
            self._keep(notice, 1)

    @property
    def position(self) -> Position:
        """Where the epoch stands."""
        self._seal()
        return self._sealed

    def checkpoint(self, seq: int) -> Checkpoint:
        """Return the last known place at or before the seq."""
        return next(known for known in reversed(self._checkpoints) if known.seq <= seq)

    def milestones(self) -> Sequence[Checkpoint]:
        """Return a few of the known places, in order: before any tick, one is near for its age."""
        found: list[Checkpoint] = []
        least = 1
        for known in reversed(self._checkpoints[1:]):
            if (distance := self.seq - known.seq) >= least:
                found.append(known)
                least = 2 * distance
        return found[::-1]

    def digest(self) -> Callable[[], blake2b]:
        """Return what returns the content hash of what was released by now, from any thread.

        Only while `hash_is_known`.
        """
        self._seal()
        return self._digest

    @property
    def hash_is_known(self) -> bool:
        """Whether the content hash of what was released can be had."""
        self._seal()
        if self._trailing and self.trail is not None:
            return self.trail.has(self.ticks)
        return self._known_hash != ""

    async def hash_known(self) -> None:
        """Return when the content hash of what is then released can be had, or will not be."""
        ticks = -1
        while self._trailing and self.trail is not None and ticks != self.ticks:
            ticks = self.ticks
            await self.trail.reached(ticks)

    def hexdigest(self) -> str:
        """Return the content hash of what was released, as it is told."""
        return self.digest()().hexdigest() if self._known_hash is None else self._known_hash

    def restore(self, seq: int, ticks: int, position: Position, hexdigest: str) -> None:
        """Become what is known of an epoch that was over before the daemon was started."""
        self.seq, self.ticks = seq, ticks
        self._sealed, self._known_hash = position, hexdigest

    def take_up(self, at: Checkpoint, milestones: Sequence[Checkpoint], trail: Trail) -> None:
        """Become what an epoch was before a restart; a trail finds its content hash."""
        self.seq, self.ticks, self._sealed = at.seq, at.ticks, at.position
        self._checkpoints += [*milestones, at]
        self.trail, self._trailing = trail, True
        self._digest = partial(trail.hash_at, at.ticks)

    def missed(self, seq: int) -> list[SessionBlock | Notice] | None:
        """Return what was released after `seq`, or None when it is no longer at hand."""
        if seq == self.seq:
            return []
        if not self.recent or seq + 1 < _first_seq(self.recent[0]):
            return None
        found: list[SessionBlock | Notice] = []
        for item in self.recent:
            if (part := after(item, seq)) is not None:
                found.append(part)
        return found

    def last_ticks(self, count: int) -> list[SessionBlock]:
        """Return the last ticks released, as far as they are at hand: at most `count`."""
        found: list[SessionBlock] = []
        for item in reversed(self.recent):
            if count <= 0:
                break
            if not isinstance(item, Notice):
                part = item.cut(max(0, len(item) - count), len(item))
                found.append(part)
                count -= len(part)
        return found[::-1]

    def forget(self, hexdigest: str) -> None:
        """Let go of blocks, of which the hash is kept: nothing more is to come."""
        self._seal()
        self._known_hash = hexdigest
        self._block, self._digest, self.trail, self._trailing = None, new_digest, None, False
        self.recent.clear()
        self._recent_ticks = 0

    def _seal(self) -> None:
        """Take what is out of the current block into the position and the hash."""
        block, first, upto = self._block, self._first, self._upto
        if block is None or first == upto:
            return
        last = int(block.release[upto - 1])
        equal = int(block.release[first:upto].searchsorted(last, "left"))
        count = upto - first - equal
        if equal == 0 and last == self._sealed.release:
            self._sealed = Position(last, self._sealed.ticks + count, self._sealed.marks)
        else:
            self._sealed = Position(last, count)
        self._first = upto
        self._trailing = block.hash_before is None
        if self._trailing and self.trail is not None:
            self._digest = partial(self.trail.hash_at, self.ticks)
        else:
            self._digest = lambda: block.hash_upto(upto)
            self.trail = None  # the blocks have caught up: it is no longer asked for anything

    def _keep(self, item: SessionBlock | Notice, ticks: int) -> None:
        self.recent.append(item)
        self._recent_ticks += ticks
        while self._recent_ticks > RECENT_TICKS and len(self.recent) > 1:
            gone = self.recent.popleft()
            self._recent_ticks -= 1 if isinstance(gone, Notice) else len(gone)


def _first_seq(item: SessionBlock | Notice) -> int:
    return int(item.fields["seq"]) if isinstance(item, Notice) else item.first_seq


def after(item: SessionBlock | Notice, seq: int) -> SessionBlock | Notice | None:
    """Return the part of an item that follows `seq`, or None."""
    first = _first_seq(item)
    if first > seq:
        return item
    if isinstance(item, Notice) or first + len(item) - 1 <= seq:
        return None
    return item.cut(seq + 1 - first, len(item))
