"""`tardisd`: run the daemon, check and show its configuration, list plugins; steers no daemon.

Everything but click is imported when a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from tardisd import __version__
from tardisd.cli import render

if TYPE_CHECKING:
    from tardisd.config.model import Config

Command = TypeVar("Command", bound=Callable[..., Any])


def _config_option(command: Command) -> Command:
    return click.option(
        "-c",
        "--config",
        "path",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Configuration file [default: $TARDISD_CONFIG, ./config.toml,"
        " $XDG_CONFIG_HOME/tardisd/config.toml, /etc/tardisd/config.toml].",
    )(command)


def _json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")(command)


def _load(path: Path | None) -> Config:
    from tardisd.config.load import load_config

    return load_config(path, os.environ)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s", prog_name="tardisd")
def cli() -> None:
    """A time machine for market data: fetch once, replay forever, as if live.

    Steer a running daemon with tardisctl.
    """


@cli.command()
@_config_option
def run(path: Path | None) -> int:
    """Run the daemon until SIGTERM or Ctrl-C."""
    config = _load(path)
    from tardisd.daemon import run as run_daemon

    return run_daemon(config)


@cli.command()
@_config_option
def check(path: Path | None) -> None:
    """Check the configuration without starting anything; exit 78 when it is invalid."""
    click.echo(f"{_load(path).path}: ok")


@cli.group()
def config() -> None:
    """Show the configuration, an example, or its schema."""


@config.command()
@_config_option
@_json_option
def show(path: Path | None, as_json: bool) -> None:
    """Print the effective configuration, defaults included and secrets hidden."""
    shown = _load(path).shown()
    if as_json:
        render.print_json(shown)
    else:
        import tomli_w

        click.echo(tomli_w.dumps(_without_nulls(shown)), nl=False)


def _without_nulls(value: Any) -> Any:
    """Return the value without what TOML cannot say."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


@config.command()
@_json_option
def example(as_json: bool) -> None:
    """Print a configuration to begin with; every option is in it."""
    from tardisd.config.example import example as make

    text = make()
    if as_json:
        import tomllib

        render.print_json(tomllib.loads(text))
    else:
        click.echo(text, nl=False)


@config.command()
@_config_option
@_json_option
def schema(path: Path | None, as_json: bool) -> None:
    """Print the JSON Schema of the configuration, for editors."""
    from tardisd.config.json_schema import config_schema
    from tardisd.config.load import plugin_dirs
    from tardisd.plugins.registry import Registry

    found = config_schema(Registry.discover(plugin_dirs(path, os.environ)))
    if as_json:
        render.print_json(found)
    else:
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))


@cli.command()
@_config_option
@_json_option
def plugins(path: Path | None, as_json: bool) -> None:
    """List the plugins that were found, and why some are not usable."""
    from tardisd.config.load import plugin_dirs
    from tardisd.plugins.registry import Registry

    columns = ("name", "kind", "origin", "version", "state", "reason")
    records = Registry.discover(plugin_dirs(path, os.environ)).plugins
    if as_json:
        render.print_json([{key: getattr(it, key) for key in columns} for it in records])
    else:
        render.table(columns, [[getattr(it, key) for key in columns] for it in records])


@cli.group()
def plugin() -> None:
    """Begin a plugin of your own."""


@plugin.command()
@click.argument("name")
@click.option(
    "--kind",
    required=True,
    type=click.Choice(["exchange", "storage", "sink", "analyzer", "format"]),
    help="What it is.",
)
@click.option(
    "--into",
    metavar="DIR",
    default=".",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to put the folder [default: here].",
)
def new(name: str, kind: str, into: Path) -> None:
    """Make the package tardisd-NAME, which works and has tests that pass."""
    from tardisd.cli.scaffold import make_package

    target = make_package(name, kind, into)
    click.echo(f"{target} made; next: cd {target} && pip install -e '.[test]' && pytest")


@cli.command()
@click.option("--for", "duration", metavar="SECS", type=float, help="Stop after this long.")
def demo(duration: float | None) -> int:
    """Replay a made-up market in this terminal."""
    if duration is not None and not 0 < duration < 1e9:
        raise click.BadParameter("expected a number of seconds above 0", param_hint="--for")
    from tardisd.cli.demo import main as run_demo

    return run_demo(duration)


def main() -> NoReturn:
    """Run `tardisd` with the process's arguments."""
    render.run_command(cli)
