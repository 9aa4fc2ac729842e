"""Requests of the protocol as typed structs; what they mean is elsewhere, and so is decoding."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from tardisd.plugins.questions import QuestionForm
from tardisd.plugins.requests import MOST, Count, Delivery, NewSession, PositiveSpeed, seek_of
from tardisd.plugins.session_form import bad_field, check_session_id, check_speed_field
from tardisd.plugins.sessions import Resume, WhenFull


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


class CreateSession(NewSession, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Create a session, and follow it."""

    type: str
    id: Raw | UnsetType = UNSET

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
    epoch: Annotated[int, Meta(ge=1, le=MOST)] | UnsetType = UNSET
    from_seq: Annotated[int, Meta(ge=0, le=MOST)] | UnsetType = UNSET
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

    speed: PositiveSpeed

    def check(self) -> None:
        """Raise RequestError for what types cannot say."""
        super().check()
        check_speed_field(self.speed)


class Seek(OfSession, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Move a session to a time, or by so many milliseconds."""

    to: int | str | UnsetType = UNSET
    by: Count | UnsetType = UNSET

    def target(self) -> tuple[int | None, int]:
        """Return the time (ns) to go to, or None and by how much (ns) to move."""
        return seek_of(self.to, self.by)


class Step(OfSession, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Let the next ticks of a paused session through, or go back."""

    count: Count = 1


class Ack(OfSession, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tell that everything up to a seq has been dealt with (lockstep)."""

    epoch: Annotated[int, Meta(ge=1, le=MOST)]
    seq: Annotated[int, Meta(ge=0, le=MOST)]


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
