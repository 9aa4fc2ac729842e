"""What a client may ask for when it creates a session, checked; shared by all sinks that serve.

The fields are those of `create_session` in the protocol. What a field must be is said in `USE`, so
that every error names the field, what was found and what to use.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tardisd.errors import RequestError
from tardisd.market.series import DataType, Series, Symbol
from tardisd.market.time import MILLISECOND, Interval, parse_time
from tardisd.plugins.sessions import ACK_TIMEOUT_SECS, OnGap, SessionRequest, Speed

MAX_SERIES = 1000
DAY_MS = 86_400_000
SESSION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
TIME = "integer milliseconds or ISO-8601 text with a zone, such as 2024-03-01T00:00:00Z"
USE = {
    "speed": 'a finite number above 0, or "max"',
    "on_gap": '"mark", "skip" or "fail"',
    "release": '"close" or "open-lookahead"',
    "start_time": TIME,
    "end_time": TIME,
    "until": TIME,
    "session_id": "1 to 128 of the characters A-Z a-z 0-9 . _ : -",
    "publish_delay_ms": f"whole milliseconds from 0 to {DAY_MS}",
    "max_idle_secs": "a number of seconds above 0",
    "ack_timeout_secs": "a number of seconds from 0.1 to 3600",
    "barrier": "an interval such as 1m or 1h",
    "derive": "a list of candle series such as binance:BTC/USDT@candle_5m",
}


def bad_field(field: str, problem: str) -> RequestError:
    """Return the error for one field of a request."""
    return RequestError("bad_request", f"{field}: {problem[:300]}")


class SessionForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields of `create_session` that say what to replay and how."""

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
    on_gap: OnGap = "mark"
    release: Literal["close", "open-lookahead"] = "close"
    publish_delay_ms: Annotated[int, Meta(ge=0, le=DAY_MS)] = 0
    ephemeral: bool = False
    storage: str | UnsetType = UNSET
    loop: bool = False
    until: int | str | UnsetType = UNSET
    max_idle_secs: Annotated[float, Meta(gt=0)] | UnsetType = UNSET
    lockstep: bool = False
    barrier: str | UnsetType = UNSET
    ack_timeout_secs: Annotated[float, Meta(ge=0.1, le=3600)] | UnsetType = UNSET
    derive: list[str] = []
    forming: bool = False
    durable: bool = False
    analyzers: list[str] = []

    def session_request(self, origin: str, sinks: tuple[str, ...] = ()) -> SessionRequest:
        """Return it as the engine takes it; RequestError names the field that is wrong."""
        check_speed_field(self.speed)
        check_session_id(self.session_id)
        start, end = (
            time_field("start_time", self.start_time),
            time_field("end_time", self.end_time),
        )
        if end <= start:
            raise bad_field("end_time", "is not after start_time; give a later one")
        until = None if self.until is UNSET else time_field("until", self.until)
        if until is not None and not start < until <= end:
            raise bad_field("until", "is not between start_time and end_time")
        if self.ephemeral and self.durable:
            raise bad_field("durable", "does not go together with ephemeral; leave one out")
        derive = series_list("derive", self.derive) if self.derive else ()
        for one in derive:
            if one.data_type.interval is None:
                raise bad_field("derive", f"{one} is not of candles; use {USE['derive']}")
        if self.forming and not derive:
            raise bad_field("forming", "is for candles that are built; name them in derive")
        patience = self.ack_timeout_secs
        if patience is not UNSET and not self.lockstep:
            raise bad_field("ack_timeout_secs", "is for sessions in lockstep; add lockstep")
        return SessionRequest(
            series=self._all_series(bool(derive)),
            start=start,
            end=end,
            session_id=_given(self.session_id),
            speed=self.speed,
            start_paused=self.start_paused,
            on_gap=self.on_gap,
            release=self.release,
            publish_delay=self.publish_delay_ms * MILLISECOND,
            ephemeral=self.ephemeral,
            storage=_given(self.storage),
            sinks=sinks,
            loop=self.loop,
            until=until,
            max_idle_secs=_given(self.max_idle_secs),
            lockstep=self.lockstep,
            barrier=self._barrier(),
            ack_timeout_secs=ACK_TIMEOUT_SECS if patience is UNSET else patience,
            derive=derive,
            forming=self.forming,
            durable=self.durable,
            analyzers=tuple(dict.fromkeys(self.analyzers)),
            origin=origin,
        )

    def _barrier(self) -> Interval | None:
        if self.barrier is UNSET:
            return None
        if not self.lockstep:
            raise bad_field("barrier", "is for sessions in lockstep; add lockstep")
        try:
            return Interval.parse(self.barrier)
        except ValueError as error:
            raise bad_field("barrier", str(error)) from None

    def _all_series(self, derives: bool) -> tuple[Series, ...]:
        single = ("exchange", "symbol", "interval", "data_type")
        if self.series is not UNSET:
            for field in single:
                if getattr(self, field) is not UNSET:
                    raise bad_field(field, "does not go together with series; leave one out")
            if derives and not self.series:
                return ()
            return series_list("series", self.series)
        if derives and all(getattr(self, field) is UNSET for field in single):
            return ()
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


def _given(value: Any) -> Any:
    return None if value is UNSET else value


def check_session_id(session_id: str | UnsetType) -> None:
    """Raise RequestError unless it can be the id of a session."""
    if session_id is not UNSET and not SESSION_ID.fullmatch(session_id):
        raise bad_field("session_id", f"use {USE['session_id']}")


def check_speed_field(speed: Speed) -> None:
    """Raise RequestError for a speed that is not finite."""
    if speed != "max" and not math.isfinite(speed):
        raise bad_field("speed", f"use {USE['speed']}")


def time_field(field: str, value: int | str) -> int:
    """Return the time (ns) that a field names; RequestError names the field."""
    try:
        return parse_time(value)
    except ValueError as error:
        hint = "" if ";" in str(error) else f"; use {TIME}"
        raise bad_field(field, f"{error}{hint}") from None


def series_list(field: str, texts: list[str]) -> tuple[Series, ...]:
    """Return the series that a field lists; RequestError names the one that is wrong."""
    if not texts:
        raise bad_field(field, "is empty; name at least one")
    if len(texts) > MAX_SERIES:
        raise RequestError("too_large", f"{field}: {len(texts)} of them; at most {MAX_SERIES} go")
    found: dict[tuple[str, str, str, str], Series] = {}
    for at, text in enumerate(texts):
        try:
            series = Series.parse(text)
        except ValueError as error:
            raise bad_field(f"{field}[{at}]", str(error)) from None
        if found.setdefault(series.key, series) is not series:
            raise bad_field(f"{field}[{at}]", f"{series} is listed twice")
    return tuple(found.values())
