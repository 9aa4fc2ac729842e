"""Show how far a long action has come: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tardisd.cli import render
from tardisd.cli.ctl_common import as_length, as_size, on_terminal

if TYPE_CHECKING:
    from tardisd.control.client import OnNotification

LINE_EVERY_SECS = 5.0


@contextmanager
def shown_progress(action: str) -> Iterator[OnNotification]:
    """Give a function that shows `progress` notifications on stderr until the block is left."""
    if on_terminal():
        with _bar(action) as show:
            yield show
    else:
        yield _Lines(action).show


class _Lines:
    def __init__(self, action: str) -> None:
        self._action = action
        self._next = time.monotonic() + LINE_EVERY_SECS

    def show(self, method: str, params: Mapping[str, Any]) -> None:
        if method != "progress" or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LINE_EVERY_SECS
        render.warn(f"{self._action}: {told(params)} {remark(params)}".rstrip())


def told(params: Mapping[str, Any]) -> str:
    """Return how far it is: `1.0 MiB of 3.2 MiB`, `500 rows`."""
    unit = str(params.get("unit", ""))
    done, total = params.get("done", 0), params.get("total", 0)
    parts = [_amount(done, unit)] if not total else [_amount(done, unit), _amount(total, unit)]
    return " of ".join(parts)


def remark(params: Mapping[str, Any]) -> str:
    """Return what else there is to say: rows, rate, time to go, limit used, why it waits."""
    parts = [str(params.get("message") or "")]
    if rows := params.get("rows_per_sec"):
        parts.append(f"{rows:,.0f}/s")
    done, total, pace = params.get("done", 0), params.get("total", 0), params.get("rate")
    eta = params.get("eta_secs", (total - done) / pace if pace and total else None)
    if eta:
        parts.append(f"{as_length(max(1, round(eta)) * 1000)} to go")
    if (used := params.get("limit_used")) is not None:
        parts.append(f"limit {used:.0%} used")
    if waiting_for := params.get("waiting_for"):
        parts.append(str(waiting_for))
    return ", ".join(part for part in parts if part)


def _amount(value: int, unit: str) -> str:
    if unit == "bytes":
        return as_size(value)
    if unit == "ns":
        return as_length(value // 1_000_000)
    return f"{value:,} {unit}".rstrip()


@contextmanager
def _bar(action: str) -> Iterator[OnNotification]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]}"),
        TextColumn("{task.fields[message]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(action, total=None, amount="", message="")

        def show(method: str, params: Mapping[str, Any]) -> None:
            if method == "progress":
                bar.update(
                    task,
                    completed=params.get("done", 0),
                    total=params.get("total") or None,
                    amount=told(params),
                    message=remark(params),
                )

        yield show
