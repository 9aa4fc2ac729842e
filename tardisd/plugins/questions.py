"""How a question of a client becomes an analyzer's answer; shared by all sinks that serve."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tardisd.errors import RequestError
from tardisd.plugins.analyzer import Question
from tardisd.plugins.host import Host
from tardisd.plugins.session_form import bad_field, check_session_id
from tardisd.plugins.sessions import Sessions

MAX_LAST = 1000


class QuestionForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields of `analyze_with_ai`: a tick's `data`, or the last ticks of a session."""

    session_id: str | UnsetType = UNSET
    tick_data: dict[str, Any] | UnsetType = UNSET
    last: Annotated[int, Meta(ge=1, le=MAX_LAST)] | UnsetType = UNSET
    analysis_type: Annotated[str, Meta(min_length=1, max_length=64)] = "pattern"
    analyzer: Annotated[str, Meta(min_length=1, max_length=64)] | UnsetType = UNSET

    def check(self) -> None:
        """Raise RequestError for what types cannot say."""
        check_session_id(self.session_id)
        if (self.tick_data is UNSET) == (self.last is UNSET):
            raise bad_field("tick_data", "give either tick_data (a tick's data) or last (a number)")
        if self.last is not UNSET and self.session_id is UNSET:
            raise bad_field("session_id", "is missing; last needs to know of which session")

    async def answer(self, host: Host, sessions: Sessions) -> dict[str, Any]:
        """Ask the analyzer, and return the fields of an `analysis` message."""
        analyzer = host.analyzer(None if self.analyzer is UNSET else self.analyzer)
        session_id = None if self.session_id is UNSET else self.session_id
        session = None if session_id is None else sessions.get(session_id)
        clock = None
        if self.tick_data is not UNSET:
            ticks = [self.tick_data]
            if session is not None:
                _, clock = session.last_ticks(0)
        else:
            assert session is not None, "checked"
            ticks, clock = session.last_ticks(int(self.last))  # type: ignore[arg-type]
            if not ticks:
                raise RequestError(
                    "wrong_state", f"session {session_id!r} has released no ticks that are at hand"
                )
        answer = await analyzer.ask(Question(ticks, self.analysis_type, session_id, clock))
        found = {} if session_id is None else {"session_id": session_id}
        return {
            **found,
            "analysis_type": self.analysis_type,
            "analyzer": analyzer.context.name,
            "model": answer.model,
            "content": answer.content,
            "usage": dict(answer.usage),
            "cached": answer.cached,
            **answer.more,
        }
