"""The content hash of what was released before a restart, as far as it is known by now.

A session that is taken up does not wait for it: its own blocks are without a hash until this one
has caught up with them, and go on from it then. Reads nothing itself (`trailing` does).
"""

from __future__ import annotations

from hashlib import blake2b
from threading import Lock

import trio

from tardisd.replay.block import Prepared


class Trail:
    """Blocks read behind a session's back; what it is asked for is counted in ticks of the epoch.

    `add` and what waits belong to the event loop; all else may be called from any thread.
    """

    def __init__(self, ticks: int) -> None:
        #: Ends the reading.
        self.scope = trio.CancelScope()
        #: How many ticks are hashed by now.
        self.ticks = 0
        #: Why there is no hash and will be none, if so.
        self.error: str | None = None
        self._over = False
        self._wanted = ticks
        self._given: tuple[int, blake2b] | None = None
        # Replaced as a whole, because other threads look through it.
        self._kept: tuple[tuple[int, Prepared], ...] = ()
        self._lock = Lock()
        self._moved = trio.Event()

    # ---- what reads

    def add(self, block: Prepared, released: int) -> None:
        """Take the next block; what ends before the ticks `released` is not asked for any more."""
        needed = [one for one in self._kept if one[0] + len(one[1]) >= released]
        self._kept = (*needed, (self.ticks, block))
        self.ticks += len(block)
        self._poke()

    def restart(self) -> None:
        """Forget all: it is read anew."""
        self._kept, self.ticks = (), 0

    def finish(self, error: str | None) -> None:
        """Note that nothing more is read, and why there is no hash, if there is none."""
        self._over, self.error = True, error
        self._poke()

    def _poke(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    @property
    def wanted(self) -> int:
        """After how many ticks the session's next block begins."""
        with self._lock:
            return self._wanted

    def give(self, ticks: int, digest: blake2b) -> bool:
        """Offer the hash to the block after so many ticks; False when that was made meanwhile."""
        with self._lock:
            if ticks != self._wanted:
                return False
            self._given = ticks, digest
            return True

    # ---- who asks

    def join(self, ticks: int, upto: int) -> blake2b | None:
        """Return the hash before a block, if it is given; else the block after it will ask."""
        with self._lock:
            if self._given is not None and self._given[0] == ticks:
                return self._given[1]
            self._wanted = upto
            return None

    def has(self, ticks: int) -> bool:
        """Tell whether the hash after so many ticks is known."""
        return ticks <= self.ticks

    def hash_at(self, ticks: int) -> blake2b:
        """Return the hash after so many ticks. Raises LookupError when it is not known."""
        for before, block in reversed(self._kept):
            if before <= ticks <= before + len(block):
                return block.hash_upto(ticks - before)
        raise LookupError(f"the content hash of {ticks} ticks is not known")

    async def reached(self, ticks: int) -> None:
        """Return when the hash after so many ticks is known, or will not be."""
        while not (self.has(ticks) or self._over):
            await self._moved.wait()
