"""HTTP sink: control and NDJSON streams for scripts and `curl`, and room for others' endpoints."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from tardisd.plugins.hooks import hookimpl
from tardisd.plugins.sink import Sink
from tardisd_http.plugin import HttpSink

# They are imported when a sink runs: most commands only read its options, and start sooner without.
for _package in ("hypercorn", "starlette"):
    if find_spec(_package) is None:
        raise ModuleNotFoundError(f"No module named {_package!r}", name=_package)


@hookimpl
def tardisd_sinks() -> list[type[Sink[Any]]]:
    """Return the sink classes of this package."""
    return [HttpSink]
