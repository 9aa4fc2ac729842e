"""Budgets are shared by address across plugin instances, and bans outlive the daemon."""

from __future__ import annotations

import pytest
import trio

from tardisd.plugins.base import Context
from tardisd.state import State
from tardisd.venue.book import BudgetBook
from tardisd.venue.budget import Limit
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
