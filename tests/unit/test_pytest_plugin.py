"""The pytest plugin that comes along: its fixtures, and what it costs those who use none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tardisd.market.series import Series
from tardisd.market.time import parse_time
from tardisd.testing.ticks import random_trades

TRADES = random_trades(Series.parse("okx:BTC/USDT@trade"), 500, parse_time("2024-03-01T00:00:00Z"))


def test_a_context_is_of_this_test_alone(tardisd_context, tmp_path):
    assert tardisd_context.data_dir == tmp_path
    assert tardisd_context.host.ready


def test_the_engine_runs_in_virtual_time(tardisd_engine):
    async def main(engine):
        await engine.store(TRADES)
        return (await engine.play([TRADES.series], TRADES.extent(), speed=1.0)).end

    end = tardisd_engine(main)
    assert (end["reason"], end["ticks"]) == ("finished", 500)


def test_a_daemon_that_cannot_start_says_why(tardisd_daemon):
    with pytest.raises(AssertionError, match=r"(?s)ended by itself.*no storage plugin is named"):
        tardisd_daemon('[storages.main]\nplugin = "nowhere"\n')


def test_a_daemon_answers_and_ends_in_order(tardisd_daemon):
    daemon = tardisd_daemon('[storages.main]\nplugin = "sqlite"\n')
    assert [it["name"] for it in daemon.call("instance.list")] == ["main"]
    assert "main" in daemon.ctl("status") or "ready" in daemon.log
    with pytest.raises(AssertionError, match="session_not_found"):
        daemon.call("session.show", session_id="none")
    with pytest.raises(AssertionError, match="no session"):
        daemon.ctl("session", "show", "none")
    daemon.stop()


def test_it_costs_nothing_where_it_is_not_used(tmp_path):
    """pytest loads it in every project of the environment: numpy and trio must not come along."""
    test = tmp_path / "test_one.py"
    test.write_text(
        "import sys\n\n\ndef test_one():\n"
        "    heavy = {'numpy', 'trio', 'pyarrow', 'msgspec', 'httpx'}\n"
        "    assert 'tardisd.testing.pytest_plugin' in sys.modules\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    others = ("cacheprovider", "hypothesispytest", "trio", "anyio")
    words = ["-q", *(word for name in others for word in ("-p", f"no:{name}"))]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(test)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
