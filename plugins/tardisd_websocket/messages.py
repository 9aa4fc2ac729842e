"""Requests of the protocol as typed structs; what they mean is elsewhere, and so is decoding."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from tardisd.market.time import MILLISECOND
from tardisd.plugins import session_form
from tardisd.plugins.questions import MAX_LAST, QuestionForm
from tardisd.plugins.session_form import (
    SessionForm,
    bad_field,
    check_session_id,
    check_speed_field,
    time_field,
)
from tardisd.plugins.sessions import Resume, WhenFull

Delivery = Literal["tick", "batch"]

USE = {
    **session_form.USE,
    "delivery": '"tick" or "batch"',
    "when_full": '"block", "drop_oldest", "conflate" or "disconnect"',
    "to": session_form.TIME,
    "by": "whole milliseconds, negative to go back",
    "count": "a whole number of ticks, negative to go back",
    "epoch": "the epoch's number, from 1",
    "seq": "a sequence number, from 0",
    "from_seq": "a sequence number, from 0",
    "last": f"a whole number of ticks from 1 to {MAX_LAST}",
    "tick_data": "the `data` of a tick, an object",
    "id": "a string or a number",
    "type": "a string",
}
_MOST = 2**53


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every request may carry. `id` stays as it was written, to be echoed to the letter."""

    type: str
    id: Raw | UnsetType = UNSET

    def check(self) -> None:
        """Raise RequestError for what types cannot say."""
        check_session_id(getattr(self, "session_id", UNSET))

    @property
    def request_id(self) -> Any:
        """The `id` as it came, or None."""
        return None if self.id is UNSET else self.id


class CreateSession(SessionForm, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Create a session, and follow it."""

    type: str
    id: Raw | UnsetType = UNSET
    delivery: Delivery = "tick"
    when_full: WhenFull = "block"

    def check(self) -> None:
        """Raise RequestError for what types cannot say."""
        check_session_id(self.session_id)

    @property
    def request_id(self) -> Any:
        """The `id` as it came, or None."""
        return None if self.id is UNSET else self.id


class Subscribe(Request, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Follow a session: from its next tick on, or from what was heard last."""

    session_id: str
    delivery: Delivery = "tick"
    when_full: WhenFull = "disconnect"
    epoch: Annotated[int, Meta(ge=1, le=_MOST)] | UnsetType = UNSET
    from_seq: Annotated[int, Meta(ge=0, le=_MOST)] | UnsetType = UNSET
    lockstep: bool = True

    def check(self) -> None:
        """Raise RequestError for what types cannot say."""
        super().check()
        if self.epoch is not UNSET and self.from_seq is UNSET:
            raise bad_field("from_seq", "is missing; with epoch it says where to go on")

    def resume(self, epoch: int) -> Resume | None:
        """Return where to go on, in the epoch that is on unless another is named."""
        if self.from_seq is UNSET:
            return None
        return Resume(epoch if self.epoch is UNSET else self.epoch, self.from_seq)


class OfSession(Request, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request about one session that needs nothing more."""

    session_id: str


class Unsubscribe(OfSession, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Stop following a session."""


class Pause(OfSession, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Stop a session's clock."""


class Resumption(OfSession, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Let a session's clock run on."""


class SpeedChange(OfSession, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Set a session's speed."""

    speed: Annotated[float, Meta(gt=0)] | Literal["max"]

    def check(self) -> None:
        """Raise RequestError for what types cannot say."""
        super().check()
        check_speed_field(self.speed)


class Seek(OfSession, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Move a session to a time, or by so many milliseconds."""

    to: int | str | UnsetType = UNSET
    by: Annotated[int, Meta(ge=-_MOST, le=_MOST)] | UnsetType = UNSET

    def check(self) -> None:
        """Raise RequestError for what types cannot say."""
        super().check()
        if (self.to is UNSET) == (self.by is UNSET):
            raise bad_field("to", "give either to (a time) or by (milliseconds)")

    @property
    def target(self) -> int | None:
        """The time (ns) to go to, or None when it is relative."""
        return None if self.to is UNSET else time_field("to", self.to)

    @property
    def delta(self) -> int:
        """By how much (ns) to move."""
        return 0 if self.by is UNSET else self.by * MILLISECOND


class Step(OfSession, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Let the next ticks of a paused session through, or go back."""

    count: Annotated[int, Meta(ge=-_MOST, le=_MOST)] = 1


class Ack(OfSession, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tell that everything up to a seq has been dealt with (lockstep)."""

    epoch: Annotated[int, Meta(ge=1, le=_MOST)]
    seq: Annotated[int, Meta(ge=0, le=_MOST)]


class Stop(OfSession, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """End a session."""


class Status(Request, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Ask for the state of one session, or of all."""

    session_id: str | UnsetType = UNSET


class Analyze(QuestionForm, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Ask an analyzer about a tick, or about the last ticks of a session."""

    type: str
    id: Raw | UnsetType = UNSET

    @property
    def request_id(self) -> Any:
        """The `id` as it came, or None."""
        return None if self.id is UNSET else self.id


class Ping(Request, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Ask whether the server is there."""


AnyRequest = Request | CreateSession | Analyze
SUPPORTED: dict[str, type[AnyRequest]] = {
    "create_session": CreateSession,
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "pause": Pause,
    "resume": Resumption,
    "speed_change": SpeedChange,
    "seek": Seek,
    "step": Step,
    "stop": Stop,
    "status": Status,
    "ack": Ack,
    "analyze_with_ai": Analyze,
    "ping": Ping,
}
