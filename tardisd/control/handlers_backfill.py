"""The control methods about backfills: begin one, look at them, end one; they fetch nothing."""

from __future__ import annotations

from typing import Any

import trio

from tardisd.backfill.records import ENDED, Job
from tardisd.control.call import PROGRESS_EVERY_SECS, Call
from tardisd.control.methods import Backfill, BackfillId, Backfills
from tardisd.control.services import Services
from tardisd.control.values import series_of, span_of
from tardisd.errors import RequestError
from tardisd.market.series import Series


class BackfillMethods:
    """`backfill.*`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def run(self, params: Backfill, call: Call) -> dict[str, Any]:
        """Fetch what is missing of series."""
        span = span_of(params.start, params.end)
        wanted = [
            (series, self._instance(series, params.exchange))
            for series in map(series_of, params.series)
        ]
        job = self._services.backfills.submit(
            wanted, span, self._services.storage_name(params.storage)
        )
        if params.wait:
            await self._follow(job, call)
        return self._services.backfills.shown(job)

    async def list(self, params: Backfills, call: Call) -> list[dict[str, Any]]:
        """List backfill jobs, ended ones included, oldest first."""
        jobs = self._services.backfills.jobs()[-params.limit :]
        return [self._services.backfills.shown(job, whole=False) for job in jobs]

    async def show(self, params: BackfillId, call: Call) -> dict[str, Any]:
        """Return one backfill job and how far it is."""
        return self._services.backfills.shown(self._services.backfills.find(params.job))

    async def cancel(self, params: BackfillId, call: Call) -> dict[str, Any]:
        """End a backfill job; what it has stored stays."""
        return self._services.backfills.shown(await self._services.backfills.cancel(params.job))

    async def _follow(self, job: Job, call: Call) -> None:
        """Tell how far the job is until it has ended."""
        while not job.ended.is_set():
            with trio.move_on_after(PROGRESS_EVERY_SECS):
                await job.ended.wait()
            shown = self._services.backfills.shown(job, whole=False)
            await call.notify(
                "progress",
                {
                    "job": call.job,
                    "request": call.request_id,
                    "backfill": job.job_id,
                    "message": f"{job.rows:,} rows",
                    **{name: shown[name] for name in _TOLD},
                },
            )
        if job.state not in ENDED:
            text = f"the daemon is stopping; backfill {job.job_id} goes on when it runs again"
            raise RequestError("wrong_state", text)

    def _instance(self, series: Series, name: str | None) -> str:
        """Return the instance to fetch from: the one named, or the only one of that venue."""
        found = [
            key
            for key, exchange in self._services.exchanges.items()
            if exchange.name == series.exchange and name in (None, key)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            text = f"exchange: several instances are of {series.exchange} ({', '.join(found)})"
        elif name is not None:
            text = f"exchange: no instance of {series.exchange} is named {name!r}"
        else:
            text = f"series: no exchange instance of {series.exchange} is configured"
        known = ", ".join(sorted(self._services.exchanges)) or "none"
        raise RequestError("bad_request", f"{text}; configured: {known}")


_TOLD = (
    *("state", "done", "total", "unit", "rate", "rows", "rows_per_sec", "eta_secs", "limit_used"),
    "waiting_for",
)
