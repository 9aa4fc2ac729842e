"""Budgets are shared by address across plugin instances; bans and what was spent outlive a kill."""

from __future__ import annotations

import random

import pytest
import trio

from tardisd.errors import StorageError
from tardisd.market.time import SECOND
from tardisd.plugins.base import Context
from tardisd.state import State
from tardisd.venue.book import BudgetBook
from tardisd.venue.budget import Budget, Limit, NoBans
from tardisd.wall import wall_ns

MINUTE = Limit("minute", 100, 60.0)
BURST = Limit("burst", 10, 1.0)


def test_one_address_has_one_budget():
    book = BudgetBook()
    one, two = book.page(), book.page()
    budget = one.of("api.venue.com", [MINUTE], 0.5)
    assert two.of("api.venue.com", [MINUTE], 0.5) is budget
    assert two.of("other.venue.com", [MINUTE], 0.5) is not budget
    assert one.opened == (budget,)
    assert len(two.opened) == 2
    assert book.opened == ()


def test_contexts_made_without_a_book_have_their_own(tmp_path):
    one, two = (Context("x", tmp_path, None).budgets for _ in range(2))
    assert one.of("a", [MINUTE], 1.0) is not two.of("a", [MINUTE], 1.0)


async def test_what_one_instance_spends_the_other_cannot(autojump_clock):
    book = BudgetBook()
    one = book.page().of("api.venue.com", [MINUTE], 1.0)
    two = book.page().of("api.venue.com", [MINUTE, BURST], 1.0)
    async with one.spending(60, ["minute"]):
        pass
    assert set(two.usage()) == {"minute", "burst"}
    started = trio.current_time()
    async with two.spending(50, ["minute"]):
        assert trio.current_time() - started >= 59


async def test_the_smaller_share_holds(autojump_clock):
    book = BudgetBook()
    generous = book.page().of("api.venue.com", [MINUTE], 0.9)
    book.page().of("api.venue.com", [MINUTE], 0.3)
    started = trio.current_time()
    for _ in range(4):
        async with generous.spending(10):
            pass
    assert trio.current_time() - started >= 59


async def test_a_ban_is_remembered(tmp_path, autojump_clock):
    state = State(tmp_path / "state.sqlite")
    BudgetBook(state).page().of("api.venue.com", [MINUTE], 1.0).cool_down(
        120, "status 418", ban=True
    )
    state.close()
    state = State(tmp_path / "state.sqlite")
    book = BudgetBook(state)
    banned = book.of("api.venue.com", [MINUTE], 1.0)
    assert banned.closed_secs() == pytest.approx(120, abs=5)
    assert "banned" in banned.waiting_for()
    assert book.of("other.venue.com", [MINUTE], 1.0).waiting_for() is None
    assert state.banned_until("api.venue.com") > wall_ns()
    state.close()


@pytest.mark.parametrize(
    "limit", [MINUTE, BURST, Limit("large", 5000, 5.0)], ids=lambda it: it.name
)
async def test_what_was_spent_is_known_after_a_kill(tmp_path, autojump_clock, limit):
    chance = random.Random(limit.name)
    sent: list[tuple[float, int]] = []
    allowed = int(limit.weight * 0.8)
    for _ in range(6):  # daemons, none of which is told that it ends
        state = State(tmp_path / "state.sqlite")
        budget = Budget("venue", [limit], 0.8, state, lambda: round(trio.current_time() * SECOND))
        left = chance.randint(1, 2 * allowed)
        while left > 0:
            weight = chance.randint(1, max(1, limit.weight // 50))
            async with budget.spending(weight):
                sent.append((trio.current_time(), weight))
            left -= weight
        state.close()
        await trio.sleep(chance.choice([0, 0.1, limit.period_secs / 2]))
    for start, _ in sent:
        held = [weight for ts, weight in sent if start <= ts < start + limit.period_secs]
        assert sum(held) <= allowed
    elapsed = sent[-1][0] - sent[0][0] + limit.period_secs
    spent = sum(weight for _, weight in sent)
    assert elapsed < 3 * limit.period_secs * (spent / allowed + 1), "it waits, but not for ever"


async def test_what_is_not_spent_counts_no_longer_than_its_period(tmp_path, autojump_clock):
    state = State(tmp_path / "state.sqlite")
    for _ in range(3):
        begun = trio.current_time()
        budget = Budget("venue", [MINUTE], 1.0, state, lambda: round(trio.current_time() * SECOND))
        async with budget.spending(95):  # a last share may have been spent just now
            assert trio.current_time() == begun
        await trio.sleep(62)
        async with budget.spending(4):
            assert trio.current_time() == begun + 62
        await trio.sleep(62)
    assert len(state.spent("venue", "minute")) < 5
    state.close()


async def test_a_budget_holds_when_it_cannot_be_noted(autojump_clock):
    class Full(NoBans):
        def note_share(self, venue, limit, weight, now, since):
            raise StorageError("disk full")

    budget = Budget("venue", [BURST], 1.0, Full())
    begun = trio.current_time()
    for _ in range(21):
        async with budget.spending(1):
            pass
    assert trio.current_time() >= begun + 2


def test_a_share_holds_until_who_named_it_has_left():
    book = BudgetBook()
    small, large = book.page(), book.page()
    limit = Limit("minute", 100, 60.0)
    budget = small.of("venue", [limit], 0.5)
    assert large.of("venue", [limit], 0.9) is budget
    assert allowed(budget) == 50
    small.leave()
    assert allowed(budget) == 90
    small.leave()
    large.leave()
    assert allowed(budget) == 90, "nobody is left, and what was spent still counts"
    book.page().of("venue", [limit], 0.3)
    assert allowed(budget) == 30


def allowed(budget):
    return budget._windows["minute"].allowed
