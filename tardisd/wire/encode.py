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

from tardisd.market.columns import Ids, closes
from tardisd.market.decimals import Decimals, Ints
from tardisd.market.series import Series
from tardisd.market.ticks import Parts, Ticks
from tardisd.wire.digits import BLANK, Grid, digit_count, fraction_digits

Form = Literal["tick", "batch", "ndjson", "data", "csv"]
FORMS: tuple[Form, ...] = ("tick", "batch", "ndjson", "data", "csv")


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for a field in every row, and what writes it."""

    width: int
    write: Callable[[Grid, int], None] | None


_Piece = bytes | Slot | Callable[[Series], bytes]


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
    """One row of bytes per series, and where in a row the slots are."""

    rows: NDArray[np.uint8]
    places: list[int]
    series: Sequence[Series]  # held, so that its id() stays its own


class Encoder:
    """Encodes ticks for one frame; keeps the row templates from block to block."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self._templates: dict[object, _Template] = {}

    def encode(self, ticks: Ticks, seqs: Ints) -> tuple[NDArray[np.uint8], int | None]:
        """Return one row of bytes per tick, and where in a row the wall time is to be stamped."""
        pieces = list(self._pieces(ticks, seqs))
        key = (id(ticks.series), *(piece.width for piece in pieces if isinstance(piece, Slot)))
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) > 256:  # widths vary within narrow bounds; never grow forever
                self._templates.clear()
            template = self._templates[key] = _template(pieces, ticks.series, self.frame.form)
        rows = template.rows.take(ticks.rank, axis=0)
        grid = Grid(rows)
        stamp = None
        slots = (piece for piece in pieces if isinstance(piece, Slot))
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
            yield _integers(seqs)
            yield b","
        elif frame.form == "ndjson":
            yield b'{"seq":'
            yield _integers(seqs)
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
            yield Slot(13, None)
        yield {"tick": b"}}", "batch": b"},", "ndjson": b"}\n", "data": b"}"}[frame.form]


def _data_pieces(ticks: Ticks) -> Iterator[_Piece]:
    yield b'"timestamp":'
    yield Slot(13, lambda grid, at: grid.put_milliseconds(at, ticks.ts_event))
    yield b',"datetime":"'
    yield _datetimes(ticks.ts_event)
    if ticks.kind == "candle":
        ends = _close_times(ticks)
        yield b',"close_time":'
        yield Slot(13, lambda grid, at: grid.put_milliseconds(at, ends))
    yield b","
    yield _names
    if ticks.ids is not None:
        yield from _id_pieces(ticks.ids)
    for name, parts in ticks.fields.items():
        yield from _number_pieces(f',"{name}":'.encode(), parts)
    if ticks.sides is not None:
        yield _sides(ticks.sides, (b',"side":"buy"', b',"side":"sell"', b""))


def _csv_pieces(ticks: Ticks) -> Iterator[_Piece]:
    yield _datetimes(ticks.ts_event, b",")
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
        yield _sides(ticks.sides, (b"buy", b"sell", b""))
    yield b"\n"


def _csv_cell(text: str) -> str:
    if any(mark in text for mark in ',"\n\r '):
        doubled = text.replace('"', '""')
        return f'"{doubled}"'
    return text


def _channel(series: Series) -> bytes:
    return f'"channel":"{series.data_type}"'.encode()


def _names(series: Series) -> bytes:
    symbol = json.dumps(str(series.symbol), ensure_ascii=False)
    text = f'"symbol":{symbol},"exchange":"{series.exchange}"'
    if series.data_type.interval is not None:
        text += f',"interval":"{series.data_type.interval}"'
    return text.encode()


def _close_times(ticks: Ticks) -> Ints:
    if len(ticks.series) == 1:
        interval = ticks.series[0].data_type.interval
        assert interval is not None
        return closes(ticks.ts_event, interval)
    ends = np.empty(len(ticks), np.int64)
    for rank, series in enumerate(ticks.series):
        rows = ticks.rank == rank
        if series.data_type.interval is not None and rows.any():
            ends[rows] = closes(ticks.ts_event[rows], series.data_type.interval)
    return ends


