"""Blocks as Redis requests, vectorised: one table of bytes per stretch of rows that look alike.

The rows of a table have one width, so their lengths, which Redis wants told in front, are the same
text in every row: a template is repeated, and the rows and their numbers are written into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tardisd.plugins.sessions import Block
from tardisd.wire.digits import Grid, digit_count

MOST_TICKS = 1024
MOST_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Keys:
    """The names under which a session is found."""

    channel: bytes
    session: bytes
    stream: bytes
    delivered: bytes
    paused: bytes = b"replay:paused"

    @classmethod
    def of(cls, session_id: str) -> Keys:
        """Return the names for a session."""
        name = session_id.encode()
        return cls(
            channel=b"replay:" + name,
            session=b"replay:session:" + name,
            stream=b"replay:" + name + b":ticks",
            delivered=b"replay:" + name + b":delivered",
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """Requests for consecutive ticks that are done together, and the last number among them."""

    data: bytes
    requests: int
    last_seq: int


def pack(*words: bytes) -> bytes:
    """Return a command as it goes over the wire."""
    return _spread(words)[0]


def _spread(words: Sequence[bytes]) -> tuple[bytes, list[int]]:
    """Return a command, and where in it each word begins."""
    data, places = b"*%d\r\n" % len(words), []
    for word in words:
        data += b"$%d\r\n" % len(word)
        places.append(len(data))
        data += word + b"\r\n"
    return data, places


class Packer:
    """Makes the requests of a session: PUBLISH, and before each an XADD when a stream is kept."""

    def __init__(self, keys: Keys, stream_length: int | None, stream_secs: int) -> None:
        self._keys = keys
        self._length = stream_length
        self._kept_secs = stream_secs

    def chunks(self, block: Block, first: int) -> Iterator[Chunk]:
        """Return the requests for the rows from `first` on."""
        parts: list[bytes] = []
        ticks, size = 0, 0
        seq = block.first_seq + first
        for rows, channel in self._stretches(block, first):
            limit = max(MOST_BYTES // (rows.shape[1] * (1 if self._length is None else 2)), 1)
            at = 0
            while at < len(rows):
                count = min(len(rows) - at, MOST_TICKS - ticks, limit)
                parts.append(self._packed(rows[at : at + count], block.epoch, seq, channel))
                ticks, size = ticks + count, size + len(parts[-1])
                at, seq = at + count, seq + count
                if ticks >= MOST_TICKS or size >= MOST_BYTES:
                    yield self._chunk(parts, ticks, block.epoch, seq - 1)
                    parts, ticks, size = [], 0, 0
        if parts:
            yield self._chunk(parts, ticks, block.epoch, seq - 1)

    def _chunk(self, parts: list[bytes], ticks: int, epoch: int, last: int) -> Chunk:
        keys = self._keys
        if self._length is None:
            end = [pack(b"SET", keys.delivered, b"%d-%d" % (epoch, last), b"EX", b"3600")]
            return Chunk(b"".join(parts + end), ticks + 1, last)
        end = [pack(b"EXPIRE", keys.stream, b"%d" % self._kept_secs)]  # it tells itself what it has
        return Chunk(b"".join(parts + end), 2 * ticks + 1, last)

    def _stretches(self, block: Block, first: int) -> Iterator[tuple[NDArray[np.uint8], bytes]]:
        """Return neighbouring rows of one width, of one channel, and of numbers equally long."""
        grids = block.encode("data").grids()
        if self._length is None:
            borders: NDArray[np.intp] = np.empty(0, np.intp)
        else:
            names, codes = _channels(block)
            borders = np.flatnonzero(np.diff(codes)) + 1
            ends = 10 ** np.arange(1, 19) - block.first_seq  # where numbers grow by a digit
            borders = np.union1d(borders, ends[(ends > 0) & (ends < len(block))])
        start = 0
        for grid in grids:
            end = start + len(grid)
            low = max(start, first)
            inner = borders[(borders > low) & (borders < end)].tolist()
            for upto in [*inner, end] if low < end else []:
                name = b"" if self._length is None else names[int(codes[low])]
                yield grid[low - start : upto - start], name
                low = upto
            start = end

    def _packed(self, rows: NDArray[np.uint8], epoch: int, seq: int, channel: bytes) -> bytes:
        count, width = rows.shape
        last = seq + count - 1
        hole, number = b" " * width, b" " * digit_count(last)
        template, places = _spread([b"PUBLISH", self._keys.channel, hole])
        holes, numbers = [places[-1]], []
        if self._length is not None:
            identity = b"%d-" % epoch
            add, places = _spread(
                [b"XADD", self._keys.stream, b"MAXLEN", b"~", b"%d" % self._length,
                 identity + number, b"epoch", b"%d" % epoch, b"seq", number,
                 b"channel", channel, b"data", hole]
            )  # fmt: skip
            holes = [places[-1], len(add) + holes[0]]
            numbers = [places[5] + len(identity), places[9]]
            template = add + template
        table = np.empty((count, len(template)), np.uint8)
        table[...] = np.frombuffer(template, np.uint8)
        for place in holes:
            table[:, place : place + width] = rows
        grid = Grid(table)
        for place in numbers:
            grid.put_digits(place, np.arange(seq, last + 1), seq, last)
        return table.tobytes()


def _channels(block: Block) -> tuple[list[bytes], NDArray[np.intp]]:
    """Return the data types of a block, and which of them each tick has."""
    found = [(str(series.data_type).encode(), places) for series, places in block.series_rows()]
    names = sorted({name for name, _ in found})
    codes = np.zeros(len(block), np.intp)
    for name, places in found:
        codes[places] = names.index(name)
    return names, codes
