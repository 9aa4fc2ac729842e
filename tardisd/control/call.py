"""One call being answered: what its handler may tell the client meanwhile; knows no socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from tardisd.control.descriptors import Descriptors
from tardisd.control.protocol import RequestId, encode_notification
from tardisd.progress import Progress

PROGRESS_EVERY_SECS = 0.2

Send = Callable[[bytes], Awaitable[None]]


class Call:
    """One request in work; `files` are the descriptors that came with it."""

    def __init__(self, request_id: RequestId, job: str, files: Descriptors, send: Send) -> None:
        self.request_id = request_id
        self.job = job
        self.files = files
        self._send = send

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Tell the client something; waits until it is sent."""
        await self._send(encode_notification(method, params))

    @asynccontextmanager
    async def reporting(self) -> AsyncIterator[Callable[[Progress], None]]:
        """Give a plain function that reports progress; only the newest report is ever waiting."""
        reporter = _Reporter(self)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reporter.run)
            yield reporter.report
            nursery.cancel_scope.cancel()
        await reporter.flush()


class _Reporter:
    def __init__(self, call: Call) -> None:
        self._call = call
        self._started = trio.current_time()
        self._latest: Progress | None = None
        self._news = trio.Event()

    def report(self, progress: Progress) -> None:
        self._latest = progress
        self._news.set()

    async def run(self) -> None:
        while True:
            await self._news.wait()
            self._news = trio.Event()
            await self.flush()
            await trio.sleep(PROGRESS_EVERY_SECS)

    async def flush(self) -> None:
        """Send the newest report, if it was not sent yet."""
        progress, self._latest = self._latest, None
        if progress is None:
            return
        elapsed = trio.current_time() - self._started
        params = {
            "job": self._call.job,
            "request": self._call.request_id,
            "done": progress.done,
            "total": progress.total,
            "unit": progress.unit,
            "rate": round(progress.done / elapsed, 3) if elapsed > 0 else None,
            "message": progress.message,
        }
        await self._call.notify("progress", params)
