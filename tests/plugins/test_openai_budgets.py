"""Budgets of the AI analyzer: they hold whoever asks at the same time, and across restarts."""

from __future__ import annotations

import sqlite3
from contextlib import suppress

import pytest
import trio
from openai_rig import AiServer, make, question, raw, says, signal, whole
from test_openai_answers import asking
from test_openai_faults import refused

from tardisd.errors import PluginError, RequestError
from tardisd.market.time import DAY
from tardisd_openai import budget as budget_module
from tardisd_openai import ledger as ledger_module

USED = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}


class OneSession:
    """As much of a session as a budget looks at."""

    def __init__(self, session_id):
        self.session_id = session_id


def spent(folder):
    """Return (requests, tokens) by scope."""
    with sqlite3.connect(folder / "ai-answers.sqlite") as db:
        found = db.execute("SELECT scope, requests, tokens FROM spent").fetchall()
    db.close()
    return {scope.partition(":")[0]: (requests, tokens) for scope, requests, tokens in found}


async def flood(analyzer, count, **fields):
    """Ask different questions at the same time; return how many were answered."""
    answered, errors = [], []

    async def ask(at):
        try:
            answered.append(await analyzer.ask(question(at + 1, **fields)))
        except RequestError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for at in range(count):
            nursery.start_soon(ask, at)
    assert len(answered) + len(errors) == count
    assert {error.code for error in errors} <= {"analyzer_unavailable"}
    return len(answered), errors


async def test_requests_of_a_day(tmp_path):
    options = {"max_requests_per_day": 5, "max_concurrent": 10}
    async with asking(tmp_path, says("x", usage=USED), **options) as (analyzer, server):
        answered, errors = await flood(analyzer, 20)
        assert (answered, len(server.asked)) == (5, 5)
        assert errors[0].message == (
            "max_requests_per_day: 5 of 5 requests of today (UTC) are made; wait, or allow more"
        )
    assert spent(tmp_path) == {"day": (5, 500)}
    async with asking(tmp_path, **options) as (analyzer, server):  # after a restart
        await refused(analyzer, "max_requests_per_day", count=30)
        assert server.asked == []


async def test_requests_of_a_session(tmp_path):
    options = {"max_requests_per_session": 3, "max_concurrent": 10}
    async with asking(tmp_path, **options) as (analyzer, server):
        sessions = analyzer.context.sessions.found
        sessions["a"], sessions["b"] = OneSession("a"), OneSession("b")
        assert (await flood(analyzer, 9, session_id="a"))[0] == 3
        assert (await flood(analyzer, 9, session_id="b", more=1))[0] == 3
        assert (await flood(analyzer, 9, more=2))[0] == 9  # of no session
        assert len(server.asked) == 15
        await refused(analyzer, "of this session", count=20, session_id="a")
    async with asking(tmp_path, **options) as (analyzer, server):
        # After a restart it is still the same session, which may be durable.
        sessions = analyzer.context.sessions.found
        sessions["a"] = OneSession("a")
        await refused(analyzer, "max_requests_per_session", count=20, session_id="a")
        sessions["a"] = OneSession("a")  # but this is another one
        await analyzer.ask(question(20, session_id="a"))


async def test_tokens_hold_while_many_ask(tmp_path):
    """What is granted beforehand counts, so that no answer comes on top of the limit."""
    options = {"max_tokens_per_day": 3000, "max_tokens": 500, "max_concurrent": 10, "system": ""}
    async with asking(tmp_path, says("x", usage=USED), **options) as (analyzer, server):
        answered, errors = await flood(analyzer, 10)
        assert 1 <= answered == len(server.asked) < 6
        assert "max_tokens_per_day: " in errors[0].message
        assert spent(tmp_path) == {"day": (answered, 100 * answered)}  # settled
        while answered < 30:
            try:
                await analyzer.ask(question(1, more=answered))
                answered += 1
            except RequestError:
                break
        assert 3000 - 1000 < spent(tmp_path)["day"][1] <= 3000


