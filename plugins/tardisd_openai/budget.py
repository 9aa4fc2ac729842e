"""What questions may cost: grants from the ledger, asked for from the event loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from weakref import ref

import trio

from tardisd.plugins.sessions import Session

from .completion import total_tokens
from .ledger import Grant, Ledger, Limit, today
from .options import OpenaiOptions

T = TypeVar("T")
# Of digits and names a token holds about three bytes; every message costs a few more.
_BYTES_A_TOKEN = 3
_TOKENS_A_MESSAGE = 8
_MOST_SESSIONS = 10_000


def estimated_tokens(messages: object, options: OpenaiOptions) -> int:
    """Return how many tokens a request may cost at most, as far as one can tell beforehand."""
    found = options.max_tokens
    for message in messages if isinstance(messages, list | tuple) else ():
        size = len(message["content"].encode(errors="replace"))
        found += -(-size // _BYTES_A_TOKEN) + _TOKENS_A_MESSAGE
    return found


@dataclass(frozen=True, slots=True)
class Booked:
    """A grant in use."""

    budget: Budget
    grant: Grant

    async def settle(self, usage: Mapping[str, Any] | None) -> None:
        """Book what was used: None for nothing, without figures all that was granted."""
        tokens = 0 if usage is None else total_tokens(usage)
        if tokens is not None:
            await self.budget.call(partial(self.budget.ledger.settle, self.grant, tokens))


class Budget:
    """The ledger of an instance, and the limits of its options."""

    def __init__(self, ledger: Ledger, options: OpenaiOptions) -> None:
        self.ledger = ledger
        self._options = options
        self._threads = trio.CapacityLimiter(1)
        self._sessions: dict[str, ref[Session]] = {}

    async def call(self, action: Callable[[], T]) -> T:
        """Have the ledger do something."""
        return await trio.to_thread.run_sync(action, limiter=self._threads)

    async def meet(self, session: Session) -> None:
        """Take note of who asks: a new session under the id of an earlier one begins anew.

        After a restart a session is taken for the one that had the id before: it may be durable.
        """
        name = session.session_id
        known = self._sessions.get(name)
        if known is not None and known() is session:
            return
        if len(self._sessions) >= _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[name] = ref(session)
        if known is not None:
            await self.call(partial(self.ledger.forget, f"session:{name}"))

    async def grant(self, session_id: str | None, tokens: int) -> Booked:
        """Book a request. Raises Exhausted."""
        options = self._options
        limits = [
            Limit(f"day:{today()}", options.max_requests_per_day, options.max_tokens_per_day,
                  "max_requests_per_day", "max_tokens_per_day", "of today (UTC)"),
        ]  # fmt: skip
        if session_id is not None:
            limits.append(
                Limit(f"session:{session_id}", options.max_requests_per_session,
                      options.max_tokens_per_session, "max_requests_per_session",
                      "max_tokens_per_session", "of this session"),
            )  # fmt: skip
        return Booked(self, await self.call(partial(self.ledger.grant, tokens, limits)))
