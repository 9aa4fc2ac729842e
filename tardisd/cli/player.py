"""A session on the terminal: a table of symbols, a price chart, the clock, and keys.

It draws what a watcher is told and asks nothing of the daemon itself; on something that is not a
terminal it prints a line a second instead.
"""

from __future__ import annotations

import os
import re
import select
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tardisd.market.time import MILLISECOND, format_time

if TYPE_CHECKING:
    from rich.console import Group

CHART_WIDTH, CHART_HEIGHT = 64, 10
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_KEYS = {"\x1bA": "up", "\x1bB": "down", " ": "space"}
SPEEDS = (0.5, 1, 2, 5, 10, 30, 60, 100, 300, 1000, 3000, 10_000)


@dataclass
class Quote:
    """What is known of one symbol: floats, for the eye only."""

    first: float = 0.0
    last: float = 0.0
    trades: int = 0
    volume: float = 0.0
    closes: deque[float] = field(default_factory=lambda: deque(maxlen=CHART_WIDTH))


class Picture:
    """The state of a session as its watcher sees it."""

    def __init__(self) -> None:
        self.quotes: dict[str, Quote] = {}
        self.status: Mapping[str, Any] = {}
        self.notice = ""
        self.ended = False

    def take(self, method: str, params: Mapping[str, Any]) -> None:
        """Take in a notification of `session.watch`."""
        if method == "session.ticks":
            for tick in params["data"]:
                self._tick(tick)
        elif method == "session.notice":
            self.ended = self.ended or params["type"] == "end"
            if params["type"] == "gap":
                self.notice = f"gap in {params['series']}: {params['cause']}"

    def _tick(self, tick: Mapping[str, Any]) -> None:
        quote = self.quotes.setdefault(tick["symbol"], Quote())
        price = tick["close"] if "close" in tick else tick["price"]
        quote.first = quote.first or price
        if "close" in tick:
            quote.closes.append(price)
            quote.volume += tick["volume"]
        else:
            quote.last = price
            quote.trades += 1
        quote.last = quote.last or price

    def clock(self) -> str:
        """Return market time as text, to the second."""
        clock = self.status.get("clock")
        return "-" if clock is None else format_time(clock * MILLISECOND)[:19].replace("T", " ")

    def pace(self) -> str:
        """Return asked and achieved speed as text."""
        asked, achieved = self.status.get("speed"), self.status.get("achieved_speed")
        asked_text = f"{asked:g}x" if isinstance(asked, int | float) else str(asked or "-")
        if self.status.get("status") == "paused" or achieved is None:
            return asked_text
        return f"{asked_text} (achieved {achieved:.1f}x)"

    def line(self) -> str:
        """Return the state as one line."""
        prices = "  ".join(f"{name} {_price(q.last)}" for name, q in sorted(self.quotes.items()))
        return f"{self.clock()}Z  {self.pace()}  {self.status.get('seq', 0)} ticks  {prices}"


def _price(value: float) -> str:
    return f"{value:,.2f}" if value >= 10 else f"{value:.5f}"


def chart(values: list[float], height: int = CHART_HEIGHT) -> list[str]:
    """Return a column chart of the values as lines of block characters, scale on the right."""
    if not values:
        return ["waiting for the first candle to close"] + [""] * (height - 1)
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    levels = [1 + round((value - low) / span * (height * 8 - 1)) for value in values]
    lines = []
    for row in range(height - 1, -1, -1):
        cells = (_EIGHTHS[max(0, min(8, level - row * 8))] for level in levels)
        lines.append("".join(cells).ljust(CHART_WIDTH))
    lines[0] += f" {_price(high)}"
    lines[-1] += f" {_price(low)}"
    return lines


def draw(picture: Picture, title: str, footer: str) -> Group:
    """Return the picture for a live display."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    state = str(picture.status.get("status", "starting"))
    head = Text.assemble(
        (f" {picture.clock()} UTC ", "bold reverse"),
        (f"  {state}", "green" if state == "active" else "yellow"),
        f"  {picture.pace()}",
        (f"  {picture.status.get('seq', 0):,} ticks", "dim"),
        (f"  {picture.notice}", "yellow"),
    )
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    for name in ("symbol", "last", "change", "trades seen", "volume"):
        table.add_column(name, justify="left" if name == "symbol" else "right", min_width=11)
    for name, quote in sorted(picture.quotes.items()):
        change = (quote.last / quote.first - 1) * 100 if quote.first else 0.0
        color = "green" if change >= 0 else "red"
        table.add_row(
            name,
            _price(quote.last),
            Text(f"{change:+.2f} %", style=color),
            f"{quote.trades:,}",
            f"{quote.volume:,.4f}",
        )
    parts: list[Any] = [head, table]
    for name, quote in sorted(picture.quotes.items())[:1]:
        body = Text("\n".join(chart(list(quote.closes))), style="cyan", no_wrap=True)
        parts.append(Panel(body, title=f"{name} candle closes", title_align="left", width=84))
    parts.append(Text(footer, style="dim"))
    return Group(Text(title, style="bold"), *parts)


@contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """Give a function that waits up to some seconds for a key and returns it, or an empty text."""
    if not sys.stdin.isatty():
        yield lambda secs: (select.select([], [], [], secs), "")[1]
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    waiting: deque[str] = deque()  # somebody quick, or a slow terminal: several keys at once

    def wait(secs: float) -> str:
        if not waiting:
            ready, _, _ = select.select([descriptor], [], [], secs)
            if ready:
                waiting.extend(pressed(os.read(descriptor, 64).decode(errors="replace")))
        return waiting.popleft() if waiting else ""

    try:
        tty.setcbreak(descriptor)
        yield wait
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def pressed(text: str) -> list[str]:
    """Return the keys that a terminal sent: `space`, `up`, `down`, or the character."""
    found = re.findall(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", text, re.DOTALL)
    return [_KEYS.get(key[:1] + key[-1] if len(key) > 1 else key, key) for key in found]


def faster(speed: object, up: bool) -> float:
    """Return the next speed above or below, of those that keys step through."""
    now = float(speed) if isinstance(speed, int | float) else SPEEDS[-1]
    if up:
        return next((one for one in SPEEDS if one > now), SPEEDS[-1])
    return next((one for one in reversed(SPEEDS) if one < now), SPEEDS[0])
