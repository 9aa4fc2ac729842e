"""Tell systemd how the service is doing (sd_notify); does nothing when systemd is not there.

It decides nothing: the daemon says when it is ready, stopping or alive.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

_PATIENCE_SECS = 1.0


class Notifier:
    """Sends state to the socket that systemd named in the environment, if it named one."""

    def __init__(self, address: str | None = None, watchdog_secs: float | None = None) -> None:
        self._address = address
        self._watchdog_secs = watchdog_secs

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Notifier:
        """Return the notifier that `$NOTIFY_SOCKET` and `$WATCHDOG_USEC` ask for.

        The address is a path, or an abstract name with a leading `@`. A watchdog meant for another
        process (`$WATCHDOG_PID`) is not ours.
        """
        address = environ.get("NOTIFY_SOCKET", "")
        if address.startswith("@"):
            address = "\0" + address[1:]
        elif not address.startswith("/"):
            return cls()
        micros = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", "") in {"", str(os.getpid())}
        timeout = int(micros) / 1e6 if ours and micros.isdecimal() and int(micros) else None
        return cls(address, timeout)

    @property
    def enabled(self) -> bool:
        """Whether somebody listens."""
        return self._address is not None

    def send(self, **fields: str | int) -> bool:
        """Send fields in one datagram and tell whether it went: `send(ready=1, status="…")`.

        Names are sent in upper case; line ends in values become spaces. A socket that is gone or
        full is no reason to stop: the answer is False then.
        """
        if self._address is None:
            return False
        lines = [f"{name.upper()}={' '.join(str(v).splitlines())}" for name, v in fields.items()]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_PATIENCE_SECS)
            try:
                sender.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return False
        return True

    def reloading(self) -> bool:
        """Say that a reload begins; `send(ready=1)` ends it.

        The clock goes along in the same datagram, as systemd demands.
        """
        return self.send(reloading=1, monotonic_usec=time.monotonic_ns() // 1000)

    def watchdog_interval(self) -> float | None:
        """Return how often (seconds) to `send(watchdog=1)`, half of what is tolerated, or None."""
        return None if self._watchdog_secs is None else self._watchdog_secs / 2
