"""Fixtures for the tests of plugins; pytest finds them wherever tardisd is installed.

    tardisd_context   a context for a plugin that runs outside a daemon
    tardisd_engine    runs a coroutine with the real engine in virtual time
    tardisd_daemon    starts real daemons, which end with the test

Nothing is imported before a test asks for it, trio and pytest-trio included: pytest loads this file
in every project of an environment that has tardisd, and must not become slower there. (It also has
the asserts of an installed plugin rewritten, so that a failing suite says what it compared.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tardisd.plugins.base import Context
    from tardisd.testing.daemon import DaemonProcess


@pytest.fixture
def tardisd_context(tmp_path: Path) -> Context:
    """Return a context whose `data_dir` is the test's own folder; it has no sessions."""
    from tardisd.testing.exchange import suite_context  # noqa: PLC0415

    return suite_context("test", tmp_path)


@pytest.fixture
def tardisd_engine() -> Callable[..., Any]:
    """Return `tardisd.testing.engine.run_engine`, for tests that are not async themselves.

    It takes `async def main(engine)`, and `sinks={"name": plugin}` to deliver to. Hours of market
    time take milliseconds.
    """
    from tardisd.testing.engine import run_engine  # noqa: PLC0415

    return run_engine


@pytest.fixture
def tardisd_daemon(tmp_path: Path) -> Iterator[Callable[..., DaemonProcess]]:
    """Return a function that starts a daemon with a configuration, and waits until it is ready.

    Its data is in the test's own folder: a second one finds what the first has stored. All are
    ended with the test.
    """
    from tardisd.testing.daemon import DaemonProcess  # noqa: PLC0415

    started: list[DaemonProcess] = []

    def start(config: str) -> DaemonProcess:
        daemon = DaemonProcess(tmp_path / "tardisd", config)
        started.append(daemon)
        daemon.start()
        return daemon

    yield start
    for daemon in started:
        daemon.kill()
