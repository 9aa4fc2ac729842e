"""The core's own tables of a config file, as msgspec Structs; options of plugins are theirs.

Each Struct is what stands in the file; `tardisd.config.model` has what the daemon works with.
Descriptions end up in `config.example.toml` and in the JSON Schema.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from tardisd.market.time import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    from_datetime,
    parse_duration,
    parse_time,
)
from tardisd.plugins.base import Options
from tardisd.plugins.sessions import OnGap

# Relative times are checked against a fixed now: only their form and rough size matter here.
_SOME_NOW = from_datetime(datetime.date(2025, 1, 1))

Names = Annotated[tuple[str, ...], Meta(max_length=1000)]


class _Written:
    """A value that keeps how it was written; two are equal when they were written alike."""

    __slots__ = ("text",)
    text: str

    def __str__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and str(other) == self.text

    def __hash__(self) -> int:
        return hash((type(self), self.text))


class Moment(_Written):
    """An instant, or an offset from the time when it is asked for (`-30d`, `now`)."""

    __slots__ = ("fixed",)

    def __init__(self, text: str, fixed: int | None) -> None:
        self.text = text
        self.fixed = fixed

    @classmethod
    def parse(cls, value: object) -> Moment:
        """Return the moment a TOML value names; ValueError when it is none."""
        if isinstance(value, datetime.date):  # a datetime is one too
            return cls(value.isoformat().replace("+00:00", "Z"), from_datetime(value))
        if not isinstance(value, str | int):
            raise ValueError(
                "expected a time: 2024-03-01T00:00:00Z, '2024-03-01', '-30d', 'now'"
                " or integer milliseconds"
            )
        ts = parse_time(value, now=_SOME_NOW)
        text = str(value).strip()
        relative = isinstance(value, str) and (text == "now" or text[:1] in "+-")
        return cls(text, None if relative else ts)

    def at(self, now: int) -> int:
        """Return the instant (ns) when it is `now` (ns); ValueError outside 2009..2100."""
        return parse_time(self.text, now=now) if self.fixed is None else self.fixed

    def surely_not_before(self, other: Moment) -> bool:
        """Tell whether this can be seen, without a clock, to be `other` or later."""
        if (self.fixed is None) != (other.fixed is None):
            return False
        return self.at(_SOME_NOW) >= other.at(_SOME_NOW)

    def surely_after(self, other: Moment) -> bool:
        """Tell whether this can be seen, without a clock, to be later than `other`."""
        return self.surely_not_before(other) and not other.surely_not_before(self)


class Duration(_Written):
    """A length of time such as `90s`, `5m` or `1.5h`; `ns` is never negative."""

    __slots__ = ("ns",)

    def __init__(self, text: str) -> None:
        self.text = text
        self.ns = parse_duration(text)
        if self.ns < 0:
            raise ValueError(f"{text!r} is negative")

    @classmethod
    def parse(cls, value: object) -> Duration:
        """Return the duration a TOML value names; ValueError when it is none."""
        if not isinstance(value, str):
            raise ValueError("expected a duration: '500ms', '30s', '5m', '1h', '7d' or '2w'")
        return cls(value.strip())


class TimeOfDay(_Written):
    """A time of day, UTC, as `02:30` or TOML's local time; `ns` counts from midnight."""

    __slots__ = ("ns",)

    def __init__(self, value: datetime.time) -> None:
        self.text = value.isoformat()
        self.ns = value.hour * HOUR + value.minute * MINUTE + value.second * SECOND
        assert self.ns < DAY

    @classmethod
    def parse(cls, value: object) -> TimeOfDay:
        """Return the time of day a TOML value names; ValueError when it is none."""
        moment = value
        if isinstance(value, str):
            try:
                moment = datetime.time.fromisoformat(value.strip())
            except ValueError:
                raise ValueError(f"{value[:40]!r} is not a time of day; write '02:30'") from None
        if not isinstance(moment, datetime.time) or moment.tzinfo is not None:
            raise ValueError("expected a time of day, UTC, without zone: '02:30'")
        return cls(moment)


class DaemonTable(Options, frozen=True, kw_only=True):
    """`[daemon]`: what concerns the process as a whole."""

    data_dir: Annotated[
        Path | None,
        Meta(
            description="where everything is kept; default: $STATE_DIRECTORY under systemd,"
            " else $XDG_DATA_HOME/tardisd, else ~/.local/share/tardisd",
            examples=["~/.local/share/tardisd"],
        ),
    ] = None
    control_socket: Annotated[
        Path | None,
        Meta(
            description="where tardisctl finds the daemon; default:"
            " $XDG_RUNTIME_DIR/tardisd/control.sock, else /run/tardisd/control.sock when it"
            " can be written, else control.sock in data_dir",
            examples=["/run/tardisd/control.sock"],
        ),
    ] = None
    storage: Annotated[
        str | None,
        Meta(
            description="the storage of everything that names none; needed when there are several",
            examples=["main"],
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="what is worth logging: debug, info, warning or error"),
    ] = "info"
    log_format: Annotated[
        Literal["auto", "text", "json", "systemd"],
        Meta(description="text, json, systemd, or auto: systemd's under systemd, else text"),
    ] = "auto"
    shutdown_secs: Annotated[
        float, Meta(ge=0, le=3600, description="how long sinks may take to drain at the end")
    ] = 10.0
    kept_secs: Annotated[
        float, Meta(ge=0, le=86400, description="how long an ended session can still be asked for")
    ] = 600.0
    max_sessions: Annotated[
        int, Meta(ge=1, le=100_000, description="sessions that may run at the same time")
    ] = 100


