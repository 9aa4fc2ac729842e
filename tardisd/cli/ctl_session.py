"""`tardisctl session …`: create, steer and follow replays."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import click

from tardisd.cli import render
from tardisd.cli.ctl_common import (
    SERIES,
    SESSION,
    SPEED,
    TIME,
    Control,
    ControlCommand,
    ControlGroup,
    as_time,
    draw_facts,
    pass_control,
    refusals,
)
from tardisd.cli.ctl_series import given, storage_option

_KNOWN = ("session_id", "type")
_TIMES = ("start_time", "end_time", "clock", "from", "to")


@click.group(cls=ControlGroup)
def session() -> None:
    """Replays."""


@session.command("list")
@pass_control
def session_list(control: Control) -> None:
    """List sessions, ended ones that are kept included."""

    def draw(found: Any) -> None:
        columns = ("session", "status", "series", "clock", "speed", "seq", "subscribers", "lag")
        rows = [
            (
                item["session_id"],
                item["status"],
                ", ".join(item["series"]),
                as_time(item.get("clock")),
                _speed(item),
                item.get("seq"),
                item.get("subscribers"),
                _lag(item),
            )
            for item in found
        ]
        render.table(columns, rows)

    control.show(control.call("session.list"), draw)


def _speed(item: Mapping[str, Any]) -> str:
    asked, achieved = item.get("speed"), item.get("achieved_speed")
    text = f"{asked:g}" if isinstance(asked, int | float) else str(asked)
    return f"{text} ({achieved:.3g})" if isinstance(achieved, int | float) else text


def _lag(item: Mapping[str, Any]) -> str:
    lag = item.get("lag_ms")
    return "-" if lag is None else f"{lag:.0f} ms"


@session.command("show")
@click.argument("session_id", metavar="ID", type=SESSION)
@pass_control
def session_show(control: Control, session_id: str) -> None:
    """Print one session's state."""
    control.show(control.call("session.show", {"session_id": session_id}), _draw_session)


def _draw_session(result: Mapping[str, Any]) -> None:
    draw_facts({name: _readable(name, value) for name, value in result.items()})


def _readable(name: str, value: Any) -> Any:
    if name == "sinks":
        return [_sink(one) for one in value]
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
    return as_time(value) if name in _TIMES and isinstance(value, int) else value


def _sink(facts: Mapping[str, Any]) -> str:
    text = f"{facts['name']} {facts['state'].replace('_', ' ')}"
    return f"{text} ({facts['error']})" if facts.get("error") else text


@session.command("create")
@click.option("--series", type=SERIES, multiple=True, help="Repeatable.")
@click.option("--from", "start_time", type=TIME, required=True, help="Begin here.")
@click.option("--to", "end_time", type=TIME, required=True, help="End before this.")
@click.option("--speed", type=SPEED, default="100", help="Market seconds per second, or max.")
@click.option("--paused", "start_paused", is_flag=True, help="Do not start the clock yet.")
@click.option("--id", "session_id", help="The session's id; else one is made.")
@click.option(
    "--on-gap", type=click.Choice(["mark", "skip", "fail"]), help="What to do without data."
)
@click.option("--sink", "sinks", multiple=True, help="Sink instance to write to; repeatable.")
@click.option(
    "--release",
    type=click.Choice(["close", "open-lookahead"]),
    help="When candles go out; the second is for charts only.",
)
@click.option(
    "--publish-delay", "publish_delay_ms", metavar="MS", type=int, help="Candles come later."
)
@click.option("--loop", is_flag=True, help="Begin again at the end.")
@click.option("--until", type=TIME, help="Pause by itself at this time, once.")
@click.option(
    "--max-idle", "max_idle_secs", metavar="SECS", type=float, help="Jump over longer waits."
)
@click.option("--lockstep", is_flag=True, help="Wait for followers to acknowledge.")
@click.option("--barrier", metavar="INTERVAL", help="In lockstep, wait at its closes only.")
@click.option(
    "--ack-timeout",
    "ack_timeout_secs",
    metavar="SECS",
    type=float,
    help="How long to wait for an acknowledgement.",
)
@click.option("--derive", type=SERIES, multiple=True, help="Candles to build; repeatable.")
@click.option("--forming", is_flag=True, help="Show derived candles while they form.")
@click.option("--durable", is_flag=True, help="Be there again after a restart, paused.")
@click.option("--analyzer", "analyzers", multiple=True, help="Analyzer instance; repeatable.")
@storage_option
@pass_control
def session_create(control: Control, /, **options: Any) -> None:
    """Create a session and start its clock."""
    params = {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()}
    params = {name: value for name, value in params.items() if value is not None}
    control.show(control.call("session.create", params), _draw_created)