async def test_tokens_of_a_session(tmp_path):
    async with asking(tmp_path, max_tokens_per_session=1200) as (analyzer, server):
        analyzer.context.sessions.found["a"] = OneSession("a")
        await analyzer.ask(question(1, session_id="a"))
        await refused(analyzer, "max_tokens_per_session", count=20, session_id="a")
        assert len(server.asked) == 1


async def test_repetitions_are_requests_too(tmp_path):
    fault = raw(503, "")
    async with asking(tmp_path, fault, max_requests_per_day=3) as (analyzer, server):
        await refused(analyzer, "max_requests_per_day: 3 of 3")
        assert len(server.asked) == 3


async def test_what_is_booked(tmp_path):
    cases = {
        "no usage": (whole("x", usage=None), lambda tokens: tokens > 500),
        "usage in part": (whole("x", usage={"prompt_tokens": 7}), lambda tokens: tokens == 7),
        "refused": (raw(400, ""), lambda tokens: tokens == 0),
        "failed": (raw(500, ""), lambda tokens: tokens > 500),
        "repaired": (says("x", usage=USED), lambda tokens: tokens == 200),
        "good": (says(signal(), usage=USED), lambda tokens: tokens == 100),
    }
    for name, (action, fits) in cases.items():
        folder = tmp_path / name
        async with asking(folder, action, max_attempts=1) as (analyzer, _):
            kind = "signal" if name in {"repaired", "good"} else "trend"
            with suppress(RequestError):
                await analyzer.ask(question(kind=kind))
        assert fits(spent(folder)["day"][1]), (name, spent(folder))


async def test_kept_answers_cost_nothing(tmp_path):
    async with asking(tmp_path) as (analyzer, _):
        await analyzer.ask(question())
    async with asking(tmp_path, max_requests_per_day=0) as (analyzer, server):
        assert (await analyzer.ask(question())).cached
        await refused(analyzer, "0 requests", count=9)
        assert server.asked == []


async def test_tomorrow_there_is_a_new_budget(tmp_path, monkeypatch):
    async with asking(tmp_path, max_requests_per_day=1) as (analyzer, server):
        await analyzer.ask(question())
        await refused(analyzer, "max_requests_per_day", count=2)
        later = ledger_module.wall_ns() + DAY
        monkeypatch.setattr(ledger_module, "wall_ns", lambda: later)
        await analyzer.ask(question(2))
        assert budget_module.today() == later // DAY
        assert len(server.asked) == 2


async def test_two_instances_of_one_name_share_it(tmp_path):
    """As during a reload, when the new form starts beside the old one."""
    options = {"max_requests_per_day": 4, "max_concurrent": 10}
    async with AiServer().running() as server:
        one, other = (make(folder=tmp_path, url=server.url, **options) for _ in range(2))
        async with one.run(), other.run(), trio.open_nursery() as nursery:
            nursery.start_soon(flood, one, 10)
            nursery.start_soon(flood, other, 10)
    assert 4 <= len(server.asked) == spent(tmp_path)["day"][0] == 4


async def test_a_file_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "ai-answers.sqlite"
    path.write_bytes(b"this is no database, not at all, however long one looks at it" * 20)
    with pytest.raises(PluginError, match=r"ai-answers\.sqlite: cannot be used \(file is not a"):
        async with make(folder=tmp_path).run():
            pass
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(PluginError, match="written by a newer tardisd"):
        async with make(folder=tmp_path).run():
            pass


async def test_a_file_that_breaks_stops_the_spending(tmp_path):
    async with asking(tmp_path) as (analyzer, server):
        with sqlite3.connect(tmp_path / "ai-answers.sqlite") as db:
            db.execute("DROP TABLE spent")
        db.close()
        await refused(analyzer, "it keeps the budgets, so nothing is asked", "analyzer_unavailable")
        assert server.asked == []
    assert (tmp_path / "ai-answers.sqlite").stat().st_mode & 0o777 == 0o600
