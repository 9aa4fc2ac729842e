"""When rules are due, over made-up lives of a daemon: downtime, long runs and clocks set back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tardisd.backfill.schedule import Due, Schedule
from tardisd.market.time import DAY, HOUR, MINUTE, SECOND

NOW = 19_000 * DAY + 5 * HOUR

intervals = st.builds(
    lambda every, jitter: Schedule(every=every, jitter=jitter),
    st.integers(SECOND, 3 * DAY),
    st.integers(0, HOUR),
)
daily = st.builds(
    lambda at, jitter: Schedule(at=at, jitter=jitter),
    st.integers(0, DAY - 1),
    st.integers(0, HOUR),
)
schedules = st.one_of(intervals, daily)
moments = st.integers(NOW - 10 * DAY, NOW + 10 * DAY)
shares = st.floats(0, 1, exclude_max=True)


def period(schedule):
    return schedule.every or DAY


@given(schedules, moments, shares)
def test_a_rule_that_never_ran_is_due_now(schedule, now, share):
    assert schedule.next_due(None, now, share) == Due(now, now)


@given(moments, moments)
def test_a_rule_without_times_runs_once(last, now):
    assert Schedule().next_due(None, now) == Due(now, now)
    assert Schedule().next_due(last, now) is None


@given(schedules, moments, moments, shares)
def test_no_wait_is_longer_than_a_period(schedule, last, now, share):
    due = schedule.next_due(last, now, share)
    assert now <= due.start <= now + period(schedule) + schedule.jitter
    assert due.slot <= due.start <= max(due.slot + schedule.jitter, now)


@given(schedules, moments, st.lists(st.integers(0, 5 * DAY), min_size=1, max_size=8), shares)
def test_every_slot_is_used_once_and_missed_ones_are_made_up_for(schedule, first, pauses, share):
    last, now = None, first
    for pause in pauses:
        before = last
        due = schedule.next_due(last, now, share)
        if before is not None:
            assert due.slot > before
            if schedule.every:
                assert (due.slot - before) % schedule.every == 0
            else:
                assert due.slot % DAY == schedule.at
            # What was missed is made up for by one run: no unused slot lies between it and now.
            assert due.slot + period(schedule) > now
            if due.slot <= now:
                assert due.start == now
        last, now = due.slot, due.start + pause


@given(schedules, moments, shares)
def test_the_wait_does_not_change_while_one_waits(schedule, last, share):
    due = schedule.next_due(last, last + 1, share)
    halfway = (last + 1 + due.slot) // 2
    assert schedule.next_due(last, halfway, share) == due


@given(intervals, moments, st.integers(0, 20 * DAY), shares)
def test_a_clock_that_was_set_back_delays_by_a_period_at_most(schedule, last, back, share):
    now = last - back
    due = schedule.next_due(last, now, share)
    assert now <= due.slot < now + schedule.every or due.slot == last + schedule.every


def test_in_plain_numbers():
    hourly = Schedule(every=HOUR, jitter=10 * MINUTE)
    assert hourly.next_due(NOW, NOW + 20 * MINUTE, 0.5) == Due(NOW + HOUR, NOW + 65 * MINUTE)
    assert hourly.next_due(NOW, NOW + 150 * MINUTE, 0.5) == Due(NOW + 2 * HOUR, NOW + 150 * MINUTE)
    at_two = Schedule(at=2 * HOUR)
    today = NOW - 3 * HOUR
    assert at_two.next_due(today, NOW) == Due(today + DAY, today + DAY)
    assert at_two.next_due(today - DAY, NOW) == Due(today, NOW)
