"""What all tests share: where the real data is, and the programs as they are installed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# How long one example takes says more about the machine than about the code. A run tries the same
# examples as the last one, so that a failure is of what was changed; TARDISD_CHAOS=1 looks further.
CHAOS = bool(os.environ.get("TARDISD_CHAOS"))
settings.register_profile("tardisd", deadline=None, derandomize=not CHAOS)
settings.load_profile("tardisd")

# A shell that runs us in the background has us ignore Ctrl-C, and so would all that we start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("tardisd.testing")  # a failing suite then says what it compared


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real venue data; skip where it is missing (it is never committed)."""
    folder = Path(os.environ.get("TARDISD_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real venue data is not there: {folder} (set TARDISD_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def program() -> Path:
    """Return the folder that holds the installed `tardisd` and `tardisctl`."""
    return Path(sys.executable).parent
