"""Requests of the protocol as typed structs; what they mean is elsewhere, and so is decoding."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from tardisd.errors import RequestError
from tardisd.market.series import DataType, Series, Symbol
from tardisd.market.time import MILLISECOND, Interval, parse_time
from tardisd.plugins.sessions import OnGap, SessionRequest, Speed, WhenFull

Delivery = Literal["tick", "batch"]

MAX_SERIES = 1000
DAY_MS = 86_400_000
SESSION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LATER = "is not supported yet; leave it out"
_TIME = "integer milliseconds or ISO-8601 text with a zone, such as 2024-03-01T00:00:00Z"
USE = {
    "speed": 'a finite number above 0, or "max"',
    "delivery": '"tick" or "batch"',
    "when_full": '"block", "drop_oldest", "conflate" or "disconnect"',
    "on_gap": '"mark", "skip" or "fail"',
    "release": '"close" or "open-lookahead"',
    "start_time": _TIME,
    "end_time": _TIME,
    "session_id": "1 to 128 of the characters A-Z a-z 0-9 . _ : -",
    "publish_delay_ms": f"whole milliseconds from 0 to {DAY_MS}",
    "id": "a string or a number",
    "type": "a string",
}


def bad_field(field: str, problem: str) -> RequestError:
    """Return the error for one field of a request."""
    return RequestError("bad_request", f"{field}: {problem[:300]}")


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every request may carry. `id` stays as it was written, to be echoed to the letter."""

    type: str
    id: Raw | UnsetType = UNSET

    def check(self) -> None:
        """Raise RequestError for what types cannot say."""
        session_id = getattr(self, "session_id", UNSET)
        if session_id is not UNSET and not SESSION_ID.fullmatch(session_id):
            raise bad_field("session_id", f"use {USE['session_id']}")

    @property
    def request_id(self) -> Any:
        """The `id` as it came, or None."""
        return None if self.id is UNSET else self.id


