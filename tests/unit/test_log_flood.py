"""Somebody who logs in a loop neither fills the disk nor hides what the others say."""

from __future__ import annotations

import logging

import pytest

from tardisd import log as logs


class Rig:
    def __init__(self):
        self.now = 0.0
        self.gate = logs._Floodgate(clock=lambda: self.now)

    def say(self, logger, event, **facts):
        """Return the facts of what is logged, None when it is not."""
        record = logging.LogRecord(logger, logging.INFO, "x.py", 1, event, (), None)
        record.facts = facts
        return record.facts if self.gate.filter(record) else None


@pytest.fixture
def rig():
    return Rig()


def test_an_event_is_logged_so_often_and_the_last_time_says_so(rig):
    told = [rig.say("acme", "beep", n=n) for n in range(2 * logs.MOST_ALIKE)]
    assert all(facts is not None for facts in told[: logs.MOST_ALIKE])
    assert told[logs.MOST_ALIKE - 2] == {"n": logs.MOST_ALIKE - 2}
    assert told[logs.MOST_ALIKE - 1]["flood"] == "this event is not logged for up to 10 s"
    assert told[logs.MOST_ALIKE :] == [None] * logs.MOST_ALIKE
    assert rig.say("acme", "boom") == {}, "another event of the same"
    assert rig.say("other", "beep") == {}, "another's"
    rig.now += logs.FLOOD_SECS
    assert rig.say("acme", "beep") == {"left_out": logs.MOST_ALIKE}
    assert rig.say("acme", "beep") == {}


def test_texts_that_are_never_the_same_are_a_flood_too(rig):
    told = [rig.say("acme", f"tick {n}") for n in range(20_000)]
    passed = [facts for facts in told if facts is not None]
    assert len(passed) == logs.MOST_OF_ONE
    assert passed[-1] == {"flood": "logger acme is not logged for up to 10 s"}
    assert rig.say("other", "beep") == {}
    assert len(rig.gate._seen) <= logs._MOST_FLOWS + 2


def test_what_plugins_warn_of_by_other_means_comes_in_our_form(capsys, monkeypatch):
    root, ours = logging.getLogger(), logging.getLogger("tardisd")
    kept = (root.handlers[:], ours.handlers[:], ours.level, ours.propagate)
    try:
        logs.set_up("info", "systemd")
        logs.set_up("info", "systemd")
        for _ in range(logs.MOST_ALIKE + 10):
            logging.getLogger("acme").warning("the disk of acme is slow")
        logs.Log("tardisd.acme").info("fine", n=1)
    finally:
        root.handlers[:], ours.handlers[:] = kept[0], kept[1]
        ours.setLevel(kept[2])
        ours.propagate = kept[3]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "<4>the disk of acme is slow"
    assert lines[-1] == "<6>fine n=1"
    assert len(lines) == logs.MOST_ALIKE + 1
