"""`tardisd plugin new`: a package to begin with, made of the templates that come along.

What is made works as it is: it has the tests of its kind, and they pass.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from tardisd import __version__
from tardisd.errors import TardisError
from tardisd.plugins import CONTRACT_VERSION
from tardisd.plugins.sources import installed

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_MAX_NAME = 40
_SUFFIX = ".tmpl"


class ScaffoldError(TardisError):
    """Raised when a package cannot be made; nothing has been written then."""

    code = "bad_request"


def make_package(name: str, kind: str, into: Path) -> Path:
    """Write the package `tardisd-NAME` into a folder; return where it is.

    Raises ScaffoldError for a name that cannot be or is taken, OSError where it cannot write.
    """
    _check_name(name)
    target = into / f"tardisd-{name.replace('_', '-')}"
    if target.exists() or target.is_symlink():
        raise ScaffoldError(f"{target} is there already; choose another name, or another --into")
    values = _values(name, kind)
    into.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=into))
    try:
        for room in ("common", kind):
            _render(files("tardisd") / "templates" / room, half, values)
        half.chmod(0o755)
        half.rename(target)  # whole, or not there at all
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise
    return target


def _check_name(name: str) -> None:
    if name.startswith(("tardisd-", "tardisd_")):
        raise ScaffoldError(f"leave the 'tardisd-' of {name!r} out; the package gets it anyway")
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise ScaffoldError(
            f"{name!r} is no name for a plugin; use up to {_MAX_NAME} lower-case letters and"
            " digits, beginning with a letter, in parts joined by '-' or '_', such as 'my-sink'"
        )
    package = _package(name)
    for source in installed():
        if name == source.name or package == source.module.partition(".")[0]:
            raise ScaffoldError(
                f"{name!r} is a plugin of {source.origin}, which is installed; two of one name are"
                " both refused, choose another"
            )


def _package(name: str) -> str:
    return f"tardisd_{name.replace('-', '_')}"


def _values(name: str, kind: str) -> dict[str, str]:
    article = "an" if kind[0] in "aeiou" else "a"
    values = {
        "name": name,
        "kind": kind,
        "article": article,
        "article_capital": article.capitalize(),
        "distribution": f"tardisd-{name.replace('_', '-')}",
        "package": _package(name),
        "cls": "".join(part.capitalize() for part in re.split("[-_]", name)),
        "version": __version__,
        "contract": CONTRACT_VERSION,
    }
    room = files("tardisd") / "templates" / kind
    values["about"] = (room / "README.about").read_text().strip()
    if kind == "format":
        values["usage"] = (
            "```sh\ntardisctl data import FILE --exchange NAME --symbol BTC/USDT"
            " --data-type trade\n```"
        )
    else:
        sample = (room / "PACKAGE" / f"sample.toml{_SUFFIX}").read_text()
        values["usage"] = f"```toml\n{Template(sample).substitute(values)}```"
    return values


def _render(room: Traversable, into: Path, values: dict[str, str]) -> None:
    """Write the templates of a folder, those in folders below it included."""
    for one in room.iterdir():
        name = one.name.replace("PACKAGE", values["package"])
        if one.is_dir():
            (into / name).mkdir(exist_ok=True)
            _render(one, into / name, values)
        elif name.endswith(_SUFFIX):
            path = into / name.removesuffix(_SUFFIX).replace(
                "NAME", values["name"].replace("-", "_")
            )
            path.write_text(Template(one.read_text()).substitute(values))
