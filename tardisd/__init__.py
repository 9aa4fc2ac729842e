"""tardisd, a time machine for market data: the whole vocabulary of plugin authors.

Names are imported on first use, so that `import tardisd` costs nothing and `tardisctl` starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "errors": ["NotConnected", "PluginError", "Rejected", "RequestError", "Retry", "Unavailable"],
    "market.columns": ["Batch"],
    "market.decimals": ["Decimals"],
    "market.series": ["DataType", "Instrument", "Series", "Symbol"],
    "market.span": ["Coverage", "Gap", "Span"],
    "market.time": ["Interval"],
    "plugins": ["CONTRACT_VERSION"],
    "plugins.analyzer": ["Analysis", "Analyzer"],
    "plugins.base": ["Context", "Options"],
    "plugins.exchange": ["Availability", "Exchange", "Page"],
    "plugins.format": ["FileFormat", "Layout", "Sample"],
    "plugins.hooks": ["hookimpl"],
    "plugins.secret": ["Secret"],
    "plugins.sessions": ["Block", "Notice", "Session", "SessionRequest", "Subscription"],
    "plugins.sink": ["Sink", "Writer"],
    "plugins.storage": ["Appended", "Provenance", "SeriesInfo", "Storage"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604 - strings, computed


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'tardisd' has no attribute {name!r}") from None
    return getattr(import_module(f"tardisd.{home}"), name)
