"""What the end-to-end tests share: daemons and clients as real processes and real sockets.

Everything is synchronous and has a deadline; nothing here knows how tardisd works inside.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from websocket_client import DEADLINE_SECS, Received, WebSocket

PROGRAMS = Path(sys.executable).parent
MINUTE_MS = 60_000
OPEN_MS = 1_709_251_200_000  # 2024-03-01T00:00:00Z

# Programs that start over and over should not have to compile themselves each time.
ENVIRON = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}

CONFIG = """
[daemon]
data_dir = "{folder}/data"
control_socket = "{folder}/control.sock"
log_format = "text"

[storages.main]
plugin = "sqlite"

[sinks.ws]
plugin = "websocket"
listen = "127.0.0.1:0"
"""


def wait_for(ready: Callable[[], Any], what: str, secs: float = DEADLINE_SECS) -> Any:
    """Return the first true answer of `ready`; fail when there is none in time."""
    pause = threading.Event()
    give_up = time.monotonic() + secs
    while not (found := ready()):
        assert time.monotonic() < give_up, f"waited {secs:g} s in vain for {what}"
        pause.wait(0.01)
    return found


def run(*words: object, code: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one of our programs to its end; it must exit with `code`, without a traceback."""
    program, *rest = map(str, words)
    done = subprocess.run(
        [PROGRAMS / program, *rest],
        text=True,
        timeout=DEADLINE_SECS,
        check=False,
        **{"capture_output": True, "env": ENVIRON, **options},
    )
    assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in (done.stderr or ""), done.stderr
    return done


