"""How far a long action has come, as it tells whoever started it; sends nothing itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` units (`rows`, `bytes`, `ns`, …) of work; `total` 0 when unknown.

    Reporters call a plain function `Callable[[Progress], None]`; it must not block.
    """

    done: int
    total: int
    unit: str
    message: str = ""
