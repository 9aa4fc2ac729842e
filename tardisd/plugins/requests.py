"""Requests of clients to values, with one wording of what is wrong; reads no socket.

Every sink that takes requests decodes them here: what a field may be, and what is said when it is
something else, does not depend on how the request came.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from tardisd.errors import RequestError
from tardisd.market.series import DataType, Series, Symbol
from tardisd.market.time import MILLISECOND, Interval, parse_time
from tardisd.plugins.sessions import OnGap, Session, SessionRequest, Sessions, Speed, WhenFull

Delivery = Literal["tick", "batch"]

PositiveSpeed = Annotated[float, Meta(gt=0)] | Literal["max"]
StructT = TypeVar("StructT")

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
}
_AT = re.compile(r"(?P<text>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_NAMED = re.compile(r"Object (missing required|contains unknown) field `(?P<name>.*)`", re.DOTALL)
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_RAW = msgspec.json.Decoder(Raw)
_RUNNING = frozenset({"created", "active", "paused"})


def bad_field(field: str, problem: str) -> RequestError:
    """Return the error for one field of a request."""
    return RequestError("bad_request", f"{field}: {problem[:300]}")


class NewSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields of `create_session`."""

    start_time: int | str
    end_time: int | str
    session_id: str | UnsetType = UNSET
    exchange: str | UnsetType = UNSET
    symbol: str | UnsetType = UNSET
    interval: str | UnsetType = UNSET
    data_type: str | UnsetType = UNSET
    series: list[str] | UnsetType = UNSET
    speed: PositiveSpeed = 100.0
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
        if self.session_id is not UNSET and not SESSION_ID.fullmatch(self.session_id):
            raise bad_field("session_id", f"use {USE['session_id']}")
        for name in self.LATER:
            value = getattr(self, name)
            if value is None:
                raise bad_field(name, "null is not a value; leave the field out")
            if value is not False:
                raise bad_field(name, _LATER)
        check_speed(self.speed)

    def session_request(self, origin: str) -> SessionRequest:
        """Return it as the engine takes it; RequestError names the field that is wrong."""
        self.check()
        start, end = time_of("start_time", self.start_time), time_of("end_time", self.end_time)
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
            origin=origin,
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


class Quota:
    """How many sessions may run at once, over all clients of a sink."""

    def __init__(self, sessions: Sessions, limit: int) -> None:
        self._sessions = sessions
        self._limit = limit
        self._being_made = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Hold a place while a session is made; RequestError `too_many_sessions` when full."""
        running = sum(map(runs, self._sessions.list()))
        if running + self._being_made >= self._limit:
            raise RequestError(
                "too_many_sessions",
                f"{self._limit} sessions run already; stop one, or raise max_sessions",
            )
        self._being_made += 1
        try:
            yield
        finally:
            self._being_made -= 1


def runs(session: Session) -> bool:
    """Tell whether a session has not ended."""
    return session.status()["status"] in _RUNNING


def decode(text: str, kind: type[StructT]) -> StructT:
    """Return the struct that a JSON object is. Raises RequestError, `bad_json` or `bad_request`."""
    split(text)
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise explain(str(error)) from None


def split(text: str) -> dict[str, Raw]:
    """Return the raw fields of a JSON object; RequestError when it is none."""
    try:
        _RAW.decode(text)
        return _FIELDS.decode(text)
    except msgspec.ValidationError as error:
        problem = f"expected one JSON object; {lower(str(error))}"
        raise RequestError("bad_request", problem) from None
    except msgspec.DecodeError as error:
        raise not_json(text, str(error)) from None
    except RecursionError:
        raise RequestError("bad_request", "the JSON is nested too deeply") from None


def explain(complaint: str) -> RequestError:
    """Turn msgspec's complaint into ours: the field, what is wrong, what to use."""
    if match := _NAMED.fullmatch(complaint):
        problem = "is missing" if match[1] == "missing required" else "is not a known field"
        return bad_field(match["name"][:100], problem)
    match = _AT.fullmatch(complaint)
    assert match is not None, "the pattern matches every text"
    field = (match["path"] or "request")[:100]
    problem = lower(match["text"].replace("`", "")[:150])
    return bad_field(field, f"{problem}; use {USE[field]}" if field in USE else problem)


def not_json(text: str, complaint: str) -> RequestError:
    """Tell NaN and Infinity, which some clients print as numbers, from what is no JSON at all."""
    if "NaN" in text or "Infinity" in text:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            odd = [name for name, found in value.items() if not _is_json(found)]
            if odd:
                name = odd[0][:100].encode("utf-8", "replace").decode()
                return bad_field(name, "is not a finite number; JSON has none such")
    return RequestError("bad_json", f"this is not JSON: {lower(complaint)}")


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def lower(text: str) -> str:
    """Return a sentence as the rest of another."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def check_speed(speed: Speed) -> None:
    """Raise RequestError for a speed that is not finite."""
    if speed != "max" and not math.isfinite(speed):
        raise bad_field("speed", f"use {USE['speed']}")


def time_of(field: str, value: int | str) -> int:
    """Return ns for integer milliseconds or ISO-8601 text with a zone."""
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
