"""What plugins are handed of the daemon and of each other."""

from __future__ import annotations

import pytest

from tardisd.errors import RequestError
from tardisd.instances import DaemonHost
from tardisd.plugins.base import Context
from tardisd.plugins.host import Board, find_storage


def test_a_storage_is_found_by_name_or_by_default():
    storages = {"main": object(), "cold": object()}
    assert find_storage(storages, "main", None) is storages["main"]
    assert find_storage(storages, "main", "cold") is storages["cold"]
    host = DaemonHost(storages, "main", metrics=lambda: "figures")
    assert host.storage() is storages["main"]
    assert (host.metrics(), host.ready) == ("figures", False)


@pytest.mark.parametrize(("default", "name"), [(None, None), ("main", "man"), ("main", "")])
def test_a_storage_that_is_not_there_is_named_with_those_that_are(default, name):
    with pytest.raises(RequestError, match="configured: cold, main") as refused:
        find_storage({"main": object(), "cold": object()}, default, name)
    assert refused.value.code == "bad_request"


def test_offers_last_as_long_as_they_are_held(tmp_path):
    board = Board()
    one = Context("one", tmp_path, None, board=board)
    two = Context("two", tmp_path, None, board=board)
    assert board.offered("http.routes") == ()
    with one.offer("http.routes", "a"), two.offer("other", "b"):
        seen = board.version
        with two.offer("http.routes", "a"):
            offers = board.offered("http.routes")
            assert [(offer.by, offer.thing) for offer in offers] == [("one", "a"), ("two", "a")]
            assert board.version != seen
        assert [offer.by for offer in board.offered("http.routes")] == ["one"]
    assert board.offered("http.routes") == ()


def test_outside_a_daemon_there_is_nothing(tmp_path):
    context = Context("one", tmp_path, None)
    assert (context.host.ready, context.host.metrics()) == (True, "")
    with pytest.raises(RequestError, match="configured: none"):
        context.host.storage()
    with context.offer("topic", 1):
        assert Context("two", tmp_path, None).board.offered("topic") == ()
