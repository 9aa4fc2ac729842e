"""The webhook sink: its lifetime, and one outbox per session; requests are made elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar
from weakref import WeakKeyDictionary

import trio

from tardisd.errors import RequestError
from tardisd.log import Log
from tardisd.plugins.base import Context
from tardisd.plugins.sessions import Block, Evicted, Notice, Resume, Session
from tardisd.plugins.sink import Sink, Writer

from .endpoint import Endpoint
from .journal import Journal
from .letters import DeadLetters
from .options import WebhookOptions
from .outbox import Outbox

log = Log("tardisd.webhook")

CLOSE_SECS = 3.0
_ENDED = frozenset({"finished", "stopped", "failed"})
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
        self._outboxes = context.data_dir / f"{context.name}-outbox"
        #: What a daemon before this one has left: it is sent, and its session may go on with it.
        self._left: dict[tuple[str, int], Outbox] = {}

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Serve; what is left at the end goes to the dead-letter file, or stays for the next."""
        with Journal.left(self._outboxes) as left:
            for journal in left:
                box = self._box(journal.session_id, journal)
                self._left[journal.session_id, journal.created_at] = box
                self._endpoint.boxes.append(box)
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
            box = self._boxes[session] = self._box_of(session)
        if box not in boxes:
            boxes.append(box)
        try:
            yield WebhookWriter(session, box, self._endpoint, options.patience_secs)
            await box.flush()
            await self._tell_rest(session, box)
        except trio.Cancelled:  # nobody comes back for the rest
            with trio.move_on_after(CLOSE_SECS, shield=True):
                await box.flush()
            await self._give_up(box)
            with trio.CancelScope(shield=True):
                await self._tell_rest(session, box)
            raise
        except BaseException:
            with trio.move_on_after(CLOSE_SECS, shield=True):
                await box.flush()
            raise
        finally:
            if box.empty and box in boxes:
                boxes.remove(box)
            if box.empty and box.journal is not None and session.status()["status"] in _ENDED:
                box.journal.end()

    def _box_of(self, session: Session) -> Outbox:
        """Return the outbox of a session; a durable one may have left it with a daemon before."""
        status = session.status()
        if not status.get("durable"):
            return self._box(session.session_id, None)
        journal = Journal(self._outboxes, session.session_id, status["created_at"])
        left = self._left.pop((session.session_id, journal.created_at), None)
        return self._box(session.session_id, journal) if left is None else left

    def _box(self, session_id: str, journal: Journal | None) -> Outbox:
        options = self.options
        return Outbox(
            session_id,
            options.batch_ticks,
            options.batch_ms / 1000,
            options.max_body_bytes,
            self._endpoint.wake,
            journal,
        )

    async def _tell_rest(self, session: Session, box: Outbox) -> None:
        """Report what was never taken of a session that has ended: the sink was cut off."""
        status = session.status()
        epoch, last = status["epoch"], status["seq"]
        if status["status"] in _ENDED and (0, 0) < box.taken < (epoch, last) and last:
            first = box.taken[1] + 1 if box.taken[0] == epoch else 1
            await self._endpoint.report_lost(box, epoch, first, last, "it failed for too long")

    async def _give_up(self, box: Outbox) -> None:
        if box.journal is not None:
            return  # the next daemon sends it
        with trio.CancelScope(shield=True):
            await self._endpoint.give_up(box, "tardisd stopped before it was delivered")


class WebhookWriter(Writer):
    """Gathers a session's ticks; waits for an address that is slow or fails, but not for ever.

    What was skipped meanwhile it asks of the session again, so that only what cannot be had
    is missing, which the dead-letter file then tells.
    """

    def __init__(
        self, session: Session, box: Outbox, endpoint: Endpoint, patience_secs: float
    ) -> None:
        self._session = session
        self._box = box
        self._endpoint = endpoint
        self._patience_secs = patience_secs

    async def write(self, block: Block, /) -> None:
        """Take the block. Raises Retry when the address has failed for longer than is bearable."""
        after = self._box.missing(block)
        if after is not None:
            await self._fill(block.epoch, after, block.first_seq - 1)
        await self._box.write(block, self._patience_secs)

    async def notice(self, notice: Notice, /) -> None:
        """Send what would have to wait for ticks that do not come; follow the numbers."""
        if notice.type == "gap":
            self._box.passed(notice.fields["epoch"], notice.fields["seq"])
        elif notice.type == "end" and self._box.resumed:
            await self._complete()
        elif notice.type == "skipped":
            self._box.skipped(notice.fields["from_seq"])
        elif notice.type in _ENDS_A_BATCH:
            self._box.seal()

    async def _complete(self) -> None:
        """Take what a daemon before this one had released and not taken, if nothing came since."""
        status = self._session.status()
        epoch, seq = self._box.taken
        if (epoch, seq) < (status["epoch"], status["seq"]):
            await self._fill(status["epoch"], seq if epoch == status["epoch"] else 0, status["seq"])
        self._box.seal()

    async def _fill(self, epoch: int, after: int, upto: int) -> None:
        """Take what the session can tell again; report the rest."""
        box, seq = self._box, after
        log.info("webhook catches up", session=box.session_id, after=after, upto=upto)
        try:
            missed = self._session.subscribe("block", ("batch",), "webhook", Resume(epoch, after))
        except RequestError as error:
            await self._endpoint.report_lost(box, epoch, after + 1, upto, error.message)
            return
        try:
            while seq < upto:
                item = await missed.receive()
                if not isinstance(item, Notice):
                    await box.write(item, self._patience_secs)
                    seq = item.first_seq + len(item) - 1
                elif item.type == "gap":
                    seq = item.fields["seq"]
                    box.passed(epoch, seq)
                elif item.type == "reset":  # nobody needs the rest
                    return
        except (Evicted, trio.EndOfChannel) as error:
            await self._endpoint.report_lost(box, epoch, seq + 1, upto, str(error))
        finally:
            missed.close()
