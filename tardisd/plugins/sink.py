"""The contract of sink plugins: where the ticks of sessions go."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractAsyncContextManager, nullcontext

from tardisd.plugins.base import OptionsT, Plugin
from tardisd.plugins.sessions import Block, Notice, Session


class Writer:
    """One session's stream into a sink. Calls are never concurrent.

    Raise Retry to have the same block written again, NotConnected to be opened anew first, Rejected
    to go on with the next one; anything else counts as the sink's bug, is logged and backed off.
    """

    @abstractmethod
    async def write(self, block: Block, /) -> None:
        """Deliver the ticks: they are delivered when this returns, and maybe in part when not."""

    async def notice(self, notice: Notice, /) -> None:
        """Take note of a gap, pause or end; most sinks need nothing of it."""


class Sink(Plugin[OptionsT]):
    """A destination. One that serves clients of its own follows sessions by `context.sessions`.

    `forms` are the encodings that its writers ask blocks for; they are then made ahead.
    """

    forms: tuple[str, ...] = ()

    def open(self, session: Session) -> AbstractAsyncContextManager[Writer | None]:
        """Open a stream for the session; leaving it completes what was written.

        It is entered again after a failure. None means that followers come by themselves.
        """
        return nullcontext()
