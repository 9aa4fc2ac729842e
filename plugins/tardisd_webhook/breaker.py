"""A circuit breaker: after failures in a row nothing is sent for a while, then one tries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Breaker:
    """Counts failures. There is one request at a time, so half open means that one may be made."""

    failures: int
    secs: float
    open_until: float = 0.0
    _count: int = 0

    def wait_until(self) -> float:
        """Return when the next request may be made."""
        return self.open_until

    def failed(self, now: float) -> bool:
        """Take note of a failure; tell whether the circuit opened only now."""
        self._count += 1
        if self._count < self.failures:
            return False
        self.open_until = now + self.secs
        return self._count == self.failures

    def worked(self) -> bool:
        """Take note of an answer; tell whether that closed the circuit."""
        was_open, self._count, self.open_until = self._count >= self.failures, 0, 0.0
        return was_open
