"""How plugins and the control socket create, control and follow sessions; the engine is elsewhere.

A follower receives `Block`s (consecutive ticks) and `Notice`s (everything else), in one order that
is the same for every follower of a session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tardisd.market.columns import Batch
from tardisd.market.decimals import Ints
from tardisd.market.series import Series
from tardisd.market.time import Interval

Speed = float | Literal["max"]
WhenFull = Literal["block", "drop_oldest", "conflate", "disconnect"]
OnGap = Literal["mark", "skip", "fail"]

ACK_TIMEOUT_SECS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRequest:
    """What a session is to replay: series over `[start, end)` (ns) at `speed`.

    `origin` says who asked, for listings (`websocket`, `control`, `preset demo`). At `until` (ns)
    the session pauses by itself. `max_idle_secs` bounds, in wall time, the wait for the next tick.
    With `lockstep` the clock waits at barriers, at every release time or every close of `barrier`,
    for at most `ack_timeout_secs`. `derive` are candles to build from finer series that are stored;
    with `forming` they are shown while they form. A `durable` session outlives the daemon.
    """

    series: tuple[Series, ...]
    start: int
    end: int
    session_id: str | None = None
    speed: Speed = 100.0
    start_paused: bool = False
    on_gap: OnGap = "mark"
    release: Literal["close", "open-lookahead"] = "close"
    publish_delay: int = 0
    ephemeral: bool = False
    storage: str | None = None
    sinks: tuple[str, ...] = ()
    loop: bool = False
    until: int | None = None
    max_idle_secs: float | None = None
    lockstep: bool = False
    barrier: Interval | None = None
    ack_timeout_secs: float = ACK_TIMEOUT_SECS
    derive: tuple[Series, ...] = ()
    forming: bool = False
    durable: bool = False
    analyzers: tuple[str, ...] = ()
    origin: str = "control"


@dataclass(frozen=True, slots=True)
class Notice:
    """Anything a follower is told besides ticks: `gap`, `paused`, `reset`, `barrier`, `end`, ….

    `fields` are the message's fields of protocol §1 besides `type`, `session_id` and `id`; the
    `data` of a `snapshot` are already JSON (msgspec.Raw).
    """

    type: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    request_id: str | int | float | None = None

    def answering(self, request_id: str | int | float | None) -> Notice:
        """Return the same notice as the reply to a request."""
        return replace(self, request_id=request_id)


class Block(Protocol):
    """Consecutive ticks of one session in total order; shared by all followers, never changed."""

    @property
    def session_id(self) -> str:
        """The session's id."""

    @property
    def epoch(self) -> int:
        """The epoch that the sequence numbers belong to."""

    @property
    def first_seq(self) -> int:
        """Sequence number of the first tick; the others follow without holes."""

    @property
    def last_release(self) -> int:
        """Release time (ns) of the last tick."""

    @property
    def release(self) -> Ints:
        """Release time (ns) of each tick, ascending."""

    def __len__(self) -> int: ...

    def encode(self, form: str) -> Rows:
        """Return the ticks as bytes, encoded once per form and shared (`tardisd.wire.FORMS`)."""

    def series_rows(self) -> Sequence[tuple[Series, NDArray[np.intp]]]:
        """Return the series of the ticks, each with the numbers (from 0) of its rows, ascending."""

    def batches(self) -> Sequence[tuple[Batch, Sequence[int]]]:
        """Return the ticks as one batch per series, each with its sequence numbers (slow path)."""


class Rows(Protocol):
    """Encoded ticks: one contiguous buffer, and where each row begins."""

    def __len__(self) -> int: ...

    def bytes(self, first: int = 0, last: int | None = None) -> memoryview:
        """Return the bytes of the rows `first <= i < last`."""

    def cut(self, limit: int) -> Iterator[memoryview]:
        """Return the bytes in pieces of whole rows, each of at most `limit` bytes if it can be."""

    def grids(self) -> Iterator[NDArray[np.uint8]]:
        """Return the rows as tables of neighbouring rows of one width; do not write to them."""


class Subscription(Protocol):
    """One follower's place in a session; leave it by closing."""

    @property
    def is_open(self) -> bool:
        """Whether it hears of what comes from now on: not when it was left, cut off or has ended.

        It may then still have something to receive, but no replies.
        """

    async def receive(self) -> Block | Notice:
        """Return what comes next, waiting for it. Raises trio.EndOfChannel after `end`.

        Raises Evicted when the follower was cut off for being too slow.
        """

    async def wait_evicted(self) -> None:
        """Return once the follower has been cut off for being too slow; else never.

        One that is stuck in delivering what it has received learns of it only here.
        """

    def leave(self) -> None:
        """Stop following, but for verbs told so far: some may answer this follower's requests.

        `receive` returns those, and raises trio.EndOfChannel then.
        """

    def close(self) -> None:
        """Stop following; idempotent. A pending `receive` need not return."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a follower was when it went: it gets what follows `from_seq` of `epoch`."""

    epoch: int
    from_seq: int


