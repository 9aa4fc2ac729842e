"""The contract of file formats that `data import` reads: which columns a dump has, not how to read.

A format is a declaration. The core does the reading, the exact conversion and the checks, so that
every format has the same speed and the same errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

# Column names of a layout that carry meaning, besides the schema's field names. `symbol` is
# compared with the series; `close_time` tells whether the candles have the series' interval.
ROLES = frozenset({"time", "close_time", "id", "side", "buyer_is_maker", "symbol"})


@dataclass(frozen=True, slots=True)
class Sample:
    """The beginning of a file: its name, and its first lines split into cells.

    `cells` holds at most 20 lines that are not blank, split at `delimiter`; whether the first is a
    header is for the format to tell. `member` is the name of the file within a zip.
    """

    file_name: str
    cells: Sequence[Sequence[str]]
    member: str | None = None
    delimiter: str = ","

    @property
    def names(self) -> tuple[str, ...]:
        """The names that may tell what the file holds, without folders: its own, the member's."""
        names = (self.file_name, self.member)
        return tuple(name.rpartition("/")[2] for name in names if name is not None)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file's columns map to ticks.

    `columns` names every column of the file in order; the names `time`, `close_time`, `id`, `side`
    (`buy` or `sell`, of the taker), `buyer_is_maker`, `symbol` and the schema's field names carry
    meaning, any other is skipped. `header` says whether the first line is one; errors then name
    columns as the header does, else by `labels`, else by `columns`.

    `archive` marks a venue's own dump: time between its first and last row is known, also where
    it has no row; of any other file only the runs of adjacent candles are. `covers` is the span
    (ns) that the file name states, when it does: it counts as covered when all rows lie in it.
    `venue_id` is the venue's id of the symbol, when the file name states it. `exchange` and
    `market` (`spot` or `swap`) are what the content says it is of; a file of another is refused.
    `contracts` are the fields that count contracts where the symbol is a swap: the core turns them
    into the base asset, by the instrument's `contract_size`.
    """

    columns: tuple[str, ...]
    header: bool
    covers: tuple[int, int] | None = None
    labels: tuple[str, ...] = ()
    archive: bool = False
    venue_id: str | None = None
    exchange: str | None = None
    market: str | None = None
    contracts: frozenset[str] = frozenset()


class FileFormat:
    """One vendor's layout for some kinds of tick. `exchanges` empty means any.

    `header` says what the columns of a file with just that header line mean, by the names that
    Layout knows; a format that needs to look closer overrides `match`. A format that names the
    exchange goes before one that takes any; when two of equal rank match a file, it is refused.
    """

    name: ClassVar[str]
    kinds: ClassVar[frozenset[str]]
    exchanges: ClassVar[frozenset[str]] = frozenset()
    header: ClassVar[Mapping[str, str]] = {}

    def match(self, sample: Sample, kind: str) -> Layout | None:
        """Return the layout when the file is of this format and kind, else None.

        As it stands, a file is of it whose first line is `header`.
        Decide by content; a file's name only helps. A bad row among good ones is no reason to say
        None: the core then names its line. Raises DataError for a file that is known, and known
        not to be importable.
        """
        names = list(sample.cells[0]) if sample.cells else []
        if kind not in self.kinds or not self.header or names != list(self.header):
            return None
        return Layout(tuple(self.header.values()), header=True)