class Daemon:
    """A `tardisd run` process with a folder, a log and a control socket of its own.

    `config` goes into config.toml with `{folder}` filled in. It has said READY=1 when made.
    """

    def __init__(
        self,
        folder: Path,
        config: str = CONFIG,
        *,
        environ: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.config = folder / "config.toml"
        self.socket = folder / "control.sock"
        self.config.write_text(config.replace("{folder}", str(folder)))
        self._environ = {**ENVIRON, **(environ or {})}
        self._prefix = prefix
        self._clients: list[WebSocket] = []
        self._commands: list[subprocess.Popen[str]] = []
        self.notes: list[str] = []
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start the process (again) and wait until it is ready."""
        self._log = self.folder / f"log.{sum(1 for _ in self.folder.glob('log.*'))}"
        place = self.folder / "notify"
        place.unlink(missing_ok=True)
        self._notify.close()
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(place))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self._prefix, PROGRAMS / "tardisd", "run", "-c", self.config],
                env={**self._environ, "NOTIFY_SOCKET": str(place)},
                stdout=log,
                stderr=log,
            )
        self.await_note("READY=1")

    def forget_notes(self) -> None:
        """Drop what came on the NOTIFY_SOCKET before."""
        self._notify.settimeout(0)
        with suppress(BlockingIOError):
            while True:
                self._notify.recv(4096)

    def await_note(self, text: str) -> str:
        """Return the first datagram on the NOTIFY_SOCKET that contains `text`."""
        give_up = time.monotonic() + DEADLINE_SECS
        self._notify.settimeout(0.2)
        while time.monotonic() < give_up:
            try:
                self.notes.append(self._notify.recv(4096).decode())
            except TimeoutError:
                assert self.process.poll() is None, self.log
                continue
            if text in self.notes[-1]:
                return self.notes[-1]
        raise AssertionError(f"no {text} came: {self.notes} {self.log}")

    @property
    def log(self) -> str:
        """What this run of the daemon has logged so far."""
        return self._log.read_text()

    @property
    def port(self) -> int:
        """The port on which the WebSocket sink listens."""
        found = wait_for(
            lambda: re.search(r"websocket listening .*url=wss?://[^:]+:(\d+)/", self.log),
            "the WebSocket sink",
        )
        return int(found[1])

    def ctl(self, *words: object, code: int = 0, **options: Any) -> str:
        """Run tardisctl; return its stdout, or its stderr when it is to fail."""
        done = run("tardisctl", "--socket", self.socket, *words, code=code, **options)
        return done.stderr if code else done.stdout

    def json(self, *words: object) -> Any:
        """Return the one JSON value that a tardisctl command prints."""
        return json.loads(self.ctl("--json", *words))

    def ask(self, method: str, **params: object) -> Any:
        """Return the result of a control method; much faster than tardisctl, for polling."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(DEADLINE_SECS)
            control.connect(str(self.socket))
            control.sendall(json.dumps(request).encode() + b"\n")
            with control.makefile("rb") as answers:
                return json.loads(answers.readline())["result"]

    def start_ctl(self, *words: object, **options: Any) -> subprocess.Popen[str]:
        """Start tardisctl and leave it running."""
        command = [str(PROGRAMS / "tardisctl"), "--socket", *map(str, (self.socket, *words))]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": ENVIRON}
        self._commands.append(subprocess.Popen(command, text=True, **{**pipes, **options}))
        return self._commands[-1]

    def load(self, path: Path, symbol: str, data_type: str, *more: object, code: int = 0) -> str:
        """Import a Binance file; return what tardisctl printed."""
        words = ["data", "import", path, "--exchange", "binance", "--symbol", symbol]
        return self.ctl(*words, "--data-type", data_type, *more, code=code)

    def websocket(self, **options: Any) -> WebSocket:
        """Return a client that has heard `connected`."""
        self._clients.append(WebSocket(self.port, **options))
        return self._clients[-1]

    def kill(self) -> None:
        """End the process at once, as `kill -9` does."""
        self.process.kill()
        self.process.wait()

    def disconnect(self) -> None:
        """Have all clients vanish."""
        for client in self._clients:
            client.close()

    def close(self) -> None:
        """End everything that was started with this daemon."""
        self.kill()
        self._notify.close()
        self.disconnect()
        for command in self._commands:
            command.kill()
            command.communicate()

    def stop(self, number: int = signal.SIGTERM, secs: float = DEADLINE_SECS) -> None:
        """Stop it as systemd does; it must exit with 0 and have no traceback in its log."""
        self.process.send_signal(number)
        self.check_exit(secs)

    def check_exit(self, secs: float = DEADLINE_SECS) -> None:
        """Wait for the process to exit with 0 and no traceback in its log."""
        assert self.process.wait(secs) == 0, self.log
        self.check_log()

    def check_log(self) -> None:
        """Fail when the log tells of a bug."""
        for bad in ("Traceback", "internal error", "control method failed", "client failed"):
            assert bad not in self.log, self.log


@contextmanager
def running(folder: Path, config: str = CONFIG, **options: Any) -> Iterator[Daemon]:
    """Run a daemon for a while. It must then stop in order, unless the test ended it."""
    daemon = Daemon(folder, config, **options)
    try:
        yield daemon
        daemon.disconnect()
        if daemon.process.poll() is None:
            daemon.stop()
    finally:
        daemon.close()


class Witness:
    """A client that follows a paced session in a thread while somebody misbehaves elsewhere."""

    def __init__(self, daemon: Daemon, **fields: object) -> None:
        self._client = daemon.websocket()
        created = self._client.ask("create_session", **fields)
        assert created["type"] == "session_created", created
        self.session_id = created["session_id"]
        self._received: Received | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._received = self._client.receive()

    def finish(self, daemon: Daemon) -> Received:
        """Let the session run to its end at once; return all that was received."""
        with daemon.websocket() as other:
            other.ask("speed_change", session_id=self.session_id, speed="max")
        self._thread.join(DEADLINE_SECS)
        self._client.close()
        assert self._received is not None, "the witness did not hear its session end"
        self._received.check_seq()
        return self._received


def klines(count: int, start_ms: int = OPEN_MS, price: int = 61_130) -> str:
    """Return made-up Binance 1m candles as the venue writes them; the same each time."""
    noise = random.Random(price)
    rows = []
    for at in range(count):
        begin = start_ms + at * MINUTE_MS
        low = price + noise.randrange(1000)
        opened, close = (f"{low + noise.randrange(20)}.{noise.randrange(100):02}" for _ in "oc")
        volume, quote = (f"{noise.randrange(10**4)}.{noise.randrange(10**5):05}" for _ in "vq")
        prices = f"{opened},{low + 20}.00,{low},{close},{volume}"
        rows.append(f"{begin},{prices},{begin + 59_999},{quote},{noise.randrange(2000)},1.1,7.11,0")
    return "\n".join(rows) + "\n"


def zipped(path: Path, text: str) -> Path:
    """Write a CSV as a venue's zip archive does; return its path."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(path.with_suffix(".csv").name, text)
    return path


def store_candles(
    daemon: Daemon, count: int = 1440, symbols: Sequence[str] = ("BTC",)
) -> list[str]:
    """Import made-up candles from 2024-03-01 on; return the series."""
    for at, symbol in enumerate(symbols):
        path = daemon.folder / f"{symbol}USDT-1m-2024-03-01.csv"
        path.write_text(klines(count, price=61_130 + at * 2000))
        daemon.load(path, f"{symbol}/USDT", "candle_1m")
    return [f"binance:{symbol}/USDT@candle_1m" for symbol in symbols]


DAY: Mapping[str, str] = {"start_time": "2024-03-01T00:00:00Z", "end_time": "2024-03-02T00:00:00Z"}
