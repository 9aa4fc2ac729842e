"""What drills with all neighbours share: services that can be killed, and progress under control.

Nothing here happens at a time. A follower reads as far as it is told, and holds the session there;
a venue answers as far as it is told, and holds the backfill there.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from daemon_rig import ENVIRON, Daemon, wait_for
from websocket_client import DEADLINE_SECS, Closed, Received, WebSocket

from tardisd.testing.venues.binance import BinanceVenue

sys.path.append(str(Path(__file__).resolve().parents[1] / "plugins"))
from redis_rig import quiet_port

RECEIVER = Path(__file__).with_name("hook_receiver.py")


class Hook:
    """A receiver of webhooks: a process at an address that stays the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._port = quiet_port()
        self.url = f"http://127.0.0.1:{self._port}/hook"
        self.start()

    def start(self) -> None:
        """Start it (again), and wait until it listens."""
        command = [sys.executable, RECEIVER, str(self._port), self.path]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRON
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise AssertionError(self._process.communicate()[1].decode())

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def hook_at(path: Path) -> Iterator[Hook]:
    """Run a receiver for as long as the block lasts."""
    hook = Hook(path)
    try:
        yield hook
    finally:
        hook.kill()


class Neighbour:
    """A service beside the daemon, and what the daemon's log says when it goes and comes back."""

    def __init__(self, service: Any, gone: str, back: str) -> None:
        self.service = service
        self.kills = 0
        self._gone, self._back = gone, back
        self._outages = 0

    def kill(self, daemon: Daemon) -> None:
        """End it, when the daemon has found it again after the time before."""
        wait_for(lambda: self._ended(daemon) >= self._begun(daemon), "the daemon to find it again")
        self._outages = self._begun(daemon)
        self.service.kill()
        self.kills += 1

    def is_missed(self, daemon: Daemon) -> bool:
        """Tell whether the daemon has noticed that it is gone."""
        return self._begun(daemon) > self._outages

    def _begun(self, daemon: Daemon) -> int:
        return daemon.log.count(self._gone)

    def _ended(self, daemon: Daemon) -> int:
        return daemon.log.count(self._back)


class Holder:
    """Follows a session in a thread, as far as it may; the session then waits for it."""

    def __init__(self, client: WebSocket) -> None:
        self.received = Received()
        self.seq = 0
        self._client = client
        self._limit = 0
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while self.received.end is None:
                with self._changed:
                    self._changed.wait_for(lambda: self.seq < self._limit)
                message = self._client.get()
                self.received.take(message)
                self.seq = message.get("seq", self.seq)
        except (Closed, OSError, AssertionError) as error:
            self._failure = error

    def may_read(self, upto: int) -> None:
        """Let it read up to that number."""
        with self._changed:
            self._limit = max(self._limit, upto)
            self._changed.notify()

    def read(self, upto: int) -> None:
        """Have it read up to that number."""
        self.may_read(upto)
        wait_for(lambda: self.seq >= upto or self._check(), f"tick {upto}")

    def read_until(self, enough: Callable[[], bool]) -> None:
        """Let it read on, not far, until it is enough; it may have come to a halt before."""

        def look() -> bool:
            self._check()
            self.may_read(self.seq + 200)
            return enough()

        wait_for(look, f"something that begins at tick {self.seq}")

    def read_all(self) -> Received:
        """Have it read to the end; return everything."""
        self.may_read(sys.maxsize)
        self._thread.join(DEADLINE_SECS)
        self._check()
        assert self.received.end is not None, f"no end came after tick {self.seq}"
        return self.received

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


class HoldingVenue(BinanceVenue):
    """A venue that answers for candles from `holds` on only when that hold has been let go."""

    def __init__(self, data: Any, holds: list[int], **options: Any) -> None:
        super().__init__(data, **options)
        self._holds = holds
        self._let = [threading.Event() for _ in holds]
        self._met = [threading.Event() for _ in holds]

    async def _answer(self, role: str, request: Any) -> Any:
        begin = request.params.get("startTime")
        for at, hold in enumerate(self._holds if begin else ()):
            if int(begin) >= hold:
                self._met[at].set()
                await trio.to_thread.run_sync(self._let[at].wait, abandon_on_cancel=True)
        return await super()._answer(role, request)

    def await_hold(self, at: int) -> None:
        """Wait until somebody is held there."""
        assert self._met[at].wait(DEADLINE_SECS), f"nobody came as far as {self._holds[at]}"

    def let_go(self, at: int) -> None:
        """Hold nobody there any more."""
        self._let[at].set()

    def let_all_go(self) -> None:
        """Hold nobody anywhere any more."""
        for let in self._let:
            let.set()
