"""Analyzers in a session: what they derive, in which order, and what becomes of those that fail."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import trio

from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import DataType, Series
from tardisd.market.span import Span
from tardisd.market.time import MINUTE, SECOND, parse_time
from tardisd.plugins.analyzer import Analysis, Analyzer
from tardisd.plugins.base import Context, Options
from tardisd.plugins.sessions import Notice
from tardisd.plugins.sink import Writer
from tardisd.replay.manager import SessionLimits
from tardisd.replay.timeline import Tuning
from tardisd.testing.engine import run_engine, ticks_of

START = parse_time("2024-03-01T00:00:00Z")
SPAN = Span(START, START + 60 * MINUTE)
CANDLES = Series.parse("binance:BTC/USDT@candle_1m")
TRADES = Series.parse("binance:BTC/USDT@trade")
MEAN = "binance:BTC/USDT@indicator_mean_3"
FIELDS = ("open", "high", "low", "close", "volume")
LIMITS = SessionLimits(tuning=Tuning(slice_ticks=7))


async def fill(engine):
    opens = START + np.arange(60) * MINUTE
    values = Decimals(np.arange(60) * 3)
    await engine.store(Batch(CANDLES, opens, dict.fromkeys(FIELDS, values)), SPAN)
    times = START + np.arange(0, 3600, 20) * SECOND
    ones = Decimals(np.ones(len(times), np.int64))
    sides = np.zeros(len(times), np.uint8)
    fields = {"price": ones, "amount": ones}
    await engine.store(Batch(TRADES, times, fields, np.arange(len(times)), sides), SPAN)


class MeanOfThree(Analysis):
    """The mean of the last three closes."""

    def __init__(self):
        self.last = np.empty(0, np.int64)
        self.seen = 0

    def update(self, batch):
        self.seen += len(batch)
        closes = np.concatenate([self.last, batch.fields["close"].parts(0)[0]])
        known = len(self.last)
        self.last = closes[-2:]
        sums = np.convolve(closes, np.ones(3, np.int64), "valid")
        count = len(sums)
        if not count:
            return []
        assert known <= 2
        series = Series(
            batch.series.exchange, batch.series.symbol, DataType.parse("indicator_mean_3")
        )
        return [Batch(series, batch.release()[-count:], {"value": Decimals(sums // 3)})]

    def finish(self):
        return {"seen": self.seen}


class Mean(Analyzer):
    name = "mean"
    consumes = frozenset({"candle"})
    warmup = 2 * MINUTE

    def start(self, request):
        return MeanOfThree()


def make(cls):
    return cls(Options(), Context("a", Path(), None))


def play(cls, **options):
    async def main(engine):
        await fill(engine)
        return await engine.play([CANDLES, TRADES], SPAN, analyzers=("a",), **options)

    return run_engine(main, analyzers={"a": make(cls)}, limits=LIMITS)


def test_what_is_derived_comes_after_all_of_its_time_and_is_part_of_the_replay():
    listener = play(Mean, speed="max")
    ticks = listener.ticks()
    derived = [tick for tick in ticks if tick[1] == MEAN]
    assert [event for _, _, event in derived] == [START + at * MINUTE for at in range(3, 61)]
    for at, tick in enumerate(ticks):
        if tick[1] == MEAN:
            assert all(later[0] > tick[0] for later in ticks[at + 1 :])
    values = [
        batch.fields["value"].texts()
        for block in listener.blocks
        for batch, _ in block.batches()
        if batch.series.text == MEAN
    ]
    assert [text for part in values for text in part] == [str(3 * at) for at in range(1, 59)]
    assert listener.end["ticks"] == len(ticks)
    assert listener.end["reports"] == {"a": {"seen": 60}}


def test_speed_and_pauses_change_nothing():
    ends = [play(Mean, speed=speed).end for speed in ("max", 60.0, 1000.0)]
    assert {end["hash"] for end in ends} == {ends[0]["hash"]}


@pytest.mark.parametrize("minutes", [0, 1, 2, 3, 10, 59])
def test_after_a_seek_it_is_as_if_it_had_seen_all(minutes):
    whole = play(Mean, speed="max").ticks()

    async def main(engine):
        await fill(engine)
        session = await engine.create(
            [CANDLES, TRADES], SPAN, speed="max", start_paused=True, analyzers=("a",)
        )
        listener = engine.listen(session)
        session.begin()
        at = START + minutes * MINUTE
        session.seek(at)
        assert (await session.step(30).wait()).fields["count"] == min(
            30, sum(tick[0] >= at for tick in whole)
        )
        assert (await session.step(-10).wait()).fields["count"] == -10
        session.resume()
        await listener.done.wait()
        last = [block for block in listener.blocks if block.epoch == 3]
        place = sum(tick[0] < at for tick in whole) + 20
        heard = [tick for block in last for tick in ticks_of(block)]
        assert heard == whole[max(0, min(place, len(whole) - 10)) :] or minutes == 59
        assert (await session.verify())["equal"]

    run_engine(main, analyzers={"a": make(Mean)}, limits=LIMITS)


class Raising(Mean):
    def start(self, request):
        class Bad(MeanOfThree):
            def update(self, batch):
                raise KeyError("oh")

        return Bad()


class Unable(Mean):
    def start(self, request):
        raise OSError("no")


class Unsure(Mean):
    def warmup_for(self, request):
        raise KeyError("how much")


class Prophet(Mean):
    def start(self, request):
        class Ahead(MeanOfThree):
            def update(self, batch):
                [one] = super().update(batch) or [None]
                return [] if one is None else [Batch(one.series, one.ts_event + 1, one.fields)]

        return Ahead()


class Liar(Mean):
    def start(self, request):
        class Trade(MeanOfThree):
            def update(self, batch):
                return [batch]

        return Trade()


class Flood(Mean):
    def start(self, request):
        class Many(MeanOfThree):
            def update(self, batch):
                found = super().update(batch)
                times = np.repeat(batch.release(), 100)
                values = Decimals(np.ones(len(times), np.int64))
                return [Batch(one.series, times, {"value": values}) for one in found]

        return Many()


@pytest.mark.parametrize("cls", [Raising, Unable, Unsure, Prophet, Liar, Flood])
def test_one_that_fails_is_named_and_harms_nobody(cls, caplog):
    listener = play(cls, speed="max")
    assert listener.end["reason"] == "finished"
    assert [tick for tick in listener.ticks() if tick[1] != MEAN]
    assert not [tick for tick in listener.ticks() if tick[1] == MEAN]
    [record] = [one for one in caplog.records if one.getMessage() == "analyzer failed"]
    assert record.facts["analyzer"] == "a"


def test_an_unknown_analyzer_is_refused():
    async def main(engine):
        await fill(engine)
        with pytest.raises(RequestError, match="analyzers: 'b' is not one of: a"):
            await engine.create([CANDLES], SPAN, analyzers=("b",))

    run_engine(main, analyzers={"a": make(Mean)})


class Commenter(Analyzer):
    """Follows a session, and says something after every twenty candles."""

    name = "commenter"

    def open(self, session):
        return Comments(session)


class Comments(Writer):
    def __init__(self, session):
        self.session = session
        self.count = 0

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None

    async def write(self, block):
        for batch, _ in block.batches():
            if batch.series == CANDLES:
                self.count += len(batch)
        if self.count >= 20:
            ticks, clock = self.session.last_ticks(5)
            assert 0 < len(ticks) <= 5
            assert clock >= block.last_release
            await trio.sleep(0.1)
            self.session.publish(Notice("analysis", {"content": str(self.count)}))
            self.count = 0


def test_one_that_follows_speaks_among_the_ticks():
    listener = play(Commenter, speed=60.0)
    assert [one.fields["content"] for one in listener.notices("analysis")] == ["20", "20", "20"]
    assert listener.end["reason"] == "finished"


def test_candles_that_are_built_are_analysed_when_they_are_finished():
    derive = (Series.parse("binance:BTC/USDT@candle_5m"),)
    tables = {}

    async def main(engine):
        await fill(engine)
        for to in (None, START + 31 * MINUTE, START + 31 * MINUTE + 1):
            session = await engine.create(
                [], SPAN, derive=derive, forming=True, analyzers=("a",), speed="max",
                start_paused=to is not None,
            )  # fmt: skip
            listener = engine.listen(session)
            session.begin()
            if to is not None:
                session.seek(to)
                session.resume()
            await listener.done.wait()
            epoch = 1 if to is None else 2
            blocks = [block for block in listener.blocks if block.epoch == epoch]
            tables[to] = [tick for block in blocks for tick in ticks_of(block)]
            if to is not None:
                [snapshot] = listener.notices("snapshot")
                found = json.loads(bytes(snapshot.fields["data"]))
                forming = [row["timestamp"] for row in found if "closed" in row]
                opened = [(START + 30 * MINUTE) // 10**6] if to % MINUTE else []
                assert forming == opened

    run_engine(main, analyzers={"a": make(MeanOfFive)}, limits=LIMITS)
    whole = tables.pop(None)
    derived = [tick for tick in whole if tick[1] == MEAN]
    assert [release for release, _, _ in derived] == [
        START + at * 5 * MINUTE for at in range(3, 13)
    ]
    for to, ticks in tables.items():
        assert ticks == [tick for tick in whole if tick[0] >= to]


class MeanOfFive(Mean):
    warmup = 15 * MINUTE


def test_to_step_back_does_not_work_in_the_event_loop():
    """What lies before is read, merged and analyzed again: others' ticks must not wait for it."""
    threads = set()

    class Watched(MeanOfThree):
        def update(self, batch):
            threads.add(threading.get_ident())
            return super().update(batch)

    class Watching(Mean):
        def start(self, request):
            return Watched()

    async def main(engine):
        await fill(engine)
        options = {"analyzers": ("a",), "speed": 1.0, "start_paused": True}
        session = await engine.create([CANDLES, TRADES], SPAN, **options)
        session.begin()
        await session.step(50).wait()
        notice = await session.step(-20).wait()
        assert notice.fields["count"] == -20
        session.stop()

    run_engine(main, analyzers={"a": make(Watching)})
    assert threads
    assert threading.get_ident() not in threads
