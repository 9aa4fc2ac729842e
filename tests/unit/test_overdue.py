"""A storage that does not answer is named; one that is watched is what it was before."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio

from tardisd import overdue
from tardisd.config.model import Instance as Section
from tardisd.instances import Instance, Instances
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.testing.memory import MemoryStorage
from tardisd.testing.storage import StorageSuite
from tardisd.venue.book import BudgetBook

SERIES = Series.parse("okx:BTC/USDT@trade")
SPAN = Span(0, 10**18)


class TestWatched(StorageSuite):
    """Nothing of the contract changes."""

    @asynccontextmanager
    async def storage(self, folder):
        self._opened = getattr(self, "_opened", {})
        if folder not in self._opened:
            self._opened[folder] = MemoryStorage()
            overdue.watch(self._opened[folder], "memory")
        yield self._opened[folder]


class Stuck(MemoryStorage):
    """Answers when it is let to."""

    def __init__(self, options, context):
        super().__init__()
        self.answers = trio.Event()

    async def version(self, series):
        await self.answers.wait()
        return 7

    @asynccontextmanager
    async def _read(self, series, span):
        send, receive = trio.open_memory_channel(0)
        with send, receive:
            yield receive


async def made():
    instances = Instances()
    one = await Instance.made(
        Section("storage", "cold", Stuck, None), SimpleNamespace(budgets=BudgetBook())
    )
    instances.put([one])
    return instances, one.plugin


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("tardisd"), "propagate", True)
    caplog.set_level(logging.INFO, "tardisd.overdue")
    return lambda: [(record.getMessage(), record.facts) for record in caplog.records]


async def test_a_call_that_hangs_is_told_now_and_then(autojump_clock, said):
    instances, storage = await made()
    found = []

    async def ask():
        found.append(await storage.version(SERIES))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(instances.tell_overdue)
        nursery.start_soon(ask)
        await trio.sleep(20)
        assert said() == []
        await trio.sleep(180)
        facts = {"storage": "cold", "call": "version", "waiting": 1}
        assert said() == [
            ("storage does not answer", {**facts, "secs": secs}) for secs in (30, 60, 120)
        ]
        storage.answers.set()
        await trio.sleep(10)
        assert said()[-1] == ("storage answers again", {"storage": "cold"})
        assert found == [7]
        nursery.cancel_scope.cancel()


async def test_a_read_that_brings_nothing_is_told_and_can_be_left(autojump_clock, said):
    instances, storage = await made()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(instances.tell_overdue)
        with trio.move_on_after(40) as scope:
            async with storage.read(SERIES, SPAN) as batches:
                await batches.receive()
        assert scope.cancelled_caught
        assert [facts["call"] for _, facts in said()] == ["read"]
        nursery.cancel_scope.cancel()
