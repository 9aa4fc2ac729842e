"""Places in the file system that a configuration names or implies; creates none of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

SYSTEM_SOCKET = Path("/run/tardisd/control.sock")
MAX_SOCKET_BYTES = 107  # of sockaddr_un on Linux, without the terminating zero


def expand(text: str, environ: Mapping[str, str]) -> Path:
    """Return the path with `~` expanded; ValueError when there is no such home."""
    if "\0" in text or not text:
        raise ValueError(f"{text!r} is not a path")
    if (text == "~" or text.startswith("~/")) and (home := environ.get("HOME")):
        return Path(home + text[1:])
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{text!r}: no such home directory") from None


def readable_dirs(plugins: object, environ: Mapping[str, str]) -> list[Path]:
    """Return those `dirs` of a `[plugins]` table that are paths, whatever else is wrong with it."""
    dirs = plugins.get("dirs") if isinstance(plugins, dict) else None
    found = []
    for text in dirs if isinstance(dirs, list) else []:
        with suppress(ValueError):
            found += [expand(text, environ)] if isinstance(text, str) else []
    return found


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Return where data is kept when the config does not say."""
    if state := environ.get("STATE_DIRECTORY"):  # systemd: several are separated by colons
        return Path(state.partition(":")[0])
    if data := environ.get("XDG_DATA_HOME"):
        return Path(data) / "tardisd"
    return expand("~/.local/share/tardisd", environ)


def default_socket(data_dir: Path, environ: Mapping[str, str]) -> Path:
    """Return where the control socket is when the config does not say."""
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "tardisd" / "control.sock"
    if os.geteuid() == 0 or os.access(SYSTEM_SOCKET.parent, os.W_OK | os.X_OK):
        return SYSTEM_SOCKET
    return data_dir / "control.sock"


def config_candidates(environ: Mapping[str, str]) -> list[Path]:
    """Return where a config file is looked for when none is named, in order."""
    home = environ.get("XDG_CONFIG_HOME")
    folder = Path(home) if home else expand("~/.config", environ)
    return [
        Path("config.toml"),
        folder / "tardisd" / "config.toml",
        Path("/etc/tardisd/config.toml"),
    ]
