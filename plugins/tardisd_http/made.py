"""What the sink remembers of the sessions that were created through it; steers none of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import trio

from tardisd.errors import RequestError
from tardisd.plugins.requests import NewSession, runs
from tardisd.plugins.sessions import Session, Sessions, WhenFull

ORPHAN_SECS = 60.0


@dataclass(slots=True)
class _Made:
    session: Session
    when_full: WhenFull
    ephemeral: bool
    streams: int
    lonely_since: float


class MadeSessions:
    """A creator over HTTP has no connection of its own: whoever streams the session stands for it.

    So a stream is as patient as `when_full` of the creation says, and an `ephemeral` session ends
    when it has had no stream for ORPHAN_SECS, or its last one is closed.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._made: dict[str, _Made] = {}

    def note(self, session: Session, wanted: NewSession) -> None:
        """Remember a session, and forget those that are gone."""
        known = {id(one) for one in self._sessions.list()}
        self._made = {name: made for name, made in self._made.items() if id(made.session) in known}
        self._made[session.session_id] = _Made(
            session, wanted.when_full, wanted.ephemeral, 0, trio.current_time()
        )

    def when_full(self, session: Session) -> WhenFull:
        """Return what a slow stream of the session means, where the request does not say."""
        made = self._known(session)
        return "disconnect" if made is None else made.when_full

    @contextmanager
    def streaming(self, session: Session) -> Iterator[None]:
        """Count a stream of the session while the block lasts."""
        made = self._known(session)
        if made is None:
            yield
            return
        made.streams += 1
        try:
            yield
        finally:
            made.streams -= 1
            made.lonely_since = trio.current_time()
            if made.ephemeral and not made.streams:
                _stop(session)

    def end_orphans(self) -> None:
        """Stop the ephemeral sessions that nobody has followed for a while."""
        now = trio.current_time()
        for made in self._made.values():
            lonely = not made.streams and now - made.lonely_since >= ORPHAN_SECS
            if made.ephemeral and lonely and runs(made.session):
                _stop(made.session)

    def _known(self, session: Session) -> _Made | None:
        made = self._made.get(session.session_id)
        return made if made is not None and made.session is session else None


def _stop(session: Session) -> None:
    with suppress(RequestError):  # it has ended by itself
        session.stop()
