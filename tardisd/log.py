"""Logging: the event name first, then facts as key=value; where it goes is not decided here."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

LogFormat = Literal["auto", "text", "json", "systemd"]

# trio complains ten times a second while it cannot accept.
REPEAT_SECS = 30.0
# In so many seconds an event is logged so often, and a logger says so much, whatever it is.
FLOOD_SECS = 10.0
MOST_ALIKE = 500
MOST_OF_ONE = 2000
_MOST_FLOWS = 10_000
_PRIORITIES = {
    logging.CRITICAL: "<2>",
    logging.ERROR: "<3>",
    logging.WARNING: "<4>",
    logging.INFO: "<6>",
    logging.DEBUG: "<7>",
}


class Log:
    """A logger of events: `log.info("sink reopened", sink="files", attempt=3)`."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **facts: object) -> None:
        """Say what only someone who debugs wants to know."""
        self._logger.debug(event, extra={"facts": facts})

    def info(self, event: str, **facts: object) -> None:
        """Say what happened as it should."""
        self._logger.info(event, extra={"facts": facts})

    def warning(self, event: str, **facts: object) -> None:
        """Say what went wrong and is being dealt with."""
        self._logger.warning(event, extra={"facts": facts})

    def error(self, event: str, **facts: object) -> None:
        """Say what went wrong and needs somebody."""
        self._logger.error(event, extra={"facts": facts})


class _Formatter(logging.Formatter):
    def __init__(self, form: LogFormat) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        facts: Mapping[str, object] = getattr(record, "facts", {})
        event = record.getMessage()
        if record.exc_info:
            facts = {**facts, "trace": self.formatException(record.exc_info)}
        if self._form == "json":
            line = {"time": self.formatTime(record), "level": record.levelname.lower()}
            return msgspec.json.encode(
                {**line, "logger": record.name, "event": event, **facts}, enc_hook=str
            ).decode()
        text = " ".join([event, *(f"{key}={_quoted(value)}" for key, value in facts.items())])
        if self._form == "systemd":
            return _PRIORITIES.get(record.levelno, "<6>") + text.replace("\n", "\\n")
        return f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():7} {text}"


def _quoted(value: object) -> str:
    text = str(value)
    return f'"{text}"' if " " in text or not text else text


class _Floodgate(logging.Filter):
    """Lets no event, and no logger, through more often than so many times in a while, and says so.

    Somebody who logs in a loop would else fill the disk and hide what the others say.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, str | None], _Flow] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to log the record; the last one before a silence says that there is one."""
        now = self._clock()
        if len(self._seen) > _MOST_FLOWS:  # texts that are never the same: by logger, then
            self._seen = {key: flow for key, flow in self._seen.items() if key[1] is None}
        limits = (((record.name, str(record.msg)), MOST_ALIKE), ((record.name, None), MOST_OF_ONE))
        passes = True
        for key, most in limits:
            flow = self._seen.get(key)
            if flow is None or now >= flow.since + FLOOD_SECS:
                if flow is not None and flow.count > most and passes:
                    _add(record, left_out=flow.count - most)
                flow = self._seen[key] = _Flow(now)
            flow.count += 1
            if flow.count > most:
                passes = False
            elif flow.count == most:
                what = "this event" if key[1] is not None else f"logger {record.name}"
                _add(record, flood=f"{what} is not logged for up to {FLOOD_SECS:g} s")
        return passes


@dataclass(slots=True)
class _Flow:
    since: float
    count: int = 0


def _add(record: logging.LogRecord, **facts: object) -> None:
    record.facts = {**getattr(record, "facts", {}), **facts}


class _Calm(logging.Filter):
    """Lets trio's complaint about a full table of descriptors through now and then, in one line."""

    def __init__(self) -> None:
        super().__init__()
        self._quiet_until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to log the record; its traceback is dropped."""
        now = time.monotonic()
        if now < self._quiet_until:
            return False
        self._quiet_until = now + REPEAT_SECS
        record.exc_info = None
        record.msg, record.args = "cannot accept clients", None
        record.facts = {"error": "too many open files; raise the limit of open files (LimitNOFILE)"}
        return True


def set_up(level: str = "info", form: LogFormat = "auto") -> None:
    """Send the process's logs to stderr: priorities for the journal, times for a terminal."""
    if form == "auto":
        form = "systemd" if "JOURNAL_STREAM" in os.environ else "text"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(form))
    handler.addFilter(_Floodgate())
    ours = logging.getLogger("tardisd")
    ours.handlers[:] = [handler]
    ours.setLevel(level.upper())
    ours.propagate = False
    # Other people's loggers, plugins' among them: what they warn of, in our form and bounds.
    root = logging.getLogger()
    for old in [one for one in root.handlers if getattr(one, "tardisd", False)]:
        root.removeHandler(old)
    handler.tardisd = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    listeners = logging.getLogger("trio.serve_listeners")
    listeners.handlers[:] = [handler]
    listeners.filters[:] = [_Calm()]
    listeners.propagate = False
