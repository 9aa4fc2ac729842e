"""Comments among a session's ticks: the real engine, virtual time, and a function for a model."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import trio

from tardisd.errors import RequestError
from tardisd.market.columns import Batch
from tardisd.market.decimals import Decimals
from tardisd.market.series import Series
from tardisd.market.span import Span
from tardisd.market.time import MILLISECOND, MINUTE, parse_time
from tardisd.plugins.analyzer import Analyzer, Answer
from tardisd.plugins.base import Context, Options
from tardisd.replay.manager import SessionLimits
from tardisd.replay.timeline import Tuning
from tardisd.testing.engine import run_engine
from tardisd.wire.encode import FORMS
from tardisd_openai.comments import Comments, rows
from tardisd_openai.judge import Refused

START = parse_time("2024-03-01T00:00:00Z")
SPAN = Span(START, START + 60 * MINUTE)
BTC = Series.parse("binance:BTC/USDT@candle_1m")
ETH = Series.parse("binance:ETH/USDT@candle_1m")
FIELDS = ("open", "high", "low", "close", "volume")


class Speaking(Analyzer):
    """Comments on every ten candles, `secs` after they are asked."""

    name = "speaking"
    secs = 0.0
    error = None
    every = 10

    def __init__(self):
        super().__init__(Options(), Context("ai", Path(), None))
        self.asked = []

    def open(self, session):
        return nullcontext(
            Comments(session, "ai", self.said, every=self.every, analysis_type="trend", secs=45.0,
                     at_once=4)
        )  # fmt: skip

    async def said(self, question):
        self.asked.append(question)
        at = len(self.asked)
        await trio.sleep(self.secs if at % 2 else self.secs / 2)
        if self.error is not None:
            raise self.error
        return Answer(str(question.ticks[0]["timestamp"]), "m", more={"contaminated": True})


def make(**fields):
    return type("Speaking", (Speaking,), fields)()


async def fill(engine, *series):
    opens = START + np.arange(60) * MINUTE
    for one in series:
        values = Decimals(np.arange(60) * 3 + 150, scale=2)
        await engine.store(Batch(one, opens, dict.fromkeys(FIELDS, values)), SPAN)


def play(analyzer, *series, slice_ticks=7, **options):
    async def main(engine):
        await fill(engine, *series)
        return await engine.play(series, SPAN, analyzers=("ai",), **options)

    limits = SessionLimits(tuning=Tuning(slice_ticks=slice_ticks))
    return run_engine(main, analyzers={"ai": analyzer}, limits=limits)


def ms(minute):
    return (START + minute * MINUTE) // MILLISECOND


@pytest.mark.parametrize("speed", ["max", 600.0])
@pytest.mark.parametrize("slice_ticks", [1, 7, 1000])
def test_every_so_many_candles_are_commented_on(speed, slice_ticks):
    analyzer = make(secs=0.5)
    listener = play(analyzer, BTC, ETH, speed=speed, slice_ticks=slice_ticks)
    said = [notice.fields for notice in listener.notices("analysis")]
    assert [(one["series"], one["from"], one["clock"]) for one in said] == [
        (series.text, ms(at), ms(at + 10)) for at in range(0, 60, 10) for series in (BTC, ETH)
    ]
    assert said[0] == {
        "analysis_type": "trend", "analyzer": "ai", "model": "m", "content": str(ms(0)),
        "usage": {}, "cached": False, "contaminated": True, "series": BTC.text, "from": ms(0),
        "clock": ms(10),
    }  # fmt: skip
    for question in analyzer.asked:
        assert len(question.ticks) == 10
        assert question.ticks[-1]["close_time"] * MILLISECOND == question.clock
    assert listener.end["reason"] == "finished"
    assert listener.end["ticks"] == 120


def test_candles_are_as_messages_have_them():
    found = {}

    async def main(engine):
        await fill(engine, BTC)
        listener = await engine.play([BTC], SPAN, speed="max")
        for block in listener.blocks:
            for batch, _ in block.batches():
                found["mine"] = rows(batch)
            text = b"[" + bytes(block.encode("batch").bytes()).rstrip(b",") + b"]"
            found["theirs"] = json.loads(text)

    run_engine(main)
    assert "batch" in FORMS
    dropped = {"channel", "replay_time"}
    for mine, theirs in zip(found["mine"], found["theirs"], strict=True):
        plain = {key: float(one) if key in FIELDS else one for key, one in mine.items()}
        assert plain == {key: one for key, one in theirs.items() if key not in dropped}


def test_counting_begins_anew_after_a_jump():
    analyzer = make()

    async def main(engine):
        await fill(engine, BTC)
        session = await engine.create(
            [BTC], SPAN, speed="max", start_paused=True, analyzers=("ai",)
        )
        listener = engine.listen(session)
        session.begin()
        await session.step(15).wait()
        while not listener.notices("analysis"):  # a jump drops what was not dealt with
            await trio.sleep(0.1)
        session.seek(START + 31 * MINUTE)
        session.resume()
        await listener.done.wait()
        return listener

    listener = run_engine(main, analyzers={"ai": analyzer})
    clocks = [notice.fields["clock"] for notice in listener.notices("analysis")]
    assert clocks == [ms(10), ms(40), ms(50), ms(60)]


def test_what_goes_wrong_is_told_once(caplog):
    analyzer = make(error=RequestError("analyzer_failed", "oh no"))
    listener = play(analyzer, BTC, speed="max")
    [told] = listener.notices("error")
    assert told.fields == {"code": "analyzer_failed", "message": "analyzer ai: oh no"}
    assert len(analyzer.asked) == 6
    assert listener.end["reason"] == "finished"
    [record] = [one for one in caplog.records if one.getMessage() == "no comment"]
    assert record.facts["reason"] == "oh no"


def test_a_service_that_refuses_is_not_asked_on_and_on():
    analyzer = make(error=Refused("bad key"))
    listener = play(analyzer, BTC, speed="max", slice_ticks=1)
    assert len(analyzer.asked) == 1
    assert len(listener.notices("error")) == 1
    assert listener.end["ticks"] == 60


def test_a_service_that_hangs_holds_nobody_up_for_long():
    analyzer = make(secs=1000.0)
    listener = play(analyzer, BTC, speed="max", slice_ticks=1000)
    assert listener.end["reason"] == "finished"
    assert listener.end["ticks"] == 60
    assert listener.heard[-1].at <= 46.0
    [told] = listener.notices("error")
    assert "6 comments are left out, slow the session down" in told.fields["message"]
