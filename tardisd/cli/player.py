"""A session on the terminal: a table of series, the chart of one, the clock, and keys.

It draws what a watcher is told and asks nothing of the daemon itself; on something that is not a
terminal it prints a line a second instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tardisd.market.time import MILLISECOND, Interval, format_time

if TYPE_CHECKING:
    from rich.console import Group

CHART_WIDTH, CHART_HEIGHT = 64, 10
MOST_ROWS = 12
_EIGHTHS = " ▁▂▃▄▅▆▇█"
SPEEDS = (0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 100, 300, 1000, 3000, 10_000, 100_000)


@dataclass
class Track:
    """What is known of one series: floats, for the eye only."""

    symbol: str
    first: float = 0.0
    last: float = 0.0
    ticks: int = 0
    volume: float = 0.0
    #: What is charted: closes of candles, or of each stretch of time the last price of a trade.
    trail: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=CHART_WIDTH))


class Picture:
    """The state of a session as its watcher sees it; `charted` is the series that was chosen."""

    def __init__(self) -> None:
        self.tracks: dict[str, Track] = {}
        self.charted: str | None = None
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
            elif params["type"] == "reset":
                self.tracks.clear()
            elif params["type"] == "snapshot":
                for tick in params["data"]:
                    self._tick(tick)
            elif params["type"] == "analysis":
                self.notice = str(params.get("content", ""))[:100]

    def _tick(self, tick: Mapping[str, Any]) -> None:
        if "close" not in tick and "price" not in tick:  # such as an indicator
            return
        name = f"{tick['exchange']}:{tick['symbol']}@{tick['channel']}"
        track = self.tracks.setdefault(name, Track(tick["symbol"]))
        price = tick["close"] if "close" in tick else tick["price"]
        track.first = track.first or price
        track.last = price
        stretch = int(tick["timestamp"])
        if "close" not in tick:
            stretch //= self._stretch()
            track.volume += tick["amount"]
        elif tick.get("closed", True):
            track.volume += tick["volume"]
        else:  # it still forms
            return
        track.ticks += 1
        if track.trail and track.trail[-1][0] == stretch:
            track.trail.pop()
        track.trail.append((stretch, price))

    def _stretch(self) -> int:
        """Return how many ms of market time a column of a chart of trades stands for."""
        speed = self.status.get("speed")
        if isinstance(speed, int | float):
            return max(1, round(speed * 1000))  # a column each second
        span = int(self.status.get("end_time", 0)) - int(self.status.get("start_time", 0))
        return max(1, span // CHART_WIDTH)

    def chart_next(self) -> None:
        """Choose the next series to chart."""
        names = sorted(self.tracks, key=_rank)
        if names:
            at = names.index(self.charted) if self.charted in names else 0
            self.charted = names[(at + 1) % len(names)]

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
        prices = {track.symbol: track.last for _, track in sorted(self.tracks.items())}
        shown = "  ".join(f"{name} {_price(last)}" for name, last in sorted(prices.items()))
        return f"{self.clock()}Z  {self.pace()}  {self.status.get('seq', 0)} ticks  {shown}"


def _rank(name: str) -> tuple[str, bool, int, str]:
    """Return what series are sorted by: venue and symbol, shorter candles first, trades last."""
    of, _, channel = name.partition("@")
    kind, _, interval = channel.partition("_")
    length = Interval.parse(interval).nominal_ns if kind == "candle" else 0
    return of, kind != "candle", length, channel


def _price(value: float) -> str:
    return f"{value:,.2f}" if value >= 10 else f"{value:.5f}"


def chart(values: list[float], height: int = CHART_HEIGHT) -> list[str]:
    """Return a column chart of the values as lines of block characters, scale on the right."""
    if not values:
        return ["waiting for the first price"] + [""] * (height - 1)
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
    tracks = dict(picture.tracks)  # another thread goes on with it
    names = sorted(tracks, key=_rank)
    charted = picture.charted if picture.charted in names else next(iter(names), None)
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    for name in ("series", "last", "change", "ticks seen", "volume"):
        is_name = name == "series"  # on a narrow terminal it goes on in the next line
        table.add_column(name, justify="left" if is_name else "right", overflow="fold")
    at = max(0, names.index(charted) + 1 - MOST_ROWS) if charted else 0
    for name in names[at : at + MOST_ROWS]:
        track = tracks[name]
        change = (track.last / track.first - 1) * 100 if track.first else 0.0
        table.add_row(
            Text(name, style="bold" if name == charted else ""),
            _price(track.last),
            Text(f"{change:+.2f} %", style="green" if change >= 0 else "red"),
            f"{track.ticks:,}",
            f"{track.volume:,.4f}",
        )
    parts: list[Any] = [head, table]
    if len(names) > MOST_ROWS:
        parts.append(Text(f"{MOST_ROWS} of {len(names)} series", style="dim"))
    if charted is not None:
        kind = "closes" if "@candle" in charted else "prices"
        body = "\n".join(chart([price for _, price in list(tracks[charted].trail)]))
        panel = Text(body, style="cyan", no_wrap=True)
        parts.append(Panel(panel, title=f"{charted} {kind}", title_align="left", width=84))
    parts.append(Text(footer, style="dim"))
    return Group(Text(title, style="bold"), *parts)


def faster(speed: object, up: bool) -> float | str:
    """Return the next speed above or below, of those that keys step through; the last is `max`."""
    now = float(speed) if isinstance(speed, int | float) else float("inf")
    if up:
        return next((one for one in SPEEDS if one > now), "max")
    return next((one for one in reversed(SPEEDS) if one < now), SPEEDS[0])
