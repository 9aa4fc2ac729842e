"""Talk to the daemon over its control socket, one call at a time; blocking, without trio.

`tardisctl` is built upon it, and scripts may be. Progress and watched ticks come as notifications
while a call waits for its answer. Closing the client ends what it asked for.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tardisd import __version__
from tardisd.config.paths import SYSTEM_SOCKET, default_data_dir
from tardisd.control import protocol
from tardisd.control.protocol import Lines, Notification, Reply
from tardisd.errors import ControlError, NotRunning

CONNECT_TIMEOUT_SECS = 10.0
_RECEIVE_BYTES = 1 << 16

OnNotification = Callable[[str, Mapping[str, Any]], None]


def control_socket(explicit: str | None = None) -> Path:
    """Return where the control socket is to be found when no config says it.

    The order is: `explicit`, `$TARDISD_SOCKET`, then the first there is of
    `$XDG_RUNTIME_DIR/tardisd/control.sock`, `/run/tardisd/control.sock` and `control.sock` in the
    default data folder, which is where a daemon listens that has neither of the others.
    """
    if named := explicit or os.environ.get("TARDISD_SOCKET"):
        return Path(named).expanduser()
    places = [SYSTEM_SOCKET, default_data_dir(os.environ) / "control.sock"]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        places.insert(0, Path(runtime) / "tardisd" / "control.sock")
    return next((place for place in places if place.exists()), places[0])


class ControlClient:
    """A connection to the daemon. Use from one thread, as a context manager."""

    def __init__(self, path: Path) -> None:
        """Connect. Raises NotRunning when nobody listens, PermissionError when we may not ask."""
        self.path = path
        self._calls = 0
        self._lines = Lines(protocol.MAX_REPLY_BYTES)
        self._ready: deque[Reply | Notification] = deque()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect(path)
        except BaseException:
            self._socket.close()
            raise

    def _connect(self, path: Path) -> None:
        self._socket.settimeout(CONNECT_TIMEOUT_SECS)
        try:
            self._socket.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise NotRunning(f"no daemon listens on {path}") from None
        except PermissionError:
            raise PermissionError(errno.EACCES, "no permission", str(path)) from None
        except OSError as error:
            text = str(error.strerror or error).lower()
            raise ControlError("connect_failed", f"cannot connect to {path}: {text}") from None
        self._socket.settimeout(None)

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; idempotent."""
        self._socket.close()

    def wait_until_gone(self, timeout_secs: float) -> bool:
        """Wait for the daemon to hang up; tell whether it did in time."""
        self._socket.settimeout(timeout_secs)
        try:
            while self._socket.recv(_RECEIVE_BYTES):
                pass
        except TimeoutError:
            return False
        except ConnectionResetError:
            pass
        return True

    def mismatch(self) -> str | None:
        """Return what to say when the daemon is of another version, else None."""
        found = self.call("daemon.hello")
        if found.get("protocol") != protocol.VERSION or found.get("version") != __version__:
            return (
                f"the daemon is tardisd {found.get('version')} (protocol {found.get('protocol')}),"
                f" this is {__version__} (protocol {protocol.VERSION}); restart the daemon"
            )
        return None

    def call(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        files: Sequence[int] = (),
        on_notification: OnNotification | None = None,
    ) -> Any:
        """Return the result of a method; `files` are descriptors sent along, and stay ours.

        Raises ControlError with the daemon's code and message, NotRunning when it goes away.
        """
        answers = self.stream(method, params, files)
        while True:
            try:
                told = next(answers)
            except StopIteration as done:
                return done.value
            if on_notification is not None:
                on_notification(told.method, told.params)

    def stream(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        files: Sequence[int] = (),
    ) -> Generator[Notification, None, Any]:
        """Yield the notifications of one call as they come; its value is the result.

        Raises what `call` does. An iterator that is not read to its end leaves the client unusable.
        """
        self._calls += 1
        # If it hung up, it may have said why before: read on.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._send(protocol.encode_request(method, params or {}, self._calls), files)
        while True:
            answer = self._receive()
            if isinstance(answer, Notification):
                yield answer
            elif answer.error is not None and answer.request_id in (self._calls, None):
                raise _error(answer.error)
            elif answer.request_id == self._calls:
                return answer.result

    def watch(self, session_id: str, **params: Any) -> Generator[Notification, None, Any]:
        """Yield `session.ticks` and `session.notice` until the session ends; its value is `end`."""
        return self.stream("session.watch", {"session_id": session_id, **params})

    def _send(self, line: bytes, files: Sequence[int]) -> None:
        rest = memoryview(line)
        if files:
            numbers = array.array("i", files)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)]
            rest = rest[self._socket.sendmsg([rest], rights) :]
        if rest:
            self._socket.sendall(rest)

    def _receive(self) -> Reply | Notification:
        while not self._ready:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except ConnectionResetError:
                data = b""
            if not data:
                raise NotRunning(f"the daemon at {self.path} hung up before it answered")
            for line in self._lines.feed(data):
                if line is None:
                    raise ControlError("bad_answer", "the daemon's answer is too large")
                try:
                    self._ready.append(protocol.parse_answer(line))
                except protocol.ProtocolError as error:
                    raise ControlError("bad_answer", error.message) from None
        return self._ready.popleft()


def _error(error: Mapping[str, Any]) -> ControlError:
    data = error.get("data")
    data = data if isinstance(data, Mapping) else {}
    return ControlError(str(data.get("code", "internal")), str(error.get("message", "")), data)
