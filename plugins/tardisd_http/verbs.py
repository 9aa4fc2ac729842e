"""The bodies of the verbs as typed structs, and what each does to a session; reads no socket."""

from __future__ import annotations

from typing import ClassVar

import msgspec
from msgspec import UNSET, UnsetType

from tardisd.plugins.requests import Count, PositiveSpeed, seek_of
from tardisd.plugins.session_form import check_speed_field
from tardisd.plugins.sessions import Notice, Session


class Verb(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every verb is: a body, and `act`, which returns the notice to answer with."""

    summary: ClassVar[str]

    async def act(self, session: Session) -> Notice:
        """Do it. Raises RequestError for what does not fit the session's state."""
        raise NotImplementedError


class Pause(Verb, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Stop the clock."""

    summary = "stop the clock"

    async def act(self, session: Session) -> Notice:
        """Stop the clock."""
        return session.pause()


class Resume(Verb, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Let the clock run on."""

    summary = "let the clock run on"

    async def act(self, session: Session) -> Notice:
        """Let the clock run on."""
        return session.resume()


class Stop(Verb, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """End the session."""

    summary = "end the session"

    async def act(self, session: Session) -> Notice:
        """End the session."""
        return session.stop()


class ChangeSpeed(Verb, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Set market seconds per wall second."""

    summary = "set market seconds per wall second, or max"
    speed: PositiveSpeed

    async def act(self, session: Session) -> Notice:
        """Set the speed."""
        check_speed_field(self.speed)
        return session.change_speed(self.speed)


class Seek(Verb, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Stand before another time."""

    summary = "stand before the first tick at a time (`to`), or so many ms on or back (`by`)"
    to: int | str | UnsetType = UNSET
    by: Count | UnsetType = UNSET

    async def act(self, session: Session) -> Notice:
        """Seek."""
        to, delta = seek_of(self.to, self.by)
        return session.seek_by(delta) if to is None else session.seek(to)


class Step(Verb, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Deliver some ticks of a paused session."""

    summary = "deliver the next `count` ticks of a paused session, or go back that many"
    count: Count = 1

    async def act(self, session: Session) -> Notice:
        """Step, and wait until it is done."""
        return await session.step(self.count).wait()


VERBS: dict[str, type[Verb]] = {
    "pause": Pause,
    "resume": Resume,
    "stop": Stop,
    "speed": ChangeSpeed,
    "seek": Seek,
    "step": Step,
}
