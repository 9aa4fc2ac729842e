"""What can be asked on the control socket: names, parameters and one line on each; does none of it.

`tardisctl` imports this, so it stays free of NumPy and trio. Times in parameters are integer
milliseconds or ISO-8601 text with a zone; series are written `exchange:symbol@data_type`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import msgspec

from tardisd.control.protocol import (
    INVALID_PARAMS,
    MAX_DESCRIPTORS,
    METHOD_NOT_FOUND,
    ProtocolError,
)

Time = int | str
Speed = float | Literal["max"]
Names = Annotated[list[str], msgspec.Meta(min_length=1, max_length=1000)]
ExportForm = Literal["csv", "ndjson", "parquet"]


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of parameters: unknown ones are refused."""


class NoParams(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A method without parameters."""


class Named(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A plugin or instance; `kind` decides where two kinds share the name."""

    name: str
    kind: str | None = None


class InStorage(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which storage instance; the daemon's default when left out."""

    storage: str | None = None


class OneSeries(InStorage, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One stored series."""

    series: str


class SeriesPart(OneSeries, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One stored series between two times; open ends mean all that is stored."""

    start: Time | None = msgspec.field(default=None, name="from")
    end: Time | None = msgspec.field(default=None, name="to")


class GapsOf(SeriesPart, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As SeriesPart; at most `limit` gaps are listed."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 10_000


class Showing(OneSeries, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One series; at most `limit` of the pages stored last are told of."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 20


class Deletion(SeriesPart, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to delete: `from` and `to`, or `all`."""

    everything: bool = msgspec.field(default=False, name="all")


class SessionId(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One session."""

    session_id: str


class SessionSpeed(SessionId, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A session's new speed, in market seconds per wall second."""

    speed: Speed


class SessionSeek(SessionId, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where to go: `to` a time, or `by` so many milliseconds."""

    to: Time | None = None
    by: int | None = None


class SessionStep(SessionId, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many ticks to let through; negative to go back."""

    count: int = 1


class NewSession(InStorage, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a new session replays; the names are those of the WebSocket's `create_session`."""

    series: Annotated[list[str], msgspec.Meta(max_length=1000)] = []
    start_time: Time
    end_time: Time
    speed: Speed = 100.0
    start_paused: bool = False
    session_id: str | None = None
    on_gap: Literal["mark", "skip", "fail"] = "mark"
    sinks: list[str] = []
    release: Literal["close", "open-lookahead"] = "close"
    publish_delay_ms: int = 0
    loop: bool = False
    until: Time | None = None
    max_idle_secs: float | None = None
    lockstep: bool = False
    barrier: str | None = None
    ack_timeout_secs: float | None = None
    derive: list[str] = []
    forming: bool = False
    durable: bool = False
    analyzers: list[str] = []


class Preset(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The name of a `[sessions.NAME]` section."""

    preset: str
    session_id: str | None = None


class Watch(SessionId, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A session to follow; a watcher that is too slow misses ticks and never slows the session.

    At most `max_ticks` ticks come per notification, the newest ones; `skipped` counts the others.
    """

    when_full: Literal["conflate", "drop_oldest"] = "drop_oldest"
    max_ticks: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 200


class Import(InStorage, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Files to import: their names, and their descriptors sent along in the same order.

    `contract_size` (decimal text) is for swap files that count contracts.
    """

    exchange: str
    symbol: str
    data_type: str
    files: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_DESCRIPTORS)]
    covers: tuple[Time, Time] | None = None
    contract_size: str | None = None


class Export(OneSeries, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to write to the one descriptor sent along."""

    start: Time = msgspec.field(name="from")
    end: Time = msgspec.field(name="to")
    form: ExportForm = msgspec.field(name="format")


class Backfill(InStorage, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to fetch; `exchange` names an exchange instance where the venue has several.

    With `wait` the answer comes when the job has ended, and its progress before; it goes on in any
    case.
    """

    series: Names
    start: Time = msgspec.field(name="from")
    end: Time = msgspec.field(name="to")
    exchange: str | None = None
    wait: bool = False


class Backfills(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which jobs to list: at most `limit`, the newest ones."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100


class BackfillId(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One backfill job."""

    job: int


@dataclass(frozen=True, slots=True)
class Method:
    """One method: its parameters and what it does; `descriptors` when files come with the call."""

    name: str
    params: type[Params]
    doc: str
    descriptors: bool = False


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("daemon.hello", NoParams, "Return version, protocol number and process id."),
        Method("daemon.status", NoParams, "Return what runs, and for how long."),
        Method("daemon.reload", NoParams, "Take up the configuration files as they are now."),
        Method("daemon.stop", NoParams, "Stop the daemon in order."),
        Method("daemon.metrics", NoParams, "Return all metrics in Prometheus text form."),
        Method("config.show", NoParams, "Return the running configuration, secrets masked."),
        Method("config.check", NoParams, "Check the configuration files as they are now."),
        Method("plugin.list", NoParams, "List plugins, those that failed to load included."),
        Method("plugin.show", Named, "Return one plugin and its options."),
        Method("instance.list", NoParams, "List configured instances and their state."),
        Method("instance.show", Named, "Return one instance's state."),
        Method("instance.restart", Named, "Close an instance and open it again."),
        Method("series.list", InStorage, "List stored series."),
        Method("series.show", Showing, "Return one series and where its rows came from."),
        Method("series.coverage", SeriesPart, "Return the spans known to be complete."),
        Method("series.gaps", GapsOf, "Return the gaps and their causes."),
        Method("series.delete", Deletion, "Delete rows and their coverage."),
        Method("session.list", NoParams, "List sessions, ended ones that are kept included."),
        Method("session.show", SessionId, "Return one session's status."),
        Method("session.create", NewSession, "Create a session and start its clock."),
        Method("session.start", Preset, "Start a session from a preset of the configuration."),
        Method("session.pause", SessionId, "Stop a session's clock."),
        Method("session.resume", SessionId, "Let a session's clock run on."),
        Method("session.speed", SessionSpeed, "Change a session's speed."),
        Method("session.seek", SessionSeek, "Move a session to another time."),
        Method("session.step", SessionStep, "Let ticks of a paused session through, or go back."),
        Method("session.verify", SessionId, "Replay a session at max, and compare the hashes."),
        Method("session.stop", SessionId, "End a session."),
        Method("session.remove", SessionId, "Forget an ended session."),
        Method("session.watch", Watch, "Follow a session until it ends."),
        Method("data.import", Import, "Import venue dumps and plain files.", descriptors=True),
        Method("data.export", Export, "Write a series to a file.", descriptors=True),
        Method("data.verify", SeriesPart, "Check what is stored against itself."),
        Method("backfill.run", Backfill, "Fetch what is missing of series."),
        Method("backfill.list", Backfills, "List backfill jobs, ended ones included."),
        Method("backfill.show", BackfillId, "Return one backfill job and how far it is."),
        Method("backfill.cancel", BackfillId, "End a backfill job; what it has stored stays."),
    )
}


def decode_params(name: str, params: Mapping[str, Any]) -> Params:
    """Return the typed parameters of a call; raises ProtocolError naming method or parameter."""
    method = METHODS.get(name)
    if method is None:
        near = get_close_matches(name, METHODS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        message = f"there is no method {name[:60]!r}{hint}"
        raise ProtocolError(METHOD_NOT_FOUND, "unknown_method", message)
    try:
        return msgspec.convert(params, method.params)
    except msgspec.ValidationError as error:
        raise ProtocolError(INVALID_PARAMS, "bad_request", complaint(str(error))) from None


def complaint(text: str) -> str:
    """Return msgspec's message with the parameter's name first."""
    reason, _, path = text.partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    reason = reason[:1].lower() + reason[1:].replace("`", "'")
    reason = reason.replace("object contains unknown field", "unknown parameter")
    reason = reason.replace("object missing required field", "missing parameter")
    return f"{field}: {reason}" if field else reason
