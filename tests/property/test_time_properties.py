"""Times, durations and intervals against datetime."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardisd.market.columns import closes
from tardisd.market.time import (
    DAY,
    EARLIEST,
    HOUR,
    LATEST,
    MILLISECOND,
    MINUTE,
    SECOND,
    WEEK,
    Interval,
    check_instant,
    format_time,
    from_datetime,
    parse_duration,
    parse_range,
    parse_time,
)

instants = st.integers(EARLIEST, LATEST)
moments = st.datetimes(datetime(2009, 1, 1), datetime(2099, 12, 30))
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UNITS = {"s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": WEEK}
fixed = st.builds(Interval, st.integers(1, 400), st.sampled_from("smhdw"))
months = st.builds(Interval, st.integers(1, 24), st.just("M"))


def ns_of(moment):
    delta = moment - EPOCH
    return (delta.days * 86_400 + delta.seconds) * SECOND + delta.microseconds * 1000


@given(instants)
def test_what_is_printed_is_read_back(ts):
    text = format_time(ts)
    assert text.endswith("Z")
    assert len(text.partition(".")[2]) in (4, 7, 10)
    assert parse_time(text) == ts


@given(moments, zones)
def test_times_with_a_zone_are_what_datetime_says(moment, zone):
    aware = moment.replace(tzinfo=zone)
    if ns_of(aware) < EARLIEST:
        return
    assert parse_time(aware.isoformat()) == ns_of(aware)
    assert parse_time(aware.strftime("%Y-%m-%d %H:%M:%S,%f%z")) == ns_of(aware)
    assert from_datetime(aware) == ns_of(aware)


@given(instants)
def test_integers_are_milliseconds(ts):
    assert parse_time(ts // MILLISECOND) == ts - ts % MILLISECOND
    if ts >= 10_000_000_000 * MILLISECOND:
        assert parse_time(str(ts // MILLISECOND), now=0) == ts - ts % MILLISECOND


@given(st.dates(date(2009, 1, 1), date(2099, 12, 31)), instants)
def test_dates_are_midnights_where_now_is_known(day, now):
    midnight = ns_of(datetime(day.year, day.month, day.day, tzinfo=UTC))
    assert parse_time(day.isoformat(), now=now) == midnight
    assert parse_time(day.strftime("%Y%m%d"), now=now) == midnight
    assert from_datetime(day) == midnight
    with pytest.raises(ValueError, match="is not a time"):
        parse_time(day.isoformat())


@given(moments)
def test_naive_times_are_refused(moment):
    with pytest.raises(ValueError, match="no time zone"):
        parse_time(moment.isoformat())
    with pytest.raises(ValueError, match="no time zone"):
        from_datetime(moment)


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_a_value_error(text):
    for now in (None, EARLIEST + DAY):
        with suppress(ValueError):
            assert EARLIEST <= parse_time(text, now=now) <= LATEST


@given(st.integers(-(2**70), 2**70))
def test_times_outside_the_known_years_are_refused(ts):
    if EARLIEST <= ts <= LATEST:
        assert check_instant(ts) == ts
    else:
        with pytest.raises(ValueError, match=r"outside 2009\.\.2100"):
            check_instant(ts)


@given(st.integers(0, 10**6), st.sampled_from([*UNITS, "ms"]), st.sampled_from(["", "+", "-"]))
def test_durations(count, unit, sign):
    length = count * UNITS.get(unit, MILLISECOND)
    assert parse_duration(f"{sign}{count}{unit}") == (-length if sign == "-" else length)
    assert parse_duration(f"{sign}{count}.5{unit}") == (-1 if sign == "-" else 1) * (
        length + UNITS.get(unit, MILLISECOND) // 2
    )


@given(st.integers(1, 3000), instants)
def test_offsets_count_from_now(days, now):
    if now - days * DAY >= EARLIEST:
        assert parse_time(f"-{days}d", now=now) == now - days * DAY
    assert parse_time("now", now=now) == now


@given(st.tuples(instants, instants))
def test_ranges_have_two_ends(ends):
    start, end = sorted(ends)
    text = f"{format_time(start)}..{format_time(end)}"
    if start < end:
        assert parse_range(text, now=0) == (start, end)
    else:
        with pytest.raises(ValueError, match="ends before it begins"):
            parse_range(text, now=0)


def test_the_short_range():
    first, last = parse_time("2024-01-01T00:00:00Z"), parse_time("2024-02-01T00:00:00Z")
    assert parse_range("20240101-20240201", now=0) == (first, last)


@given(fixed | months)
def test_intervals_are_read_as_they_are_printed(interval):
    assert Interval.parse(str(interval)) == interval


@pytest.mark.parametrize("text", ["", "m", "0m", "01m", "1", "1y", "1 m", "-1m", "1.5h", "12345m"])
def test_what_is_no_interval_is_refused(text):
    with pytest.raises(ValueError, match="is not an interval"):
        Interval.parse(text)


@given(fixed, instants)
def test_fixed_intervals_tile_time(interval, ts):
    floor = interval.floor(ts)
    assert floor <= ts < interval.close(floor)
    assert interval.close(floor) - floor == interval.count * UNITS[interval.unit]
    assert interval.floor(floor) == floor == interval.ceil(floor)
    assert interval.ceil(ts) in (ts, interval.close(floor))
    opened = EPOCH + timedelta(seconds=floor // SECOND)
    if interval.unit == "w":
        assert (opened.weekday(), opened.hour, opened.minute) == (0, 0, 0)
    elif UNITS[interval.unit] % interval.count == 0 and interval.unit == "d":
        assert opened.hour == 0


@given(months, instants)
def test_months_follow_the_calendar(interval, ts):
    floor = interval.floor(ts)
    assert floor <= ts < interval.close(floor)
    opened = EPOCH + timedelta(seconds=floor // SECOND)
    closed = EPOCH + timedelta(seconds=interval.close(floor) // SECOND)
    for moment in (opened, closed):
        assert (moment.day, moment.hour, moment.minute, moment.second) == (1, 0, 0, 0)
    passed = (closed.year - opened.year) * 12 + closed.month - opened.month
    assert passed == interval.count
    assert ((opened.year - 1970) * 12 + opened.month - 1) % interval.count == 0
    assert interval.ceil(ts) == (ts if ts == floor else interval.close(floor))


@given(fixed | months, st.lists(st.integers(EARLIEST, LATEST - 900 * DAY), max_size=5))
def test_columns_of_closes_are_the_closes(interval, opens):
    assert closes(np.array(opens, np.int64), interval).tolist() == [
        interval.close(ts) for ts in opens
    ]
