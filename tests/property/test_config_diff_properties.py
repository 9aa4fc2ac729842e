"""The way from one configuration to another: nothing forgotten, nothing touched without need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tardisd.config.diff import ONLY_AT_START, compare, section_of, without_restart
from tardisd.config.model import BackfillRule, Config, Daemon, Instance
from tardisd.config.schema import SECTIONS, BackfillTable, Moment, PluginsTable
from tardisd.plugins.registry import Registry
from tardisd.testing.memory import MemoryStorage

KINDS = list(SECTIONS.values())
NAMES = st.sampled_from(["a", "b", "c"])
daemons = st.builds(
    Daemon,
    data_dir=st.sampled_from([Path("/a"), Path("/b")]),
    control_socket=st.sampled_from([Path("/a.sock"), Path("/b.sock")]),
    storage=NAMES,
    log_level=st.sampled_from(["info", "debug"]),
    log_format=st.just("text"),
    shutdown_secs=st.sampled_from([1.0, 2.0]),
    kept_secs=st.just(1.0),
    max_sessions=st.sampled_from([1, 2]),
)
tables = st.builds(
    BackfillTable,
    exchange=NAMES,
    symbols=st.just(("BTC/USDT",)),
    data_types=st.just(("trade",)),
    start=st.sampled_from(["-1d", "-2d"]).map(Moment.parse),
)


def rule(name, table, storage):
    return BackfillRule(name, table.exchange, storage, (), table.start, None, None, None, 0, table)


@st.composite
def configs(draw):
    instances = {
        kind: {
            name: Instance(kind, name, draw(st.sampled_from([MemoryStorage, Registry])), option)
            for name, option in draw(st.dictionaries(NAMES, st.integers(0, 1))).items()
        }
        for kind in KINDS
    }
    rules = draw(st.dictionaries(NAMES, st.tuples(tables, NAMES)))
    return Config(
        path=Path("/config.toml"),
        daemon=draw(daemons),
        plugins=PluginsTable(),
        instances=instances,
        sessions={},
        backfills={name: rule(name, *rest) for name, rest in rules.items()},
        registry=Registry([]),
    )


def all_of(config):
    return {section_of(one): one for kind in KINDS for one in config.instances[kind].values()}


@given(configs())
def test_nothing_differs_from_itself(config):
    same = replace(config, registry=Registry([]))
    assert not any(compare(config, same).told().values())


@given(configs(), configs())
def test_leaving_and_coming_turn_the_old_into_the_new(old, new):
    diff = compare(old, new)
    running = all_of(old)
    for one in diff.leaving:
        assert running.pop(section_of(one)) == one
    for one in diff.coming:
        assert running.setdefault(section_of(one), one) is one
    assert running == all_of(new)


@given(configs(), configs())
def test_what_is_alike_is_left_alone(old, new):
    diff = compare(old, new)
    touched = {section_of(one) for one in (*diff.leaving, *diff.coming)}
    before, after = all_of(old), all_of(new)
    assert touched == {name for name in {*before, *after} if before.get(name) != after.get(name)}
    told = diff.told()
    assert {*told["added"], *told["removed"], *told["changed"]} == touched


@given(configs(), configs())
def test_rules_and_keys_that_differ_are_named(old, new):
    diff = compare(old, new)
    assert set(diff.rules) == {
        f"backfills.{name}"
        for name in {*old.backfills, *new.backfills}
        if old.backfills.get(name) != new.backfills.get(name)
    }
    kept = without_restart(old, new)
    assert compare(kept, new).daemon == ()
    assert compare(kept, new).restart == diff.restart
    assert compare(old, kept).restart == ()
    assert set(diff.restart) <= {f"daemon.{key}" for key in ONLY_AT_START}


@given(configs(), configs())
def test_the_way_back_is_the_reverse(old, new):
    there, back = compare(old, new), compare(new, old)
    assert set(there.rules) == set(back.rules)
    assert [section_of(one) for one in there.added] == [section_of(one) for one in back.removed]
    assert {section_of(a): (a, b) for a, b in there.changed} == {
        section_of(a): (b, a) for a, b in back.changed
    }
