"""The alarm rings bells in the order of their moments, once, and never those that were silenced."""

from __future__ import annotations

import pytest
import trio

from tardisd.replay.alarm import Alarm, make_alarm

pytestmark = pytest.mark.skipif(make_alarm() is None, reason="the system has no timerfd")


async def test_bells_ring_in_order_and_silenced_ones_do_not():
    rung, done = [], trio.Event()
    alarm = Alarm()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        now = trio.current_time()
        for late in (0.004, 0.002, 0.003, 0.001, -1.0):
            alarm.at(now + late, lambda late=late: rung.append((late, trio.current_time() - now)))
        alarm.at(now + 0.0025, lambda: rung.append("silenced")).silence()
        alarm.at(now + 0.005, done.set)
        await done.wait()
        nursery.cancel_scope.cancel()
    assert [late for late, _ in rung] == [-1.0, 0.001, 0.002, 0.003, 0.004]
    assert all(at >= late for late, at in rung), "none rings before its moment"


async def test_a_bell_may_hang_up_others():
    done = trio.Event()
    alarm = Alarm()

    def again(left):
        if left:
            alarm.at(trio.current_time() + 0.0001, lambda: again(left - 1))
        else:
            done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        again(50)
        await done.wait()
        nursery.cancel_scope.cancel()
    alarm.at(trio.current_time(), done.set)  # nothing happens any more


async def test_setting_it_anew_while_it_is_due_loses_no_bell():
    first, second = trio.Event(), trio.Event()
    alarm = Alarm()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        alarm.at(trio.current_time() + 0.002, second.set)
        alarm.at(trio.current_time(), first.set)
        await first.wait()
        await second.wait()
        nursery.cancel_scope.cancel()
