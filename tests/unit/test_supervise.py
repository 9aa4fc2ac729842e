"""The one place that catches everything: what comes out of it, and what passes."""

from __future__ import annotations

import pytest
import trio

from tardisd.errors import Retry
from tardisd.supervise import Backoff, attempt, describe, innermost, outcome


async def fail(error):
    raise error


async def test_outcomes():
    async def seven():
        return 7

    assert await outcome(seven) == (7, None)
    assert await attempt(seven) is None
    error = ValueError("x")
    assert await attempt(fail, error) is error
    assert await attempt(fail, ExceptionGroup("g", [ExceptionGroup("h", [error])])) is error


async def test_being_cancelled_is_no_failure():
    with trio.CancelScope() as scope:
        scope.cancel()
        await attempt(trio.sleep_forever)
        pytest.fail("it was swallowed")
    assert scope.cancelled_caught
    with pytest.raises(KeyboardInterrupt):
        await attempt(fail, KeyboardInterrupt())


def test_the_innermost_exception():
    with pytest.raises(SystemExit):
        innermost(BaseExceptionGroup("g", [SystemExit()]))


async def test_descriptions_are_one_line():
    assert describe(Retry("try later")) == "try later"
    error = await attempt(fail, KeyError("gone"))
    text = describe(error)
    assert text.startswith("KeyError: 'gone' at ")
    assert "test_supervise.py:" in text
    assert "\n" not in text
    assert describe(KeyError("gone")) == "KeyError: 'gone'"


def test_waits_grow_to_a_limit_and_start_over():
    backoff = Backoff(first=1.0, most=8.0)
    for limit in (1, 2, 4, 8, 8, 8):
        assert limit / 2 <= backoff.next() <= limit
    backoff.reset()
    assert backoff.next() <= 1
