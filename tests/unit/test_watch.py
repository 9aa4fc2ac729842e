"""The look at the event loop from outside: what it says, whom it names, when it ends all."""

from __future__ import annotations

import logging
import os
import signal

import pytest

from tardisd import watch


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("tardisd"), "propagate", True)
    caplog.set_level(logging.INFO, "tardisd.watch")
    return lambda: [(record.getMessage(), record.facts) for record in caplog.records]


class Left(Exception):
    """Stands for the end of the process."""


class Rig:
    def __init__(self, plugins):
        self.now = 100.0
        self.watch = watch.LoopWatch(plugins, clock=lambda: self.now, leave=self.leave)

    def leave(self, code):
        raise Left(code)

    def look_after(self, secs):
        self.now += secs
        self.watch.look()


def test_a_loop_that_stands_still_is_told_with_whose_code_it_is(said):
    rig = Rig({__name__.partition(".")[0]: "mine"})
    rig.look_after(4.9)
    assert said() == []
    rig.look_after(0.2)
    [(event, facts)] = said()
    assert (event, facts["secs"], facts["plugin"]) == ("event loop stands still", 5, "mine")
    assert "test_watch.py:" in facts["at"]
    assert facts["at"].endswith(" in look_after")


def test_it_is_not_told_at_every_look(said):
    rig = Rig({})
    for _ in range(60):
        rig.look_after(1.0)
    assert [facts["secs"] for _, facts in said()] == [5, 10, 20, 40]
    assert all("watch.py:" in facts["at"] for _, facts in said()), "nobody's: the innermost frame"
    rig.watch._last_beat = rig.now
    rig.look_after(1.0)
    assert said()[-1] == ("event loop runs again", {})
    rig.look_after(5.0)
    assert said()[-1][1]["secs"] == 6


def test_the_process_ends_when_its_time_is_over(said):
    rig = Rig({})
    rig.watch.end_within(10.0, lambda: ["sinks.a", "storages.b"])
    rig.watch.end_within(1000.0, lambda: ["sinks.a"])
    rig.watch._last_beat = rig.now + 1000
    rig.look_after(14.9)
    with pytest.raises(Left) as left:
        rig.look_after(0.2)
    assert left.value.args == (watch.EXIT_FORCED,)
    event, facts = said()[-1]
    assert (event, facts) == (
        "stopping takes too long; ending the process",
        {"unfinished": "sinks.a"},
    )


def test_a_signal_counts_though_nobody_else_sees_it():
    rig = Rig({})
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        with rig.watch.hearing([signal.SIGUSR1], lambda: 3.0):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert heard == [signal.SIGUSR1], "who was there before hears it, too"
        assert signal.getsignal(signal.SIGUSR1) is not before
    finally:
        signal.signal(signal.SIGUSR1, before)
    rig.watch._last_beat = rig.now + 1000
    rig.look_after(7.9)
    with pytest.raises(Left):
        rig.look_after(0.2)
