"""The daemon's own records: kept, bounded by who writes them, and brought over from older files."""

from __future__ import annotations

import sqlite3

import pytest

from tardisd.errors import StorageError, StorageNewer
from tardisd.state import VERSION, JobRecord, SessionRecord, State

# A file as the first version of these tables left it.
FIRST = """
CREATE TABLE "sessions" (
    "session_id" TEXT PRIMARY KEY, "request" TEXT, "created_at" INTEGER, "status" TEXT,
    "ended_at" INTEGER, "end" TEXT
);
INSERT INTO sessions VALUES ('s1', '{"speed":1}', 5, 'finished', 9, '{"ticks":3}');
PRAGMA user_version = 1;
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "state.sqlite"


def test_records_survive(path):
    session = SessionRecord("s", {"speed": 10}, 7, "active")
    jobs = [JobRecord(2, None, False, {"a": 1}), JobRecord(1, "btc", True, {"b": [2]})]
    state = State(path)
    state.put(session)
    for job in jobs:
        state.put_job(job)
    state.remember("api.venue.com", 10**19 // 2, "418")
    state.close()
    again = State(path)
    assert again.sessions() == [session]
    assert again.jobs() == sorted(jobs, key=lambda job: job.job_id)
    assert again.banned_until("api.venue.com") == 10**19 // 2
    assert again.banned_until("other") is None
    again.put_job(JobRecord(2, None, True, {}))
    again.remember("api.venue.com", 3, "over")
    again.forget_job(1)
    assert again.jobs() == [JobRecord(2, None, True, {})]
    assert again.banned_until("api.venue.com") == 3
    again.close()


def test_an_older_file_is_brought_over(path):
    path.parent.mkdir()
    with sqlite3.connect(path) as older:
        older.executescript(FIRST)
    older.close()
    state = State(path)
    assert state.sessions() == [SessionRecord("s1", {"speed": 1}, 5, "finished", 9, {"ticks": 3})]
    assert state.jobs() == []
    state.put_job(JobRecord(1, None, False, {}))
    state.close()
    again = State(path)
    assert len(again.jobs()) == 1
    again.close()


def test_a_newer_file_is_refused(path):
    State(path).close()
    with sqlite3.connect(path) as newer:
        newer.execute(f"PRAGMA user_version = {VERSION + 1}")
    newer.close()
    with pytest.raises(StorageNewer, match="upgrade tardisd"):
        State(path)


def test_a_migration_that_fails_leaves_the_file_as_it_was(path, monkeypatch):
    path.parent.mkdir()
    with sqlite3.connect(path) as older:
        older.executescript(FIRST)
        older.execute("CREATE TABLE bans (x)")
    older.close()
    with pytest.raises(StorageError, match="already exists"):
        State(path)
    with sqlite3.connect(path) as found:
        assert found.execute("PRAGMA user_version").fetchone() == (1,)
        assert not found.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs'").fetchall()
    found.close()


def test_a_damaged_file_says_what_to_do(path):
    path.parent.mkdir()
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(StorageError, match="move the file away"):
        State(path)
