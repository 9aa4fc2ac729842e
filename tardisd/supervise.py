"""Keep a failure where it belongs; one of two modules that may catch everything.

It decides nothing about what failed: it hands the exception to somebody who does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def outcome(action: Callable[[], Awaitable[T]]) -> tuple[T | None, Exception | None]:
    """Run `action` and return (its result, None) or (None, what it raised).

    Cancellation passes through. A group that holds a single exception is that exception.
    """
    try:
        return await action(), None
    except Exception as raised:  # noqa: BLE001 - whoever called looks at it
        error = raised
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        return None, error
