"""All followers of one session: who hears what, who is waited for; knows no clock, no storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import trio

from tardisd.plugins.sessions import Dismissed, Notice, Speed, Subscription, WhenFull
from tardisd.replay.block import SessionBlock
from tardisd.replay.fanout import Follower, QueueLimits, Ties


class Audience:
    """The followers of a session. One that catches up hears notices, but no ticks yet."""

    def __init__(
        self, limits: QueueLimits, poke: Callable[[], None], speed: Callable[[], Speed]
    ) -> None:
        self._ties = Ties(limits, poke, self._leave, speed)
        self._present: list[Follower] = []
        self._behind: dict[Follower, trio.CancelScope] = {}
        self._draining: list[Follower] = []
        #: The encodings that are worth making ahead.
        self.demand: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self._present) + len(self._behind)

    def make(
        self, when_full: WhenFull, forms: Sequence[str], name: str, lockstep: bool
    ) -> Follower:
        """Return a follower that is not here yet."""
        return Follower(when_full, forms, self._ties, name, lockstep)

    def join(self, follower: Follower) -> None:
        """Have a follower hear everything from now on."""
        self._behind.pop(follower, None)
        follower.behind = False
        self._present.append(follower)
        self._count_forms()

    def lag_behind(self, follower: Follower, scope: trio.CancelScope) -> None:
        """Have a follower hear notices only, until it joins; `scope` is cancelled when it goes."""
        follower.behind = True
        self._behind[follower] = scope

    def is_behind(self, follower: Follower) -> bool:
        """Tell whether the follower is still catching up."""
        return follower in self._behind

    def _leave(self, follower: Follower) -> None:
        if follower in self._present:
            self._present.remove(follower)
            self._count_forms()
        if follower in self._behind:
            self._behind.pop(follower).cancel()
        if follower in self._draining:
            self._draining.remove(follower)
        self._ties.poke()

    def _count_forms(self) -> None:
        self.demand = frozenset(form for f in self._present for form in f.forms)

    # ---- what they hear

    def push(self, block: SessionBlock) -> None:
        """Hand ticks to all."""
        for follower in self._present.copy():
            follower.push(block)

    def mark(self, notice: Notice) -> None:
        """Tell of a gap: it has a seq, so those that catch up find it by themselves."""
        for follower in self._present.copy():
            follower.notify(notice)

    def tell(self, notice: Notice, by: Subscription | None = None, request_id: Any = None) -> bool:
        """Tell all; the asker's copy carries its request id. Returns whether the asker is here."""
        followers = [*self._present, *self._behind]
        for follower in followers:
            follower.notify(notice.answering(request_id) if follower is by else notice)
        return by in followers

    def reset(self, notice: Notice) -> None:
        """Tell all that a new epoch begins: what was queued or missed of the old one is void."""
        self._gather()
        for follower in self._present.copy():
            follower.void()
            follower.notify(notice)

    def go_round(self, notice: Notice, last_seq: int) -> None:
        """Tell all that a new epoch begins because the old one is over: it is received whole.

        Who still catches up and is not waited for (`owed`) is told what it misses, or cut off.
        """
        for follower in list(self._behind):
            follower.miss(last_seq)
        self._gather()
        for follower in self._present.copy():
            follower.go_round()
            follower.notify(notice)

    def _gather(self) -> None:
        """Have those join who catch up with an epoch that is over."""
        for follower, scope in list(self._behind.items()):
            scope.cancel()
            self.join(follower)

    def end(self, notice: Notice) -> None:
        """Tell all that this is the end; those that catch up hear it when they have all."""
        for follower in self._present:
            follower.notify(notice, last=True)
        self._draining, self._present = [*self._present, *self._behind], []
        self._count_forms()

    def dismiss(self, reason: str) -> None:
        """Cut all off: the session goes on, but not here and now."""
        for follower in [*self._present, *self._behind]:
            follower.evict(reason, Dismissed)

    @property
    def drained(self) -> bool:
        """Whether every follower has received all, after the end."""
        return not self._draining

    def finish(self, follower: Follower, notice: Notice) -> None:
        """Tell a follower that has caught up after the end that this is all."""
        self._behind.pop(follower, None)
        follower.notify(notice, last=True)

    # ---- who is waited for

    def without_room(self) -> list[Follower]:
        """Return the followers that the session must wait for."""
        return [follower for follower in self._present if not follower.has_room]

    def unheard(self) -> list[Follower]:
        """Return the followers whose word is waited for before the end."""
        return [f for f in self._present if f.awaited and not f.is_idle]

    def owed(self) -> list[Follower]:
        """Return the followers that catch up and are to have all before a new round begins."""
        return [follower for follower in self._behind if follower.policy == "block"]

    def silent(self) -> list[Follower]:
        """Return the followers that have not acknowledged the barrier they were sent."""
        return [f for f in self._present if f.lockstep and f.acknowledged < f.barrier_seq]

    def bar(self, notice: Notice, seq: int) -> None:
        """Send a barrier to those that keep step."""
        for follower in self._present.copy():
            if follower.lockstep:
                follower.barrier_seq = seq
                follower.notify(notice)

    def waiting_for(self) -> list[str]:
        """Return the names of those who hold the session up."""
        holding = dict.fromkeys(self.without_room() + self.silent())
        return [follower.name for follower in holding]

    def facts(self) -> list[dict[str, object]]:
        """Return who follows and how much waits for each."""
        return [follower.facts() for follower in [*self._present, *self._behind]]