class Stepping(Protocol):
    """A step under way."""

    @property
    def told(self) -> bool:
        """Whether the subscription that asked has the reply: not when it was left meanwhile."""

    async def wait(self) -> Notice:
        """Return `stepped` when it is done, or was ended early by another verb."""


class Evicted(Exception):
    """Raised by Subscription.receive when a follower that was too slow has been cut off."""


class Dismissed(Evicted):
    """Raised by Subscription.receive when the session goes on with the daemon after this one."""


class Session(Protocol):
    """One replay with its own clock. Verbs raise RequestError when they do not fit its state.

    Every follower is told of a verb by a Notice in the order of its ticks; the one that asked
    (`by`) gets it with its `request_id`. The notice is returned too, for callers without a
    subscription.
    """

    @property
    def session_id(self) -> str:
        """The session's id."""

    def status(self) -> dict[str, Any]:
        """Return the fields of protocol §1 `status`."""

    def created(self) -> Notice:
        """Return the `session_created` notice."""

    def pause(self, by: Subscription | None = None, request_id: Any = None) -> Notice:
        """Stop the clock."""

    def resume(self, by: Subscription | None = None, request_id: Any = None) -> Notice:
        """Let the clock run on."""

    def change_speed(
        self, speed: Speed, by: Subscription | None = None, request_id: Any = None
    ) -> Notice:
        """Set market seconds per wall second from now on."""

    def stop(self, by: Subscription | None = None, request_id: Any = None) -> Notice:
        """End the session; every follower gets `end` with reason `stopped`."""

    def seek(self, to: int, by: Subscription | None = None, request_id: Any = None) -> Notice:
        """Stand before the first tick released at `to` (ns) or later, in a new epoch.

        Followers get `sought`, `reset` and `snapshot`, and none of the ticks that were queued.
        """

    def seek_by(self, delta: int, by: Subscription | None = None, request_id: Any = None) -> Notice:
        """Seek by `delta` ns from where the session is, not beyond its start or end."""

    def step(self, count: int, by: Subscription | None = None, request_id: Any = None) -> Stepping:
        """Deliver the next `count` ticks of a paused session, or go back that many (`count` < 0).

        Followers get `stepped` after those ticks, or after `reset` and `snapshot` when going back.
        """

    def publish(self, notice: Notice) -> None:
        """Tell every follower something, in its place among the ticks that are out (analyzers)."""

    def last_ticks(self, count: int) -> tuple[list[dict[str, Any]], int]:
        """Return the last released ticks, at most `count` and what is at hand, oldest first.

        Each is as in a `ticks` message; with them comes the session's market time (ns).
        """

    async def verify(self) -> dict[str, Any]:
        """Replay what was released in this epoch at `max`, for nobody, and compare the hashes.

        `equal` says whether they agree. Raises RequestError `wrong_state` when nothing is known.
        """

    def acknowledge(self, by: Subscription, epoch: int, seq: int) -> None:
        """Take note that a lockstep follower has dealt with everything up to `seq`."""

    def subscribe(
        self,
        when_full: WhenFull,
        forms: Sequence[str] = (),
        name: str = "",
        resume: Resume | None = None,
        lockstep: bool = False,
    ) -> Subscription:
        """Follow from the next tick on; `forms` are the encodings that will be asked for.

        A session that has begun sends a `snapshot` first; with `resume`, all that was missed
        instead. `name` is what `waiting_for` calls a follower that holds the session up. A
        `lockstep` follower is waited for at the barriers of a lockstep session.
        """

    def begin(self) -> None:
        """Start the clock, once its creator has been answered; idempotent."""


class Sessions(Protocol):
    """All sessions of the daemon."""

    async def recovered(self) -> None:
        """Return when those of the daemon before this one are taken up, or that takes long.

        Who comes back at once after a restart must not be told that there is no such session.
        """

    async def create(self, request: SessionRequest) -> Session:
        """Create a session that waits for `begin`. Raises RequestError (no_data, …)."""

    def get(self, session_id: str) -> Session:
        """Return the session; RequestError `session_not_found` when there is none."""

    def list(self) -> Sequence[Session]:
        """Return all sessions, ended ones that are still kept included."""

    def remove(self, session_id: str) -> None:
        """Forget an ended session; RequestError `wrong_state` while it runs."""
