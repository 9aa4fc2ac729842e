"""`tardisctl series …`: what is stored, what is missing, and deleting it."""

from __future__ import annotations

from typing import Any

import click

from tardisd.cli import render
from tardisd.cli.ctl_common import (
    SERIES,
    TIME,
    Control,
    ControlGroup,
    as_length,
    as_size,
    as_time,
    draw_facts,
    pass_control,
)

storage_option = click.option("--storage", metavar="NAME", help="Storage instance.")
from_option = click.option("--from", "start", type=TIME, help="Begin here.")
to_option = click.option("--to", "end", type=TIME, help="End before this.")


def given(**params: Any) -> dict[str, Any]:
    """Return the parameters that were given, `start` and `end` as `from` and `to`."""
    names = {"start": "from", "end": "to", "everything": "all"}
    return {names.get(name, name): value for name, value in params.items() if value is not None}


@click.group(cls=ControlGroup)
def series() -> None:
    """Stored series."""


@series.command("list")
@storage_option
@pass_control
def series_list(control: Control, storage: str | None) -> None:
    """List stored series."""

    def draw(found: Any) -> None:
        rows = [
            (
                item["series"],
                f"{item['rows']:,}",
                item["first_time"] or "-",
                item["last_time"] or "-",
                as_size(item["size_bytes"]),
                item["version"],
            )
            for item in found
        ]
        render.table(("series", "rows", "first", "last", "size", "version"), rows)

    control.show(control.call("series.list", given(storage=storage)), draw)


@series.command("show")
@click.argument("name", metavar="SERIES", type=SERIES)
@click.option("--limit", type=click.IntRange(1, 10_000), help="List at most so many pages.")
@storage_option
@pass_control
def series_show(control: Control, name: str, limit: int | None, storage: str | None) -> None:
    """Print what is known of a series, and where its newest pages came from."""
    control.show(control.call("series.show", given(series=name, limit=limit, storage=storage)),
                 _draw_series)  # fmt: skip


def _draw_series(found: Any) -> None:
    facts = {
        "series": found["series"],
        "rows": f"{found['rows']:,}",
        "first": found["first_time"],
        "last": found["last_time"],
        "size": as_size(found["size_bytes"]),
        "version": found["version"],
        "tick size": found["tick_size"],
        "lot size": found["lot_size"],
        "listed": None if found["listed_at"] is None else as_time(found["listed_at"]),
    }
    draw_facts({name: value for name, value in facts.items() if value is not None})
    click.echo()
    rows = [
        (
            page["start"],
            page["end"],
            f"{page['added']:,}",
            f"{page['revised']:,}",
            as_time(page["stored_at"]),
            page["source"],
        )
        for page in found["pages"]
    ]
    render.table(("from", "to", "added", "revised", "stored", "source"), rows)


@series.command("coverage")
@click.argument("name", metavar="SERIES", type=SERIES)
@from_option
@to_option
@storage_option
@pass_control
def series_coverage(
    control: Control, name: str, start: str | None, end: str | None, storage: str | None
) -> None:
    """Print the spans of a series that are known to be complete, and a picture of its months."""
    params = given(series=name, start=start, end=end, storage=storage)

    def draw(found: Any) -> None:
        render.strip([(month["month"], month["days"]) for month in found["months"]])
        rows = [
            (span["start"], span["end"], as_length(span["to"] - span["from"]))
            for span in found["spans"]
        ]
        render.table(("from", "to", "length"), rows)

    result = control.call("series.coverage", params)
    control.show(result, draw)
    _warn_when_unknown(result)


def _warn_when_unknown(result: dict[str, Any]) -> None:
    if not result["stored"]:
        render.warn(f"nothing is stored of {result['series']}; see `tardisctl series list`")


@series.command("gaps")
@click.argument("name", metavar="SERIES", type=SERIES)
@from_option
@to_option
@click.option("--limit", type=click.IntRange(1, 100_000), help="List at most so many gaps.")
@storage_option
@pass_control
def series_gaps(
    control: Control,
    name: str,
    start: str | None,
    end: str | None,
    limit: int | None,
    storage: str | None,
) -> None:
    """Print what is missing of a series, and why."""
    params = given(series=name, start=start, end=end, limit=limit, storage=storage)
    result = control.call("series.gaps", params)

    def draw(found: Any) -> None:
        rows = [
            (gap["start"], gap["end"], as_length(gap["to"] - gap["from"]), _cause(gap))
            for gap in found["gaps"]
        ]
        render.table(("from", "to", "length", "cause"), rows)

    control.show(result, draw)
    _warn_when_unknown(result)
    if result["truncated"]:
        render.warn("there are more gaps; name a span with --from and --to, or raise --limit")


def _cause(gap: dict[str, Any]) -> str:
    return f"{gap['cause']}: {gap['reason']}" if gap.get("reason") else str(gap["cause"])


@series.command("delete")
@click.argument("name", metavar="SERIES", type=SERIES)
@from_option
@to_option
@click.option("--all", "everything", is_flag=True, help="Delete all of it.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@storage_option
@pass_control
def series_delete(
    control: Control,
    name: str,
    start: str | None,
    end: str | None,
    everything: bool,
    yes: bool,
    storage: str | None,
) -> None:
    """Delete rows of a series, and that they are covered."""
    if everything == (start is not None and end is not None) or (everything and (start or end)):
        raise click.UsageError("say what to delete: both --from and --to, or --all")
    what = f"all of {name}" if everything else f"{name} from {start} to {end}"
    if not yes:
        click.confirm(f"Delete {what}?", abort=True, err=True)
    params = given(
        series=name, start=start, end=end, everything=everything or None, storage=storage
    )
    control.show(
        control.call("series.delete", params),
        lambda result: click.echo(f"deleted {result['rows']:,} rows of {result['series']}"),
    )
