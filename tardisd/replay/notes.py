"""Writes sessions down for a daemon after this one; takes none up again (`manager`)."""

from __future__ import annotations

from dataclasses import replace

import trio

from tardisd.errors import StorageError
from tardisd.log import Log
from tardisd.replay.records import request_as_json
from tardisd.replay.session import ReplaySession
from tardisd.state import SessionRecord, State
from tardisd.wall import wall_ns

log = Log("tardisd.sessions")

# A note waits at most so long for the content hash; without it, the last one is told again.
_HASH_SECS = 0.25


class Notes:
    """What is written down of sessions. One that cannot be is unknown to the next daemon."""

    def __init__(self, state: State) -> None:
        self._state = state

    def write(self, session: ReplaySession) -> None:
        """Write down what a session is, where it is if it is durable, and how it ended."""
        request, place = session.request, None
        if request.durable or session.has_ended:
            place = session.place().as_json()
        record = SessionRecord(
            session.session_id,
            request_as_json(request),
            session.created_at,
            session.status_name,
            place=place,
        )
        if session.has_ended and not session.suspended:
            record = replace(record, ended_at=wall_ns(), end=session.end_fields)
        try:
            self._state.put(record)
        except StorageError as error:
            log.error("session not written down", session=record.session_id, error=error.message)

    async def follow(self, session: ReplaySession, secs: float) -> None:
        """Write down where a durable session is, every so often while it moves."""
        noted = session.place()
        while True:
            with trio.move_on_after(secs):
                await session.ended.wait()
            if session.has_ended:
                return  # what it is then is written down elsewhere
            with trio.move_on_after(_HASH_SECS):
                await session.take_hash()
            if session.suspended:
                session.note()
                return
            if (place := session.place()) != noted:
                noted = place
                session.note()

    def forget(self, session_id: str) -> None:
        """Forget a session."""
        try:
            self._state.forget(session_id)
        except StorageError as error:  # it comes back after a restart, for a while
            log.warning("session not forgotten", session=session_id, error=error.message)
