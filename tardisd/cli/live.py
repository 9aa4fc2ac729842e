"""A live player of one session: draws it several times a second, and does what keys ask for.

What a key does stands in `Player.press`; how the picture looks is elsewhere.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from tardisd.cli.keyboard import keys
from tardisd.cli.player import Picture, draw, faster
from tardisd.control.client import ControlClient
from tardisd.errors import ControlError
from tardisd.market.time import MILLISECOND, format_time, parse_duration, parse_time

KEYS = (
    "keys: space pause/resume   ← → step when paused, else seek   ↑ faster   ↓ slower"
    "   g go to   tab chart   q quit"
)
_SEEK_SECS = 10.0  # of wall time at the session's speed
_FRAME_SECS = 0.1
_LETTERS = frozenset("0123456789-:TtZz.+ dhmsw")


class Steps:
    """Steps that were asked for, made one after the other by a thread with its own connection.

    A step takes as long as the slowest client that blocks; the player goes on meanwhile.
    """

    def __init__(self, path: Path, session_id: str, picture: Picture) -> None:
        self._path = path
        self._session_id = session_id
        self._picture = picture
        self._wanted = 0
        self._busy = False
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Ask for steps, forward or back; those that wait for others are made together."""
        with self._lock:
            self._wanted += count
            if self._busy:
                return
            self._busy = True
        threading.Thread(target=self._run, daemon=True).start()

    def forget(self) -> None:
        """Drop those that have not begun: something else is wanted now."""
        with self._lock:
            self._wanted = 0

    def _take(self) -> int:
        with self._lock:
            count, self._wanted = self._wanted, 0
            self._busy = count != 0
        return count

    def _run(self) -> None:
        try:
            with ControlClient(self._path) as client:
                while count := self._take():
                    params = {"session_id": self._session_id, "count": count}
                    client.call("session.step", params)
                    self._picture.notice = ""
        except (ControlError, OSError) as error:
            with self._lock:
                self._wanted, self._busy = 0, False
            self._picture.notice = str(error)


class Player:
    """What is on the screen, and what is being typed."""

    def __init__(self, client: ControlClient, session_id: str, picture: Picture) -> None:
        self.picture = picture
        self.typed: str | None = None
        self._client = client
        self._session_id = session_id
        self._steps = Steps(client.path, session_id, picture)

    def _ask(self, verb: str, **params: Any) -> None:
        """Ask the daemon; what it refuses is shown, and the player goes on."""
        self._steps.forget()
        try:
            self._client.call(f"session.{verb}", {"session_id": self._session_id, **params})
            self.picture.notice = ""
        except ControlError as error:
            if error.code not in {"wrong_state", "bad_request", "too_large"}:
                raise
            self.picture.notice = error.message

    def refresh(self) -> None:
        """Fetch the session's state."""
        self.picture.status = self._client.call("session.show", {"session_id": self._session_id})

    def press(self, key: str) -> bool:
        """Do what a key asks for; False when it is to quit."""
        if self.typed is not None:
            self._type(key)
            return True
        status = self.picture.status
        paused = status.get("status") == "paused"
        if key == "q":
            return False
        if key == "space":
            self._ask("resume" if paused else "pause")
        elif key in ("up", "down", "+", "-"):
            self._ask("speed", speed=faster(status.get("speed"), key in ("up", "+")))
        elif key in ("left", "right"):
            sign = 1 if key == "right" else -1
            if paused:
                self._steps.add(sign)
            else:
                self._ask("seek", by=sign * self._stride())
        elif key == "g":
            self.typed = ""
        elif key == "\t":
            self.picture.chart_next()
        return True

    def _stride(self) -> int:
        """Return how many ms of market time a key moves a running session."""
        status = self.picture.status
        speed = status.get("speed")
        if isinstance(speed, int | float):
            return max(1, round(_SEEK_SECS * speed * 1000))
        return max(1, int(status["end_time"] - status["start_time"]) // 50)

    def _type(self, key: str) -> None:
        typed = self.typed or ""
        if key == "escape":
            self.typed = None
        elif key == "backspace":
            self.typed = typed[:-1]
        elif key == "enter":
            self.typed = None
            self._go_to(typed.strip())
        elif key == "space" or key in _LETTERS:
            self.typed = (typed + (" " if key == "space" else key))[:40]

    def _go_to(self, text: str) -> None:
        """Seek to a time, to a time of the session's day, or by `+90s` or `-1h`."""
        clock = int(self.picture.status.get("clock", 0)) * MILLISECOND
        if not text:
            return
        if text[0] in "+-":  # from where the session is by then, and not beyond its start or end
            try:
                self._ask("seek", by=parse_duration(text.removeprefix("+")) // MILLISECOND)
            except ValueError as error:
                self.picture.notice = str(error)
            return
        if text.replace(":", "").isdigit() and ":" in text:
            text = f"{format_time(clock)[:10]}T{text if text.count(':') > 1 else text + ':00'}Z"
        elif " " in text:
            text = text.replace(" ", "T")
        if "T" in text and not text.endswith("Z"):
            text += "Z" if text.count(":") > 1 else ":00Z"
        try:
            ts = parse_time(text, now=clock)
        except ValueError as error:
            self.picture.notice = str(error)
        else:
            self._ask("seek", to=ts // MILLISECOND)

    def footer(self) -> str:
        """Return the line below the picture."""
        if self.typed is None:
            return KEYS
        return f"go to (time, time of day, +90s, -1h; Enter, Esc): {self.typed}▏"


def play(
    path: Path, session_id: str, title: str, footer: str = "", until: float | None = None
) -> None:
    """Show a session until it ends, `until` (monotonic seconds) or somebody quits."""
    from rich.live import Live

    picture = Picture()
    watcher = threading.Thread(target=watch, args=(path, session_id, picture), daemon=True)
    with ControlClient(path) as client, keys() as wait:
        player = Player(client, session_id, picture)
        player.refresh()
        watcher.start()
        with Live(refresh_per_second=1 / _FRAME_SECS, screen=False) as live:
            while not over(picture, until):
                live.update(draw(picture, title, f"{player.footer()}\n{footer}".rstrip()))
                if (key := wait(_FRAME_SECS)) and not player.press(key):
                    break
                player.refresh()
            live.update(draw(picture, title, footer))
    watcher.join(1.0)


def watch(path: Path, session_id: str, picture: Picture) -> None:
    """Keep a picture up to date until the session ends, on a connection of its own."""
    try:
        with ControlClient(path) as client:
            for told in client.watch(session_id):
                picture.take(told.method, told.params)
    except ControlError:
        picture.ended = True  # the daemon went, and the main thread with it


def over(picture: Picture, until: float | None) -> bool:
    """Tell whether there is nothing more to show."""
    return picture.ended or (until is not None and time.monotonic() >= until)
