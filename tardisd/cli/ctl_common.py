"""What all `tardisctl` commands share: the connection, parameter types and how results are shown.

It knows no single command. Everything but click is imported when a command runs: start-up time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from tardisd.cli import render

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from tardisd.control.client import ControlClient, OnNotification

_HINTS = {
    "session_not_found": "tardisctl session list",
    "no_data": "tardisctl series list, then `tardisctl data import` or `tardisctl backfill run`",
    "session_exists": "tardisctl session list",
    "unknown_method": "restart the daemon with `tardisctl stop` and `tardisd run`",
    "too_many_sessions": "tardisctl session list, then `tardisctl session stop ID`",
    "internal": "look at the daemon's log",
}


@dataclass(slots=True)
class Control:
    """How the daemon is to be reached and its answers shown."""

    socket: str | None = None
    config: str | None = None
    as_json: bool = False

    def connect(self) -> ControlClient:
        """Return a connection; says on stderr when the daemon is of another version."""
        from tardisd.control.client import ControlClient, control_socket

        if self.socket is None and self.config is not None:
            from tardisd.cli.ctl_config import configured_socket

            path = configured_socket(self.config)
        else:
            path = control_socket(self.socket)
        client = ControlClient(path)
        if warning := client.mismatch():
            render.warn(f"warning: {warning}")
        return client

    def call(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        files: Sequence[int] = (),
        on_notification: OnNotification | None = None,
    ) -> Any:
        """Return the result of one method on a connection of its own; refusals end the command."""
        with self.connect() as client, refusals():
            return client.call(method, params, files, on_notification)

    def show(self, result: Any, draw: Callable[[Any], None]) -> None:
        """Print a result as JSON when that was asked for, else let `draw` do it."""
        if self.as_json:
            render.print_json(result)
        else:
            draw(result)


pass_control = click.make_pass_decorator(Control)


def refusals() -> AbstractContextManager[None]:
    """Turn the daemon's refusals into one line on stderr and exit code 1.

    A configuration that is refused raises ConfigError instead, with all that is wrong with it.
    """
    return _Refusals()


class _Refusals(AbstractContextManager[None]):
    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from tardisd.errors import ConfigError, ControlError, NotRunning, Problem

        if isinstance(error, ControlError) and (found := error.data.get("problems")):
            raise ConfigError([Problem(**problem) for problem in found]) from None
        if isinstance(error, ControlError) and not isinstance(error, NotRunning):
            render.fail(error.message, render.FAILED, _HINTS.get(error.code))


def _ask_for_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Control).as_json = True


class ControlCommand(click.Command):
    """A command that takes `--json` behind its name too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        option = click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_ask_for_json,
            help="Print the result as one JSON value.",
        )
        self.params.append(option)


class ControlGroup(click.Group):
    """A group of such commands."""

    command_class = ControlCommand
    group_class = type


class TimeType(click.ParamType[str]):
    """An instant as people write it; becomes ISO-8601 text in UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return ISO text; a usage error when it is no time."""
        from tardisd.market.time import format_time, parse_time
        from tardisd.wall import wall_ns

        try:
            return format_time(parse_time(value, now=wall_ns()))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class RangeType(click.ParamType[list[str]]):
    """A range `A..B`; becomes two ISO-8601 texts."""

    name = "a..b"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        """Return the two ends; a usage error when it is no range."""
        from tardisd.market.time import format_time, parse_range
        from tardisd.wall import wall_ns

        try:
            start, end = parse_range(value, now=wall_ns())
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return [format_time(start), format_time(end)]


class SpeedType(click.ParamType["float | str"]):
    """Market seconds per wall second, or `max`."""

    name = "speed"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        """Return a number or `max`; a usage error when it is neither."""
        if value == "max":
            return "max"
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            self.fail(f"{value!r} is not a speed; use a number over 0, or max", param, ctx)
        return number


class SeriesType(click.ParamType[str]):
    """A series, `exchange:symbol@data_type`; completes what is stored."""

    name = "series"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return its canonical spelling; a usage error when it is none."""
        from tardisd.market.series import Series

        try:
            return Series.parse(value).text
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return stored series that begin so."""
        return _complete(ctx, "series.list", "series", incomplete)


class SessionType(click.ParamType[str]):
    """A session's id; completes those that there are."""

    name = "id"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return sessions that begin so."""
        return _complete(ctx, "session.list", "session_id", incomplete)


def _complete(ctx: click.Context, method: str, name: str, begin: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from tardisd.errors import TardisError

    options = ctx.find_root().params  # nothing has run yet that would have made a Control
    control = Control(options.get("socket"), options.get("config"))
    try:
        with control.connect() as client:
            found = [str(item[name]) for item in client.call(method)]
    except (TardisError, OSError):
        return []
    return [CompletionItem(text) for text in found if text.startswith(begin)]


TIME = TimeType()
RANGE = RangeType()
SPEED = SpeedType()
SERIES = SeriesType()
SESSION = SessionType()


def as_time(milliseconds: int | None) -> str:
    """Return ISO text for milliseconds, or a dash."""
    if milliseconds is None:
        return "-"
    from tardisd.market.time import MILLISECOND, format_time

    return format_time(milliseconds * MILLISECOND)


def as_length(milliseconds: int) -> str:
    """Return a length of time as people say it: `3d 4h`, `90s`."""
    parts = []
    rest = milliseconds
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
    if rest:
        parts.append(f"{rest}ms")
    return " ".join(parts[:2]) or "0s"


def as_size(size: int) -> str:
    """Return a number of bytes as people say it."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def draw_facts(facts: Mapping[str, Any]) -> None:
    """Print one thing's facts as two columns."""
    rows = [(name, _as_cell(value)) for name, value in facts.items()]
    render.table(("name", "value"), rows)


def _as_cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return "-" if value is None else str(value)


def on_terminal() -> bool:
    """Tell whether stderr, where progress goes, is a terminal."""
    return sys.stderr.isatty()
