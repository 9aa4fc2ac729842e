"""What commands print: tables, JSON and errors, the same for `tardisd` and `tardisctl`.

It decides nothing and talks to nobody; rich is imported only when a table is drawn, because both
commands must start fast.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, NoReturn

import click

from tardisd.errors import ConfigError, NotRunning, TardisError

DONE = 0
FAILED = 1
USAGE = 2
NOT_RUNNING = 3
NO_PERMISSION = 77
BAD_CONFIG = 78

_CELL_COLORS = {
    "loaded": "green",
    "active": "green",
    "running": "green",
    "finished": "green",
    "ok": "green",
    "cooling_down": "yellow",
    "waiting": "yellow",
    "paused": "yellow",
    "unavailable": "yellow",
    "failed": "red",
    "wrong": "red",
}


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows as an aligned table; colours on a terminal, never cut when written elsewhere."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, cells)
        return
    lines = [[column.upper() for column in columns], *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(cell, style=_CELL_COLORS.get(cell, "")) for cell in row))
    # A row wider than the terminal is wrapped by the terminal, so that it can still be copied.
    console = Console()
    unlimited = console.options.update(max_width=10_000)
    console.width = max(console.width, Measurement.get(console, unlimited, drawn).maximum)
    console.print(drawn)


def strip(months: Sequence[tuple[str, str]]) -> None:
    """Print a line per month: `#` a full day, `+` a part of one, `.` none, with a legend.

    On a terminal the days are coloured blocks.
    """
    if not months:
        return
    draw = _colored_days if sys.stdout.isatty() else str
    click.echo(" " * 8 + "1   5    10   15   20   25   30")
    for name, days in months:
        click.echo(f"{name} {draw(days)}".rstrip())
    click.echo(f"{' ' * 8}{draw('#')} full  {draw('+')} partial  {draw('.')} none\n")


def _colored_days(days: str) -> str:
    cells = {"#": ("█", "green"), "+": ("▒", "yellow"), ".": ("·", "bright_black")}
    drawn = []
    for cell in days:
        text, color = cells.get(cell, (cell, None))
        drawn.append(click.style(text, fg=color))
    return "".join(drawn)


def print_json(value: Any) -> None:
    """Print one JSON value on stdout: indented on a terminal, one line elsewhere."""
    indent = 2 if sys.stdout.isatty() else None
    click.echo(json.dumps(value, ensure_ascii=False, indent=indent))


def warn(message: str) -> None:
    """Print a line on stderr."""
    click.echo(message, err=True)


def fail(message: str, code: int = FAILED, hint: str | None = None) -> NoReturn:
    """Print what is wrong and the next command to try on stderr, then exit with `code`."""
    prefix = click.style("error:", fg="red") if sys.stderr.isatty() else "error:"
    click.echo(f"{prefix} {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
    raise SystemExit(code)


def debugging() -> bool:
    """Return whether the user asked for tracebacks (`TARDISD_DEBUG=1`)."""
    return os.environ.get("TARDISD_DEBUG", "") not in ("", "0")


def _report_bug(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    text = " ".join(str(error).split()) or "no message"
    prefix = click.style("error:", fg="red") if sys.stderr.isatty() else "error:"
    click.echo(f"{prefix} unexpected {kind.__name__}: {text}", err=True)
    click.echo("hint: this is a bug; TARDISD_DEBUG=1 before the command shows where", err=True)


def run_command(command: click.Command) -> NoReturn:
    """Run a click command and exit with our codes; no traceback reaches the user by default."""
    if os.environ.get("TARDISD_DEBUG", "") in ("", "0"):
        sys.excepthook = _report_bug  # a bug ends the process as ever, only told in one line
    try:
        result = command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except ConfigError as error:
        for problem in error.problems:
            warn(str(problem))
        raise SystemExit(BAD_CONFIG) from None
    except NotRunning as error:
        fail(error.message, NOT_RUNNING, "start it with `tardisd run`")
    except TardisError as error:
        fail(error.message, FAILED)
    except PermissionError as error:
        fail(f"no permission: {error.filename or error}", NO_PERMISSION)
    except BrokenPipeError:
        # The reader of a pipe has gone; python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(FAILED) from None
    except OSError as error:
        if error.filename is None:
            raise
        fail(f"{error.filename}: {(error.strerror or str(error)).lower()}", FAILED)
    except (click.exceptions.Abort, KeyboardInterrupt):
        fail("interrupted", FAILED)
    raise SystemExit(result if isinstance(result, int) else DONE)