class CreateSession(Request, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Create a session, and follow it."""

    start_time: int | str
    end_time: int | str
    session_id: str | UnsetType = UNSET
    exchange: str | UnsetType = UNSET
    symbol: str | UnsetType = UNSET
    interval: str | UnsetType = UNSET
    data_type: str | UnsetType = UNSET
    series: list[str] | UnsetType = UNSET
    speed: Annotated[float, Meta(gt=0)] | Literal["max"] = 100.0
    start_paused: bool = False
    delivery: Delivery = "tick"
    when_full: WhenFull = "block"
    on_gap: OnGap = "mark"
    release: Literal["close", "open-lookahead"] = "close"
    publish_delay_ms: Annotated[int, Meta(ge=0, le=DAY_MS)] = 0
    ephemeral: bool = False
    storage: str | UnsetType = UNSET
    loop: Any = False
    until: Any = False
    max_idle_secs: Any = False
    lockstep: Any = False
    barrier: Any = False
    derive: Any = False
    forming: Any = False
    durable: Any = False

    LATER: ClassVar[tuple[str, ...]] = (
        "loop",
        "until",
        "max_idle_secs",
        "lockstep",
        "barrier",
        "derive",
        "forming",
        "durable",
    )

    def check(self) -> None:
        """Raise RequestError for what types cannot say."""
        super().check()
        _refuse_later(self, self.LATER, False)
        _check_speed(self.speed)

    def session_request(self) -> SessionRequest:
        """Return it as the engine takes it; RequestError names the field that is wrong."""
        start, end = _time("start_time", self.start_time), _time("end_time", self.end_time)
        if end <= start:
            raise bad_field("end_time", "is not after start_time; give a later one")
        return SessionRequest(
            series=self._all_series(),
            start=start,
            end=end,
            session_id=None if self.session_id is UNSET else self.session_id,
            speed=self.speed,
            start_paused=self.start_paused,
            on_gap=self.on_gap,
            release=self.release,
            publish_delay=self.publish_delay_ms * MILLISECOND,
            ephemeral=self.ephemeral,
            storage=None if self.storage is UNSET else self.storage,
            origin="websocket",
        )

    def _all_series(self) -> tuple[Series, ...]:
        if self.series is not UNSET:
            for field in ("exchange", "symbol", "interval", "data_type"):
                if getattr(self, field) is not UNSET:
                    raise bad_field(field, "does not go together with series; leave one out")
            return _series_list(self.series)
        for field in ("exchange", "symbol"):
            if getattr(self, field) is UNSET:
                raise bad_field(field, "is missing; give exchange and symbol, or series")
        if self.interval is not UNSET and self.data_type is not UNSET:
            raise bad_field("data_type", "does not go together with interval; leave one out")
        exchange, symbol = str(self.exchange), str(self.symbol)
        try:
            field = "exchange"
            Series.of(exchange, "A/B", "trade")
            field = "symbol"
            Symbol.parse(symbol, exchange)
            if self.data_type is UNSET:
                field = "interval"
                interval = Interval.parse("1m" if self.interval is UNSET else self.interval)
                data_type = f"candle_{interval}"
            else:
                field = "data_type"
                data_type = DataType.parse(self.data_type).name
            return (Series.of(exchange, symbol, data_type),)
        except ValueError as error:
            raise bad_field(field, str(error)) from None


class Subscribe(Request, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Follow a session from its next tick on."""

    session_id: str
    delivery: Delivery = "tick"
    when_full: WhenFull = "disconnect"
    epoch: Any = UNSET
    from_seq: Any = UNSET

    def check(self) -> None:
        """Raise RequestError for what types cannot say."""
        super().check()
        _refuse_later(self, ("epoch", "from_seq"), UNSET)


class Unsubscribe(Request, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Stop following a session."""

    session_id: str


class Pause(Request, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Stop a session's clock."""

    session_id: str


class Resume(Request, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Let a session's clock run on."""

    session_id: str


class SpeedChange(Request, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Set a session's speed."""

    session_id: str
    speed: Annotated[float, Meta(gt=0)] | Literal["max"]

    def check(self) -> None:
        """Raise RequestError for what types cannot say."""
        super().check()
        _check_speed(self.speed)


class Stop(Request, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """End a session."""

    session_id: str


class Status(Request, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Ask for the state of one session, or of all."""

    session_id: str | UnsetType = UNSET


class Ping(Request, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Ask whether the server is there."""


SUPPORTED: dict[str, type[Request]] = {
    "create_session": CreateSession,
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "pause": Pause,
    "resume": Resume,
    "speed_change": SpeedChange,
    "stop": Stop,
    "status": Status,
    "ping": Ping,
}


def _refuse_later(request: Request, names: tuple[str, ...], unused: Any) -> None:
    for name in names:
        value = getattr(request, name)
        if value is None:
            raise bad_field(name, "null is not a value; leave the field out")
        if value is not unused:
            raise bad_field(name, _LATER)


def _check_speed(speed: Speed) -> None:
    if speed != "max" and not math.isfinite(speed):
        raise bad_field("speed", f"use {USE['speed']}")


def _time(field: str, value: int | str) -> int:
    try:
        return parse_time(value)
    except ValueError as error:
        hint = "" if ";" in str(error) else f"; use {_TIME}"
        raise bad_field(field, f"{error}{hint}") from None


def _series_list(texts: list[str]) -> tuple[Series, ...]:
    if not texts:
        raise bad_field("series", "is empty; name at least one")
    if len(texts) > MAX_SERIES:
        raise RequestError("too_large", f"series: {len(texts)} of them; at most {MAX_SERIES} go")
    found: dict[tuple[str, str, str, str], Series] = {}
    for at, text in enumerate(texts):
        try:
            series = Series.parse(text)
        except ValueError as error:
            raise bad_field(f"series[{at}]", str(error)) from None
        if found.setdefault(series.key, series) is not series:
            raise bad_field(f"series[{at}]", f"{series} is listed twice")
    return tuple(found.values())
