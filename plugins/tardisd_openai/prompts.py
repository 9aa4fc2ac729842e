"""A question as messages to a model; asks nobody.

What is rendered is a function of the ticks and the options alone: nothing that differs from one
replay to the next (`replay_time`, ids, the clock at which somebody asked) enters it. Answers are
kept by it, so a second replay finds the same ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tardisd.errors import RequestError
from tardisd.market.time import format_time, parse_time
from tardisd.plugins.analyzer import Question

from .options import OpenaiOptions
from .signals import ASKED

SIGNAL = "signal"
TEMPLATES: Mapping[str, str] = {
    "pattern": (
        "Which chart or order-flow patterns do these records of {symbols} show? Name each, the"
        " records it rests on and how clear it is; say so when there is none."
    ),
    "trend": (
        "What is the trend of {symbols} over these records: direction, strength, momentum and"
        " volume? Name the levels that matter and what would prove you wrong."
    ),
    SIGNAL: (
        "What would you do with {symbols} at {as_of}, judging by these records alone: buy, sell or"
        " hold?"
    ),
    "anomaly": (
        "What is unusual in these records of {symbols}: jumps, volume, gaps, values that cannot be"
        " right? Name the records; say so when nothing is."
    ),
}
_NOT_INPUT = frozenset({"replay_time", "session_id", "epoch", "seq"})
_PLACE = re.compile(r"\{(ticks|symbols|as_of|count)\}")
_ENCODER = msgspec.json.Encoder(decimal_format="number", order="deterministic")


@dataclass(frozen=True, slots=True)
class Prompt:
    """Messages, and what the answer to them is held against.

    `as_of` is the moment (ns) at which the last tick was released, `first` the time of the
    earliest; `structured` asks for a signal. `clock` (ns), where the session is, is no input.
    """

    messages: tuple[Mapping[str, str], ...]
    symbols: frozenset[str]
    first: int | None
    as_of: int | None
    structured: bool
    clock: int | None = None

    @property
    def lookahead(self) -> bool:
        """Whether a tick lies after the session's clock."""
        return self.as_of is not None and self.clock is not None and self.as_of > self.clock

    def followed_by(self, said: str, complaint: str) -> tuple[Mapping[str, str], ...]:
        """Return the messages of a second attempt, after an answer that could not be used."""
        return (
            *self.messages,
            {"role": "assistant", "content": said},
            {"role": "user", "content": complaint},
        )


def render(question: Question, options: OpenaiOptions) -> Prompt:
    """Return the question as messages. Raises RequestError `bad_request`."""
    template = {**TEMPLATES, **options.prompts}.get(question.analysis_type)
    if template is None:
        known = ", ".join(sorted({*TEMPLATES, *options.prompts}))
        raise RequestError(
            "bad_request",
            f"analysis_type: {question.analysis_type[:64]!r} is not one of: {known}",
        )
    rows = [_row(tick) for tick in question.ticks]
    lines = b"\n".join(rows).decode(errors="replace")
    if len(lines) > options.max_input_bytes:
        raise RequestError(
            "bad_request",
            f"tick_data: {len(lines)} bytes are more than max_input_bytes"
            f" ({options.max_input_bytes}); ask about fewer ticks",
        )
    ends = [end for tick in question.ticks if (end := _time(tick, "close_time", "timestamp"))]
    begins = [at for tick in question.ticks if (at := _time(tick, "timestamp", "close_time"))]
    as_of = max(ends, default=None)
    symbols = sorted({tick["symbol"] for tick in question.ticks if _is_name(tick.get("symbol"))})
    structured = question.analysis_type == SIGNAL
    words = {
        "ticks": lines,
        "symbols": ", ".join(symbols) or "the instrument",
        "as_of": "the last record" if as_of is None else format_time(as_of),
        "count": str(len(rows)),
    }
    text = _PLACE.sub(lambda place: words[place[1]], template)
    parts = [text]
    if "{ticks}" not in template:
        parts.append(
            f"The {words['count']} records, oldest first, up to {words['as_of']}:\n{lines}"
        )
    if structured:
        parts.append(ASKED)
    system = [{"role": "system", "content": options.system}] if options.system else []
    return Prompt(
        (*system, {"role": "user", "content": "\n\n".join(parts)}),
        frozenset(symbols),
        min(begins, default=None),
        as_of,
        structured,
        question.clock,
    )


def as_line(values: object) -> bytes:
    """Return values as JSON that is the same for the same values."""
    return _ENCODER.encode(values)


def _row(tick: Mapping[str, Any]) -> bytes:
    return as_line({key: value for key, value in tick.items() if key not in _NOT_INPUT})


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 100


def _time(tick: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of the times (ns) that the tick has, if it is one."""
    for name in names:
        value = tick.get(name)
        if isinstance(value, int | str) and not isinstance(value, bool):
            try:
                return parse_time(value)
            except (ValueError, OverflowError):
                continue
        if isinstance(value, float) and abs(value) < 1e15:  # JavaScript writes such, too
            try:
                return parse_time(int(value))
            except ValueError:
                continue
    return None


def cache_key(prompt: Prompt, options: OpenaiOptions) -> Sequence[object]:
    """Return what an answer depends on: input, model, parameters."""
    return (
        [dict(message) for message in prompt.messages],
        prompt.structured,
        options.model,
        options.temperature,
        options.max_tokens,
        options.extra,
    )


def is_contaminated(prompt: Prompt, options: OpenaiOptions) -> bool:
    """Tell whether the model may have been trained on what followed the ticks."""
    cutoff = options.knowledge_cutoff
    if cutoff is None or cutoff.fixed is None or prompt.first is None:
        return False
    return prompt.first < cutoff.fixed
