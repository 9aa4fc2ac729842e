"""Followers of a session: bounded queues of shared blocks, and what happens when one is full.

Queues are bounded in ticks, in bytes and in market time. Blocks are shared by all followers, so a
queue costs no copy, but it keeps blocks alive. A gap mark counts as a tick, for it has a sequence
number. Other notices come a few per verb; they pass a full queue by, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeGuard

import trio

from tardisd.errors import RequestError
from tardisd.market.time import SECOND
from tardisd.plugins.sessions import Evicted, Notice, Speed, WhenFull
from tardisd.replay.block import SessionBlock
from tardisd.supervise import describe

# What a new epoch makes void: the rest of a queue says what happened, not what is there.
_OF_AN_EPOCH = frozenset({"gap", "barrier", "snapshot", "skipped", "reset"})

# Beyond so many notices in a row a queue's market time is not looked for.
_NEAR_ITEMS = 64


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How far a follower may lag, and how long a blocking one may read nothing.

    `…_secs` of lag are market time at the session's own speed; at `max` they bound nothing.
    `most_items` is how many blocks and notices may wait whatever the policy.
    """

    blocking_ticks: int = 4096
    blocking_bytes: int = 4 * 1024 * 1024
    blocking_secs: float = 10.0
    lagging_ticks: int = 16_384
    lagging_bytes: int = 16 * 1024 * 1024
    lagging_secs: float = 60.0
    max_block_secs: float = 60.0
    most_items: int = 32_768


@dataclass(frozen=True, slots=True)
class Ties:
    """What ties a follower to its session."""

    limits: QueueLimits
    #: Wakes the session when there is room again.
    poke: Callable[[], None]
    leave: Callable[[Follower], None]
    speed: Callable[[], Speed]


