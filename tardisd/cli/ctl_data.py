"""`tardisctl data …`: bring data in and out, and check it.

Files are opened here and handed to the daemon as descriptors, so that a hardened service can read
and write what its user can.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from tardisd.cli import render
from tardisd.cli.ctl_common import (
    RANGE,
    SERIES,
    TIME,
    Control,
    ControlGroup,
    as_size,
    pass_control,
)
from tardisd.cli.ctl_progress import shown_progress
from tardisd.cli.ctl_series import from_option, given, storage_option, to_option

COPY_BYTES = 1 << 20


@click.group(cls=ControlGroup)
def data() -> None:
    """Files in and out."""


@data.command("import")
@click.argument(
    "files",
    metavar="FILE…",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option("--exchange", required=True, help="The venue the data is from.")
@click.option("--symbol", required=True, help="BTC/USDT, BTC/USDT:USDT or the venue's own id.")
@click.option("--data-type", required=True, help="trade, agg_trade, candle_1m, …")
@click.option("--covers", type=RANGE, help="The span that the files are complete for, A..B.")
@click.option(
    "--contract-size", metavar="SIZE", help="Base asset per contract, for swap files in contracts."
)
@storage_option
@pass_control
def data_import(
    control: Control,
    files: tuple[Path, ...],
    exchange: str,
    symbol: str,
    data_type: str,
    covers: list[str] | None,
    contract_size: str | None,
    storage: str | None,
) -> None:
    """Import venue dumps and plain files; the format is found by content.

    Importing a file again changes nothing; a file with an error is refused as a whole.
    """
    from tardisd.control.protocol import MAX_DESCRIPTORS

    if len(files) > MAX_DESCRIPTORS:
        raise click.UsageError(f"{len(files)} files; import at most {MAX_DESCRIPTORS} at once")
    params = given(
        exchange=exchange,
        symbol=symbol,
        data_type=data_type,
        files=[path.name for path in files],
        covers=covers,
        contract_size=contract_size,
        storage=storage,
    )
    with ExitStack() as opened, shown_progress("import") as show:
        descriptors = [opened.enter_context(path.open("rb")).fileno() for path in files]
        result = control.call("data.import", params, descriptors, show)
    control.show(result, _draw_imported)


def _draw_imported(result: dict[str, Any]) -> None:
    counts = ", ".join(
        f"{result[name]:,} {name}" for name in ("added", "unchanged", "revised") if name in result
    )
    click.echo(f"{result['series']}: {counts}")
    for file in result.get("files", ()):
        for note in file.get("notes", ()):
            click.echo(f"{file['name']}: {note}")


@data.command("export")
@click.argument("series", metavar="SERIES", type=SERIES)
@click.option("--from", "start", type=TIME, required=True, help="Begin here.")
@click.option("--to", "end", type=TIME, required=True, help="End before this.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "ndjson", "parquet"]),
    default="csv",
    show_default=True,
)
@click.option("-o", "--output", metavar="PATH", required=True, help="File to write; - is stdout.")
@storage_option
@pass_control
def data_export(
    control: Control, series: str, start: str, end: str, form: str, output: str, storage: str | None
) -> None:
    """Write a series to a file, which appears when it is complete."""
    params = given(series=series, start=start, end=end, format=form, storage=storage)
    to_stdout = output == "-"
    target = _stdout() if to_stdout else _complete_or_nothing(Path(output))
    with target as descriptor, shown_progress("export") as show:
        result = control.call("data.export", params, [descriptor], show)
    if to_stdout:
        return  # stdout belongs to the data

    def draw(told: dict[str, Any]) -> None:
        size = as_size(Path(output).stat().st_size)
        click.echo(f"{output}: {told['rows']:,} rows, {size}")

    control.show(result, draw)


@contextmanager
def _complete_or_nothing(path: Path) -> Iterator[int]:
    """Give a file to write that gets its name only when the block is left without an error."""
    if path.exists() and not path.is_file():  # a device or a named pipe cannot be renamed over
        with path.open("wb") as special:
            yield special.fileno()
        return
    path = path.resolve()
    if not path.parent.is_dir():
        raise click.BadParameter(f"there is no folder {path.parent}", param_hint="--output")
    hidden = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
        os.fsync(descriptor)
        hidden.rename(path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def _stdout() -> Iterator[int]:
    """Give a descriptor whose bytes end up on stdout.

    A pipe of our own stands between the daemon and ours: when we are killed, the daemon's writing
    ends too, whoever else holds our stdout.
    """
    own = sys.stdout.fileno()
    if stat.S_ISREG(os.fstat(own).st_mode):
        yield own
        return
    reading, writing = os.pipe()
    copier = threading.Thread(target=_copy, args=(reading, own))
    copier.start()
    try:
        yield writing
    finally:
        os.close(writing)
        copier.join()


def _copy(reading: int, out: int) -> None:
    with open(reading, "rb", buffering=0) as source:
        try:
            while piece := source.read(COPY_BYTES):
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(out, rest) :]
        except BrokenPipeError:
            pass  # closing our end tells the daemon


@data.command("verify")
@click.argument("series", metavar="SERIES", type=SERIES)
@from_option
@to_option
@storage_option
@pass_control
def data_verify(
    control: Control, series: str, start: str | None, end: str | None, storage: str | None
) -> None:
    """Check what is stored: checksums, order, trade ids, candles against trades.

    Exits with 1 when something is wrong.
    """
    params = given(series=series, start=start, end=end, storage=storage)
    with shown_progress("verify") as show:
        result = control.call("data.verify", params, (), show)
    control.show(result, _draw_verified)
    if not result["ok"]:
        render.fail(f"{series} is not as it should be")


def _draw_verified(result: dict[str, Any]) -> None:
    rows = [
        (
            check["name"],
            check["state"],
            f"{check['checked']:,}",
            f"{check['problems']:,}",
            detail,
        )
        for check in result["checks"]
        for detail in check["details"] or [""]
    ]
    for at in range(len(rows) - 1, 0, -1):  # what was said in the row above is not repeated
        if rows[at][0] == rows[at - 1][0]:
            rows[at] = ("", "", "", "", rows[at][4])
    render.table(("check", "result", "rows", "problems", "details"), rows)
