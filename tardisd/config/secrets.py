"""Read secrets from where a config says they are kept; the type itself belongs to the plugins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tardisd.config.paths import expand
from tardisd.plugins.secret import Secret

MAX_BYTES = 64 * 1024
_FORMS = "a string, { env = 'NAME' }, { file = 'PATH' } or { credential = 'NAME' }"


def read_secret(value: object, environ: Mapping[str, str]) -> Secret:
    """Return the secret that a config value holds or points to.

    Raises ValueError saying what cannot be read; the message never holds the secret.
    """
    if isinstance(value, str):
        return Secret(_not_empty(value, "the secret"))
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"expected {_FORMS}")
    ((way, name),) = value.items()
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"expected {_FORMS}")
    if way == "env":
        if name not in environ:
            raise ValueError(f"environment variable {name} is not set")
        where = f"environment variable {name}"
        return Secret(_not_empty(environ[name], where), where)
    if way == "file":
        return _from_file(expand(name, environ), f"file {name}")
    if way == "credential":
        return _from_credential(name, environ)
    raise ValueError(f"{way!r} is no place for a secret; expected {_FORMS}")


def _from_credential(name: str, environ: Mapping[str, str]) -> Secret:
    if "/" in name or name in (".", ".."):
        raise ValueError(f"credential {name!r} is not a name")
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ValueError(
            f"credential {name} needs $CREDENTIALS_DIRECTORY;"
            f" systemd sets it for LoadCredential={name}:/path/to/file"
        )
    return _from_file(Path(folder) / name, f"credential {name}")


def _from_file(path: Path, where: str) -> Secret:
    try:
        if not path.is_file():
            raise ValueError(f"{where}: {path} is not a file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot read {where}: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{where} is larger than {MAX_BYTES} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{where} is not UTF-8 text") from None
    return Secret(_not_empty(text.removesuffix("\n").removesuffix("\r"), where), where)


def _not_empty(text: str, where: str) -> str:
    if not text:
        raise ValueError(f"{where} is empty")
    return text