class Follower:
    """One follower's queue. While it is `held`, it receives nothing: what comes first is read.

    One that is held, or `behind` the session, never loses anything, whatever its policy.
    """

    def __init__(
        self, policy: WhenFull, forms: Sequence[str], ties: Ties, name: str = "",
        lockstep: bool = False,
    ) -> None:  # fmt: skip
        self.name = name
        self.policy = policy
        self.forms = tuple(forms)
        self.lockstep = lockstep
        self.full_since: float | None = None
        self.last_seq = 0
        #: The last barrier sent, and the last seq acknowledged, of the epoch that is on.
        self.barrier_seq = self.acknowledged = 0
        #: Ends the task that reads what comes first.
        self.held: trio.CancelScope | None = None
        self.behind = False
        #: Whether the end waits until it has dealt with all: it may have something to say.
        self.awaited = False
        self._dealing = False
        #: What it had from a daemon before this one: not told again.
        self.heard_seq = 0
        self._limits = ties.limits
        self._ties = ties
        self._queue: deque[SessionBlock | Notice] = deque()
        self._ticks = self._bytes = 0
        self._arrived = trio.Event()
        self._ended = False
        self._evicted: Evicted | None = None
        self._cut_off = trio.Event()

    @property
    def queued_ticks(self) -> int:
        """How many ticks wait to be received."""
        return self._ticks

    @property
    def has_room(self) -> bool:
        """Whether the session may go on as far as this follower is concerned."""
        limits = self._limits
        return not self._lossless or not (
            self._ticks >= limits.blocking_ticks
            or self._bytes >= limits.blocking_bytes
            or self._lags(limits.blocking_secs)
        )

    @property
    def is_open(self) -> bool:
        """Whether it hears of what comes from now on."""
        return not self._ended and self._evicted is None

    @property
    def is_idle(self) -> bool:
        """Whether it has received all and dealt with it."""
        return not (self._queue or self._dealing)

    @property
    def _lossless(self) -> bool:
        return self.policy == "block" or self.held is not None or self.behind

    def facts(self) -> dict[str, object]:
        """Return who it is and how much waits for it."""
        return {
            "name": self.name,
            "when_full": self.policy,
            "queued_ticks": self._ticks,
            "queued_bytes": self._bytes,
        }

    def _lags(self, secs: float) -> bool:
        """Tell whether what is queued spans more market time than that, at the session's speed."""
        speed = self._ties.speed()
        if speed == "max" or len(self._queue) < 2:
            return False
        first, last = _block_near(self._queue), _block_near(reversed(self._queue))
        if first is None or last is None:
            return False
        return last.last_release - first.last_release > secs * speed * SECOND

    def be(self, policy: WhenFull) -> None:
        """Change the policy; a follower that no longer blocks lets the session go on."""
        self.policy = policy
        if self.full_since is not None and self.has_room:
            self.full_since = None
            self._ties.poke()

    def push(self, block: SessionBlock) -> None:
        """Queue ticks, by the follower's policy when it lags too far."""
        if block.first_seq <= self.heard_seq:
            if block.first_seq + len(block) - 1 <= self.heard_seq:
                return
            block = block.cut(self.heard_seq + 1 - block.first_seq, len(block))
        self._queue.append(block)
        self._ticks += len(block)
        self._bytes += block.nbytes
        self._hold_to_limits()

    def notify(self, notice: Notice, *, last: bool = False) -> None:
        """Queue a notice; after the `last` one the stream ends."""
        if _weight(notice) and _first_seq(notice) <= self.heard_seq:
            return
        self._queue.append(notice)
        self._ticks += _weight(notice)
        self._ended = self._ended or last
        if not last:
            self._hold_to_limits()
        self._arrived.set()

    def void(self) -> None:
        """Drop what was queued of an epoch that is over; its seqs mean nothing any more."""
        self._drop_the_epoch()
        self.full_since = None
        self._let_go()
        self._number_anew()
        self._arrived.set()

    def _drop_the_epoch(self) -> None:
        """Keep what says what happened only: a verb's notice may be the reply to a request."""
        told = (item for item in self._queue if isinstance(item, Notice))
        self._queue = deque(item for item in told if item.type not in _OF_AN_EPOCH)
        self._ticks = self._bytes = 0

    def go_round(self) -> None:
        """Begin another epoch behind what is queued; if that is much and not owed, without it."""
        many = self._limits.most_items // 2
        if self.policy in {"drop_oldest", "conflate"} and len(self._queue) > many:
            self.void()
        self._number_anew()

    def miss(self, last_seq: int) -> None:
        """Go without what is not queued yet, up to the last number of the epoch that is over."""
        seqs = (_last_seq(item) for item in reversed(self._queue))
        had = next((seq for seq in seqs if seq), max(self.last_seq, self.heard_seq))
        if had >= last_seq:
            return
        if self.policy == "disconnect":
            self.evict("the round that it was catching up with is over")
        else:
            self.notify(_skipped(had + 1, last_seq))

    def _number_anew(self) -> None:
        self.last_seq = self.heard_seq = self.barrier_seq = self.acknowledged = 0

    def _let_go(self) -> None:
        """Hold it no longer: what was to come first is not waited for any more."""
        if self.held is not None:
            self.held.cancel()
            self.held = None

    def let(self, *first: Notice) -> None:
        """Hold the follower no longer; it receives `first` before all that is queued."""
        self._queue.extendleft(reversed(first))
        self.held = None
        self._arrived.set()

    def _hold_to_limits(self) -> None:
        limits = self._limits
        if not self._lossless and (
            self._ticks > limits.lagging_ticks
            or self._bytes > limits.lagging_bytes
            or self._lags(limits.lagging_secs)
        ):
            if self.policy == "disconnect":
                self.evict("too slow")
            elif self.policy == "drop_oldest":
                self._drop(max(1, self._ticks - min(self._ticks, limits.lagging_ticks) // 2))
            else:
                self._conflate()
        if len(self._queue) > limits.most_items:
            self.evict("too slow")
        self._arrived.set()

    def evict(self, reason: str, kind: type[Evicted] = Evicted) -> None:
        """Cut the follower off; it learns so at its next receive."""
        self._evicted = kind(reason)
        self._cut_off.set()
        self._queue.clear()
        self._ticks = self._bytes = 0
        self._let_go()
        self._arrived.set()
        self._ties.leave(self)

    def fail(self, error: Exception, what: str) -> None:
        """End with an `error`: what it asked for is not to be had, and asking again is no use."""
        code = error.code if isinstance(error, RequestError) else "internal"
        self._drop_the_epoch()
        self._let_go()
        self._ties.leave(self)
        fields = {"code": code, "message": f"{what}: {describe(error)}"}
        self.notify(Notice("error", fields), last=True)

    async def receive(self) -> SessionBlock | Notice:
        """Return what comes next. Raises trio.EndOfChannel after the end, Evicted when cut off."""
        if self._dealing:
            self._dealing = False
            if self.awaited:
                self._ties.poke()
        while self._evicted is not None or not self._queue or self.held is not None:
            if self._evicted is not None:
                raise self._evicted
            if self._ended and self.held is None:
                self._ties.leave(self)
                raise trio.EndOfChannel
            self._arrived = trio.Event()
            await self._arrived.wait()
        item = self._queue.popleft()
        self._dealing = True
        if weight := _weight(item):
            self._ticks -= weight
            self._bytes -= 0 if isinstance(item, Notice) else item.nbytes
            self.last_seq = _first_seq(item) + weight - 1
            if self.full_since is not None:  # it reads, if slowly: its time starts again
                self.full_since = None if self.has_room else trio.current_time()
                self._ties.poke()
        return item

    async def wait_evicted(self) -> None:
        """Return once the follower has been cut off, if ever: for those stuck in a send."""
        await self._cut_off.wait()

    def leave(self) -> None:
        """Stop following; `receive` still gives the verbs that were told, then it ends."""
        self._ended = True
        self._drop_the_epoch()
        self._let_go()
        self._arrived.set()
        self._ties.leave(self)

    def close(self) -> None:
        """Stop following; idempotent."""
        self.leave()
        self._queue.clear()

    def _drop(self, count: int) -> None:
        """Drop the oldest `count` ticks and say so; notices keep their place."""
        kept: deque[SessionBlock | Notice] = deque()
        for item in self._queue:
            weight = _weight(item)
            gone = min(count, weight)
            if _is_skipped(item):
                _skip(kept, item.fields["from_seq"], item.fields["to_seq"])
            elif gone:
                first = _first_seq(item)
                _skip(kept, first, first + gone - 1)
                if not isinstance(item, Notice) and gone < weight:
                    kept.append(item.cut(gone, weight))
            else:
                kept.append(item)
            count -= gone
            self._ticks -= gone
        self._keep(kept)

    def _keep(self, queue: deque[SessionBlock | Notice]) -> None:
        self._queue = queue
        self._bytes = sum(item.nbytes for item in queue if not isinstance(item, Notice))

    def _conflate(self) -> None:
        """Keep the newest tick of each series, and say what was skipped."""
        kept: deque[SessionBlock | Notice] = deque()
        self._ticks = 0
        newest: set[object] = set()
        for item in reversed(self._queue):
            if isinstance(item, Notice):
                if _is_skipped(item):
                    _skip_before(kept, item.fields["from_seq"], item.fields["to_seq"])
                elif _weight(item):
                    _skip_before(kept, item.fields["seq"], item.fields["seq"])
                else:
                    kept.appendleft(item)
                continue
            upto = len(item)
            for row, series in reversed(item.newest_rows()):
                if series in newest:
                    continue
                newest.add(series)
                if row + 1 < upto:
                    _skip_before(kept, item.first_seq + row + 1, item.first_seq + upto - 1)
                kept.appendleft(item.cut(row, row + 1))
                self._ticks += 1
                upto = row
            if upto:
                _skip_before(kept, item.first_seq, item.first_seq + upto - 1)
        self._keep(kept)


def _weight(item: SessionBlock | Notice) -> int:
    """Return how many sequence numbers an item takes."""
    if isinstance(item, Notice):
        return int(item.type == "gap")
    return len(item)


def _block_near(items: Iterable[SessionBlock | Notice]) -> SessionBlock | None:
    """Return the first block; None when many notices come before it."""
    near = islice(items, _NEAR_ITEMS)
    return next((item for item in near if not isinstance(item, Notice)), None)


def _first_seq(item: SessionBlock | Notice) -> int:
    if isinstance(item, Notice):
        return int(item.fields["seq"])
    return item.first_seq


def _last_seq(item: SessionBlock | Notice) -> int:
    """Return the last number that an item tells of, or 0."""
    if _is_skipped(item):
        return int(item.fields["to_seq"])
    weight = _weight(item)
    return _first_seq(item) + weight - 1 if weight else 0


def _skipped(first: int, last: int) -> Notice:
    return Notice("skipped", {"from_seq": first, "to_seq": last})


def _is_skipped(item: SessionBlock | Notice | None) -> TypeGuard[Notice]:
    return isinstance(item, Notice) and item.type == "skipped"


def _skip(queue: deque[SessionBlock | Notice], first: int, last: int) -> None:
    """Append a notice of skipped ticks, joined to one that ends just before."""
    tail = queue[-1] if queue else None
    if _is_skipped(tail) and tail.fields["to_seq"] + 1 == first:
        queue.pop()
        first = tail.fields["from_seq"]
    queue.append(_skipped(first, last))


def _skip_before(queue: deque[SessionBlock | Notice], first: int, last: int) -> None:
    """Prepend a notice of skipped ticks, joined to one that begins just after."""
    head = queue[0] if queue else None
    if _is_skipped(head) and head.fields["from_seq"] == last + 1:
        queue.popleft()
        last = head.fields["to_seq"]
    queue.appendleft(_skipped(first, last))
