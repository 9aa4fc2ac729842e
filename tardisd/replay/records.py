"""Sessions as they are written down, and read by the daemon after this one; opens no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import msgspec

from tardisd.errors import StorageError
from tardisd.market.series import DataType, DerivedSeries, Series
from tardisd.market.time import Interval, format_time
from tardisd.plugins.sessions import SessionRequest, Speed
from tardisd.replay.position import Checkpoint, Position

_SERIES = ("series", "derive")
_TEXTS = ("sinks", "analyzers")
_FROM = " from "


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session is: its epoch, where and why that began, how far it is, and its clock.

    `versions` are those of the series that it reads when it was created, `at` and `ticks` its
    position and the count of ticks up to `seq`, `milestones` some places before that. `hash` is the
    content hash of the first `hash_ticks` ticks of the epoch. Daemons of before knew neither, and
    theirs is of all up to `seq`.
    """

    epoch: int
    cause: str | None
    begin: Position
    seq: int
    clock: int
    speed: Speed
    versions: Mapping[str, int] = field(default_factory=dict)
    at: Position | None = None
    hash: str | None = None
    hash_ticks: int | None = None
    ticks: int | None = None
    milestones: tuple[Checkpoint, ...] = ()

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The place at which its epoch can be taken up; None if that is not known, or its begin."""
        if not self.ticks or self.at is None:
            return None
        return Checkpoint(self.seq, self.ticks, self.at)

    @property
    def proof(self) -> tuple[int, str] | None:
        """How many ticks have which content hash, as far as that is known."""
        return (self.hash_ticks, self.hash) if self.hash_ticks and self.hash else None

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Place:
        """Return what `as_json` gave. Raises StorageError for anything else."""
        try:
            return msgspec.convert(record, cls)
        except msgspec.ValidationError as error:
            raise StorageError(f"its place cannot be read: {error}") from None


def request_as_json(request: SessionRequest) -> dict[str, Any]:
    """Return a request as JSON values."""
    found: dict[str, Any] = {field.name: getattr(request, field.name) for field in fields(request)}
    for name in _SERIES:
        found[name] = [_text(series) for series in found[name]]
    found["barrier"] = None if request.barrier is None else str(request.barrier)
    found["range"] = f"{format_time(request.start)}..{format_time(request.end)}"
    return found


def request_from_json(session_id: str, record: Mapping[str, Any]) -> SessionRequest:
    """Return the request that was written down; what an older daemon did not know is default.

    Raises StorageError for one that is damaged.
    """
    known = {field.name for field in fields(SessionRequest)}
    found = {name: value for name, value in record.items() if name in known}
    try:
        for name in _SERIES:
            found[name] = tuple(_series(text) for text in found.get(name, ()))
        for name in _TEXTS:
            found[name] = tuple(found.get(name, ()))
        if found.get("barrier") is not None:
            found["barrier"] = Interval.parse(found["barrier"])
        return SessionRequest(**{**found, "session_id": session_id})
    except (TypeError, ValueError) as error:
        raise StorageError(f"its request cannot be read: {error}") from None


def _text(series: Series) -> str:
    """Return the text of a series, and what it is derived from when it is."""
    return f"{series}{_FROM}{series.source}" if isinstance(series, DerivedSeries) else series.text


def _series(text: str) -> Series:
    whole, _, source = text.partition(_FROM)
    series = Series.parse(whole)
    if not source:
        return series
    return DerivedSeries(series.exchange, series.symbol, series.data_type, DataType.parse(source))