class PluginsTable(Options, frozen=True, kw_only=True):
    """`[plugins]`: where plugins are found besides installed packages."""

    dirs: Annotated[
        tuple[Path, ...],
        Meta(
            max_length=100,
            description="folders with plugin files and folders; nobody else may write them",
            examples=[["/etc/tardisd/plugins"]],
        ),
    ] = ()


class SessionTable(Options, frozen=True, kw_only=True):
    """`[sessions.NAME]`: a preset that `tardisctl session start NAME` starts."""

    series: Annotated[
        tuple[str, ...],
        Meta(
            max_length=1000,
            description="what to replay: exchange:symbol@data_type",
            examples=[["synthetic:BTC/USDT@candle_1m"]],
        ),
    ]
    start: Annotated[
        Moment,
        Meta(
            description="a time, a date, or an offset from now as '-30d'", examples=["2024-03-01"]
        ),
    ]
    end: Annotated[
        Moment, Meta(description="the end, exclusive; as start", examples=["2024-03-02"])
    ]
    speed: Annotated[
        float | Literal["max"], Meta(description="market seconds per second, or 'max'")
    ] = 100.0
    sinks: Annotated[
        Names, Meta(description="sinks that get the ticks, by section name", examples=[["ws"]])
    ] = ()
    analyzers: Annotated[
        Names, Meta(description="analyzers that look on, by section name", examples=[["ai"]])
    ] = ()
    storage: Annotated[
        str | None, Meta(description="default: the daemon's storage", examples=["main"])
    ] = None
    on_gap: Annotated[OnGap, Meta(description="where data is missing: mark, skip or fail")] = "mark"
    start_paused: Annotated[bool, Meta(description="wait for `resume`")] = False
    until: Annotated[
        Moment | None,
        Meta(description="pause by itself at this time, once", examples=["2024-03-01T12:00:00Z"]),
    ] = None
    max_idle_secs: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="longest wait for the next tick, in wall time", examples=[2.0]),
    ] = None
    loop: Annotated[bool, Meta(description="begin again at the end")] = False
    lockstep: Annotated[bool, Meta(description="wait for subscribers to acknowledge")] = False
    barrier: Annotated[
        str | None,
        Meta(description="in lockstep, wait at the closes of this interval only", examples=["1m"]),
    ] = None
    derive: Annotated[
        Names,
        Meta(
            description="candles to build from finer series that are stored",
            examples=[["synthetic:BTC/USDT@candle_5m"]],
        ),
    ] = ()
    forming: Annotated[bool, Meta(description="show derived candles while they form")] = False
    durable: Annotated[bool, Meta(description="be there again after a restart, paused")] = False


class BackfillTable(Options, frozen=True, kw_only=True):
    """`[backfills.NAME]`: history that the daemon fetches and keeps up to date."""

    exchange: Annotated[
        str, Meta(description="the exchange to ask, by section name", examples=["synthetic"])
    ]
    symbols: Annotated[
        tuple[str, ...],
        Meta(min_length=1, max_length=1000, description="what is traded", examples=[["BTC/USDT"]]),
    ]
    data_types: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            max_length=100,
            description="kinds of tick: candle_1m, trade, …",
            examples=[["candle_1m"]],
        ),
    ]
    start: Annotated[
        Moment,
        Meta(description="a time, a date, or an offset from now as '-30d'", examples=["-30d"]),
    ]
    end: Annotated[
        Moment | None, Meta(description="the end, exclusive; default: now", examples=["2024-04-01"])
    ] = None
    storage: Annotated[
        str | None, Meta(description="default: the daemon's storage", examples=["main"])
    ] = None
    every: Annotated[Duration | None, Meta(description="how often, as '1h'", examples=["1h"])] = (
        None
    )
    at: Annotated[
        TimeOfDay | None, Meta(description="or daily at a time of day, UTC", examples=["02:30"])
    ] = None
    jitter: Annotated[
        Duration | None,
        Meta(description="start up to this much later, at random", examples=["30s"]),
    ] = None


CORE: dict[str, type[Any]] = {
    "daemon": DaemonTable,
    "plugins": PluginsTable,
    "sessions": SessionTable,
    "backfills": BackfillTable,
}
# Sections of plugin instances and the kind that each holds.
SECTIONS = {
    "exchanges": "exchange",
    "storages": "storage",
    "sinks": "sink",
    "analyzers": "analyzer",
}
# Tables with names of the user's choice below them.
NAMED = (*SECTIONS, "sessions", "backfills")