def _datetimes(times: Ints, end: bytes = b'"') -> Slot:
    digits = fraction_digits(times)
    return Slot(22 + digits, lambda grid, at: grid.put_datetime(at, times, digits, end))


def _integers(values: Ints) -> Slot:
    low, high = int(values.min()), int(values.max())
    if low < 0:
        return _texts([str(value) for value in values.tolist()])
    return Slot(digit_count(high), lambda grid, at: grid.put_digits(at, values, low, high))


def _texts(texts: Iterable[str]) -> Slot:
    column = np.array([text.encode() for text in texts], np.bytes_)
    return Slot(column.dtype.itemsize, lambda grid, at: grid.put_text(at, column))


def _sides(sides: NDArray[np.uint8], texts: tuple[bytes, bytes, bytes]) -> Slot:
    """Return the slot of the taker side: the texts of BUY, SELL and NO_SIDE."""
    width = max(map(len, texts))
    table = np.array([text.ljust(width) for text in texts], f"S{width}")

    def write(grid: Grid, at: int) -> None:
        grid.words(at, f"S{width}")[...] = table.take(sides)

    return Slot(width, write)


def _id_pieces(ids: Ids) -> Iterator[_Piece]:
    if ids.dtype.kind == "i" and (low := int(ids.min())) >= 0:
        high = int(ids.max())
        yield b',"id":'
        yield Slot(digit_count(high) + 1, lambda grid, at: grid.put_quoted(at, ids, low, high))
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
    low, high = int(whole.min()), int(whole.max())
    negative = low < 0 or (fraction is not None and int(fraction.min()) < 0)
    if absent is not None and not keep_prefix:
        prefix, lead = b"", prefix
    else:
        lead = b""
    yield prefix
    if negative:
        number = _texts(text or "" for text in _decimal_texts(parts))
    else:
        digits = digit_count(high)
        width = digits + (scale + 1 if fraction is not None else 0)

        def write(grid: Grid, at: int) -> None:
            grid.put_digits(at, whole, low, high)
            if fraction is not None:
                grid.buffer[:, at + digits] = ord(".")
                grid.put_fixed(at + digits + 1, fraction, scale)

        number = Slot(width, write)
    if absent is None:
        yield number
        return
    yield _optional(lead, number, absent)


def _optional(lead: bytes, number: Slot, absent: NDArray[np.intp]) -> Slot:
    width = len(lead) + number.width

    def write(grid: Grid, at: int) -> None:
        if lead:
            grid.words(at, f"S{len(lead)}")[...] = lead
        assert number.write is not None
        number.write(grid, at + len(lead))
        grid.buffer[absent, at : at + width] = BLANK

    return Slot(width, write)


def _decimal_texts(parts: Parts) -> list[str | None]:
    power = 10 ** (18 - parts.scale)
    fraction = np.zeros_like(parts.whole) if parts.fraction is None else parts.fraction * power
    return Decimals(parts.whole, 0, fraction, parts.present).texts()


def _static(piece: _Piece, series: Sequence[Series]) -> list[bytes]:
    """Return the text of a piece for each series, padded with blanks to one width."""
    if isinstance(piece, Slot):
        return [b" " * piece.width] * len(series)
    if isinstance(piece, bytes):
        return [piece] * len(series)
    texts = [piece(one) for one in series]
    width = max(map(len, texts))
    return [text.ljust(width) for text in texts]


def _template(pieces: list[_Piece], series: Sequence[Series], form: Form) -> _Template:
    columns = [_static(piece, series) for piece in pieces]
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
    return _Template(np.array([np.frombuffer(text, np.uint8) for text in texts]), places, series)


def text_frame_header(length: int) -> bytes:
    """Return the header of a whole unmasked WebSocket text frame (RFC 6455, section 5.2)."""
    if length < 126:
        return bytes([0x81, length])
    if length < 65_536:
        return bytes([0x81, 126]) + length.to_bytes(2, "big")
    return bytes([0x81, 127]) + length.to_bytes(8, "big")
