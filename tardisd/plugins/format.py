"""The contract of file formats that `data import` reads: which columns a dump has, not how to read.

A format is a declaration. The core does the reading, the exact conversion and the checks, so that
every format has the same speed and the same errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Sample:
    """The beginning of a file: its name, and its first lines split into cells.

    `cells` holds at most 20 physical lines; `header` tells whether line 1 is one: its cell in the
    time column is not a number.
    """

    file_name: str
    cells: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file's columns map to ticks.

    `columns` names every column of the file in order; the names `time`, `id`, `side`,
    `buyer_is_maker`, `symbol` and the schema's field names carry meaning, any other is skipped.
    `header` says whether the first line is one. `covers` is the span (ns) that the file name
    states, when it does: it counts as covered together with the rows.
    """

    columns: tuple[str, ...]
    header: bool
    covers: tuple[int, int] | None = None
    delimiter: str = ","


class FileFormat:
    """One vendor's layout for some kinds of tick. `exchanges` empty means any."""

    name: ClassVar[str]
    kinds: ClassVar[frozenset[str]]
    exchanges: ClassVar[frozenset[str]] = frozenset()

    def match(self, sample: Sample, kind: str) -> Layout | None:
        """Return the layout when the file is of this format and kind, else None.

        Decide by content; a file's name only helps.
        """
        raise NotImplementedError
