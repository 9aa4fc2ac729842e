"""Find the control socket that a configuration file names; checks nothing else in it.

A daemon must stay within reach when its configuration has become wrong elsewhere, or when its
secrets are not for those who ask.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tardisd.config.load import read_document
from tardisd.config.paths import default_data_dir, default_socket, expand


def configured_socket(file: str) -> Path:
    """Return where the daemon with this configuration listens.

    Raises ConfigError when the file, or one in its `conf.d`, cannot be read.
    """
    data, findings, _ = read_document(Path(file))
    table = data.get("daemon", {})
    try:
        named = _path(table, "control_socket")
        data_dir = _path(table, "data_dir") or default_data_dir(os.environ)
    except ValueError as error:
        findings.add(("daemon", "control_socket"), str(error))
        findings.raise_if_any()
        raise
    return (named or default_socket(data_dir.absolute(), os.environ)).absolute()


def _path(table: Any, key: str) -> Path | None:
    text = table.get(key) if isinstance(table, dict) else None
    return expand(text, os.environ) if isinstance(text, str) else None