@session.command("start")
@click.argument("preset")
@click.option("--id", "session_id", help="The session's id; else one is made.")
@pass_control
def session_start(control: Control, preset: str, session_id: str | None) -> None:
    """Start a session as the [sessions.PRESET] section says."""
    params = given(preset=preset, session_id=session_id)
    control.show(control.call("session.start", params), _draw_created)


def _draw_created(result: Mapping[str, Any]) -> None:
    click.echo(f"{result['session_id']} {result.get('status', 'created')}")


def _verb(name: str, doc: str) -> None:
    """Add a command that takes a session's id and nothing else."""

    @session.command(name, help=doc)
    @click.argument("session_id", metavar="ID", type=SESSION)
    @pass_control
    def verb(control: Control, session_id: str) -> None:
        result = control.call(f"session.{name}", {"session_id": session_id})
        control.show(result, _draw_told)


def _draw_told(result: Mapping[str, Any]) -> None:
    at = f" at {as_time(result['clock'])}" if result.get("clock") is not None else ""
    count = f" {result['count']}" if "count" in result else ""
    click.echo(f"{result['session_id']} {result['type'].replace('_', ' ')}{count}{at}")


_verb("pause", "Stop a session's clock.")
_verb("resume", "Let a session's clock run on.")
_verb("stop", "End a session.")
_verb("remove", "Forget an ended session.")


@session.command("speed")
@click.argument("session_id", metavar="ID", type=SESSION)
@click.argument("speed", type=SPEED)
@pass_control
def session_speed(control: Control, session_id: str, speed: float | str) -> None:
    """Change a session's speed, in market seconds per second, or max."""
    params = {"session_id": session_id, "speed": speed}
    control.show(control.call("session.speed", params), _draw_told)


_MINUS = "\N{MINUS SIGN}"


class _BackCommand(ControlCommand):
    """Takes `-1h` for what it is: click would find the option `-h` in it, and show the help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Hide the minus of amounts from click."""
        hidden = [_MINUS + arg[1:] if re.match(r"-\d", arg) else arg for arg in args]
        return super().parse_args(ctx, hidden)


@session.command("seek", cls=_BackCommand)
@click.argument("session_id", metavar="ID", type=SESSION)
@click.argument("to", metavar="TIME|+SECS|-SECS")
@pass_control
def session_seek(control: Control, session_id: str, to: str) -> None:
    """Move a session to a time, or by some time as in +90s or -1h (from where it is)."""
    params: dict[str, Any] = {"session_id": session_id}
    to = to.replace(_MINUS, "-")
    if to[:1] in "+-":
        params["by"] = _milliseconds(to)
    else:
        params["to"] = TIME.convert(to, None, None)
    control.show(control.call("session.seek", params), _draw_told)


def _milliseconds(text: str) -> int:
    """Return what `+90s`, `-1h` or `+30` (seconds) means."""
    from tardisd.market.time import MILLISECOND, parse_duration

    try:
        return parse_duration(text.removeprefix("+")) // MILLISECOND
    except ValueError:
        if re.fullmatch(r"[+-]\d{1,9}(\.\d{1,3})?", text):
            return round(float(text) * 1000)
        text = f"{text!r} is neither a time nor a duration; write +90s, -1h or 2024-03-01T12:00:00Z"
        raise click.BadParameter(text, param_hint="TIME") from None


