"""A value that must not be seen: a token, a password; says nothing of where configs keep it.

A plugin declares an option as `Secret | None = None` and calls `reveal()` where it needs the text.
"""

from __future__ import annotations

import hmac

HIDDEN = "***"


class Secret:
    """Text that neither `repr`, `str`, formatting nor a traceback's locals show.

    `source` tells where it came from (`environment variable X`), which may be shown.
    """

    __slots__ = ("_text", "source")

    def __init__(self, text: str, source: str = "") -> None:
        self._text = text
        self.source = source

    def reveal(self) -> str:
        """Return the text itself; never log or print it."""
        return self._text

    def matches(self, candidate: str) -> bool:
        """Tell whether `candidate` is the text, in time that does not depend on where they part."""
        return hmac.compare_digest(_bytes(self._text), _bytes(candidate))

    def __eq__(self, other: object) -> bool:
        return self.matches(other._text) if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __str__(self) -> str:
        return HIDDEN

    def __repr__(self) -> str:
        return f"Secret({HIDDEN})"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
