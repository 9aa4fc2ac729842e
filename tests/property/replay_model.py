"""What a session must do, written from the semantics in plain Python: no code of the engine's.

The whole replay is a list. An epoch begins at a place in it; its seq counts from there. Market time
lies between two lines: the latest that it can be, and the earliest. The first is the clock as the
semantics have it, the second allows for wake-ups that are a millisecond apart, and for followers or
storages that hold the session up. What is seen in between is where both go on from.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from hash_reference import content_hash

SECOND = 10**9
MINUTE = 60 * SECOND
START = 1_711_846_200 * SECOND  # 2024-03-31T00:50:00Z: summer time begins in the middle
LENGTH = 20 * MINUTE
END = START + LENGTH
LATE_SECS = 0.0011  # wake-ups are at least a millisecond apart
EMPTY_LOOP_SECS = 0.1
TRADES = [
    "binance:BTC/USDT@trade", "binance:BTC/USDT:USDT@trade", "bybit:ETH/USDT@trade",
    "okx:BTC/USDT@trade",
]  # fmt: skip
CANDLES = {  # minutes of each
    "binance:BTC/USDT@candle_1m": 1,
    "okx:BTC/USDT@candle_1m": 1,
    "okx:BTC/USDT@candle_5m": 5,
}


@dataclass(frozen=True)
class Item:
    """A tick or a gap mark; `what` says which one it is to whoever is told of it."""

    order: tuple[Any, ...]
    release: int
    series: str
    what: tuple[Any, ...]
    tick: dict[str, Any] | None = None
    until: int = 0


@dataclass
class Data:
    """Series, what is stored of each, and the whole replay of them in total order."""

    stored: dict[str, dict[str, Any]]
    items: list[Item]

    @property
    def ticks(self):
        """How many ticks there are."""
        return sum(item.tick is not None for item in self.items)


def draw_data(seed: int) -> Data:
    """Return some series of which many ticks share their times, with gaps that some have alike."""
    dice = random.Random(seed)
    names = dice.sample([*TRADES, *CANDLES], dice.randint(2, 6))
    busy = [dice.randrange(1200) for _ in range(6)] + [60 * dice.randrange(20) for _ in range(4)]
    begin = dice.randrange(2, 14)
    shared = (begin, begin + dice.randrange(1, 4))
    stored, items = {}, []
    for name in names:
        gap = shared if dice.random() < 0.7 else None
        if name in CANDLES:
            rows, hole = _candles(name, gap, dice)
        else:
            rows, hole = _trades(name, gap, busy, dice)
        stored[name] = {"rows": rows, "hole": hole}
        items += [_as_item(name, row) for row in rows]
        if hole is not None:
            first, last = hole
            # A mark comes behind candles, before all else; of two, that of the shorter interval.
            order = (first, 2, *_place(name)[1:], 0)
            mark = ("gap", name, first // 10**6, last // 10**6)
            items.append(Item(order, first, name, mark, None, last))
    items.sort(key=lambda item: item.order)
    return Data(stored, items)


def _place(series):
    venue, _, rest = series.partition(":")
    symbol, _, data_type = rest.rpartition("@")
    length = CANDLES[series] * MINUTE if series in CANDLES else 0
    return (1 if length else 5, length, data_type, venue, symbol)


def _trades(name, gap, busy, dice):
    seconds = [dice.choice(busy) for _ in range(dice.randint(0, 40))]
    seconds += [dice.randrange(1200) for _ in range(dice.randint(1, 60))]
    if gap is not None:
        seconds = [one for one in seconds if not gap[0] * 60 <= one < gap[1] * 60] or [0]
    rows = []
    for at, second in enumerate(sorted(seconds)):
        price, amount = f"{100 + dice.randrange(900)}.5", f"0.{dice.randrange(1, 9)}"
        side = dice.choice(["buy", "sell"])
        rows.append({"series": name, "ts_event": START + second * SECOND,
                     "ts_release": START + second * SECOND, "id": str(at),
                     "price": price, "amount": amount, "side": side})  # fmt: skip
    return rows, _span(gap)


def _candles(name, gap, dice):
    step = CANDLES[name]
    opens = list(range(0, 20, step))
    if gap is not None:
        opens = [one for one in opens if one + step <= gap[0] or one >= gap[1]]
    rows = []
    for minute in opens:
        low = 100 + dice.randrange(900)
        values = {"open": f"{low}", "high": f"{low + 1}", "low": f"{low}", "close": f"{low}.25",
                  "volume": "3"}  # fmt: skip
        rows.append({"series": name, "ts_event": START + minute * MINUTE,
                     "ts_release": START + (minute + step) * MINUTE, **values})  # fmt: skip
    missing = [one for one in range(0, 20, step) if one not in opens]
    if not missing:
        return rows, None
    return rows, (START + missing[0] * MINUTE, START + (missing[-1] + step) * MINUTE)


def _span(gap):
    return None if gap is None else (START + gap[0] * MINUTE, START + gap[1] * MINUTE)


def _as_item(name, row):
    sequence = int(row.get("id", row["ts_event"]))
    order = (row["ts_release"], *_place(name), sequence)
    return Item(order, row["ts_release"], name, (name, row["ts_event"], row.get("id")), row)


@dataclass(frozen=True)
class Line:
    """A moment that a session may be at: round of a loop, market time, where it will pause."""

    rounds: int
    market: int
    pause_at: int | None
    paused: bool = False
    ended: bool = False

    @property
    def reach(self):
        """What orders moments."""
        return (self.rounds, self.market)


@dataclass
class Model:
    """A session by the semantics: data, options, and where it is."""

    data: Data
    speed: float | str
    paused: bool
    loop: bool
    until: int | None
    skips: bool
    epoch: int = 1
    #: The place in the list at which the epoch begins, and how far it is.
    base: int = 0
    index: int = 0
    bases: dict[int, int] = field(default_factory=dict)
    #: Whether nothing may have come since it was last seen, but what a step lets through.
    stands: bool = field(init=False)
    low: Line = field(init=False)
    high: Line = field(init=False)
    #: The place that a step under way goes to.
    step_to: int | None = None
    #: How long an empty round of a loop may still take.
    empty_secs: float = 0.0

    def __post_init__(self):
        self.low = self.high = Line(0, START, self._pause_after(START), self.paused)
        self.stands = self.paused

    @property
    def items(self):
        """The whole replay."""
        return self.data.items

    @property
    def ended(self):
        """Whether it is over."""
        return self.low.ended

    @property
    def market(self):
        """Where market time was when it was last seen."""
        return self.low.market

    def _pause_after(self, market):
        return self.until if self.until is not None and market < self.until else None

    # ---- time

    def pass_time(self, secs: float, held: bool) -> None:
        """Let wall time pass; `held` says that somebody may hold the session up."""
        fast = self.speed == "max"
        late = LATE_SECS * (2 + (0 if fast else secs * self.speed * SECOND // LENGTH))
        empty, self.empty_secs = self.empty_secs, max(0.0, self.empty_secs - secs)
        if not held and (fast or secs - late - empty > 0):
            rate = 1 if fast else self.speed * SECOND
            budget = float("inf") if fast else (secs - late - empty) * rate
            self.low = self._walk(self.low, budget)
        self.high = self._walk(self.high, float("inf") if fast else secs * self.speed * SECOND)

    def _walk(self, line: Line, budget: float) -> Line:
        holes = self._shared_holes() if self.skips else []
        market, pause_at, rounds = line.market, line.pause_at, line.rounds
        while not (line.paused or line.ended):
            stop = END if pause_at is None else pause_at
            market = max([market, *(last for first, last in holes if first <= market < last)])
            market = min(market, max(stop, line.market))
            ahead = min([stop, *(first for first, _ in holes if first > market)])
            if market + budget < ahead:
                return Line(rounds, round(market + budget), pause_at)
            budget -= max(0, ahead - market)
            market = max(market, ahead)
            if pause_at is not None and market >= pause_at:
                return Line(rounds, market, None, paused=True)
            if market >= END:
                if not self.loop:
                    return Line(rounds, END, None, ended=True)
                rounds, market, pause_at = rounds + 1, START, self._pause_after(START)
                line = Line(rounds, market, pause_at)
        return line

    def _shared_holes(self):
        """Return the time in which every series is in a gap."""
        holes = [one["hole"] for one in self.data.stored.values()]
        if None in holes:
            return []
        first, last = max(hole[0] for hole in holes), min(hole[1] for hole in holes)
        return [(first, last)] if first < last else []

    # ---- verbs

    def pause(self):
        """Stop where it is seen."""
        self.low = self.high = replace(self.low, paused=True)
        self.stands = True

    def resume(self):
        """Go on from where it is seen."""
        if self.low.paused:
            self.low = self.high = replace(self.low, paused=False)
        self.stands = False

    def change_speed(self, speed):
        """Go on from where it is seen at another speed."""
        if self.step_to is None:
            self.high = self.low
        self.speed = speed

    def seek(self, to):
        """Stand before the first tick released then, or later."""
        begin = next((at for at, one in enumerate(self.items) if one.release >= to), None)
        self._begin(to, len(self.items) if begin is None else begin)

    def place_back(self, count):
        """Return the place before the tick so many ticks ago, its time, and how many ticks that is.

        Marks of the tick's own time that come just before it are passed again.
        """
        before = [at for at in range(self.index) if self.items[at].tick is not None]
        if count > len(before):
            return 0, START, len(before)
        place = before[-count]
        release = self.items[place].release
        while place and self.items[place - 1].tick is None and (
            self.items[place - 1].release == release
        ):  # fmt: skip
            place -= 1
        return place, release, count

    def step_back(self, place, market):
        """Stand where `place_back` said."""
        self._begin(market, place)

    def step_on(self, count):
        """Let so many ticks through; return how many there are."""
        after = [at for at in range(self.index, len(self.items)) if self.items[at].tick is not None]
        self.step_to = after[count - 1] + 1 if count <= len(after) else len(self.items)
        if self.step_to > self.index:
            market = max(self.market, self.items[self.step_to - 1].release)
            self.high = replace(self.high, market=market)
        return min(count, len(after))

    def steps_over(self):
        """Let no more ticks through."""
        self.step_to = None
        self.high = self.low

    def _begin(self, market, place):
        self.epoch += 1
        self.base = self.index = self.bases[self.epoch] = place
        self.step_to = None
        self.low = self.high = Line(0, market, self._pause_after(market), self.low.paused)
        self.empty_secs = EMPTY_LOOP_SECS if self.loop and place == len(self.items) else 0.0

    # ---- what is seen

    def see(self, market, epoch, seq, paused, ended, held):
        """Check that what is seen is possible, and go on from there."""
        rounds = epoch - self.epoch
        slack = 2000 * (1 if self.speed == "max" else max(1, self.speed))
        assert (self.low.rounds, self.low.market - slack) <= (rounds, market), "too late"
        assert (rounds, market) <= (self.high.rounds, self.high.market + slack), "too early"
        assert paused in {self.low.paused, self.high.paused}
        assert ended in {self.low.ended, self.high.ended}
        index = (0 if rounds else self.base) + seq
        before = 0 if rounds else self.index
        upto = max(before, sum(item.release <= market for item in self.items))
        if self.stands and not rounds:
            upto = self.index if self.step_to is None else self.step_to
        elif not held:
            before = max(before, sum(item.release <= market - slack for item in self.items))
        assert before <= index <= upto, "a tick too many, or missing"
        pause_at = self.low.pause_at if not rounds else self._pause_after(market)
        if paused:
            pause_at = None if pause_at is not None and market >= pause_at else pause_at
        if rounds:
            self.epoch, self.base, self.empty_secs = epoch, 0, 0.0
            self.bases[epoch] = 0
            self.high = replace(self.high, rounds=self.high.rounds - rounds)
        self.index, self.stands = index, paused
        self.low = Line(0, market, pause_at, paused, ended)
        if (paused and self.step_to is None) or ended or self.high.reach < self.low.reach:
            self.high = self.low

    # ---- what followers know

    def newest(self):
        """Return the newest tick of each series, as a follower knows it who honours `reset`."""
        seen = [item for item in self.items[: self.index] if item.tick is not None]
        return {item.series: item.what for item in seen}

    def open_gaps(self):
        """Return the gaps that are open where market time is."""
        seen = [item for item in self.items[: self.index] if item.tick is None]
        return {item.what for item in seen if item.until > self.market}

    def released(self):
        """Return the ticks of this epoch."""
        return [item.tick for item in self.items[self.base : self.index] if item.tick is not None]

    def content_hash(self):
        """Return the content hash of this epoch."""
        return content_hash(self.released())
