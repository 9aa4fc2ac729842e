"""A read: one state of a series, a bounded number of rows at a time; holds no connection between.

The state is that of the read's beginning. Later pages are left out by the version in which their
rows were born, and replaced rows are looked for where they were kept aside. So any number of reads,
however slow, leave the connections to each other, and a read goes on behind the last row that it
has got when the server comes back from wherever it was.
"""

from __future__ import annotations

from dataclasses import dataclass

from tardisd.errors import StorageError
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd_postgres import catalogue, ticks
from tardisd_postgres.rows import table_of
from tardisd_postgres.schema import Connection, edge_after

# The first step is short for the sake of the first tick; the others keep the server busy.
FIRST_ROWS = 1024
READ_ROWS = 16_384

_LAST_SEQ = 2**63 - 1


@dataclass
class Cursor:
    """Where a read is: behind (ts, seq) `position`, which is None at the end."""

    series: Series
    span: Span
    version: int | None = None
    position: tuple[int, int] | None = None
    end: int = 0

    def step(self, connection: Connection) -> list[bytes]:
        """Return what COPY sends of the next rows; nothing at the end. A failure changes nothing.

        Raises StorageError when rows of the state that is read are gone.
        """
        # All statements of such a transaction see one state of the database.
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        entry = catalogue.find(connection, self.series)
        version, position, limit = self.version, self.position, READ_ROWS
        messages: list[bytes] = []
        if entry is not None:
            if version is None:
                version, position, limit = entry.version, self._start(entry), FIRST_ROWS
            messages, position = self._rows(connection, entry, version, position, limit)
        connection.execute("COMMIT")
        self.version, self.position = version, position
        return messages

    def _start(self, entry: catalogue.Entry) -> tuple[int, int] | None:
        """Return before where to begin, having clipped the span to what there is in it."""
        if entry.first_ts is None or entry.last_ts is None:
            return None
        there = self.span.intersect(Span(entry.first_ts, entry.last_ts + 1))
        if there is None:
            return None
        self.end = there.end
        return there.start - 1, _LAST_SEQ

    def _rows(
        self,
        connection: Connection,
        entry: catalogue.Entry,
        version: int,
        position: tuple[int, int] | None,
        limit: int,
    ) -> tuple[list[bytes], tuple[int, int] | None]:
        """Return the next rows, and where the step after them goes on."""
        if entry.purged > version:
            raise StorageError(
                f"rows of {self.series} were replaced or deleted while the database was away from"
                " a read of them; start it again"
            )
        table = table_of(self.series)
        replaced = entry.has_replaced and entry.version > version
        while position is not None:
            # One partition at a time: the planner need not look at the others.
            edge = min(self.end, edge_after(table, position[0] + (position[1] == _LAST_SEQ)))
            messages = ticks.after(
                connection, table, entry.id, position, edge, version, limit, replaced=replaced
            )
            found = len(messages) - 1
            if found == limit:
                return messages, table.place_of(messages[-2], _LAST_SEQ)
            position = (edge - 1, _LAST_SEQ) if edge < self.end else None
            if found:
                return messages, position
        return [], None
