"""Trading signals as models write them: the schema asked for, and the checks of what comes back.

A service may promise to keep to the schema; whether it did is checked here all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tardisd.market.time import format_time, parse_time

Horizon = Literal["minutes", "hours", "days", "weeks"]
Action = Literal["buy", "sell", "hold"]

_MOST_STARTS = 200
_FIELDS: dict[str, Any] = {
    "symbol": {"type": "string"},
    "as_of": {"type": "string"},
    "horizon": {"type": "string", "enum": ["minutes", "hours", "days", "weeks"]},
    "action": {"type": "string", "enum": ["buy", "sell", "hold"]},
    "confidence": {"type": "number"},
    "rationale": {"type": "string"},
    "evidence": {"type": "array", "items": {"type": "string"}},
}
SCHEMA: dict[str, Any] = {  # strict services want every property required, and no bounds
    "type": "object",
    "properties": _FIELDS,
    "required": list(_FIELDS),
    "additionalProperties": False,
}
ASKED = (
    "Answer with one JSON object and nothing else. Its fields: symbol (as in the records), as_of"
    " (ISO-8601 time of the last record you used, ending in Z, no later than the last record),"
    " horizon (minutes, hours, days or weeks), action (buy, sell or hold), confidence (a number"
    " from 0 to 1), rationale (at most 500 characters), evidence (list of the ISO-8601 times of the"
    " records that speak for it)."
)


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """A signal; fields that a model adds of its own are dropped."""

    symbol: Annotated[str, Meta(min_length=1, max_length=100)]
    as_of: str | int
    horizon: Horizon
    action: Action
    confidence: Annotated[float, Meta(ge=0, le=1)]
    rationale: Annotated[str, Meta(max_length=500)]
    evidence: Annotated[list[str | int], Meta(max_length=1000)]


class Unfit(Exception):
    """Raised for an answer that is no signal; says why, in a line."""


def read_signal(
    text: str, symbols: frozenset[str], as_of: int | None, clock: int | None = None
) -> dict[str, Any]:
    """Return the signal in an answer about ticks up to `as_of` (ns). Raises Unfit.

    Up to `clock`, when the session has come further, it may be dated; it is then dated back to
    `as_of`, so that it is the same in every replay.
    """
    reason = "there is no JSON object in it"
    for found in objects(text):
        try:
            signal = msgspec.convert(found, Signal)
        except msgspec.ValidationError as error:
            reason = _plain(str(error))
            break
        return msgspec.structs.asdict(_checked(signal, symbols, as_of, clock))
    raise Unfit(reason)


def _checked(
    signal: Signal, symbols: frozenset[str], as_of: int | None, clock: int | None
) -> Signal:
    if symbols and signal.symbol not in symbols:
        known = ", ".join(sorted(symbols))
        raise Unfit(f"symbol {signal.symbol!r} was not asked about, but {known}")
    limit = as_of if as_of is None or clock is None else max(as_of, clock)
    dated = _check_time("as_of", signal.as_of, limit)
    for one in signal.evidence:
        _check_time("evidence", one, as_of)
    if as_of is not None and dated > as_of:
        return msgspec.structs.replace(signal, as_of=format_time(as_of))
    return signal


def _check_time(name: str, value: str | int, as_of: int | None) -> int:
    try:
        ts = parse_time(value)
    except (ValueError, OverflowError) as error:
        raise Unfit(f"{name}: {_plain(str(error))}") from None
    if as_of is not None and ts > as_of:
        raise Unfit(
            f"{name} {format_time(ts)} lies after {format_time(as_of)}: nothing later can be known"
        )
    return ts


def objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects that stand in a text, outermost only, whatever is around them."""
    at = starts = 0
    while (at := text.find("{", at)) >= 0 and starts < _MOST_STARTS:
        starts += 1
        end = _balanced(text, at)
        if end is None:
            at += 1
            continue
        try:
            found = msgspec.json.decode(text[at:end])
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
            at += 1
            continue
        yield found
        at = end


def _balanced(text: str, start: int) -> int | None:
    """Return where the object that begins at `start` ends; braces in strings do not count."""
    depth, quoted, escaped = 0, False, False
    for at in range(start, len(text)):
        mark = text[at]
        if quoted:
            if escaped:
                escaped = False
            elif mark == "\\":
                escaped = True
            elif mark == '"':
                quoted = False
        elif mark == '"':
            quoted = True
        elif mark == "{":
            depth += 1
        elif mark == "}":
            depth -= 1
            if depth == 0:
                return at + 1
    return None


def _plain(text: str) -> str:
    text = " ".join(text.replace("`", "'").split())[:200]
    return text[:1].lower() + text[1:]