@session.command("step", context_settings={"ignore_unknown_options": True})
@click.argument("session_id", metavar="ID", type=SESSION)
@click.argument("count", type=int, default=1)
@pass_control
def session_step(control: Control, session_id: str, count: int) -> None:
    """Let the next COUNT ticks of a paused session through, or go back with -COUNT."""
    params = {"session_id": session_id, "count": count}
    control.show(control.call("session.step", params), _draw_told)


@session.command("verify")
@click.argument("session_id", metavar="ID", type=SESSION)
@pass_control
def session_verify(control: Control, session_id: str) -> None:
    """Replay what a session has released once more, at max, and compare the content hashes.

    Exit code 1 when they differ; then it says what changed, and what to do.
    """
    result = control.call("session.verify", {"session_id": session_id})
    control.show(result, _draw_proof)
    if not result["equal"]:
        raise SystemExit(render.FAILED)


def _draw_proof(result: Mapping[str, Any]) -> None:
    if result["equal"]:
        click.echo(f"{result['session_id']} equal: {result['ticks']} ticks, hash {result['hash']}")
        return
    click.echo(
        f"{result['session_id']} differs: it had {result['expected_ticks']} ticks with hash"
        f" {result['expected_hash']}, now there are {result['ticks']} with {result['hash']}"
    )
    for series in result["changed"]:
        click.echo(
            f"{series} has changed since the session was created: `tardisctl series show {series}`"
            " tells what came in; create the session again to replay what is stored now"
        )
    if not result["changed"]:
        click.echo(
            "no stored series says that it has changed: look for damage with"
            " `tardisctl data verify SERIES`"
        )


@session.command("watch")
@click.argument("session_id", metavar="ID", type=SESSION)
@click.option("--lines", is_flag=True, help="Print lines, on a terminal too.")
@pass_control
def session_watch(control: Control, session_id: str, lines: bool) -> None:
    """Play a session on the terminal until it ends: chart, clock, speed, and keys to steer it.

    Elsewhere, or with --lines, its ticks and what happens to it are printed as lines; with --json
    only its end, when it is over. A fast session shows a part of its ticks; it is never slowed
    down.
    """
    # A dumb terminal cannot move the cursor: nothing at all would be drawn on it.
    plain = lines or control.as_json or os.environ.get("TERM") in {"dumb", "unknown"}
    if not plain and sys.stdout.isatty() and sys.stdin.isatty():
        from tardisd.cli.live import play

        with control.connect() as client, refusals():
            path = client.path
            client.call("session.show", {"session_id": session_id})
        with refusals(), suppress(KeyboardInterrupt):
            play(path, session_id, f"session {session_id}")
        return
    draw: Callable[[str, Mapping[str, Any]], None] = _draw_news
    if control.as_json:
        draw = _draw_nothing
    try:
        with control.connect() as client, refusals():
            result = client.call("session.watch", {"session_id": session_id}, (), draw)
    except KeyboardInterrupt:  # the way to leave a session that goes on
        return
    if control.as_json:
        render.print_json(result)


def _draw_nothing(method: str, params: Mapping[str, Any]) -> None:
    """Leave stdout to the result alone."""


def _draw_news(method: str, params: Mapping[str, Any]) -> None:
    if method == "session.ticks":
        if params["skipped"]:
            click.echo(f"… {params['skipped']:,} ticks not shown")
        click.echo("\n".join(_tick_line(tick) for tick in params["data"]))
    elif method == "session.notice":
        facts = [
            f"{name}={_readable(name, value)}"
            for name, value in params.items()
            if name not in _KNOWN
        ]
        click.echo(" ".join([f"-- {params['type']}", *facts]))


def _tick_line(tick: Mapping[str, Any]) -> str:
    name = f"{tick['exchange']}:{tick['symbol']}@{tick['channel']}"
    if "close" in tick:
        names = ("open", "high", "low", "close", "volume")
        values = " ".join(f"{field}={tick[field]}" for field in names if field in tick)
        return f"{as_time(tick['close_time'])} {name} {values}"
    values = " ".join(
        f"{field}={tick[field]}" for field in ("side", "price", "amount", "id") if field in tick
    )
    return f"{tick['datetime']} {name} {values}"
