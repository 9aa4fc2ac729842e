"""Tests that need a server skip without it, and fail where it is required."""

from __future__ import annotations

import socket

import pytest
import services


@pytest.fixture(params=["postgres", "redis"])
def ask(request, monkeypatch):
    """Return a way to ask for a service that is certainly not there."""
    with socket.socket() as taken:  # bound, but it does not listen: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("TARDISD_TEST_POSTGRES", f"postgresql://{address}/postgres")
        monkeypatch.setenv("TARDISD_TEST_REDIS", f"redis://{address}/0")
        yield getattr(services, {"postgres": "postgres_dsn", "redis": "redis_url"}[request.param])


def test_without_the_server_a_test_is_skipped(ask, monkeypatch):
    monkeypatch.delenv("TARDISD_TEST_SERVICES", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"is missing$"):
        ask()


def test_where_it_is_required_the_test_fails(ask, monkeypatch):
    monkeypatch.setenv("TARDISD_TEST_SERVICES", "required")
    with pytest.raises(pytest.fail.Exception, match="is required and missing"):
        ask()


@pytest.mark.services
def test_the_servers_are_there():
    assert services.postgres_dsn()
    assert services.redis_url()
