"""The replay clock and the measure of pace, by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardisd.market.time import SECOND, parse_time
from tardisd.replay.clock import ReplayClock
from tardisd.replay.telemetry import Pace

START = parse_time("2024-03-01T00:00:00Z")


def test_it_stands_until_it_runs():
    clock = ReplayClock(START, 100.0)
    assert not clock.running
    assert clock.market(1e6) == START
    assert clock.wall(START + 1) == math.inf
    clock.run(50.0)
    assert clock.market(50.0) == START
    assert clock.market(51.0) == START + 100 * SECOND
    assert clock.wall(START + 100 * SECOND) == 51.0


def test_a_halted_clock_keeps_its_market_time():
    clock = ReplayClock(START, 2.0)
    clock.run(10.0)
    clock.halt(clock.market(11.0))
    assert clock.market(1000.0) == START + 2 * SECOND
    clock.run(1000.0)
    assert clock.market(1000.5) == START + 3 * SECOND


def test_unpaced_it_stands_where_it_was_put():
    clock = ReplayClock(START, "max")
    clock.run(0.0)
    assert clock.unpaced
    assert clock.wall(START + 10**18) == -math.inf
    clock.advance(START + 5)
    clock.advance(START + 3)
    assert clock.market(99.0) == START + 5
    clock.change_speed(1.0, clock.market(99.0), 99.0)
    assert clock.market(100.0) == START + 5 + SECOND


@given(
    st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    st.integers(0, 100 * 365 * 86_400 * SECOND),
    st.floats(0, 1e9),
)
def test_any_speed_above_nothing_is_one(speed, ahead, wall):
    """The slowest gets nowhere and the fastest is there at once, without anything overflowing."""
    clock = ReplayClock(START, speed)
    clock.run(wall)
    due = min(START + ahead, parse_time("2100-01-01T00:00:00Z"))
    assert clock.market(wall) == START
    at = clock.wall(due)
    assert at >= wall
    assert at == math.inf or clock.market(at) >= due
    assert clock.market(wall + 3600) >= START
    clock.market(1e12)


speeds = st.floats(1e-3, 1e6) | st.sampled_from([0.5, 1.0, 100.0])


@given(st.lists(st.tuples(st.floats(0, 1e4), speeds), max_size=30))
def test_no_time_is_lost_at_changes(steps):
    """However often it is anchored anew, market time is the sum of its parts."""
    clock = ReplayClock(START, 1.0)
    wall, market, speed = 0.0, 0.0, 1.0
    clock.run(wall)
    for secs, next_speed in steps:
        wall, market = wall + secs, market + secs * speed
        here = clock.market(wall)
        clock.change_speed(next_speed, here, wall)
        assert clock.market(wall) == here
        speed = next_speed
    reached = (clock.market(wall) - START) / SECOND
    assert math.isclose(reached, market, rel_tol=1e-9, abs_tol=1e-5)


@given(speeds, st.integers(0, 10**16))
def test_a_tick_is_due_when_the_clock_says_so(speed, ahead):
    clock = ReplayClock(START, speed)
    clock.run(123.25)
    due = clock.wall(START + ahead)
    # A float of wall seconds is good to some ns of market time times the speed.
    slack = 2 + abs(due) * 1e-15 * speed * SECOND
    assert 0 <= clock.market(due) - (START + ahead) <= slack


def test_pace_is_measured_over_the_last_seconds():
    pace = Pace()
    assert pace.speed() is None
    pace.restart(0.0, START)
    assert pace.speed() is None
    for tick in range(1, 1001):
        pace.sample(tick / 100, START + tick * SECOND)
    assert pace.speed() == pytest.approx(100.0)
    for tick in range(1, 1001):
        pace.sample(10 + tick / 100, START + 1000 * SECOND + tick * SECOND // 10)
    assert pace.speed() == pytest.approx(10.0)
    assert len(pace._samples) < 200
    pace.restart(30.0, START)
    assert pace.speed() is None
