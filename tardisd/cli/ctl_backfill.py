"""`tardisctl backfill …`: have history fetched from venues, and see how far that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from tardisd.cli import render
from tardisd.cli.ctl_common import (
    SERIES,
    TIME,
    Control,
    ControlGroup,
    as_length,
    as_time,
    draw_facts,
    pass_control,
)
from tardisd.cli.ctl_progress import shown_progress
from tardisd.cli.ctl_series import given, storage_option


@click.group(cls=ControlGroup)
def backfill() -> None:
    """Fetch history from venues."""


@backfill.command("run")
@click.argument("series", metavar="SERIES…", nargs=-1, required=True, type=SERIES)
@click.option("--from", "start", type=TIME, required=True, help="Begin here.")
@click.option("--to", "end", type=TIME, required=True, help="End before this.")
@click.option("--exchange-instance", "exchange", metavar="NAME", help="Which of several to ask.")
@click.option("--wait", is_flag=True, help="Wait for it, and show how far it is.")
@storage_option
@pass_control
def backfill_run(
    control: Control,
    series: tuple[str, ...],
    start: str,
    end: str,
    exchange: str | None,
    wait: bool,
    storage: str | None,
) -> None:
    """Fetch what is missing of series; what is stored already is not fetched again.

    The daemon does it, also when this command has ended.
    """
    params = given(
        series=list(series), start=start, end=end, exchange=exchange, wait=wait, storage=storage
    )
    if not wait:
        job = control.call("backfill.run", params)
        control.show(job, lambda told: click.echo(f"backfill {told['id']}"))
        return
    number: list[int] = []

    def note(method: str, params: Mapping[str, Any]) -> None:
        number[:] = [params["backfill"]]
        show(method, params)

    try:
        with shown_progress("backfill") as show:
            job = control.call("backfill.run", params, (), note)
    except KeyboardInterrupt:
        if not number:
            raise
        hint = f"tardisctl backfill show {number[0]}, or cancel {number[0]}"
        render.fail("interrupted; the daemon goes on with it", hint=hint)
    control.show(job, _draw_results)
    _fail_unless_finished(job)


def _draw_results(job: Mapping[str, Any]) -> None:
    for item in job["results"]:
        if item["state"] == "finished":
            names = ("added", "unchanged", "revised")
            counts = ", ".join(f"{item[name]:,} {name}" for name in names)
            click.echo(f"{item['series']}: {counts}")
            if not item["complete"]:
                span = f"--from {job['start']} --to {job['end']}"
                click.echo(
                    "not all of it could be had as yet:"
                    f" tardisctl series gaps {item['series']} {span}"
                )


def _fail_unless_finished(job: Mapping[str, Any]) -> None:
    failed = [item for item in job["results"] if item["state"] != "finished"]
    for item in failed[:-1]:
        render.warn(f"error: {_told(item)}")
    if failed:
        render.fail(_told(failed[-1]), hint=f"tardisctl backfill show {job['id']}")


def _told(item: Mapping[str, Any]) -> str:
    message = str(item["message"] or item["state"])
    return message if item["series"] in message else f"{item['series']}: {message}"


@backfill.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), help="List at most so many, the newest.")
@pass_control
def backfill_list(control: Control, limit: int | None) -> None:
    """List backfill jobs: those that run, and those that have been."""
    control.show(control.call("backfill.list", given(limit=limit)), _draw_jobs)


def _draw_jobs(jobs: list[dict[str, Any]]) -> None:
    rows = [
        (
            job["id"],
            job["state"],
            _percent(job),
            job["rule"] or "-",
            _names(job),
            job["start"] or "-",
            job["end"] or "-",
            f"{job['rows']:,}",
            job["waiting_for"] or job["message"],
        )
        for job in jobs
    ]
    columns = ("id", "state", "done", "rule", "series", "from", "to", "rows", "message")
    render.table(columns, rows)


def _percent(job: Mapping[str, Any]) -> str:
    if job["total"]:
        return f"{100 * job['done'] // job['total']}%"
    return "100%" if job["state"] == "finished" else "-"


def _names(job: Mapping[str, Any]) -> str:
    more = job["series_count"] - 1
    return str(job["series"][0]) + (f" and {more} more" if more else "")


@backfill.command("show")
@click.argument("job", metavar="ID", type=int)
@pass_control
def backfill_show(control: Control, job: int) -> None:
    """Print how far one backfill job is, and what became of each of its series."""
    control.show(control.call("backfill.show", {"job": job}), _draw_job)


def _draw_job(job: Any) -> None:
    rate = job["rows_per_sec"]
    facts = {
        "backfill": job["id"],
        "state": job["state"],
        "rule": job["rule"],
        "storage": job["storage"],
        "from": job["start"],
        "to": job["end"],
        "asked for": as_time(job["created_at"]),
        "begun": as_time(job["started_at"]),
        "ended": as_time(job["ended_at"]),
        "done": f"{as_length(job['done'] // 1_000_000)} of {as_length(job['total'] // 1_000_000)}"
        f" ({_percent(job)})",
        "rows": f"{job['rows']:,}" + (f", {rate:,.0f} per second" if rate else ""),
        "time to go": None if job["eta_secs"] is None else as_length(round(job["eta_secs"]) * 1000),
        "limit used": None if job["limit_used"] is None else f"{job['limit_used']:.0%}",
        "waiting for": job["waiting_for"],
        "message": job["message"] or None,
    }
    draw_facts({name: value for name, value in facts.items() if value not in (None, "-")})
    click.echo()
    names = ("series", "exchange", "state", "pages", "added", "unchanged", "revised", "message")
    rows = [[item[name] for name in names] for item in job["results"]]
    render.table(names, rows)


@backfill.command("cancel")
@click.argument("job", metavar="ID", type=int)
@pass_control
def backfill_cancel(control: Control, job: int) -> None:
    """End a backfill job; what it has stored stays."""
    result = control.call("backfill.cancel", {"job": job})
    control.show(result, lambda told: click.echo(f"backfill {told['id']} {told['state']}"))
