"""Where other people's code is run and its failures are caught; decides nothing about retries.

One of the two modules that catch every exception. `trio.Cancelled` is none of them and passes.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
ArgsT = TypeVarTuple("ArgsT")


async def outcome(action: Callable[[], Awaitable[T]]) -> tuple[T | None, Exception | None]:
    """Run `action` and return (its result, None) or (None, the exception it raised)."""
    try:
        return await action(), None
    except Exception as error:  # noqa: BLE001 - the place for it
        return None, innermost(error)


async def attempt(
    call: Callable[[Unpack[ArgsT]], Awaitable[object]], *args: *ArgsT
) -> Exception | None:
    """Await the call; return the exception it raised, out of its groups, or None."""
    _, error = await outcome(lambda: call(*args))
    return error


def result_of(call: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Return (what a synchronous call returns, None) or (None, the exception it raised)."""
    try:
        return call(), None
    except Exception as error:  # noqa: BLE001 - the place for it
        return None, error


def innermost(error: BaseException) -> Exception:
    """Return the first exception within (groups of) exceptions."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, Exception):
        raise error
    return error


def describe(error: BaseException) -> str:
    """Return one line: the message of an error raised on purpose, else its type and place."""
    text = getattr(error, "message", None)
    if isinstance(text, str):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


@dataclass(slots=True)
class Backoff:
    """Growing waits with full jitter: up to `first` seconds, doubling to `most`."""

    first: float = 0.5
    most: float = 30.0
    attempts: int = 0

    def next(self) -> float:
        """Return how many seconds to wait before the next attempt."""
        limit = min(self.most, self.first * 2.0**self.attempts)
        self.attempts += 1
        return random.uniform(limit / 2, limit)

    def reset(self) -> None:
        """Start over after a success."""
        self.attempts = 0
