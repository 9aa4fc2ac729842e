"""`tardisctl` starts fast: what its help loads, and what a command may load."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"asyncio", "httpx", "msgspec", "numpy", "rich", "trio"}


def loaded(code):
    """Return the modules that are loaded after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("words", ["[]", "['session']", "['data', 'import']"])
def test_help_loads_nothing_heavy(words):
    code = f"from tardisd.cli.ctl import cli\ncli.main([*{words}, '--help'], standalone_mode=False)"
    found = loaded(code)
    assert "tardisd.cli.ctl_session" in found
    assert not HEAVY & found
    assert {"tardisd.daemon", "tardisd.control.server", "tardisd.market.columns"}.isdisjoint(found)


def test_a_call_loads_neither_numpy_nor_trio():
    found = loaded(
        "from tardisd.cli.ctl import cli\n"
        "import tardisd.control.client, tardisd.control.methods, tardisd.market.series\n"
        "from tardisd.errors import NotRunning\n"
        "try:\n"
        "    cli.main(['--socket', '/none', 'series', 'gaps', 'a:B/C@trade', '--from', '-1d'],"
        " standalone_mode=False)\n"
        "except NotRunning: pass\n"
    )
    assert "tardisd.control.client" in found
    assert {"numpy", "trio", "httpx", "rich", "asyncio"}.isdisjoint(found)
