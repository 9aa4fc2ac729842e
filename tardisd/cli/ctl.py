"""`tardisctl`: ask and steer a running daemon over its control socket; works on no data itself."""

from __future__ import annotations

from typing import Any, NoReturn

import click

from tardisd import __version__
from tardisd.cli import render
from tardisd.cli.ctl_backfill import backfill
from tardisd.cli.ctl_common import (
    Control,
    ControlGroup,
    as_length,
    draw_facts,
    pass_control,
    refusals,
)
from tardisd.cli.ctl_data import data
from tardisd.cli.ctl_series import series
from tardisd.cli.ctl_session import session

STOP_TIMEOUT_SECS = 60.0


@click.group(cls=ControlGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--socket", metavar="PATH", help="Control socket of the daemon.")
@click.option(
    "-c",
    "--config",
    metavar="FILE",
    type=click.Path(),
    help="Configuration of the daemon, to find its socket.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON value.")
@click.version_option(__version__, prog_name="tardisctl", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, socket: str | None, config: str | None, as_json: bool) -> None:
    """Ask and steer a running tardisd."""
    context.obj = Control(socket, config, as_json)


cli.add_command(series)
cli.add_command(session)
cli.add_command(data)
cli.add_command(backfill)


@cli.command()
@pass_control
def status(control: Control) -> None:
    """Tell what runs, and for how long."""
    control.show(control.call("daemon.status"), _draw_status)


def _draw_status(result: Any) -> None:
    uptime = as_length(result["uptime_secs"] * 1000)
    sessions = ", ".join(f"{count} {name}" for name, count in result["sessions"].items())
    backfills = ", ".join(f"{count} {name}" for name, count in result["backfills"].items())
    facts = {
        "version": result["version"],
        "process": result["pid"],
        "started": f"{result['started']} ({uptime} ago)",
        "sessions": sessions or "none",
        "backfills": backfills or "none",
        "storage": result["default_storage"],
    }
    draw_facts(facts)
    click.echo()
    _draw_instances(result["instances"])


def _draw_instances(instances: list[dict[str, Any]]) -> None:
    names = ("kind", "name", "plugin", "state", "message")
    render.table(names, [[instance[name] for name in names] for instance in instances])


@cli.command()
@pass_control
def reload(control: Control) -> None:
    """Have the daemon take up its configuration files as they are now.

    Running sessions keep what they began with. When anything is wrong, nothing changes.
    """
    result = control.call("daemon.reload")
    control.show(result, _draw_reload)
    for key in result["restart_needed"]:
        render.warn(f"{key} takes effect when the daemon is started again")


def _draw_reload(result: Any) -> None:
    changes = [(what, name) for what, names in result.items() for name in names]
    told = {"added": "added", "removed": "removed", "restart_needed": "needs a restart"}
    for what, name in changes:
        click.echo(f"{told.get(what, 'changed')}: {name}")
    if not changes:
        click.echo("nothing has changed")


@cli.command()
@click.option("--no-wait", is_flag=True, help="Do not wait until the daemon has stopped.")
@pass_control
def stop(control: Control, no_wait: bool) -> None:
    """Stop the daemon in order."""
    with control.connect() as client, refusals():
        result = client.call("daemon.stop")
        if not no_wait and not client.wait_until_gone(STOP_TIMEOUT_SECS):
            render.fail(
                f"the daemon is still stopping after {STOP_TIMEOUT_SECS:g} s",
                hint="tardisctl status, or look at the daemon's log",
            )
    told = "stopping" if no_wait else "stopped"
    control.show(result, lambda _: click.echo(told))


@cli.group()
def plugin() -> None:
    """Plugins the daemon has found."""


@plugin.command("list")
@pass_control
def plugin_list(control: Control) -> None:
    """List plugins, those that failed to load included."""
    names = ("name", "kind", "state", "version", "origin", "reason")
    control.show(
        control.call("plugin.list"),
        lambda found: render.table(names, [[item[name] for name in names] for item in found]),
    )


@cli.group()
def instance() -> None:
    """Configured plugins and whether they run."""


@instance.command("list")
@pass_control
def instance_list(control: Control) -> None:
    """List configured plugins and their state."""
    control.show(control.call("instance.list"), _draw_instances)


@instance.command("restart")
@click.argument("name")
@click.option("--kind", help="exchange, storage, sink or analyzer, where kinds share the name.")
@pass_control
def instance_restart(control: Control, name: str, kind: str | None) -> None:
    """Close an instance and open it again, as if its first start had come now."""
    asked = {"name": name, **({} if kind is None else {"kind": kind})}
    control.show(control.call("instance.restart", asked), lambda one: _draw_instances([one]))


@cli.group()
def config() -> None:
    """The daemon's configuration."""


@config.command("show")
@pass_control
def config_show(control: Control) -> None:
    """Print the running configuration, secrets masked."""
    control.show(control.call("config.show"), _draw_config)


def _draw_config(result: Any) -> None:
    import tomli_w

    click.echo(tomli_w.dumps(_without_nulls(result)), nl=False)


def _without_nulls(value: Any) -> Any:
    """Return the value without what TOML cannot say."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value if item is not None]
    return value


@config.command("check")
@pass_control
def config_check(control: Control) -> None:
    """Check the daemon's configuration files as they are now."""
    result = control.call("config.check")
    control.show(result, _draw_check)
    for problem in result["problems"]:
        render.warn("{file}:{line}: {key}: {text}".format_map(problem))
    if not result["valid"]:
        raise SystemExit(render.BAD_CONFIG)


def _draw_check(result: Any) -> None:
    if result["valid"]:
        click.echo("the configuration is valid")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the code that completes commands in a shell.

    For bash: eval "$(tardisctl completion bash)"
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "tardisctl", "_TARDISCTL_COMPLETE").source())


def main() -> NoReturn:
    """Run `tardisctl`; exits with one of the codes in `tardisd.cli.render`."""
    render.run_command(cli)
