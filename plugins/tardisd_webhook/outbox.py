"""What waits to be sent of one session: ticks gathered into parcels, whose bytes never change.

A parcel is complete when it has enough ticks or bytes, when its time is up, or when the next tick
does not follow its last: a gap mark took a number, or a new epoch began. From then on its body and
its idempotency key are fixed, so that every attempt to deliver it is the same request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import trio

from tardisd.errors import Retry
from tardisd.plugins.sessions import Block
from tardisd.wire.text import squeeze

from .journal import Journal

MOST_READY = 2
# A sink that takes nothing for a minute is cut off; asking for patience comes before that.
LONGEST_HOLD_SECS = 45.0


@dataclass(eq=False, slots=True)
class Parcel:
    """One request to be: consecutive ticks of an epoch. `verdict` is why it is not to be sent."""

    session_id: str
    epoch: int
    first_seq: int
    ticks: int
    body: bytes
    attempts: int = 0
    not_before: float = 0.0
    verdict: dict[str, object] | None = None

    @property
    def key(self) -> str:
        """The idempotency key."""
        return f"{self.session_id}:{self.epoch}:{self.first_seq}"


@dataclass(slots=True)
class _Filling:
    epoch: int
    first_seq: int
    since: float
    parts: list[bytes] = field(default_factory=list)
    ticks: int = 0
    size: int = 0


class Outbox:
    """A session's parcels, bounded: `write` waits while `MOST_READY` of them wait to be sent.

    `wake` tells the one who sends them that there is something to look at. With a `journal` what is
    ready outlives the daemon; `resumed` tells that it has done so.
    """

    def __init__(
        self,
        session_id: str,
        batch_ticks: int,
        batch_secs: float,
        most_bytes: int,
        wake: Callable[[], None],
        journal: Journal | None = None,
    ) -> None:
        self.session_id = session_id
        self.ready: deque[Parcel] = deque()
        self.journal = journal
        self.failing_since: float | None = None
        self.reason = ""
        self._batch_ticks = batch_ticks
        self._batch_secs = batch_secs
        self._most_bytes = most_bytes
        self._wake = wake
        self._filling: _Filling | None = None
        self.taken = (0, 0)
        self.resumed = journal is not None and journal.exists
        if journal is not None and self.resumed:
            self.taken, parcels = journal.load()
            self.ready.extend(Parcel(session_id, *parcel) for parcel in parcels)
        elif journal is not None:
            journal.begin()
        self._skipped_from: int | None = None
        self._moved = trio.Event()

    @property
    def empty(self) -> bool:
        """Whether everything that was taken has been dealt with."""
        return not self.ready and self._filling is None

    async def write(self, block: Block, patience_secs: float) -> None:
        """Take what was not taken yet. Raises Retry when the address fails for too long."""
        epoch, seq = self.taken
        first = 0
        if epoch == block.epoch:
            first = min(max(seq - block.first_seq + 1, 0), len(block))
        while first < len(block):
            await self._room(patience_secs)
            first = self._take(block, first)
            self._skipped_from = None
            self.taken = (block.epoch, block.first_seq + first - 1)
        await trio.lowlevel.checkpoint()

    def missing(self, block: Block) -> int | None:
        """Return the number after which ticks are missing before the block, or None."""
        epoch, seq = self.taken
        if epoch < block.epoch:
            if self.resumed and block.first_seq > 1:  # the one before had taken nothing of it
                return 0
            if self._skipped_from is None:  # a new epoch, or a session that goes on after a restart
                return None
            seq = self._skipped_from - 1
        return seq if epoch <= block.epoch and seq < block.first_seq - 1 else None

    def skipped(self, first: int) -> None:
        """Take note that ticks from that number on were dropped."""
        if self._skipped_from is None:
            self._skipped_from = first

    def passed(self, epoch: int, seq: int) -> None:
        """Take note that a number was no tick's, but a gap mark's."""
        if self.taken == (epoch, seq - 1) or (self.taken[0] < epoch and seq == 1):
            self.taken = (epoch, seq)

    async def _room(self, patience_secs: float) -> None:
        longest = trio.current_time() + LONGEST_HOLD_SECS
        while len(self.ready) >= MOST_READY:
            deadline = longest
            if self.failing_since is not None:
                deadline = min(self.failing_since + patience_secs, longest)
            if trio.current_time() >= deadline:
                raise Retry(self.reason or "the address takes very long to answer", after=1.0)
            with trio.move_on_at(deadline):
                await self._moved.wait()

    def _take(self, block: Block, first: int) -> int:
        """Put rows from `first` on into the parcel that is being filled; return the next row."""
        seq = block.first_seq + first
        into = self._filling
        if into is not None and (into.epoch, into.first_seq + into.ticks) != (block.epoch, seq):
            self.seal()
            into = None
        if into is None:
            into = self._filling = _Filling(block.epoch, seq, trio.current_time())
        rows = block.encode("batch")
        count = min(len(block) - first, self._batch_ticks - into.ticks)
        while True:
            text = squeeze(rows.bytes(first, first + count))
            room = self._most_bytes - into.size
            if len(text) <= room:
                break
            if count == 1:
                if into.ticks:
                    self.seal()
                    return first
                break  # larger than any body may be: it goes alone
            count = max(count * room // len(text), 1)
        into.parts.append(text)
        into.ticks += count
        into.size += len(text)
        if into.ticks >= self._batch_ticks:
            self.seal()
        elif into.ticks == count:
            self._wake()  # its time begins to run
        return first + count

    def seal(self) -> None:
        """Complete the parcel that is being filled."""
        done, self._filling = self._filling, None
        if done is None or not done.ticks:
            return
        head = {"session_id": self.session_id, "epoch": done.epoch, "first_seq": done.first_seq}
        begun = msgspec.json.encode(head)[:-1] + b',"ticks":['
        body = b"".join([begun, *done.parts])[:-1] + b"]}"  # without the last comma
        if self.journal is not None:
            self.journal.keep(done.epoch, done.first_seq, done.ticks, body)
        self.ready.append(Parcel(self.session_id, done.epoch, done.first_seq, done.ticks, body))
        self._wake()

    def due(self, now: float) -> tuple[Parcel | None, float]:
        """Return the parcel to send now, or None and when to look again."""
        if not self.ready and self._filling is not None:
            complete_at = self._filling.since + self._batch_secs
            if now < complete_at:
                return None, complete_at
            self.seal()
        if not self.ready:
            return None, float("inf")
        parcel = self.ready[0]
        return (parcel, now) if parcel.not_before <= now else (None, parcel.not_before)

    def has(self, parcel: Parcel) -> bool:
        """Tell whether a parcel is the next one, still."""
        return bool(self.ready) and self.ready[0] is parcel

    def settled(self, parcel: Parcel) -> None:
        """Remove a parcel that has been dealt with."""
        if self.has(parcel):
            self.ready.popleft()
            if self.journal is not None:
                self.journal.drop(parcel.epoch, parcel.first_seq, parcel.ticks)
            self.move()

    async def flush(self) -> None:
        """Complete what is being filled, and return when everything has been dealt with."""
        self.seal()
        while not self.empty:
            await self._moved.wait()

    def move(self) -> None:
        """Wake whoever waits for something to happen here."""
        self._moved.set()
        self._moved = trio.Event()
