"""Comments on a session: after every so many candles of a series, what the model says of them.

Which candles a comment is about does not depend on how the session is cut into blocks or how fast
it runs, so a second replay makes the same comments from the answers that were kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import trio

from tardisd.errors import RequestError
from tardisd.log import Log
from tardisd.market.columns import Batch, closes
from tardisd.market.series import Series
from tardisd.market.time import MILLISECOND, format_time
from tardisd.plugins.analyzer import Answer, Question
from tardisd.plugins.sessions import Block, Notice, Session
from tardisd.plugins.sink import Writer

from .judge import Refused

log = Log("tardisd.openai")

Ask = Callable[[Question], Awaitable[Answer]]


@dataclass(eq=False)
class _Due:
    """A comment to make, and what became of it."""

    seq: int
    series: Series
    ticks: list[dict[str, Any]]
    release: int
    outcome: Answer | RequestError | None = None


class Comments(Writer):
    """Gathers candles of one session; while it asks, the session waits, `secs` long at most."""

    def __init__(
        self,
        session: Session,
        name: str,
        ask: Ask,
        *,
        every: int,
        analysis_type: str,
        secs: float,
        at_once: int,
    ) -> None:
        self._session = session
        self._name = name
        self._ask = ask
        self._every = every
        self._type = analysis_type
        self._secs = secs
        self._places = trio.Semaphore(at_once)
        self._gathered: defaultdict[Series, list[dict[str, Any]]] = defaultdict(list)
        self._epoch = 0
        self._silent = False
        self._complaint = ""

    async def write(self, block: Block, /) -> None:
        """Take the block's candles, and comment where it is time; comments keep their order."""
        if self._silent:
            return
        if block.epoch != self._epoch:
            self._epoch = block.epoch
            self._gathered.clear()
        due = self._take(block)
        told = 0
        with trio.move_on_after(self._secs):
            async with trio.open_nursery() as nursery:
                for one in due:
                    await self._places.acquire()
                    told = self._tell(due, told)
                    if self._silent:
                        self._places.release()
                        break
                    nursery.start_soon(self._comment, one)
        self._tell(due, told, over=True)

    async def notice(self, notice: Notice, /) -> None:
        """Begin anew after a jump in time."""
        if notice.type == "reset":
            self._gathered.clear()

    def _take(self, block: Block) -> list[_Due]:
        """Return the comments that the block's candles make due, in the order of their release."""
        due: list[_Due] = []
        for batch, seqs in block.batches():
            if batch.series.data_type.kind != "candle" or batch.series.is_forming:
                continue
            gathered = self._gathered[batch.series]
            for row, seq in zip(rows(batch), seqs, strict=True):
                gathered.append(row)
                if len(gathered) >= self._every:
                    release = int(block.release[seq - block.first_seq])
                    due.append(_Due(seq, batch.series, gathered[:], release))
                    gathered.clear()
        return sorted(due, key=lambda one: one.seq)

    async def _comment(self, one: _Due) -> None:
        try:
            question = Question(one.ticks, self._type, self._session.session_id, one.release)
            one.outcome = await self._ask(question)
        except RequestError as error:
            one.outcome = error
            self._silent = self._silent or isinstance(error, Refused)
        finally:
            self._places.release()

    def _tell(self, due: list[_Due], told: int, *, over: bool = False) -> int:
        """Publish what is there, in order; at the end say how many are missing."""
        missing = 0
        while told < len(due) and (over or due[told].outcome is not None):
            one = due[told]
            told += 1
            if isinstance(one.outcome, Answer):
                self._complaint = ""
                self._session.publish(self._notice(one, one.outcome))
            elif one.outcome is not None:
                self._complain(one.outcome.code, one.outcome.message)
            else:
                missing += 1
        if missing and not self._silent:
            self._complain(
                "analyzer_failed",
                f"no answer within comment_secs ({self._secs:g} s); {missing} comments are left"
                " out, slow the session down",
            )
        return told

    def _notice(self, one: _Due, answer: Answer) -> Notice:
        fields = {
            "analysis_type": self._type,
            "analyzer": self._name,
            "model": answer.model,
            "content": answer.content,
            "usage": dict(answer.usage),
            "cached": answer.cached,
            **answer.more,
            "series": one.series.text,
            "from": one.ticks[0]["timestamp"],
            "clock": one.release // MILLISECOND,
        }
        return Notice("analysis", fields)

    def _complain(self, code: str, message: str) -> None:
        """Say what went wrong, to followers and the log, once as long as it stays the same."""
        if message == self._complaint:
            return
        self._complaint = message
        log.warning("no comment", instance=self._name, session=self._session.session_id,
                    reason=message, silent=self._silent)  # fmt: skip
        fields = {"code": code, "message": f"analyzer {self._name}: {message}"}
        self._session.publish(Notice("error", fields))


def rows(batch: Batch) -> list[dict[str, Any]]:
    """Return candles as objects, as `data` of a tick; exact, a slow path for few of them."""
    interval = batch.series.data_type.interval
    assert interval is not None, "candles have one"
    columns = {name: column.texts() for name, column in batch.fields.items()}
    ends = closes(batch.ts_event, interval).tolist()
    return [
        {
            "timestamp": ts // MILLISECOND,
            "datetime": format_time(ts),
            "close_time": ends[at] // MILLISECOND,
            "symbol": str(batch.series.symbol),
            "exchange": batch.series.exchange,
            "interval": str(interval),
            **{
                name: Decimal(text)
                for name, texts in columns.items()
                if (text := texts[at]) is not None
            },
        }
        for at, ts in enumerate(batch.ts_event.tolist())
    ]
