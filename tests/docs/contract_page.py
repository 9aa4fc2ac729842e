"""Write docs/contract.md: every class and method that plugins build upon, in its own words.

Run it when a contract or its docstring has changed: `python tests/docs/contract_page.py`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tardisd.plugins import CONTRACT_VERSION, hooks
from tardisd.plugins.analyzer import Analysis, Analyzer, Answer, Question
from tardisd.plugins.base import Context, Options, Plugin
from tardisd.plugins.exchange import Availability, Exchange, Page
from tardisd.plugins.format import FileFormat, Layout, Sample
from tardisd.plugins.host import Board, Host, Offer
from tardisd.plugins.sessions import (
    Block,
    Dismissed,
    Evicted,
    Notice,
    Resume,
    Rows,
    Session,
    SessionRequest,
    Sessions,
    Stepping,
    Subscription,
)
from tardisd.plugins.sink import Sink, Writer
from tardisd.plugins.storage import Appended, Provenance, Quarters, SeriesInfo, Storage

PAGE = Path(__file__).resolve().parents[2] / "docs" / "contract.md"

PARTS = {
    "Every plugin": [Plugin, Options, Context, Host, Board, Offer],
    "Exchanges": [Exchange, Availability, Page],
    "Storages": [Storage, Appended, SeriesInfo, Provenance, Quarters],
    "Sinks": [Sink, Writer, Block, Rows, Notice],
    "Analyzers": [Analyzer, Analysis, Question, Answer],
    "File formats": [FileFormat, Sample, Layout],
    "Sessions": [
        Sessions,
        SessionRequest,
        Session,
        Subscription,
        Resume,
        Stepping,
        Dismissed,
        Evicted,
    ],
}

HEAD = f"""\
# The plugin contract

Version {CONTRACT_VERSION}. This page says what the core gives plugins and expects of them, class by
class, in the words of the code; [Writing a plugin](plugins.md) is where to begin. Arguments before
`/` have no names to rely on, and what begins with `_` is nobody's business.
"""


def members(cls: type[Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (name, how it is written, what it says) of what a class itself adds."""
    notes = inspect.get_annotations(cls)
    for name, note in notes.items():
        if not name.startswith("_"):
            default = vars(cls).get(name, inspect.Parameter.empty)
            plain = isinstance(default, int | float | str | bool | tuple | frozenset | type(None))
            value = f" = {default!r}" if plain and default is not inspect.Parameter.empty else ""
            text = note if isinstance(note, str) else inspect.formatannotation(note)
            text = re.sub(r"^ClassVar\[(.*)\]$", r"\1", text)
            yield name, f"{name}: {text}{value}", ""
    for name, value in vars(cls).items():
        if name.startswith("_") or name in notes:
            continue
        if isinstance(value, property):
            text = inspect.getdoc(value) or ""
            returns = inspect.signature(value.fget).return_annotation
            yield name, f"{name}: {returns}", text
            continue
        function = getattr(value, "__func__", value)
        function = inspect.unwrap(function)
        if inspect.isfunction(function) and function.__module__ == cls.__module__:
            signature = str(inspect.signature(function)).replace("'", "")
            signature = re.sub(r"^\((self|cls)(, )?", "(", signature)
            word = "async " if inspect.iscoroutinefunction(function) else ""
            if inspect.isasyncgenfunction(function):
                word = "async with "
            elif inspect.isgeneratorfunction(function):
                word = "with "
            yield name, f"{word}{name}{signature}", inspect.getdoc(function) or ""


def page() -> str:
    """Return the page."""
    lines = [HEAD, "## Hooks\n"]
    for name, hook in vars(hooks).items():
        if name.startswith(f"{hooks.GROUP}_"):
            lines.append(f"- `{name}()`: {inspect.getdoc(hook)}")
    for title, classes in PARTS.items():
        lines.append(f"\n## {title}")
        for cls in classes:
            lines += [f"\n### {cls.__name__}\n", (inspect.getdoc(cls) or "").strip() + "\n"]
            for _, written, says in members(cls):
                told = "".join(f"\n  {line}" for line in says.splitlines())
                lines.append(f"- `{' '.join(written.split())}`{told}")
    return re.sub(r"[ \t]+\n", "\n", "\n".join(lines)) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
