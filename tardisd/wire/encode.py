"""Encode ticks as rows of bytes, vectorised: JSON in several framings, and CSV.

A row is a template (all that is the same for one series) with fields written into it. Numbers are
padded with blanks, which JSON allows between tokens, so that all rows of a block have one width and
one WebSocket header. No float is involved: the text of a number is its value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tardisd.market.columns import NO_SIDE, SIDES, Ids, closes
from tardisd.market.decimals import Decimals, Ints
from tardisd.market.series import DerivedSeries, Series
from tardisd.market.ticks import Parts, Ticks
from tardisd.wire import digits, moments
from tardisd.wire.digits import BLANK, Grid, digit_count, extent, shared_digits
from tardisd.wire.moments import Moments

Form = Literal["tick", "batch", "ndjson", "data", "csv"]
FORMS: tuple[Form, ...] = ("tick", "batch", "ndjson", "data", "csv")


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for a field in every row: the text that all rows share, and what writes the rest."""

    text: bytes
    write: Callable[[Grid, int], None] | None

    @property
    def width(self) -> int:
        """How many bytes the field takes."""
        return len(self.text)


# What is the same in all rows, or depends on a row's series and side only, is no slot.
_Piece = bytes | Slot | Callable[[Series, int], bytes]


@dataclass(frozen=True, slots=True)
class Frame:
    """What the rows of one encoding share: the session they belong to and its options."""

    form: Form
    session_id: str = ""
    epoch: int = 1
    lookahead: bool = False
    stamped: bool = True


@dataclass(frozen=True, slots=True)
class _Template:
    """One row of bytes per series and side, and where in a row the slots are."""

    rows: NDArray[np.uint8]
    places: list[int]
    series: Sequence[Series]  # held, so that its id() stays its own


