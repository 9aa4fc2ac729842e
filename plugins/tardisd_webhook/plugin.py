"""The webhook sink: its lifetime, and one outbox per session; requests are made elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar
from weakref import WeakKeyDictionary

import trio

from tardisd.plugins.base import Context
from tardisd.plugins.sessions import Block, Notice, Session
from tardisd.plugins.sink import Sink, Writer

from .endpoint import Endpoint
from .letters import DeadLetters
from .options import WebhookOptions
from .outbox import Outbox

CLOSE_SECS = 3.0
_ENDS_A_BATCH = frozenset({"reset", "sought", "paused", "end"})


class WebhookSink(Sink[WebhookOptions]):
    """POSTs each session's ticks in batches, which are acknowledged or in the dead-letter file."""

    name: ClassVar[str] = "webhook"
    Options: ClassVar[type[WebhookOptions]] = WebhookOptions
    forms = ("batch",)

    def __init__(self, options: WebhookOptions, context: Context) -> None:
        super().__init__(options, context)
        path = options.dead_letter or Path(f"{context.name}-dead.ndjson")
        letters = DeadLetters(context.data_dir / path, options.dead_letter_bytes)
        self._endpoint = Endpoint(context.name, options, letters)
        self._boxes: WeakKeyDictionary[Session, Outbox] = WeakKeyDictionary()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Serve; what is left at the end goes to the dead-letter file."""
        async with self._endpoint.opened():
            try:
                yield
            finally:
                for box in list(self._endpoint.boxes):
                    await self._give_up(box)

    @asynccontextmanager
    async def open(self, session: Session) -> AsyncIterator[Writer]:
        """Open the session's outbox; leaving waits until all of it has been dealt with."""
        options, boxes = self.options, self._endpoint.boxes
        box = self._boxes.get(session)
        if box is None:
            box = self._boxes[session] = Outbox(
                session.session_id,
                options.batch_ticks,
                options.batch_ms / 1000,
                options.max_body_bytes,
                self._endpoint.wake,
            )
        if box not in boxes:
            boxes.append(box)
        try:
            yield WebhookWriter(box, self._endpoint, options.patience_secs)
            await box.flush()
        except trio.Cancelled:  # nobody comes back for the rest
            with trio.move_on_after(CLOSE_SECS, shield=True):
                await box.flush()
            await self._give_up(box)
            raise
        except BaseException:
            with trio.move_on_after(CLOSE_SECS, shield=True):
                await box.flush()
            raise
        finally:
            if box.empty and box in boxes:
                boxes.remove(box)

    async def _give_up(self, box: Outbox) -> None:
        with trio.CancelScope(shield=True):
            await self._endpoint.give_up(box, "tardisd stopped before it was delivered")


class WebhookWriter(Writer):
    """Gathers a session's ticks; waits when the address is slow, and asks to wait when it fails."""

    def __init__(self, box: Outbox, endpoint: Endpoint, patience_secs: float) -> None:
        self._box = box
        self._endpoint = endpoint
        self._patience_secs = patience_secs

    async def write(self, block: Block, /) -> None:
        """Take the block. Raises Retry when the address has failed for longer than is bearable."""
        await self._box.write(block, self._patience_secs)

    async def notice(self, notice: Notice, /) -> None:
        """Send what would have to wait for ticks that do not come; tell what was dropped."""
        if notice.type in _ENDS_A_BATCH:
            self._box.seal()
        elif notice.type == "skipped":
            facts = {"session_id": self._box.session_id, **notice.fields}
            await self._endpoint.report({"reason": "dropped, for it failed too long", **facts})
