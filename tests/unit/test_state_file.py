"""The daemon's own file: what is put is there after a restart, and strangers' files are refused."""

from __future__ import annotations

import sqlite3

import pytest

from tardisd.errors import StorageError, StorageNewer
from tardisd.state import VERSION, SessionRecord, State

RECORD = SessionRecord("s", {"series": ["a"], "speed": "max", "n": 2**62}, 5, "active")
ENDED = SessionRecord(
    "s", RECORD.request, 5, "finished", 9, {"hash": "\u00e9", "ticks": 3, "data_changed": True}
)


def test_records_are_kept_replaced_and_forgotten(tmp_path):
    path = tmp_path / "deep" / "state.sqlite"
    state = State(path)
    state.put(RECORD)
    state.put(SessionRecord("earlier", {}, 1, "stopped", 2, {}))
    assert [record.session_id for record in state.sessions()] == ["earlier", "s"]
    state.put(ENDED)
    state.close()
    state = State(path)
    assert state.sessions()[1] == ENDED
    state.forget("s")
    state.forget("never there")
    assert [record.session_id for record in state.sessions()] == ["earlier"]
    state.close()


def test_a_newer_file_is_left_alone(tmp_path):
    path = tmp_path / "state.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with pytest.raises(StorageNewer, match="upgrade tardisd, or move the file away"):
        State(path)


def test_what_is_no_database_is_told_by_name(tmp_path):
    path = tmp_path / "state.sqlite"
    path.write_text("not a database, but long enough to be taken for one" * 100)
    with pytest.raises(StorageError, match=f"own state {path}: file is not a database"):
        State(path)
    with pytest.raises(StorageError, match="own state"):
        State(path / "below-a-file")
