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
        render.warn(f"{self._action}: {told(params)} {params.get('message', '')}".rstrip())


def told(params: Mapping[str, Any]) -> str:
    """Return how far it is: `1.0 MiB of 3.2 MiB`, `500 rows`."""
    unit = str(params.get("unit", ""))
    done, total = params.get("done", 0), params.get("total", 0)
    parts = [_amount(done, unit)] if not total else [_amount(done, unit), _amount(total, unit)]
    return " of ".join(parts)


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
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
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
                    message=str(params.get("message", "")),
                )

        yield show