class Encoder:
    """Encodes ticks for one frame; keeps the row templates from block to block."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self._templates: dict[object, _Template] = {}
        #: Whether the sequence numbers are in the rows; else it does not matter what they are.
        self.numbered = frame.form in ("tick", "ndjson")

    def encode(self, ticks: Ticks, seqs: Ints) -> tuple[NDArray[np.uint8], int | None]:
        """Return one row of bytes per tick, and where in a row the wall time is to be stamped."""
        pieces = list(self._pieces(ticks, seqs))
        slots = [piece for piece in pieces if isinstance(piece, Slot)]
        # The names between the slots belong to it: what one block lacks, another may have.
        texts = [p.width if isinstance(p, Slot) else p for p in pieces if not callable(p)]
        key = (id(ticks.series), ticks.sides is None, *texts)
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) > 256:  # widths vary within narrow bounds; never grow forever
                self._templates.clear()
            template = self._templates[key] = _template(pieces, ticks, self.frame.form)
        shared = template.rows.copy()
        for slot, offset in zip(slots, template.places, strict=True):
            if not slot.text.isspace():
                shared[:, offset : offset + len(slot.text)] = np.frombuffer(slot.text, np.uint8)
        variant = ticks.rank if ticks.sides is None else ticks.rank * len(SIDES) + ticks.sides
        rows = shared.take(variant, axis=0)
        grid = Grid(rows)
        stamp = None
        for slot, offset in zip(slots, template.places, strict=True):
            if slot.write is None:
                stamp = offset
            else:
                slot.write(grid, offset)
        return rows, stamp

    def _pieces(self, ticks: Ticks, seqs: Ints) -> Iterator[_Piece]:
        frame = self.frame
        if frame.form == "csv":
            yield from _csv_pieces(ticks)
            return
        if frame.form == "tick":
            yield f'{{"type":"tick","session_id":{json.dumps(frame.session_id)}'.encode()
            yield f',"epoch":{frame.epoch},"seq":'.encode()
            yield _sequence(seqs)
            yield b","
        elif frame.form == "ndjson":
            yield b'{"seq":'
            yield _sequence(seqs)
            yield b","
        else:
            yield b"{"
        if frame.form != "data":
            yield _channel
            yield b',"data":{' if frame.form == "tick" else b","
        yield from _data_pieces(ticks)
        if frame.lookahead and ticks.kind == "candle":
            yield b',"lookahead":true'
        if frame.stamped:
            yield b',"replay_time":'
            yield Slot(b" " * 13, None)
        yield {"tick": b"}}", "batch": b"},", "ndjson": b"}\n", "data": b"}"}[frame.form]


def _data_pieces(ticks: Ticks) -> Iterator[_Piece]:
    events = Moments(ticks.ts_event)
    yield b'"timestamp":'
    yield Slot(events.milliseconds_text(), events.put_milliseconds)
    yield b',"datetime":"'
    yield Slot(events.datetime_text(), events.put_datetime)
    if ticks.kind == "candle":
        ends = Moments(_close_times(ticks))
        yield b',"close_time":'
        yield Slot(ends.milliseconds_text(), ends.put_milliseconds)
    yield b","
    yield _names
    if ticks.ids is not None:
        yield from _id_pieces(ticks.ids)
    for name, parts in ticks.fields.items():
        yield from _number_pieces(f',"{name}":'.encode(), parts)
    if ticks.sides is not None:
        yield lambda _, side: (b',"side":"buy"', b',"side":"sell"', b"")[side]
    if ticks.kind == "candle":
        yield from _forming_pieces(ticks)


def _forming_pieces(ticks: Ticks) -> Iterator[_Piece]:
    """Return the piece that says of when a candle is that still forms, if any is of such a series.

    Its release cannot be told from its opening, as that of others can.
    """
    still = [series.is_forming for series in ticks.series]
    if any(still):
        releases = Moments(ticks.ts_release)
        number = Slot(releases.milliseconds_text(), releases.put_milliseconds)
        yield _optional(b',"as_of":', number, np.flatnonzero(~np.array(still)[ticks.rank]))


def _csv_pieces(ticks: Ticks) -> Iterator[_Piece]:
    events = Moments(ticks.ts_event)
    # Blanks before a quote would make it part of the cell: here they come before the comma.
    yield Slot(events.datetime_text(b" "), lambda grid, at: events.put_datetime(grid, at, b" "))
    yield b","
    if ticks.schema.has_id:
        if ticks.ids is None:
            yield b","
        elif ticks.ids.dtype.kind == "i":
            yield _integers(ticks.ids)
            yield b","
        else:
            yield _texts([_csv_cell(raw.decode()) for raw in ticks.ids.tolist()])
            yield b","
    names = ticks.schema.fields
    for at, name in enumerate(names):
        if name in ticks.fields:
            yield from _number_pieces(b"," if at else b"", ticks.fields[name], keep_prefix=True)
        else:
            yield b"," if at else b""
    if ticks.sides is not None:
        yield b","
        yield lambda _, side: (b"buy", b"sell", b"")[side]
    yield b"\n"


def _csv_cell(text: str) -> str:
    if any(mark in text for mark in ',"\n\r '):
        doubled = text.replace('"', '""')
        return f'"{doubled}"'
    return text


def _channel(series: Series, _: int) -> bytes:
    return f'"channel":"{series.data_type}"'.encode()


def _names(series: Series, _: int) -> bytes:
    symbol = json.dumps(str(series.symbol), ensure_ascii=False)
    text = f'"symbol":{symbol},"exchange":"{series.exchange}"'
    if series.data_type.interval is not None:
        text += f',"interval":"{series.data_type.interval}"'
    if isinstance(series, DerivedSeries):
        text += f',"derived":true,"derived_from":"{series.source}"'
        text += "" if series.closed else ',"closed":false'
    return text.encode()


def _close_times(ticks: Ticks) -> Ints:
    intervals = [series.data_type.interval for series in ticks.series]
    present = {intervals[rank] for rank in np.unique(ticks.rank).tolist()} - {None}
    if len(present) == 1 and (interval := present.pop()) is not None:
        return closes(ticks.ts_event, interval)
    ends = np.empty(len(ticks), np.int64)
    for interval in present:
        assert interval is not None
        rows = np.array([one == interval for one in intervals])[ticks.rank]
        ends[rows] = closes(ticks.ts_event[rows], interval)
    return ends


def _sequence(seqs: Ints) -> Slot:
    first, last = int(seqs[0]), int(seqs[-1])
    if last - first != len(seqs) - 1:
        return _integers(seqs)
    text = shared_digits(first, last).ljust(digit_count(last))
    return Slot(text, lambda grid, at: grid.put_counting(at, first))


def _integers(values: Ints) -> Slot:
    low, high = extent(values)
    if low < 0:
        return _texts([str(value) for value in values.tolist()])
    text = shared_digits(low, high).ljust(digit_count(high))
    return Slot(text, lambda grid, at: grid.put_varying(at, values, low, high))


def _texts(texts: Iterable[str]) -> Slot:
    column = np.array([text.encode() for text in texts], np.bytes_)
    return Slot(b" " * column.dtype.itemsize, lambda grid, at: grid.put_text(at, column))


def _id_pieces(ids: Ids) -> Iterator[_Piece]:
    if ids.dtype.kind == "i" and (low := int(ids.min())) >= 0:
        high = int(ids.max())
        quote = b'"' if digit_count(low) == digit_count(high) else b" "

        def write(grid: Grid, at: int) -> None:
            grid.put_varying(at + 1, ids, low, high)
            grid.put_quotes(at, ids, low, high)

        yield b',"id":'
        yield Slot(quote + shared_digits(low, high).ljust(digit_count(high)), write)
        yield b'"'
        return
    texts = ids.tolist()
    if ids.dtype.kind == "i":
        yield _texts(f',"id":"{number}"' for number in texts)
    else:  # an empty id is an absent one
        cells = (_json_cell(raw.decode()) if raw else "" for raw in texts)
        yield _texts(f',"id":{cell}' if cell else "" for cell in cells)


def _json_cell(text: str) -> str:
    """Return JSON text in which no blank is part of a string: blanks are padding everywhere."""
    return json.dumps(text, ensure_ascii=False).replace(" ", "\\u0020")


def _number_pieces(prefix: bytes, parts: Parts, keep_prefix: bool = False) -> Iterator[_Piece]:
    """Return the pieces of a decimal column; where a value is absent its prefix goes too."""
    absent = None if parts.present is None else np.flatnonzero(~parts.present)
    whole, fraction, scale = parts.whole, parts.fraction, parts.scale
    low, high = extent(whole)
    negative = low < 0 or (fraction is not None and int(np.minimum.reduce(fraction)) < 0)
    if absent is not None and not keep_prefix:
        prefix, lead = b"", prefix
    else:
        lead = b""
    yield prefix
    if negative:
        number = _texts(text or "" for text in _decimal_texts(parts))
    else:
        width = digit_count(high)
        text = shared_digits(low, high).ljust(width)
        if fraction is not None:
            text += b"." + b" " * scale

        def write(grid: Grid, at: int) -> None:
            grid.put_varying(at, whole, low, high)
            if fraction is not None:
                grid.put_fixed(at + width + 1, fraction, scale)

        number = Slot(text, write)
    if absent is None:
        yield number
        return
    yield _optional(lead, number, absent)


def _optional(lead: bytes, number: Slot, absent: NDArray[np.intp]) -> Slot:
    def write(grid: Grid, at: int) -> None:
        assert number.write is not None
        number.write(grid, at + len(lead))
        grid.buffer[absent, at : at + len(lead) + number.width] = BLANK

    return Slot(lead + number.text, write)


def _decimal_texts(parts: Parts) -> list[str | None]:
    power = 10 ** (18 - parts.scale)
    fraction = np.zeros_like(parts.whole) if parts.fraction is None else parts.fraction * power
    return Decimals(parts.whole, 0, fraction, parts.present).texts()


def _static(piece: _Piece, variants: Sequence[tuple[Series, int]]) -> list[bytes]:
    """Return the text of a piece for each kind of row, padded with blanks to one width."""
    if isinstance(piece, Slot):
        return [b" " * piece.width] * len(variants)
    if isinstance(piece, bytes):
        return [piece] * len(variants)
    texts = [piece(series, side) for series, side in variants]
    width = max(map(len, texts))
    return [text.ljust(width) for text in texts]


def _template(pieces: list[_Piece], ticks: Ticks, form: Form) -> _Template:
    sides = (NO_SIDE,) if ticks.sides is None else SIDES
    variants = [(series, side) for series in ticks.series for side in sides]
    columns = [_static(piece, variants) for piece in pieces]
    texts = [b"".join(cells) for cells in zip(*columns, strict=True)]
    offset = 0
    if form == "tick":
        header = text_frame_header(len(texts[0]))
        texts = [header + text for text in texts]
        offset = len(header)
    places = []
    for piece, cells in zip(pieces, columns, strict=True):
        if isinstance(piece, Slot):
            places.append(offset)
        offset += len(cells[0])
    rows = np.array([np.frombuffer(text, np.uint8) for text in texts])
    return _Template(rows, places, ticks.series)


def text_frame_header(length: int) -> bytes:
    """Return the header of a whole unmasked WebSocket text frame (RFC 6455, section 5.2)."""
    if length < 126:
        return bytes([0x81, length])
    if length < 65_536:
        return bytes([0x81, 126]) + length.to_bytes(2, "big")
    return bytes([0x81, 127]) + length.to_bytes(8, "big")


def make_tables() -> None:
    """Make the lookup tables now (some 80 ms, once), not when the first tick waits for them."""
    digits.make_tables()
    moments.make_tables()
