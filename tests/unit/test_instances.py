"""Instances at work: they start, fail, come back, are restarted, and leave."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio

from tardisd.config.model import Instance as Section
from tardisd.errors import PluginError, RequestError
from tardisd.instances import Instance, Instances, StartError
from tardisd.plugins.base import Plugin
from tardisd.venue.book import BudgetBook


class Fragile(Plugin):
    """A plugin whose troubles come one per run: before it runs, or while it does."""

    name = "fragile"

    def __init__(self, options, context):
        super().__init__(options, context)
        if options == "unmakable":
            raise ZeroDivisionError("oh")
        self.runs = 0
        self.closing_secs = 0
        self.before = []
        self.breaks = trio.Event()

    @asynccontextmanager
    async def run(self):
        self.runs += 1
        if self.before and (trouble := self.before.pop(0)):
            if trouble == "hangs":
                await trio.sleep_forever()
            raise trouble
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._break)
            yield
            nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.sleep(self.closing_secs)

    async def _break(self):
        await self.breaks.wait()
        self.breaks = trio.Event()
        raise PluginError("the disk is gone")


async def made(name="one", options=None):
    return await Instance.made(
        Section("sink", name, Fragile, options), SimpleNamespace(budgets=BudgetBook())
    )


async def test_a_plugin_that_raises_when_it_is_made_is_named():
    with pytest.raises(StartError, match=r"\[sinks.one\] cannot be made: ZeroDivisionError: oh"):
        await made(options="unmakable")


async def test_a_first_start_that_fails_is_told_and_leaves_nothing(autojump_clock):
    instances = Instances()
    one, bad = await made(), await made("bad")
    bad.plugin.before = [PluginError("no disk")]
    async with instances.running("sink"):
        await instances.start(one)
        with pytest.raises(StartError, match=r"\[sinks.bad\] cannot start: no disk"):
            await instances.start(bad)
        assert (one.state, bad.state) == ("running", "failed")
        await instances.stop(one)
        assert one.state == "stopped"


async def test_one_that_breaks_comes_back_and_one_may_be_patient(autojump_clock):
    instances = Instances()
    one = await made()
    one.plugin.before = [PluginError("no disk"), PluginError("no disk"), None]
    async with instances.running("sink"):
        await instances.start(one, patient=True)
        assert (one.state, one.message) == ("failed", "no disk")
        while one.state != "running":
            await trio.sleep(1)
        assert (one.plugin.runs, one.message) == (3, "")
        one.plugin.breaks.set()
        while one.state == "running":
            await trio.sleep(0)
        assert one.message == "the disk is gone"
        while one.state != "running":
            await trio.sleep(1)
    assert one.state == "stopped"


async def test_a_restart_closes_and_opens(autojump_clock):
    instances = Instances()
    one = await made()
    instances.put([one])
    async with instances.running("sink"):
        assert (one.state, one.plugin.runs) == ("running", 1)
        await one.restart()
        assert (one.state, one.plugin.runs) == ("running", 2)
        one.plugin.before = [PluginError("no disk")]
        await one.restart()
        assert (one.state, one.message) == ("failed", "no disk")
        began = trio.current_time()
        await one.restart()  # it does not wait until its time has come
        assert (one.state, trio.current_time() - began) == ("running", 0)
        await instances.stop(one)
        one.revive()
        await instances.start(one)
        assert one.state == "running"


async def test_names_mean_those_in_service():
    instances = Instances()
    old, new = await made(), await made()
    instances.put([old])
    assert instances.plugins["sink"] == {"one": old.plugin}
    instances.drop([old])
    instances.put([new])
    assert instances.named("sink", "one") is new
    assert list(instances) == [new]
    instances.drop([new])
    assert instances.plugins["sink"] == {}
    with pytest.raises(RequestError, match="no sink instance is named 'one'"):
        instances.named("sink", "one")


class Hanging(Plugin):
    """Hangs before it runs, or when it is to stop."""

    name = "hanging"
    start_secs = 3.0
    stop_secs = 2.0

    @asynccontextmanager
    async def run(self):
        if self.options == "start":
            await trio.sleep_forever()
        yield
        await trio.sleep_forever()


async def test_one_that_never_starts_is_given_up_and_named(autojump_clock):
    instances = Instances()
    one = await Instance.made(
        Section("sink", "slow", Hanging, "start"), SimpleNamespace(budgets=BudgetBook())
    )
    async with instances.running("sink"):
        with pytest.raises(
            StartError, match=r"\[sinks.slow\] cannot start: it did not start"
        ) as bad:
            await instances.start(one)
        assert trio.current_time() == pytest.approx(3.0)
        assert "within 3 s; see to what it waits for" in str(bad.value)


async def test_one_that_never_stops_does_not_keep_the_others(autojump_clock):
    instances = Instances()
    one = await Instance.made(
        Section("sink", "slow", Hanging, None), SimpleNamespace(budgets=BudgetBook())
    )
    other = await made()
    async with instances.running("sink"):
        await instances.start(one)
        await instances.start(other)
        assert instances.unfinished() == ["sinks.slow", "sinks.one"]
        begun = trio.current_time()
        await one.restart()
        assert one.state == "running"
        await instances.stop(one)
        assert trio.current_time() == pytest.approx(begun + 4.0)
        assert instances.unfinished() == ["sinks.one"]
        other.stop()
        await other.gone()


async def test_what_one_holds_another_cannot_have():
    instances = Instances()
    first, second = await made("first"), await made("second")
    first.claims = second.claims = frozenset({"tcp port 1"})
    instances.put([first])
    async with instances.running("sink"):
        told = r"\[sinks.second\] cannot start: tcp port 1 belongs to \[sinks.first\]; let each"
        with pytest.raises(StartError, match=told):
            await instances.start(second)
        instances.drop([first])
        with pytest.raises(StartError, match="which is still closing"):
            await instances.start(second)
        await instances.stop(first)
        await instances.start(second)
        assert second.state == "running"


async def test_one_that_does_not_close_is_not_waited_for(autojump_clock):
    instances = Instances()
    one = await made()
    one.plugin.closing_secs = 100
    async with instances.running("sink"):
        await instances.start(one)
        assert not await instances.stop(one)
        assert trio.current_time() < 20
        await one.gone()
    other = await made()
    other.plugin.closing_secs = 100
    async with instances.running("sink"):
        await instances.start(other)
        await other.restart()
        assert other.state == "starting"
        while other.state != "running":
            await trio.sleep(1)


async def test_one_that_hangs_before_it_runs_is_given_up_in_time(autojump_clock):
    instances = Instances()
    one, other = await made(), await made("other")
    one.plugin.before = ["hangs"]
    async with instances.running("sink"):
        with pytest.raises(StartError, match=r"\[sinks.one\] has not started within 60 s"):
            await instances.start(one, secs=60)
        await instances.start(other, secs=60)
        assert other.state == "running"
