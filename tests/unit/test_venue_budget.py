"""A budget never spends more than its share in any stretch of time, however requests fall."""

from __future__ import annotations

import math
import random

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tardisd.errors import RequestError
from tardisd.market.time import SECOND
from tardisd.venue.budget import Budget, Limit, NoBans


class RememberedBans(NoBans):
    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def banned_until(self, venue: str) -> int | None:
        return self.known.get(venue)

    def remember(self, venue: str, until: int, reason: str) -> None:
        self.known[venue] = until


def run(main):
    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@given(
    limit=st.integers(5, 60),
    period=st.sampled_from([1.0, 2.0, 60.0]),
    share=st.sampled_from([0.5, 0.85, 1.0]),
    requests=st.lists(
        st.tuples(st.integers(1, 4), st.floats(0, 3), st.floats(0, 2)), min_size=1, max_size=60
    ),
    users=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_no_window_holds_more_than_the_share(limit, period, share, requests, users, seed):
    """The venue counts a request somewhere between sending and answer: check every such moment."""
    budget = Budget("venue", [Limit("weight", limit * 4, period)], share)
    allowed = math.floor(limit * 4 * share)
    arrivals: list[tuple[float, int]] = []
    chance = random.Random(seed)

    async def user(mine):
        for weight, latency, idle in mine:
            await trio.sleep(idle)
            async with budget.spending(weight):
                on_the_way = chance.random() * latency
                await trio.sleep(on_the_way)
                arrivals.append((trio.current_time(), weight))
                await trio.sleep(latency - on_the_way)

    async def main():
        async with trio.open_nursery() as nursery:
            for number in range(users):
                nursery.start_soon(user, requests[number::users])

    run(main)
    assert sum(weight for _, weight in arrivals) == sum(weight for weight, _, _ in requests)
    for start, _ in arrivals:  # a window that holds the most begins with an arrival
        within = sum(w for ts, w in arrivals if start <= ts < start + period * (1 - 1e-9))
        assert within <= allowed
    windows: dict[int, int] = {}
    for ts, weight in arrivals:
        windows[int(ts // period)] = windows.get(int(ts // period), 0) + weight
    assert max(windows.values()) <= allowed


async def test_the_share_is_used_and_not_left(autojump_clock):
    budget = Budget("venue", [Limit("weight", 100, 10.0)], 0.85)
    start = trio.current_time()
    for _ in range(850):
        async with budget.spending(1):
            pass
    assert trio.current_time() - start == pytest.approx(90.0)
    assert budget.usage() == {"weight": pytest.approx(0.85)}


async def test_others_at_the_address_count_too(autojump_clock):
    budget = Budget("venue", [Limit("weight", 100, 60.0)], 0.85)
    async with budget.spending(5):
        pass
    budget.observe("weight", 83)
    budget.observe("weight", 20)  # the venue's next minute: our own count stays
    budget.observe("no such limit", 1000)
    async with budget.spending(2):
        pass
    start = trio.current_time()
    async with budget.spending(1):
        pass
    assert trio.current_time() - start == pytest.approx(60.0)


async def test_what_is_under_way_counts_besides_what_the_venue_saw(autojump_clock):
    budget = Budget("venue", [Limit("weight", 10, 60.0)], 1.0)
    async with budget.spending(4):
        budget.observe("weight", 5)
        assert budget.usage() == {"weight": pytest.approx(0.9)}


async def test_requests_of_one_limit_do_not_wait_for_another(autojump_clock):
    budget = Budget("venue", [Limit("a", 1, 100.0), Limit("b", 1, 1.0)], 1.0)
    async with budget.spending(1, ["a"]), trio.open_nursery() as nursery:

        async def blocked():
            async with budget.spending(1, ["a"]):
                pass

        nursery.start_soon(blocked)
        with trio.fail_after(5):
            for _ in range(3):
                async with budget.spending(1, ["b"]):
                    pass
        nursery.cancel_scope.cancel()


async def test_waiters_are_served_in_order(autojump_clock):
    budget = Budget("venue", [Limit("weight", 10, 10.0)], 1.0)
    order = []

    async def user(name, weight):
        async with budget.spending(weight):
            order.append(name)

    async with trio.open_nursery() as nursery:
        for name, weight in enumerate([10, 9, 1, 1, 10]):
            nursery.start_soon(user, name, weight)
            await trio.testing.wait_all_tasks_blocked()
    assert order == [0, 1, 2, 3, 4]


async def test_a_request_that_fails_or_is_cancelled_stays_paid(autojump_clock):
    budget = Budget("venue", [Limit("weight", 10, 10.0)], 1.0)
    with pytest.raises(OSError, match="gone"):
        async with budget.spending(6):
            raise OSError("gone")
    with trio.move_on_after(1):
        async with budget.spending(6):
            pytest.fail("there was no room")
    assert budget.usage() == {"weight": 0.6}


async def test_a_weight_that_never_fits_is_refused(autojump_clock):
    budget = Budget("binance", [Limit("weight", 100, 60.0)], 0.1)
    with pytest.raises(RequestError, match=r"weight 20 never fits into 10 .* raise budget_share"):
        async with budget.spending(20):
            pass


async def test_a_cool_down_holds_everybody_back_and_only_grows(autojump_clock):
    budget = Budget("venue", [Limit("weight", 100, 60.0)], 0.85)
    budget.cool_down(30.0, "too many requests")
    budget.cool_down(3.0, "a lesser one")
    assert budget.closed_secs() == pytest.approx(30.0)
    assert (budget.waiting_for() or "").startswith("too many requests until 2")
    async with budget.spending(1):
        assert trio.current_time() == pytest.approx(30.0, abs=0.01)
    assert budget.waiting_for() is None


async def test_a_cool_down_reaches_those_who_already_wait(autojump_clock):
    budget = Budget("venue", [Limit("weight", 1, 10.0)], 1.0)
    async with budget.spending(1):
        pass

    async def later():
        await trio.sleep(5)
        budget.cool_down(60.0, "busy")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        async with budget.spending(1):
            assert trio.current_time() == pytest.approx(65.0, abs=0.01)


async def test_a_ban_outlives_the_daemon(autojump_clock):
    bans = RememberedBans()
    wall = 1_800_000_000 * SECOND
    Budget("venue", [], 0.85, bans, lambda: wall).cool_down(120.0, "banned", ban=True)
    assert bans.known == {"venue": wall + 120 * SECOND}
    again = Budget("venue", [], 0.85, bans, lambda: wall + 20 * SECOND)
    assert again.closed_secs() == pytest.approx(100.0)
    assert again.waiting_for() == "banned by the venue until 2027-01-15T08:02:00.000Z"
    assert Budget("venue", [], 0.85, bans, lambda: wall + 121 * SECOND).waiting_for() is None


async def test_a_ban_remembered_under_a_wrong_clock_ends(autojump_clock):
    bans = RememberedBans()
    bans.known["venue"] = 4_000_000_000 * SECOND
    budget = Budget("venue", [], 0.85, bans, lambda: 1_800_000_000 * SECOND)
    assert budget.closed_secs() == 3 * 86_400


async def test_the_venue_may_revise_a_limit(autojump_clock):
    budget = Budget("venue", [Limit("weight", 10, 10.0)], 0.5)
    budget.revise("weight", 40)
    async with budget.spending(20):
        pass
    assert budget.usage() == {"weight": 0.5}
    budget.add(Limit("weight", 1, 1.0), 1.0)  # known already
    budget.add(Limit("orders", 4, 1.0), 0.5)
    async with budget.spending(2, ["orders"]):
        pass
    assert budget.usage() == {"weight": 0.5, "orders": 0.5}
